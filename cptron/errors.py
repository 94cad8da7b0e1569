"""Errors a user can act on.

Every message states the value found, the rule it breaks and the remedy, on one line. The command line prints
a `CptronError` as one line and exits with `EXIT_CODE`; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_CODE = 2


class CptronError(Exception):
    """Base of all errors caused by input, environment or configuration rather than by a bug."""


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


def either(values: Sequence[object]) -> str:
    """The choices a message offers: `1`, `1 or 3`, `1, 2 or 4`."""
    *most, last = map(str, values)
    return f"{', '.join(most)} or {last}" if most else last
