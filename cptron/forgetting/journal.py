"""What the monitor has found and done: `RUN/forgetting.jsonl`, one line an evaluation.

Place in the flow: the monitor appends before anything takes effect, and reads it when a run goes on; reports show it.
Imports no torch. Invariant: a line that was written whole is on disk, and decides whenever its evaluation is made
again, whatever is measured then: another layout has other last bits.

An evaluation is known by attempt, step, tokens, batches drawn and settings. An attempt is what lies between two
rollbacks of the monitor, so that the same step of a later one is another evaluation; where the guards have gone back
and dropped batches, more are drawn by the same step; and the settings are all that weights depend on beside these, so
that a run that was taken up from before an evaluation, with other data or another rate, is judged by what it is now.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

from cptron.durable import append_line, whole_lines
from cptron.errors import CheckpointError
from cptron.forgetting.bootstrap import Interval
from cptron.forgetting.reaction import Reaction
from cptron.forgetting.watch import Watch
from cptron.json_text import parse_json
from cptron.typed import is_of

JOURNAL = "forgetting.jsonl"
Action = Literal["none", "alert", "raise_replay", "lower_lr", "rollback", "stop_and_keep_best"]
Finding = Literal["none", "grace", "quiet", "above", "alarm", "hold", "clear"]
"""`none`: there is no old set with a base. The others are those of `policy`."""
_KEYS = (
    *("attempt", "step", "tokens_total", "finding", "action", "why", "old", "new", "alarms", "to_step"),
    *("watch", "reaction", "batch", "settings"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one evaluation meant."""

    attempt: int
    step: int
    tokens_total: int
    finding: Finding
    action: Action
    why: str
    """In words, for people."""
    old: Interval | None
    """Change of the old sets since the base; None where that is not known."""
    new: Interval | None
    alarms: tuple[str, ...]
    """Of overfitting and repetition, in words."""
    to_step: int
    """Of the checkpoint that a rollback goes to."""
    watch: Watch
    """After the evaluation."""
    reaction: Reaction
    """After the action."""
    batch: int = 0
    """Global batches drawn until then."""
    settings: str = ""
    """Fingerprint of the settings that the weights depend on."""

    @property
    def place(self) -> tuple[int, int, int, int, str]:
        """Which evaluation it is about."""
        return self.attempt, self.step, self.tokens_total, self.batch, self.settings

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Raises ValueError on what `to_line` cannot have written."""
        values = parse_json(line)
        if not isinstance(values, Mapping) or set(values) != set(_KEYS):
            raise ValueError(f"must be an object of {', '.join(_KEYS)}")
        for name in ("attempt", "step", "tokens_total", "to_step", "batch"):
            if type(values[name]) is not int or not 0 <= values[name] < 2**62:
                raise ValueError(f"{name} is {values[name]!r:.40}, must be a whole number from 0")
        for name, kind in (("finding", Finding), ("action", Action)):
            if values[name] not in get_args(kind):
                raise ValueError(
                    f"{name} is {values[name]!r:.40}, must be one of {', '.join(get_args(kind))}"
                )
        texts = [values["why"], values["settings"]]
        if not is_of(texts, list[str]) or not is_of(values["alarms"], list[str]):
            raise ValueError("why, settings and alarms must be texts")
        return cls(
            **{
                name: values[name] for name in ("attempt", "step", "tokens_total", "finding", "action", "why")
            },
            old=_interval(values["old"]),
            new=_interval(values["new"]),
            alarms=tuple(values["alarms"]),
            to_step=values["to_step"],
            watch=Watch.from_dict(values["watch"]),
            reaction=Reaction.from_dict(values["reaction"]),
            batch=values["batch"],
            settings=values["settings"],
        )

    def to_line(self) -> bytes:
        """JSON and the end of the line."""
        values = {name: getattr(self, name) for name in _KEYS}
        values |= {"old": _numbers(self.old), "new": _numbers(self.new)}
        values |= {"watch": self.watch.to_dict(), "reaction": self.reaction.to_dict()}
        return json.dumps(values, ensure_ascii=True).encode() + b"\n"


def _numbers(interval: Interval | None) -> list[float | str] | None:
    """JSON has no infinities."""
    if interval is None:
        return None
    ends = (interval.estimate, interval.low, interval.high)
    return [value if math.isfinite(value) else str(value) for value in ends]


def _interval(values: Any) -> Interval | None:
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != 3:
        raise ValueError("an interval must be three numbers")
    found = []
    for value in values:
        if value not in ("inf", "-inf") and type(value) not in (int, float):
            raise ValueError(f"{value!r:.40} must be a number")
        found.append(float(value))
    return Interval(*found)


def read_verdicts(path: Path) -> list[Verdict]:
    """All lines, oldest first; none where there is no file. A last line that was cut off has had no effect and is left
    out. Raises `CheckpointError` on any other line that is none."""
    try:
        lines = whole_lines(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it") from None
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(Verdict.from_line(line))
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path}:{number} is no verdict of the monitor ({error}); restore the file: without it the run would "
                "decide again"
            ) from None
    return found


def append_verdict(path: Path, verdict: Verdict) -> None:
    """Write one more line and force it to disk. Raises `CheckpointError`, with the file as it was to every reader."""
    try:
        append_line(path, verdict.to_line())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written ({error}); free space and start again") from None


def in_a_branch(watch: Watch, reaction: Reaction, step: int, tokens_total: int) -> tuple[Watch, Reaction]:
    """What of its parent's state a branch goes on with, which begins after so many steps and tokens: what is in force,
    but neither its parent's journal, nor that it has acted or stopped."""
    policy = replace(
        watch.policy, above=0
    )  # what comes after its grace window is no row with what its parent had
    begun = replace(watch, policy=policy, lines=0, begun_step=step, begun_tokens=tokens_total)
    return begun, replace(reaction, actions=0, stopped=False)


def after_rollbacks(
    step: int, watch: Watch, reaction: Reaction, verdicts: Sequence[Verdict]
) -> tuple[Watch, Reaction]:
    """What the state of a checkpoint is once the rollbacks that went to it are in force. Raises `CheckpointError` where
    the journal has lost lines."""
    if len(verdicts) < watch.lines:
        raise CheckpointError(
            f"{JOURNAL} has {len(verdicts)} line(s), the checkpoint was made with {watch.lines}; restore the file"
        )
    for verdict in verdicts:
        is_next = verdict.attempt == reaction.attempt and verdict.to_step == step
        if verdict.action == "rollback" and is_next:
            alarms = verdict.watch.policy.alarms
            watch = replace(watch, policy=replace(watch.policy, alarms=alarms), lines=len(verdicts))
            reaction = verdict.reaction
    return watch, reaction
