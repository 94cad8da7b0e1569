"""What a branch takes from its parent's directory: copies, once, and nothing from a checkpoint on its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from commands import snapshot
from run_checkpoints import make_run

from cptron.config.load import load_config
from cptron.partials import own_partial
from cptron.train.inherit import inherit


def test_records_are_copied_and_never_replaced(tmp_path: Path) -> None:
    """Journal and log as they are, the checkpoint's configuration as the one before; what the branch has written since
    stays, and the parent does."""
    config = make_run(tmp_path / "run", [700])
    parent, child = tmp_path / "run", tmp_path / "child"
    child.mkdir()
    (parent / "journal.jsonl").write_bytes(b"{a journal}\n{\xff cut")
    (parent / "data_log.jsonl").write_text("{a log}\n")
    before = snapshot(parent)
    inherit(child, parent / "checkpoints" / "step_00000700")
    assert (child / "journal.jsonl").read_bytes() == (parent / "journal.jsonl").read_bytes()
    assert (child / "data_log.jsonl").read_text() == "{a log}\n"
    assert load_config(child / "config.yaml").config == config
    (child / "journal.jsonl").write_text("{a journal}\n{of the branch}\n")
    (child / "config.yaml").write_text("the branch's")
    inherit(child, parent / "checkpoints" / "step_00000700")
    assert (child / "journal.jsonl").read_text() == "{a journal}\n{of the branch}\n"
    assert (child / "config.yaml").read_text() == "the branch's"
    assert snapshot(parent) == before


def test_a_copy_cut_off_is_made_again(tmp_path: Path) -> None:
    """The configuration is the last to be written: without it the branch has not begun."""
    make_run(tmp_path / "run", [700])
    child = tmp_path / "child"
    child.mkdir()
    (tmp_path / "run" / "data_log.jsonl").write_text("{a log}\n")
    own_partial(child / "data_log.jsonl").write_text("{a l")
    inherit(child, tmp_path / "run" / "checkpoints" / "step_00000700")
    assert (child / "data_log.jsonl").read_text() == "{a log}\n"


def test_a_checkpoint_that_was_moved_comes_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [700])
    child, moved = tmp_path / "child", tmp_path / "elsewhere" / "deep" / "step_00000700"
    child.mkdir()
    shutil.copytree(tmp_path / "run" / "checkpoints" / "step_00000700", moved)
    inherit(child, moved)
    assert [path.name for path in child.iterdir()] == ["config.yaml"]


def test_a_checkpoint_that_was_left_behind_comes_with_the_decisions(tmp_path: Path) -> None:
    """Without those that its state knows of the branch would be refused; the log is of the way that the run took."""
    make_run(tmp_path / "run", [700])
    child, left = tmp_path / "child", tmp_path / "run" / "left" / "0"
    child.mkdir()
    left.mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step_00000700").rename(left / "step_00000700")
    for name in ("journal.jsonl", "mix.jsonl", "data_log.jsonl"):
        (tmp_path / "run" / name).write_text("{}\n")
    inherit(child, left / "step_00000700")
    assert sorted(path.name for path in child.iterdir()) == ["config.yaml", "journal.jsonl", "mix.jsonl"]
