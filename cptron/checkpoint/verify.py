"""Proves that a checkpoint's files are those that were written.

Place in the flow: before anything of a checkpoint is loaded, and for `cptron checkpoint verify`; imports no torch.
Invariant: every file that the manifest names was read to its end, unless it was proven before and is the same file of
the same size and time, where the caller allows that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cptron.checkpoint import layout
from cptron.checkpoint.block_file import FileRecord
from cptron.checkpoint.hashing import hash_file, num_threads
from cptron.durable import replace_text
from cptron.errors import CheckpointError
from cptron.json_text import parse_json

Known = Callable[[Path], bool]
"""Whether a file needs no reading."""


def damage(
    directory: Path, part: tuple[int, int] = (0, 1), threads: int = 0, known: Known = lambda path: False
) -> list[str]:
    """One line for each thing that is wrong with the checkpoint in `directory`; empty when there is nothing.

    `part` (n, of): read every `of`-th file from the n-th on, so that ranks divide the work.
    """
    try:
        manifest = layout.read_manifest(directory)
    except CheckpointError as error:
        return [str(error)]
    mine = sorted(manifest.files)[part[0] :: part[1]]
    with ThreadPoolExecutor(threads or num_threads(), "verify") as pool:
        found = pool.map(lambda name: _wrong(directory, name, manifest.files[name], known), mine)
        return [line for line in found if line]


def _wrong(directory: Path, name: str, expected: FileRecord, known: Known) -> str:
    path = directory / name
    if known(path):
        return ""
    try:
        found = hash_file(path)
    except OSError as error:
        return f"checkpoint {directory} is damaged: {name} cannot be read ({error})"
    if found.size != expected.size:
        return f"checkpoint {directory} is damaged: {name} has {found.size} bytes, expected {expected.size}"
    if found.sha256 != expected.sha256:
        return (
            f"checkpoint {directory} is damaged: {name} has sha256 {found.sha256[:12]}, "
            f"expected {expected.sha256[:12]}"
        )
    return ""


class Proven:
    """Files that were read and found right, by name, size and time of change, kept in one JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._known = {str(line) for line in parse_json(path.read_text())}
        except (OSError, ValueError, TypeError):
            self._known = set()  # then everything is read again

    def __call__(self, path: Path) -> bool:
        """Whether this very file was proven."""
        identity = _identity(path)
        return identity is not None and identity in self._known

    def add(self, directory: Path, names: Sequence[str]) -> None:
        """Enter files of a checkpoint that has no damage, and forget those that were deleted. Raises OSError."""
        self._known = {line for line in self._known if Path(line.rsplit(" ", 3)[0]).exists()}
        self._known |= {identity for name in names if (identity := _identity(directory / name)) is not None}
        replace_text(self._path, json.dumps(sorted(self._known)))


def _identity(path: Path) -> str | None:
    """None: there is no such file. The time is that of the kernel, which no program can set back."""
    try:
        found = path.stat()
    except OSError:
        return None
    return f"{path.resolve()} {found.st_ino} {found.st_size} {found.st_ctime_ns}"
