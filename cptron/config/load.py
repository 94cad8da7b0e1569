"""Builds a `Config` from a YAML file and `a.b=c` overrides, and remembers where every value came from.

Place in the flow: first step of every command that takes a run file; `check` follows. Invariant: a value is
what its field's type says the text means (`1e-4` is a number, `wandb: off` a word), or the load stops
with file and line.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml

from cptron.config.nodes import TAG, apply_override, compose, empty_section, no_mark, read_text, shown, where
from cptron.config.presets import apply_preset
from cptron.config.schema import Config
from cptron.errors import ConfigError

DEFAULT = "default"
T = TypeVar("T")
MAX_INT_DIGITS = 20

_KNOWN_TAGS = {
    TAG + kind
    for kind in ("str", "int", "float", "bool", "null", "timestamp", "map", "seq", "merge", "value")
}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
_FLOAT = re.compile(r"[-+]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, and for every dotted key of it `run.yaml:12`, `override`, `preset NAME` or `default`."""

    config: Config
    provenance: dict[str, str]


def load_config(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read `path`, apply `overrides` in order, fill in the preset's values and defaults.

    An override is `section.key=VALUE` with VALUE in YAML; an element of a list is addressed by its position
    or its name, where it has one: `data.sources.0.token_share=0.5`, `data.sources.manual.token_share=0.5`.
    Raises `ConfigError` on anything that is not exactly a `Config`.
    """
    return _load(compose(read_text(path), str(path)), str(path), overrides)


def load_text(text: str, name: str, overrides: Sequence[str] = ()) -> Loaded:
    """The same from YAML that is in no file yet; `name` says in errors where it is from."""
    return _load(compose(text, name), name, overrides)


def load_values(values: Mapping[str, Any], name: str, overrides: Sequence[str] = ()) -> Loaded:
    """The same from what `config_to_dict` made, perhaps in another version; `name` says in errors where it is from."""
    try:
        text = yaml.dump(dict(values), Dumper=_Dumper, allow_unicode=True)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{name} is no configuration ({error!s:.80}); use another one") from None
    return _load(compose(text, name), name, overrides)


def _load(root: yaml.Node | None, name: str, overrides: Sequence[str]) -> Loaded:
    if root is None or root.tag == TAG + "null":
        root = empty_section(no_mark(name))
    for override in overrides:
        root = apply_override(root, override)
    builder = _Builder()
    config = cast(Config, builder.build(Config, root, ""))
    return Loaded(apply_preset(config, builder.provenance, DEFAULT), builder.provenance)


def load_as(cls: type[T], path: Path) -> T:
    """A dataclass that is no `Config`, from a YAML file of its own, by the same rules. Raises `ConfigError`."""
    name = str(path)
    root = compose(read_text(path), name)
    if root is None or root.tag == TAG + "null":
        root = empty_section(no_mark(name))
    return cast(T, _Builder(cls).build(cls, root, ""))


def config_to_dict(config: Config) -> dict[str, Any]:
    """Every section and value as dicts, lists and scalars, ready for JSON or YAML."""
    return plain_values(config)


def plain_values(section: Any) -> dict[str, Any]:
    """The same of any section."""
    return cast(dict[str, Any], _plain(section))


def build_section(cls: type, node: yaml.Node, key: str) -> Any:
    """A dataclass of another file than a run's, from its node; `key` stands before names in errors. Raises
    `ConfigError`."""
    return _Builder().build(cls, node, key)


def resolved_yaml(config: Config) -> str:
    """The whole configuration with nothing left to defaults; `load_config` reads it back equal."""
    return yaml.dump(config_to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Writes text with odd spaces or line breaks in double quotes: PyYAML loses some of them in other
    styles."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar(TAG + "str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_text)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


class _Builder:
    """Turns nodes into the dataclasses of the schema, following their type hints."""

    def __init__(self, document: type = Config) -> None:
        self.provenance: dict[str, str] = {}
        self._document = document

    def build(self, hint: Any, node: yaml.Node, key: str) -> Any:
        if node.tag not in _KNOWN_TAGS:
            raise ConfigError(
                f"{where(node)}: {key} has the YAML tag {node.tag}; write a plain value without a tag"
            )
        if is_dataclass(hint):
            return self._section(cast(type, hint), node, key)
        if get_origin(hint) is tuple:
            return self._list(get_args(hint)[0], node, key)
        if get_origin(hint) is Mapping:
            return self._mapping(get_args(hint)[1], node, key)
        self.provenance[key] = where(node)
        return _scalar(hint, node, key)

    def _section(self, cls: type, node: yaml.Node, key: str) -> Any:
        entries = self._entries(cls, node, key)
        prefix = key + "." if key else ""
        hints, values, missing = get_type_hints(cls), {}, []
        for field in fields(cls):
            child_key, hint = prefix + field.name, hints[field.name]
            if field.name in entries:
                values[field.name] = self.build(hint, entries[field.name], child_key)
            elif is_dataclass(hint):
                values[field.name] = self.build(hint, empty_section(node.start_mark), child_key)
            elif field.default is MISSING and field.default_factory is MISSING:
                missing.append(child_key)
            else:
                self.provenance[child_key] = DEFAULT
        if missing:
            plural = "keys" if len(missing) > 1 else "key"
            raise ConfigError(
                f"{where(node)}: missing required {plural} {', '.join(missing)}; add the {plural}"
            )
        return cls(**values)

    def _entries(self, cls: type, node: yaml.Node, key: str) -> dict[str, yaml.Node]:
        """The section's nodes by name; unknown and repeated names stop here."""
        if node.tag == TAG + "null":
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise _wrong(node, key or "the file", "must be a section", "write `key: value` lines under it")
        names = [field.name for field in fields(cls)]
        for key_node, _ in node.value:
            name = _key_name(key_node)
            full = f"{key}.{name}" if key else name
            if name not in names:
                raise ConfigError(
                    f"{where(key_node)}: unknown key {full}; {_hint_for(full, key, names, self._document)}"
                )
        return _once(node, key)

    def _mapping(self, hint: Any, node: yaml.Node, key: str) -> dict[str, Any]:
        """Values under names that the user chooses."""
        if node.tag == TAG + "null":
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise _wrong(node, key, "must be a section", "write `name: value` lines under it")
        return {name: self.build(hint, value, f"{key}.{name}") for name, value in _once(node, key).items()}

    def _list(self, hint: Any, node: yaml.Node, key: str) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise _wrong(node, key, "must be a list", "write `- ` before each element, or [] for none")
        if not node.value:
            self.provenance[key] = where(node)
        return tuple(self.build(hint, item, f"{key}.{i}") for i, item in enumerate(node.value))


def _key_name(node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else shown(node)


def _once(node: yaml.MappingNode, key: str) -> dict[str, yaml.Node]:
    """The values of a section by their names; a name that is repeated stops here."""
    entries: dict[str, yaml.Node] = {}
    lines: dict[str, str] = {}
    for key_node, value in node.value:
        name = _key_name(key_node)
        if name in entries:
            full = f"{key}.{name}" if key else name
            raise ConfigError(f"{where(key_node)}: {full} is set twice, first at {lines[name]}; remove one")
        entries[name], lines[name] = value, where(key_node)
    return entries


def _scalar(hint: Any, node: yaml.Node, key: str) -> Any:
    """The value of a leaf, read by its field's type rather than by YAML 1.1's guess."""
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        if not isinstance(node, yaml.ScalarNode) or node.value not in choices:
            close = difflib.get_close_matches(str(node.value), choices, 1)
            raise _wrong(
                node, key, f"must be one of {', '.join(choices)}", f"use {close[0] if close else choices[0]}"
            )
        return node.value
    if hint is str:
        if not isinstance(node, yaml.ScalarNode) or node.tag == TAG + "null":
            raise _wrong(node, key, "must be text", "write the text, or '' for an empty one")
        return node.value
    plain = node.value if isinstance(node, yaml.ScalarNode) and node.style is None else ""
    if hint is bool:
        if plain.lower() not in _TRUE + _FALSE:
            raise _wrong(node, key, "must be true or false", "use one of these words")
        return plain.lower() in _TRUE
    if hint is int:
        if not _INT.fullmatch(plain) or len(plain) > MAX_INT_DIGITS:
            raise _wrong(node, key, "must be a whole number", "write it in digits, as 1000")
        return int(plain)
    assert hint is float, f"the schema uses a type this loader does not know: {hint}"
    if not _FLOAT.fullmatch(plain) or not math.isfinite(float(plain)):
        raise _wrong(node, key, "must be a finite number", "write it as 0.1 or 1e-4")
    return float(plain)


def _wrong(node: yaml.Node, key: str, rule: str, remedy: str) -> ConfigError:
    return ConfigError(f"{where(node)}: {key}={shown(node)} {rule}; {remedy}")


def _hint_for(full: str, section: str, names: list[str], document: type) -> str:
    """Which valid key an unknown one most likely stands for: the same name elsewhere, else the nearest."""
    prefix = section + "." if section else ""
    last = full.rpartition(".")[2]
    leaves = _leaf_keys(document)
    elsewhere = [leaf for leaf in leaves if leaf.rpartition(".")[2] == last]
    neighbours = [prefix + name for name in difflib.get_close_matches(last, names, 1)]
    similar = difflib.get_close_matches(full, leaves, 1)
    best = (elsewhere if len(elsewhere) == 1 else []) + neighbours + elsewhere + similar
    return f"did you mean {best[0]}?" if best else f"{section or 'the file'} has {', '.join(names)}"


def _leaf_keys(cls: Any, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, hint in get_type_hints(cls).items():
        nested = is_dataclass(hint)
        keys += _leaf_keys(hint, f"{prefix}{name}.") if nested else [prefix + name]
    return keys
