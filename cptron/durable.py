"""Forces what was written to disk, so that a later rename cannot publish what a power cut would lose.

Place in the flow: used by every room that publishes files. Invariant: a path holds its old content or all of its
new one, whenever the machine stops.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cptron.errors import ConversionError
from cptron.partials import own_partial, remove, remove_stale


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


def make_directory(directory: Path) -> None:
    """Make `directory`, if it is not there, and what is missing above it; all of the names are on disk. Raises
    OSError."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in missing:
        fsync_path(path.parent)


@contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """A path of this writer's own, to be written to, whose content becomes that of `final` at the end, durably and in
    one step. An error leaves `final` as it was, and nothing beside it."""
    partial = own_partial(final)
    try:
        yield partial
        fsync_path(partial)
        partial.replace(final)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync_path(final.parent)


def replace_text(path: Path, text: str) -> None:
    """Make `text` the content of `path`, durably and in one step, and remove what killed writers of it have left. What
    UTF-8 cannot hold, such as the bytes of a file name, is written as a JSON escape. Raises OSError, and leaves `path`
    as it was."""
    with (
        replacing(path) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        stream.write(text)
    remove_stale(path)


def whole_lines(path: Path) -> list[bytes]:
    """The lines of `path` that were written whole, without their ends; none where there is no file. Raises OSError."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def append_line(path: Path, line: bytes) -> None:
    """Write one more line, which has its end, and force it to disk; a line that was cut off before is replaced. Raises
    OSError, with the file as it was to whoever reads whole lines."""
    is_new = not path.exists()
    with path.open("ab") as file:
        file.truncate(path.read_bytes().rfind(b"\n") + 1)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        fsync_path(path.parent)


def working_directory(final: Path) -> Path:
    """Where the directory `final` is written before it gets its name; always the same, so that none piles up."""
    return final.with_name(f".writing_{final.name}")


def begin_directory(final: Path) -> Path:
    """The empty working directory of `final`; what a killed writer left there is removed."""
    working = working_directory(final)
    shutil.rmtree(working, ignore_errors=True)
    make_directory(working.parent)
    working.mkdir()
    return working


def publish_directory(final: Path) -> None:
    """Force the working directory of `final` to disk and give it its name; what stood there is replaced."""
    working = working_directory(final)
    fsync_tree(working)
    if final.exists():
        shutil.rmtree(final)
    os.rename(working, final)
    fsync_path(final.parent)


@contextmanager
def own_directory(final: Path, *, replaces: bool = False) -> Iterator[Path]:
    """An empty directory of this writer's own that becomes `final` at the end, durably. Where `final` is there by then,
    made by another writer of the same, it stays; with `replaces` it goes. Raises OSError."""
    own = own_partial(final)
    make_directory(own.parent)
    own.mkdir()
    try:
        yield own
        fsync_tree(own)
        while not _has_become(own, final) and replaces:
            with suppress(FileNotFoundError):  # another one replaces it too
                shutil.rmtree(final)
    finally:
        remove(own)
    fsync_path(final.parent)


def _has_become(own: Path, final: Path) -> bool:
    """False where there is something."""
    try:
        os.rename(own, final)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def must_be_new(target: Path) -> None:
    """Raise `ConversionError` where the output `target` exists: a conversion never replaces what it did not write."""
    if target.exists():
        raise ConversionError(f"{target} already exists; choose another output directory or remove it")


@contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """A working directory that becomes `final` at the end, and is removed where an error comes first. Raises
    `ConversionError` where `final` exists, where another process is writing it, and where it cannot be written."""
    with resumable_directory(final) as working:
        try:
            for path in working.iterdir():  # what a killed writer left
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield working
            must_be_new(final)
            publish_directory(final)
        except BaseException:
            shutil.rmtree(working, ignore_errors=True)
            raise


@contextmanager
def resumable_directory(final: Path) -> Iterator[Path]:
    """The working directory of `final` with what an interrupted writer left in it, for one writer at a time.

    It is kept where an error comes; the caller publishes it. Raises `ConversionError` where `final` exists, where
    another process is writing it, and where it cannot be written.
    """
    must_be_new(final)
    try:
        with _only_writer(final) as working:
            must_be_new(final)  # nor has the writer before just finished it
            yield working
    except OSError as error:
        raise ConversionError(
            f"{final} cannot be written ({error}); make room, or mend what is named, and try again"
        ) from None


@contextmanager
def _only_writer(final: Path) -> Iterator[Path]:
    """The working directory of `final`, held against others."""
    working = working_directory(final)
    make_directory(working)
    descriptor = os.open(working, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConversionError(
                f"{final} is being written by another process; wait for it to end"
            ) from None
        yield working
    finally:
        os.close(descriptor)


def free_bytes(directory: Path) -> int:
    """Room on the disk of `directory`, which need not exist yet."""
    there = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free


def require_space(directory: Path, num_bytes: int) -> None:
    """Raise `ConversionError` unless the disk of `directory`, which need not exist yet, has room for `num_bytes`."""
    free = free_bytes(directory)
    if free < num_bytes:
        raise ConversionError(
            f"{directory} needs {num_bytes / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free; make room or choose "
            "another disk"
        )


def partial_path(final: Path) -> Path:
    """Where `final` is written before it gets its name; always the same, so that a resume finds it. For one writer at a
    time, held by a lock: what no resume goes on from is written by `replacing`."""
    return final.with_name(final.name + ".partial")
