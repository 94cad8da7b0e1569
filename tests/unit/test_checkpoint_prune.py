"""Checkpoints on disk: what no rule keeps goes, wholly; the newest good one, what is marked and what is read stays."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from shard_files import sign
from test_checkpoint_layout import DAMAGE, save

from cptron.checkpoint import in_use, layout, marks, run_lock
from cptron.checkpoint.in_use import reading
from cptron.checkpoint.marks import MARKS, mark, one_at_a_time, read_marks, unmark
from cptron.checkpoint.prune import prune
from cptron.checkpoint.retention import Rules
from cptron.durable import begin_directory
from cptron.errors import CheckpointError


def steps(checkpoints: Path) -> list[int]:
    """Those under their names."""
    return [step for step, _ in layout.list_checkpoints(checkpoints)]


def saved(checkpoints: Path, *numbers: int) -> None:
    """Publish checkpoints of these steps; 100 tokens a step."""
    for step in numbers:
        save(checkpoints, step)


@pytest.mark.parametrize(
    ("keep_last", "kept"), [(0, [1, 2, 3, 4]), (1, [4]), (2, [3, 4]), (4, [1, 2, 3, 4]), (9, [1, 2, 3, 4])]
)
def test_the_newest_stay(keep_last: int, kept: list[int], tmp_path: Path) -> None:
    """What was deleted is returned; working directories are nobody's checkpoints, and no lock is left."""
    saved(tmp_path, 1, 2, 3, 4)
    begin_directory(layout.step_directory(tmp_path, 5))
    removed = prune(tmp_path, Rules(keep_last=keep_last)).removed
    assert removed == [layout.step_directory(tmp_path, step) for step in (1, 2, 3, 4) if step not in kept]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".writing_step_00000005",
        *(f"step_{step:08d}" for step in kept),
    ]
    assert all(layout.read_manifest(path) for _, path in layout.list_checkpoints(tmp_path))


@pytest.mark.parametrize("case", ["missing shard", "short shard", "cut manifest", "no manifest"])
def test_damaged_ones_are_no_hope(case: str, tmp_path: Path) -> None:
    """They count for no rule: the newest good one stays, also where newer ones are damaged. They go only when asked
    for, and only those that are older than it."""
    saved(tmp_path, 1, 2, 3, 4, 5)
    for step in (2, 5):
        DAMAGE[case][0](layout.step_directory(tmp_path, step))
    assert [path.name for path in prune(tmp_path, Rules(keep_last=1)).removed] == [
        "step_00000001",
        "step_00000003",
    ]
    assert steps(tmp_path) == [2, 4, 5]
    prune(tmp_path, Rules(), damaged=True)
    assert steps(tmp_path) == [4, 5]
    DAMAGE[case][0](layout.step_directory(tmp_path, 4))
    prune(tmp_path, Rules(keep_last=1), damaged=True)
    assert steps(tmp_path) == [4, 5]


def test_what_may_be_good_stays(tmp_path: Path) -> None:
    """Of another version, or marked: also where damaged ones are to go."""
    saved(tmp_path, 1, 2, 3, 4)
    sign(tmp_path / "step_00000001", format_version=99)
    mark(tmp_path, 2, "chosen")
    for step in (2, 3):
        (tmp_path / f"step_{step:08d}" / layout.STATE).unlink()
    assert [path.name for path in prune(tmp_path, Rules(keep_last=1), damaged=True).removed] == [
        "step_00000003"
    ]
    assert steps(tmp_path) == [1, 2, 4]


def test_what_was_passed_over_counts_for_no_rule(tmp_path: Path) -> None:
    """A checkpoint whose bytes are wrong, in the right sizes, must not cost the good ones before it."""
    saved(tmp_path, 1, 2, 3)
    assert prune(tmp_path, Rules(keep_last=1), distrusted={3}).removed == [tmp_path / "step_00000001"]
    assert steps(tmp_path) == [2, 3]
    saved(tmp_path, 4)
    prune(tmp_path, Rules(keep_last=2), distrusted={3})
    assert steps(tmp_path) == [2, 3, 4]


def test_links_and_files_in_place_of_checkpoints(tmp_path: Path) -> None:
    """Of a checkpoint that was moved and linked only the link goes; a file is damage like any other."""
    saved(tmp_path, 1, 3)
    moved = tmp_path / "elsewhere"
    (tmp_path / "step_00000001").rename(moved)
    (tmp_path / "step_00000001").symlink_to(moved)
    (tmp_path / "step_00000002").write_text("in the way")
    prune(tmp_path, Rules(keep_last=1), damaged=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "step_00000003"]
    assert len(list(moved.iterdir())) == 5


