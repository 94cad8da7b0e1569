"""What a run directory holds, and what the configuration would change of it.

Place in the flow: `preflight` asks; imports no torch. Invariant: what is compared is what the checkpoint itself was
trained with, so that going back to an older one, or starting again after a crash, decides as the first time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from cptron.checkpoint import layout
from cptron.checkpoint.run_lock import LOCK
from cptron.checkpoint.saved_rate import saved_rate
from cptron.config.resume_rules import Rule, rule_of
from cptron.config.schema import Config
from cptron.config.stored import ABSENT, dotted, read_stored, stored_configs
from cptron.data.ledger import Ledger, source_of
from cptron.errors import CheckpointError, ConfigError
from cptron.forgetting.journal import JOURNAL, read_verdicts
from cptron.forgetting.left import is_left
from cptron.json_text import parse_json
from cptron.launch.record import JOBS
from cptron.model.architecture import Architecture
from cptron.optim.schedule import learning_rate
from cptron.partials import partials_of

RUN_FILE = "run.json"
OF_THE_BRANCH = ("run.dir", "run.name", "start.")
"""What every branch has otherwise than its parent."""


@dataclass(frozen=True, slots=True)
class Change:
    """A value that is another than before."""

    key: str
    before: str
    now: str
    rule: Rule

    def __str__(self) -> str:
        return f"{self.key} {_short(self.before)} -> {_short(self.now)}"


@dataclass(frozen=True, slots=True)
class Found:
    """A run in its directory."""

    checkpoint: Path | None
    """Where it goes on; None: none was saved yet."""
    identity: Mapping[str, Any]
    """What `run.json` says that makes this run another run than its neighbour."""
    problems: tuple[str, ...]
    """What is wrong with newer checkpoints."""
    is_parent: bool = False
    """It is the run in another directory that a branch goes on from."""


def find_run(directory: Path, on_damage: Literal["previous", "stop"] = "previous") -> Found | None:
    """The run in `directory`; None where there is nothing. Raises a `CptronError` where something else is there, where
    no checkpoint is usable, and with `on_damage` = `stop` where the newest is not."""
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"run.dir={directory} is a file; choose another run.dir")
    path = directory / RUN_FILE
    if not directory.exists() or set(directory.iterdir()) <= {
        *partials_of(path),
        directory / LOCK,
        directory / JOBS,
    }:
        return None
    if not path.is_file():
        raise ConfigError(f"run.dir={directory} is not empty and holds no run; choose another run.dir")
    try:
        identity = dict(parse_json(path.read_text())["identity"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}); restore it or choose another run.dir") from None
    verdicts = read_verdicts(directory / JOURNAL)
    newest, problems = layout.newest_complete(
        directory / "checkpoints", lambda found: not is_left(found.step, found.attempt, verdicts)
    )
    if newest is None and problems:
        raise CheckpointError(f"no checkpoint of {directory} is usable: {problems[0]}")
    if problems and on_damage == "stop":
        raise stopped_by_damage(problems[0])
    return Found(newest, identity, tuple(problems))


def found_parent(checkpoint: Path) -> Found:
    """The run that a branch goes on from, as if it were the one in `run.dir`."""
    manifest = layout.read_manifest(checkpoint)
    own_tokenizer = dotted(manifest.config).get("data.tokenizer", '""') == '""'
    identity = {"tokenizer": manifest.tokenizer_fingerprint} if own_tokenizer else {}
    return Found(checkpoint, identity, (), is_parent=True)


def stopped_by_damage(problem: str) -> CheckpointError:
    """What to raise where a damaged checkpoint is not passed over."""
    return CheckpointError(
        f"{problem}; restore it, or set checkpoint.on_damage=previous to go on from an older checkpoint"
    )


def accepted_changes(
    config: Config, found: Found, identity: Mapping[str, Any], arch: Architecture, contents: Mapping[str, str]
) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    """The changes that `run.accept_changes` names, and notes on all changes. Raises `ConfigError` where one is refused.

    `identity` is the run's now, `contents` the identity of each source's tokens by its name.
    """
    changes = _changes(config, found, identity, arch, contents)
    since = f"step {layout.read_manifest(found.checkpoint).step}" if found.checkpoint else "the last start"
    _refuse(config, found, since, [change for change in changes if change.rule.verdict == "never"])
    accepted = tuple(change for change in changes if change.key in config.run.accept_changes)
    named = [change for change in changes if change.rule.verdict == "named"]
    _ask(config, found, since, [change for change in named if change not in accepted])
    listed = [str(change) for change in changes if change.rule.verdict == "listed"]
    notes = [f"changed since {since}: {', '.join(listed)}"] if listed else []
    notes += _rate_note(config, found.checkpoint) if found.checkpoint and listed else []
    notes += [f"changed since {since} and accepted: {change}; {change.rule.effect}" for change in accepted]
    unused = [key for key in config.run.accept_changes if key not in {change.key for change in accepted}]
    notes += [f"run.accept_changes names {', '.join(unused)}: not changed since {since}"] if unused else []
    return accepted, tuple(notes)


def renewed(accepted: tuple[Change, ...], names: Mapping[str, Any]) -> list[str]:
    """Those sources, of `names`, whose account an accepted change starts anew."""
    if any(change.rule.renews == "all" for change in accepted):
        return list(names)
    one = [change.key.rpartition(".")[0] for change in accepted if change.rule.renews == "one"]
    return [name for name in names if f"data.sources.{source_of(name)}" in one]


def _changes(
    config: Config, found: Found, identity: Mapping[str, Any], arch: Architecture, contents: Mapping[str, str]
) -> list[Change]:
    now = dotted(config)
    before = _stored_values(Path(config.run.dir), found.checkpoint) or dict(now)
    for key in ("start", "tokenizer", "regularise"):
        if found.identity.get(key) and identity.get(key):  # else it was or is not known
            before[key], now[key] = str(found.identity[key]), str(identity[key])
    if found.checkpoint is not None:
        saved = layout.read_manifest(found.checkpoint)
        if saved.arch != arch:
            before["model"], now["model"] = _differing(saved.arch, arch)
        if config.data.order == "cptron" and before.get("data.order") == now["data.order"]:
            for name, content in _ledger_contents(saved.ledger).items():
                if name in contents:
                    before[_content_key(name)], now[_content_key(name)] = content, contents[name]
    _compare_orders(before, now)
    return [
        Change(key, before.get(key, ABSENT), now.get(key, ABSENT), rule_of(key, before, now))
        for key in {**before, **now}
        if before.get(key) != now.get(key)
        and key != "run.accept_changes"
        and not (found.is_parent and key.startswith(OF_THE_BRANCH))
    ]


def _compare_orders(before: dict[str, str], now: dict[str, str]) -> None:
    """The order of a source has changed only where it was a source before; runs of earlier versions do not name it."""
    for key in [key for key in now if fnmatchcase(key, "data.sources.*.order")]:
        if f"{key.rpartition('.')[0]}.path" in before:
            before.setdefault(key, '"shuffled"')
        else:
            del now[key]
    for key in [key for key in before if fnmatchcase(key, "data.sources.*.order") and key not in now]:
        del before[key]


def _stored_values(run: Path, checkpoint: Path | None) -> dict[str, str] | None:
    """The configuration that the checkpoint was trained with; without one, that of the last start. None where that one
    was killed before it could store it: nothing has been trained by it."""
    if checkpoint is not None:
        return dotted(layout.read_manifest(checkpoint).config)
    return dotted(read_stored(run)) if stored_configs(run)[0].exists() else None


def _content_key(name: str) -> str:
    return f"data.sources.{name}.content"


def _differing(saved: Architecture, asked: Architecture) -> tuple[str, str]:
    """The fields of two architectures that differ, as text."""
    first, second = saved.to_dict(), asked.to_dict()
    keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    return (
        ", ".join(f"{key}={first.get(key)}" for key in keys),
        ", ".join(f"{key}={second.get(key)}" for key in keys),
    )


def _ledger_contents(ledger: Mapping[str, Any]) -> dict[str, str]:
    """Identity of the content that each account counts in."""
    return {name: entry.identity for name, entry in Ledger.from_dict(ledger).entries.items()}


def _rate_note(config: Config, checkpoint: Path) -> list[str]:
    """Says so where the next step has another learning rate than it would have had."""
    saved = saved_rate(layout.read_manifest(checkpoint))
    if saved is None:
        return []
    now = learning_rate(config.optim, saved.step, config.train.steps)
    risen = ", it rises again" if now > saved.at_save and saved.phase.name in ("decay", "decayed") else ""
    changed = f"learning rate of the next step: {saved.at_save:.4g} -> {now:.4g}{risen}"
    return [changed] if now != saved.at_save else []


def _refuse(config: Config, found: Found, since: str, changes: list[Change]) -> None:
    if not changes:
        return
    what = "; ".join(f"{change} ({change.rule.why})" for change in changes)
    if found.is_parent:
        raise ConfigError(
            f"start.checkpoint={config.start.checkpoint}: a branch cannot change so since {since}, named or not: "
            f"{what}; put it back, or use start.mode=init_from"
        )
    raise ConfigError(
        f"run.dir={config.run.dir} holds a run that cannot change so since {since}, named or not: {what}; put it back, "
        "or choose another run.dir, where `start` may name this run"
    )


def _ask(config: Config, found: Found, since: str, changes: list[Change]) -> None:
    if not changes:
        return
    what = "; ".join(f"{change} ({change.rule.why}; accepted, {change.rule.effect})" for change in changes)
    keys = ", ".join(change.key for change in changes)
    start = (
        f"start.checkpoint={config.start.checkpoint}: the branch has changed since {since}: {what}. Put it back"
        if found.is_parent
        else f"run.dir={config.run.dir} holds another run, or this one changed since {since}: {what}. Put it back, "
        "choose another run.dir"
    )
    raise ConfigError(f"{start}, or accept the change by name: 'run.accept_changes=[{keys}]'")


def _short(value: str) -> str:
    """Hashes by their beginning."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1...", value)
