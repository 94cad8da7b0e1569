"""Errors a user can act on.

Every message states the value found, the rule it breaks and the remedy, on one line. The command line prints
a `CptronError` as one line and exits with `EXIT_CODE`; anything else is a bug and keeps its traceback. The other exit
codes of a run are here too, for whoever starts it again.
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_CODE = 2
"""What the user can act on: starting again without a change would fail again."""
FAILED_EXIT_CODE = 1
"""A bug, a lost machine, a killed rank: starting again goes on from the last checkpoint."""
STOPPED_EXIT_CODE = 75
"""Asked to stop, or out of time: saved, start again to go on (EX_TEMPFAIL of sysexits.h)."""
HANG_EXIT_CODE = 76
"""No step came for too long; the stacks are in RUN_DIR/stacks."""
MOST_CHARACTERS = 1600
"""Of a message; the middle of a longer one is left out."""


class CptronError(Exception):
    """Base of all errors caused by input, environment or configuration rather than by a bug."""

    def __str__(self) -> str:
        """The message on one line, however long or odd a value that a file holds is."""
        line = "".join(map(_in_line, super().__str__()))
        if len(line) <= MOST_CHARACTERS:
            return line
        return f"{line[: MOST_CHARACTERS // 2]} [...] {line[-MOST_CHARACTERS // 2 :]}"


def _in_line(char: str) -> str:
    if char.isprintable():
        return char
    return " " if char.isspace() else ascii(char)[1:-1]


class ConfigError(CptronError):
    """The configuration is wrong: unknown key, bad value, or an illegal combination."""


class DataError(CptronError):
    """A corpus, token file or tokenizer is missing, damaged or does not match the others."""


class CheckpointError(CptronError):
    """A checkpoint is missing, incomplete, damaged or belongs to something else."""


class ConversionError(CptronError):
    """A Hugging Face model cannot be imported, or a checkpoint cannot be exported, exactly."""


class LaunchError(CptronError):
    """The process group, device or backend asked for cannot be had here."""


class TrainingError(CptronError):
    """Training cannot go on: non-finite loss, or the step-0 gate found wrong weights."""


class RankEnded(Exception):
    """This process has to end with `code`; what there is to say has been said, by it or by the rank that failed."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def either(values: Sequence[object]) -> str:
    """The choices a message offers: `1`, `1 or 3`, `1, 2 or 4`."""
    *most, last = map(str, values)
    return f"{', '.join(most)} or {last}" if most else last