def test_a_deletion_that_was_cut_off_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took the name first; nothing half is listed, and the next prune removes it, whatever its rules."""
    saved(tmp_path, 1, 2, 3)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", die)
        prune(tmp_path, Rules(keep_last=1))
    assert steps(tmp_path) == [3]
    remains = tmp_path / ".removing_step_00000002"
    (remains / layout.MANIFEST).unlink()
    save(tmp_path, 2)
    prune(tmp_path, Rules(keep_last=1))
    assert steps(tmp_path) == [3]
    remains.mkdir()
    save(tmp_path, 4)
    prune(tmp_path, Rules())
    assert not list(tmp_path.glob(".removing_*"))
    prune(tmp_path, Rules(keep_last=1))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000004"]


def test_what_cannot_be_deleted_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The space is not free; the trainer makes an error of it."""
    saved(tmp_path, 1, 2)

    def refuse(path: object, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(CheckpointError, match=r"no rule keeps cannot be deleted \(.*Permission denied"):
        prune(tmp_path, Rules(keep_last=1))


def test_marks(tmp_path: Path) -> None:
    """A checkpoint stays as long as it has one, however many; marks of what is gone are forgotten."""
    saved(tmp_path, 1, 2, 3)
    mark(tmp_path, 1, "chosen")
    mark(tmp_path, 1, "best of all")
    mark(tmp_path, 1, "chosen")
    assert read_marks(tmp_path) == {1: ("best of all", "chosen")}
    prune(tmp_path, Rules(keep_last=1))
    assert steps(tmp_path) == [1, 3]
    unmark(tmp_path, 1, "chosen")
    prune(tmp_path, Rules(keep_last=1))
    assert steps(tmp_path) == [1, 3]
    with pytest.raises(CheckpointError, match=r"step 1 of .* has no mark chosen; it has best of all"):
        unmark(tmp_path, 1, "chosen")
    unmark(tmp_path, 1, "best of all")
    prune(tmp_path, Rules(keep_last=1))
    assert steps(tmp_path) == [3]
    with pytest.raises(CheckpointError, match="step_00000007 does not exist"):
        mark(tmp_path, 7, "chosen")
    mark(tmp_path, 3, "chosen")
    save(tmp_path, 4)
    shutil.rmtree(tmp_path / "step_00000003")
    mark(tmp_path, 4, "other")
    assert read_marks(tmp_path) == {4: ("other",)}


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", "\x1b[31m"])
def test_a_mark_has_a_name_that_can_be_shown(name: str, tmp_path: Path) -> None:
    """It stands in lists and in lines of a log."""
    saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"must be printable text on one line"):
        mark(tmp_path, 1, name)
    assert read_marks(tmp_path) == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"1": "ab"}', '{"x": ["a"]}', '{"1": [2]}', '{"1": 2}', "\x00"])
def test_damaged_marks_stop_every_deletion(text: str, tmp_path: Path) -> None:
    """Nobody knows what was to be kept."""
    saved(tmp_path, 1, 2)
    (tmp_path / MARKS).write_text(text)
    with pytest.raises(CheckpointError, match=r"marks\.json cannot be read .*no checkpoint can be deleted"):
        prune(tmp_path, Rules(keep_last=1))
    assert steps(tmp_path) == [1, 2]


def hold(checkpoint: Path, ready: object, done: object) -> None:
    """Read a checkpoint in another process until told."""
    with reading(checkpoint):
        ready.set()  # type: ignore[attr-defined]
        done.wait(60)  # type: ignore[attr-defined]


def test_what_is_read_stays(tmp_path: Path) -> None:
    """By any number of readers, until the last ends; a reader that dies holds nothing."""
    saved(tmp_path, 1, 2, 3)
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    reader = context.Process(target=hold, args=(tmp_path / "step_00000001", ready, done))
    reader.start()
    try:
        assert ready.wait(60)
        with reading(tmp_path / "step_00000001"):
            pruned = prune(tmp_path, Rules(keep_last=1))
        assert [path.name for path in pruned.in_use] == ["step_00000001"]
        assert [path.name for path in pruned.removed] == ["step_00000002"]
        assert prune(tmp_path, Rules(keep_last=1)).removed == []
    finally:
        reader.kill()
        reader.join()
    assert [path.name for path in prune(tmp_path, Rules(keep_last=1)).removed] == ["step_00000001"]
    with reading(tmp_path / "nothing"):
        pass


def test_what_cannot_be_asked_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest that is read-only is asked all the same; where asking fails, somebody may be reading. Without locks
    nobody is known to."""
    saved(tmp_path, 1, 2)
    opened = os.open

    def read_only(path: object, flags: int, *rest: int) -> int:
        if flags & os.O_RDWR and str(path).endswith(layout.MANIFEST):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *rest)  # type: ignore[arg-type]

    def fails(number: int) -> Callable[..., None]:
        def fail(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return fail

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        with reading(tmp_path / "step_00000001"):
            assert prune(tmp_path, Rules(keep_last=1)).removed == []
    for number, free in ((errno.EIO, False), (errno.EBADF, False), (errno.ENOLCK, True)):
        with monkeypatch.context() as patch:
            patch.setattr(in_use.fcntl, "flock", fails(number))
            with in_use.unread(tmp_path / "step_00000001") as found:
                assert found is free


def test_marking_and_deleting_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And say who is at it when that does not end."""
    saved(tmp_path, 1, 2)
    monkeypatch.setattr(marks, "PATIENCE_S", 0.1)
    with one_at_a_time(tmp_path):
        for action in (lambda: prune(tmp_path, Rules(keep_last=1)), lambda: mark(tmp_path, 1, "chosen")):
            with pytest.raises(CheckpointError, match=rf"is being changed by pid {os.getpid()} on host"):
                action()
    assert not (tmp_path / run_lock.LOCK).exists()
    assert steps(tmp_path) == [1, 2]


def test_without_a_rule_nothing_is_asked(tmp_path: Path) -> None:
    """Not even marks that nobody can read stand in the way of a run that deletes nothing."""
    saved(tmp_path, 1, 2)
    (tmp_path / MARKS).write_text("{")
    assert prune(tmp_path, Rules()).removed == []
    assert steps(tmp_path) == [1, 2]


def test_a_run_without_checkpoints(tmp_path: Path) -> None:
    """Nothing to do, nothing made."""
    assert prune(tmp_path / "checkpoints", Rules(keep_last=1)).removed == []
    assert list(tmp_path.iterdir()) == []
