"""A directory that is made once for all workers of a test run.

Place in the flow: below the fixtures that take long. Invariant: `make` runs once, and nobody sees what it has not
finished.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def shared_directory(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The directory `name`; the first worker that asks makes it with `make(directory)`, the others wait. Where that
    fails, the next one that asks makes it anew."""
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    made = root / f"{name}.made"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            made.write_text(str(factory.mktemp(name)))
            try:
                make(Path(made.read_text()))
            except BaseException:
                made.unlink()
                raise
    return Path(made.read_text())
