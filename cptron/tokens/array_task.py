"""Which task of a SLURM job array this is.

Place in the flow: under the options of commands whose work can be cut into parts. Invariant: a number of parts is told
only by an array of all of them.
"""

from __future__ import annotations

import os

from cptron.errors import ConfigError


def array_task(flag: str) -> tuple[int, int | None]:
    """Number of this task, and of all tasks if they are 0 to N-1: some of them, submitted again, are not. Raises
    ConfigError, which names `flag`, outside of an array."""
    names = ("ID", "MIN", "MAX", "COUNT")
    values = [os.environ.get(f"SLURM_ARRAY_TASK_{name}", "") for name in names]
    if not all(value.isdecimal() for value in values):
        raise ConfigError(
            f"{flag} needs SLURM_ARRAY_TASK_ID, _MIN, _MAX and _COUNT, they are {values}; start it in a job array"
        )
    index, first, last, count = map(int, values)
    return index, count if (first, last) == (0, count - 1) else None
