"""Ways to damage a checkpoint: each changes bytes, or which name they have, and says what it did.

Place in the flow: below the trials of `corruption`; knows directories and files, and nothing of what is in them.
Invariant: after `damage` at least one checkpoint differs from what it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from cptron.checkpoint.layout import list_checkpoints, step_directory

BLOCK_BYTES = 4096
Contents = dict[str, bytes]


def contents(directory: Path) -> Contents:
    """Every file below a directory."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def damage(draw: random.Random, checkpoints: Path, kind: str) -> str:
    """Damage the newest checkpoint in one way; returns what was done."""
    _, newest = list_checkpoints(checkpoints)[-1]
    before = contents(newest)
    while True:
        done = KINDS[kind](draw, newest)
        if not newest.exists() or contents(newest) != before:
            return done


def any_file(draw: random.Random, directory: Path) -> Path:
    """A file; each kind of file (folder and suffix) is as likely as every other."""
    kinds: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        kinds.setdefault((path.parent.name, path.suffix), []).append(path)
    return draw.choice(kinds[draw.choice(sorted(kinds))])


def _flip_bit(draw: random.Random, directory: Path) -> str:
    path = any_file(draw, directory)
    data = bytearray(path.read_bytes())
    if data:
        place, bit = draw.randrange(len(data)), draw.randrange(8)
        data[place] ^= 1 << bit
        path.write_bytes(data)
    return f"a bit flipped in {path.name}"


def _truncate(draw: random.Random, directory: Path) -> str:
    path = any_file(draw, directory)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: draw.choice([0, size // 2, max(size - 1, 0)])])
    return f"{path.name} cut off"


def _delete(draw: random.Random, directory: Path) -> str:
    path = any_file(draw, directory)
    path.unlink()
    return f"{path.name} deleted"


def _append(draw: random.Random, directory: Path) -> str:
    path = any_file(draw, directory)
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.choice([1, 7, BLOCK_BYTES])))
    return f"bytes appended to {path.name}"


def _zero_block(draw: random.Random, directory: Path) -> str:
    path = any_file(draw, directory)
    data = bytearray(path.read_bytes())
    start = draw.randrange(max(len(data), 1)) // BLOCK_BYTES * BLOCK_BYTES
    data[start : start + BLOCK_BYTES] = bytes(len(data[start : start + BLOCK_BYTES]))
    path.write_bytes(data)
    return f"a block of zeros in {path.name}"


def _swap_inside(draw: random.Random, directory: Path) -> str:
    one, other = any_file(draw, directory), any_file(draw, directory)
    _swap(one, other)
    return f"{one.name} and {other.name} swapped"


def _swap_between(draw: random.Random, directory: Path) -> str:
    one = any_file(draw, directory)
    other = list_checkpoints(directory.parent)[-2][1] / one.relative_to(directory)
    if other.exists():
        _swap(one, other)
    return f"{one.name} swapped with that of {other.parent.name}"


def _rename(draw: random.Random, directory: Path) -> str:
    *_, (before, older), (step, _) = list_checkpoints(directory.parent)
    if draw.random() < 0.5:
        directory.rename(step_directory(directory.parent, step + 2))
        return "the directory renamed to that of a later step"
    _swap(older, directory)
    return f"the directories of steps {before} and {step} swapped"


def _swap(one: Path, other: Path) -> None:
    aside = one.with_name(f".aside_{one.name}")
    one.rename(aside)
    if one != other:
        other.rename(one)
    aside.rename(other)


KINDS: dict[str, Callable[[random.Random, Path], str]] = {
    "bit flipped": _flip_bit,
    "truncated": _truncate,
    "deleted": _delete,
    "appended": _append,
    "zeroed block": _zero_block,
    "files swapped": _swap_inside,
    "swapped with another checkpoint's": _swap_between,
    "directory renamed": _rename,
}
