"""Reads a curation file: YAML and overrides to a `CurateConfig`, with file and line in every message.

Place in the flow: first thing `cptron curate` does. Invariant: what is returned has known steps with settings of their
own types, unique names, and passes every rule that needs no look at the inputs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from cptron.config.load import build_section, plain_values
from cptron.config.nodes import TAG, apply_override, compose, read_text, shown, where
from cptron.corpus.registry import STEPS, config_class, step_class
from cptron.corpus.schema import CorpusConfig, CurateConfig, StepConfig
from cptron.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LEAST_SHARD_BYTES = 1 << 10
_LEVELS = range(1, 20)
_NEAR = 0.5
"""Likeness from which an unknown step is taken for another."""


def load_curation(path: Path, overrides: Sequence[str] = ()) -> CurateConfig:
    """Read `path`, apply `overrides` (`shard_bytes=1000000`, `steps.3.min_words=20`, `steps.NAME.min_words=20`).

    Raises `ConfigError` on anything that is not exactly a curation.
    """
    return _load(compose(read_text(path), str(path)), str(path), overrides)


def _load(root: yaml.Node | None, name: str, overrides: Sequence[str]) -> CurateConfig:
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{name}: must be a section with output, inputs and steps; write these keys")
    for override in overrides:
        root = cast(yaml.MappingNode, apply_override(root, override))
    step_nodes = [value for key, value in root.value if key.value == "steps"]
    if len(step_nodes) > 1:
        raise ConfigError(f"{where(step_nodes[1])}: steps is set twice; remove one")
    rest = [pair for pair in root.value if pair[0].value != "steps"]
    plain = yaml.MappingNode(root.tag, rest, root.start_mark, root.end_mark)
    corpus = cast(CorpusConfig, build_section(CorpusConfig, plain, ""))
    config = CurateConfig(corpus=corpus, steps=_steps(step_nodes[0]) if step_nodes else ())
    _check(config, name)
    return config


def _steps(node: yaml.Node) -> tuple[StepConfig, ...]:
    if node.tag == TAG + "null":
        return ()
    if not isinstance(node, yaml.SequenceNode):
        raise ConfigError(f"{where(node)}: steps must be a list; write `- step: NAME` for each")
    steps: list[StepConfig] = []
    for number, item in enumerate(node.value):
        step = _step(item, f"steps.{number}")
        if step.name in [other.name for other in steps]:
            raise ConfigError(
                f"{where(item)}: step name {step.name} is there twice, must be unique; add `name:`"
            )
        steps.append(step)
    return tuple(steps)


def _step(node: yaml.Node, key: str) -> StepConfig:
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{where(node)}: {key} must be a section; write `step: NAME` and its settings")
    own = _own(node, key)
    settings = [pair for pair in node.value if pair[0].value not in own]
    kind = own.get("step")
    if not isinstance(kind, yaml.ScalarNode) or kind.value not in STEPS:
        raise _no_step(node, kind, key)
    config = build_section(
        config_class(kind.value), yaml.MappingNode(node.tag, settings, node.start_mark, node.end_mark), key
    )
    problem = cast(Any, step_class(kind.value)).problem(config)
    if problem:
        raise ConfigError(f"{where(node)}: {key} ({kind.value}): {problem}")
    name = own.get("name", kind)
    if not isinstance(name, yaml.ScalarNode):
        raise ConfigError(f"{where(name)}: {key}.name={shown(name)} must be text; write one name")
    return StepConfig(
        step=kind.value,
        name=str(name.value),
        sources=_names(own.get("sources"), f"{key}.sources"),
        settings=config,
    )


def _own(node: yaml.MappingNode, key: str) -> dict[str, yaml.Node]:
    """What is of every step, and not a setting of one."""
    own: dict[str, yaml.Node] = {}
    for name, value in node.value:
        if name.value in ("step", "name", "sources"):
            if name.value in own:
                raise ConfigError(f"{where(name)}: {key}.{name.value} is set twice; remove one")
            own[name.value] = value
    return own


def _no_step(node: yaml.MappingNode, kind: yaml.Node | None, key: str) -> ConfigError:
    """Of a section that names no step that there is, with the nearest one."""
    if kind is None:
        meant = next((str(name.value) for name, _ in node.value if name.value in STEPS), "")
        remedy = f"`step: {meant}` and its settings beside it" if meant else "`step: NAME`"
        return ConfigError(f"{where(node)}: {key} has no key step; write {remedy}")
    found = str(kind.value) if isinstance(kind, yaml.ScalarNode) else shown(kind)
    near = difflib.get_close_matches(found.lower().replace("-", "_"), STEPS, 1, _NEAR)
    hint = f"did you mean {near[0]}?" if near else "correct it"
    return ConfigError(f"{where(kind)}: {key}.step is {found}, must be one of {', '.join(STEPS)}; {hint}")


def _names(node: yaml.Node | None, key: str) -> tuple[str, ...]:
    if node is None:
        return ()
    if not isinstance(node, yaml.SequenceNode) or not all(
        isinstance(item, yaml.ScalarNode) for item in node.value
    ):
        raise ConfigError(f"{where(node)}: {key} must be a list of names; write [a, b]")
    return tuple(str(item.value) for item in node.value)


PREFERS = "prefer_sources"
"""A setting of this name, of any step, has names of inputs."""


def _check(config: CurateConfig, name: str) -> None:
    """Rules that no single value can be held to."""
    corpus, sources = config.corpus, [source.name for source in config.corpus.inputs]
    if not sources:
        raise ConfigError(f"{name}: inputs has 0 elements, must have 1 at least; add one")
    for given in [*sources, *(step.name for step in config.steps)]:
        if not _NAME.fullmatch(given):
            raise ConfigError(f"{name}: the name {given!r} must be of letters, digits, . _ and -; change it")
    if repeated := {source for source in sources if sources.count(source) > 1}:
        raise ConfigError(f"{name}: inputs has the name {min(repeated)} twice, must be unique; change one")
    for step in config.steps:
        if unknown := [source for source in step.sources if source not in sources]:
            raise ConfigError(
                f"{name}: step {step.name} is for the source {unknown[0]}, must be one of {', '.join(sources)}; "
                "correct it"
            )
        if unknown := [source for source in getattr(step.settings, PREFERS, ()) if source not in sources]:
            raise ConfigError(
                f"{name}: step {step.name} has the source {unknown[0]} in {PREFERS}, must be one of "
                f"{', '.join(sources)}; correct it"
            )
    if corpus.shard_bytes < _LEAST_SHARD_BYTES or corpus.max_document_bytes < 1:
        raise ConfigError(
            f"{name}: shard_bytes {corpus.shard_bytes} and max_document_bytes {corpus.max_document_bytes} must be at "
            f"least {_LEAST_SHARD_BYTES} and 1; raise them"
        )
    if corpus.compression_level not in _LEVELS or corpus.seed < 0:
        raise ConfigError(
            f"{name}: compression_level {corpus.compression_level} must be 1 to 19 and seed {corpus.seed} 0 or more; "
            "correct it"
        )


def settings_of(step: StepConfig) -> dict[str, Any]:
    """A step as YAML has it, with nothing left to defaults."""
    return _as_yaml(step, plain_values(step.settings))


DECIDES = "decides"
"""In the metadata of a setting's field: False where it changes how the result is come by, and not the result."""


def deciding_settings_of(step: StepConfig) -> dict[str, Any]:
    """Those that decide what the step makes: the fingerprint has them."""
    return _as_yaml(step, _deciding(step.settings, plain_values(step.settings)))


def _as_yaml(step: StepConfig, settings: dict[str, Any]) -> dict[str, Any]:
    return {"step": step.step, "name": step.name, "sources": list(step.sources), **settings}


def _deciding(section: Any, plain: dict[str, Any]) -> dict[str, Any]:
    return {
        field.name: _deciding(value, plain[field.name]) if is_dataclass(value) else plain[field.name]
        for field in fields(section)
        if field.metadata.get(DECIDES, True)
        for value in (getattr(section, field.name),)
    }
