"""What online mixers have decided in a run: `RUN/mix.jsonl`, one line an update.

Place in the flow: `mixing` appends before new shares take effect, and reads it when a run goes on. Invariant: a line
that was written whole decides when its batch comes again, under any layout; another layout has other last bits.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from cptron.data.floors import is_usable
from cptron.errors import CheckpointError
from cptron.json_text import parse_json
from cptron.train.journal import add_line, lines_of

MIX_JOURNAL = "mix.jsonl"


@dataclass(frozen=True, slots=True)
class Decision:
    """Shares in force after a global batch."""

    batch: int
    """Global batches drawn before."""
    step: int
    """Steps done."""
    shares: dict[str, float]
    """Of the tokens, by source, in the stage of the next batch."""
    data: str
    """Fingerprint of the settings that decide which samples a batch holds."""
    refused: str = ""
    """Why the mixer's answer was not taken; then `shares` are those of before."""

    def __post_init__(self) -> None:
        for name in ("batch", "step"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < 2**62:
                raise ValueError(f"{name} is {value!r}, must be a whole number from 0")
        if not isinstance(self.data, str) or not isinstance(self.refused, str):
            raise ValueError("data and refused must be texts")
        if not isinstance(self.shares, dict) or not all(type(s) is float for s in self.shares.values()):
            raise ValueError("shares must be numbers by source")
        if not is_usable(self.shares.values()):
            raise ValueError("shares must be finite, from 0 and not all 0")

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Raises ValueError or TypeError on what `to_line` cannot have written."""
        values: Any = parse_json(line)
        if not isinstance(values, dict):
            raise ValueError("must be an object")
        return cls(**values)

    def to_line(self) -> bytes:
        """One line of JSON."""
        return (json.dumps(asdict(self), allow_nan=False) + "\n").encode()


def read_decisions(path: Path) -> list[Decision]:
    """All of them, oldest first; none where there is no file. Raises `CheckpointError` on a line that is none."""
    found = []
    for number, line in enumerate(lines_of(path), start=1):
        try:
            found.append(Decision.from_line(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{path}:{number} is no decision of a mixer ({error}); restore the file: without it the run would go "
                "on with other data"
            ) from None
    return found


def append_decision(path: Path, decision: Decision) -> None:
    """Write one more line and force it to disk. Raises `CheckpointError`."""
    add_line(path, decision.to_line())
