"""A run directory has one writer, for as long as that lives and no longer."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cptron.checkpoint import run_lock
from cptron.checkpoint.run_lock import LOCK, other_writer, refuse_other_writer, sole_writer
from cptron.errors import ConfigError

HOLD = """
import os, subprocess, sys, time
from pathlib import Path
from cptron.checkpoint.run_lock import sole_writer
with sole_writer(Path(sys.argv[1])):
    child = 0
    if sys.argv[2] == "fork":
        child = os.fork()
        if child == 0:
            time.sleep(600)
            os._exit(0)
    if sys.argv[2] == "spawn":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False).pid
    print(child, flush=True)
    sys.stdin.read()
"""
"""Takes the lock, says its child's number, and holds on until its input ends."""

CONTEND = """
import os, sys
from pathlib import Path
from cptron.checkpoint import run_lock
run_lock.PATIENCE_S = 60
run = Path(sys.argv[1])
for _ in range(25):
    with run_lock.sole_writer(run):
        os.close(os.open(run / "inside", os.O_CREAT | os.O_EXCL))
        os.unlink(run / "inside")
"""
"""Enters again and again; fails where somebody else is inside."""


@contextmanager
def holder(run: Path, child: str = "none") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that writes the run, and its child's number."""
    words = [sys.executable, "-c", HOLD, str(run), child]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def test_a_second_writer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, place and time of the first, wherever it asks; the first holds on, and then the second comes in."""
    run = tmp_path / "run"
    monkeypatch.setattr(run_lock, "PATIENCE_S", 0.1)
    assert other_writer(run) == ""
    with holder(run) as (process, _):
        who = rf"pid {process.pid} on host {re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
        assert re.fullmatch(who, other_writer(run))
        message = rf"run\.dir=.*/run is being written by {who}; stop it or choose another run\.dir"
        for _ in range(2):
            with pytest.raises(ConfigError, match=message), sole_writer(run):
                pass
        with pytest.raises(ConfigError, match=message):
            refuse_other_writer(run)
        process.communicate("")
    assert not run.exists()
    with sole_writer(run) as notes:
        assert notes == []
        assert (run / LOCK).read_text().startswith(f"pid {os.getpid()} ")


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    """SIGKILL leaves the file, which stands in nobody's way; nor does any other file of that name."""
    run = tmp_path / "run"
    with holder(run) as (process, _):
        process.kill()
        process.wait()
        assert (run / LOCK).read_text().startswith(f"pid {process.pid} ")
        assert other_writer(run) == ""
        refuse_other_writer(run)
    for left in (b"pid 1 on host elsewhere since ever\n", b"", b"\xff\x00" * 300):
        (run / LOCK).write_bytes(left)
        with sole_writer(run) as notes:
            assert (run / LOCK).read_text().startswith(f"pid {os.getpid()} ")
            said = "has a lock that pid 1 on host elsewhere since ever has left; should that run still live"
            assert [said in note for note in notes] == ([True] if b"elsewhere" in left else [])
        assert not (run / LOCK).exists()
    here = socket.gethostname()
    (run / LOCK).write_text(f"pid 1 on host {here} since 2026-01-02 03:04:05 UTC\n")
    with sole_writer(run) as notes:  # the kernel knows that it is gone
        assert notes == []


@pytest.mark.parametrize("kind", ["fork", "spawn"])
def test_no_child_holds_the_lock_on(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that a killed writer has started, such as one that saves, may live longer."""
    monkeypatch.setattr(run_lock, "PATIENCE_S", 60)  # a child may come late to the line that lets go
    with holder(tmp_path, kind) as (process, child):
        process.kill()
        process.wait()
        try:
            os.kill(child, 0)
            with sole_writer(tmp_path):
                pass
        finally:
            os.kill(child, 9)


def test_a_forked_child_does_not_free_the_lock(tmp_path: Path) -> None:
    """Its end is not the writer's."""
    with holder(tmp_path, "fork") as (process, child):
        os.kill(child, 9)
        assert other_writer(tmp_path).startswith(f"pid {process.pid} ")


def test_never_two_inside(tmp_path: Path) -> None:
    """Also while the file is removed and made again."""
    words = [sys.executable, "-c", CONTEND, str(tmp_path / "run")]
    processes = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(process.communicate(timeout=240)[1], process.returncode) for process in processes] == [
        ("", 0)
    ] * 4


def test_nothing_is_left_of_a_start_that_wrote_nothing(tmp_path: Path) -> None:
    """Directories that were made for it go too, unless something came into them; others stay."""
    with sole_writer(tmp_path / "a" / "b" / "run"):
        pass
    assert list(tmp_path.iterdir()) == []
    with sole_writer(tmp_path / "a" / "run"):
        (tmp_path / "a" / "note").write_text("")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "note"]
    with pytest.raises(KeyboardInterrupt), sole_writer(tmp_path / "a" / "run"):
        (tmp_path / "a" / "run" / "metrics").write_text("")
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == ["metrics"]


def test_a_directory_that_another_start_removes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had made it, and ends between our look and our lock; when that does not end, it is an error."""
    run, take, calls = tmp_path / "a" / "run", run_lock._take, 0

    def removed(path: Path, patience_s: float) -> tuple[int, str, str]:
        nonlocal calls
        calls += 1
        if calls < 3:
            path.parent.rmdir()
            path.parent.parent.rmdir()
        return take(path, patience_s)

    mkdir = Path.mkdir

    def just_there(path: Path, *words: object, **named: object) -> None:
        """As `mkdir` when the directory is there for its system call and gone for the look that follows."""
        monkeypatch.setattr(Path, "mkdir", mkdir)
        raise FileExistsError(17, "File exists", str(path))

    monkeypatch.setattr(Path, "mkdir", just_there)
    monkeypatch.setattr(run_lock, "_take", removed)
    with sole_writer(run):
        assert calls == 3 and (run / LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(run_lock, "PATIENCE_S", 0.1)
    calls = -(10**9)
    with pytest.raises(ConfigError, match=r"cannot be written .*No such file"), sole_writer(run):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on, unprotected; another error is one."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with sole_writer(tmp_path / "run") as notes:
        (note,) = notes
        assert "is on a file system without locks" in note and os.strerror(number) in note
        assert other_writer(tmp_path / "run") == ""
    number = errno.EIO
    with (
        pytest.raises(ConfigError, match=r"cannot be written .*choose another"),
        sole_writer(tmp_path / "run"),
    ):
        pass


def test_a_full_disk_can_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may want to delete there; only who holds the lock cannot be said. Another error is one."""
    number = errno.ENOSPC

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", refuse)
    monkeypatch.setattr(run_lock, "PATIENCE_S", 0.1)
    with sole_writer(tmp_path / "run"):
        assert other_writer(tmp_path / "run") == "another process"
        with (
            pytest.raises(ConfigError, match="is being written by another process"),
            sole_writer(tmp_path / "run"),
        ):
            pass
    number = errno.EIO
    with pytest.raises(ConfigError, match="cannot be written"), sole_writer(tmp_path / "run"):
        pass


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """One line, and nothing made."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"run\.dir=.*/file/run cannot be written"),
        sole_writer(tmp_path / "file" / "run"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
