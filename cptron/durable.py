"""Forces what was written to disk, so that a later rename cannot publish what a power cut would lose.

Place in the flow: used by every room that publishes files. Invariant: opens for reading only, changes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path


def fsync_path(path: Path) -> None:
    """Flush one file's content, or one directory's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(directory: Path) -> None:
    """Flush every file and directory below `directory`, and itself last."""
    for path in sorted(directory.rglob("*"), reverse=True):
        fsync_path(path)
    fsync_path(directory)
