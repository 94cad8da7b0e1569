"""Forces what was written to disk, so that a later rename cannot publish what a power cut would lose.

Place in the flow: used by every room that publishes files. Invariant: a path holds its old content or all of its
new one, whenever the machine stops.
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


def replace_text(path: Path, text: str) -> None:
    """Make `text` the content of `path`, durably and in one step. What UTF-8 cannot hold, such as the bytes of a file
    name, is written as a JSON escape. Raises OSError, and leaves `path` as it was."""
    partial = partial_path(path)
    try:
        with partial.open("w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def partial_path(final: Path) -> Path:
    """Where `final` is written before it gets its name; always the same, so that a resume finds it."""
    return final.with_name(final.name + ".partial")
