"""The process behind an asynchronous save: the same files, its errors raised, and gone when its rank is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from cptron.checkpoint.background import BackgroundWriter
from cptron.checkpoint.block_writer import BlockSpec, Written, write_blocks
from cptron.checkpoint.checksum import checksum
from cptron.checkpoint.tensor_bytes import bytes_of
from cptron.errors import CheckpointError

Blocks = list[tuple[BlockSpec, torch.Tensor]]


def blocks() -> Blocks:
    """Two parameters, one of them with rows that do not count, and optimizer state."""
    spec = BlockSpec("b", (0, 0, 0), (1, 2, 2), "bfloat16", parameter="b.0", place=(0, 0), matrix=(1, 2))
    return [
        (BlockSpec("a", (3,), (5,), "float32", parameter="a", place=(3, 0), matrix=(5, 1)), torch.randn(5)),
        (spec, torch.randn(4).bfloat16()),
        (BlockSpec("optimizer.state.param.a", (3,), (5,), "float32"), torch.randn(5)),
    ]


def written_here(directory: Path, todo: Blocks) -> Written:
    """By this process."""
    directory.mkdir()
    return write_blocks(directory, 3, [(spec, bytes_of(tensor)) for spec, tensor in todo])


def test_the_files_are_those_of_a_synchronous_save(tmp_path: Path) -> None:
    """To the byte, over several saves; and training may change its tensors as soon as they are copied."""
    writer = BackgroundWriter()
    try:
        for number in range(3):
            todo = blocks()
            expected = written_here(tmp_path / f"here{number}", todo)
            (tmp_path / f"there{number}").mkdir()
            writer.start(tmp_path / f"there{number}", 3, todo)
            writer.copied()
            for _, tensor in todo:
                tensor.fill_(7)
            found = writer.result()
            assert found == expected and not writer.is_ready
            (name,) = found.files
            assert (tmp_path / f"there{number}" / name).read_bytes() == (
                tmp_path / f"here{number}" / name
            ).read_bytes()
    finally:
        writer.close()


def test_checksums_count_what_the_specs_say(tmp_path: Path) -> None:
    """As the tensors' own."""
    todo = blocks()
    found = written_here(tmp_path / "here", todo).checksums
    assert found == {"a": checksum(todo[0][1], 3), "b.0": checksum(todo[1][1].view(2, 2)[:1])}


def test_large_states_are_cut_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they are hashed side by side when they are read."""
    monkeypatch.setattr("cptron.checkpoint.block_writer.FILE_BYTES", 100)
    found = written_here(tmp_path / "here", blocks())
    assert list(found.files) == ["__3_0.distcp", "__3_1.distcp", "__3_2.distcp"]
    assert [block.file for block in found.blocks] == list(found.files)


def test_an_error_of_the_process_is_raised(tmp_path: Path) -> None:
    """A directory that is gone; and the next save is as if nothing had been."""
    writer = BackgroundWriter()
    try:
        writer.start(tmp_path / "gone", 0, blocks())
        with pytest.raises(CheckpointError, match="No such file"):
            writer.result()
        writer.start(tmp_path, 0, blocks())
        assert len(writer.result().files) == 1
    finally:
        writer.close()


def test_a_disk_that_fills_up_is_an_error(tmp_path: Path) -> None:
    """In the middle of a block, with much of it in use."""
    writer = BackgroundWriter()
    try:
        spec = BlockSpec("a", (0, 0), (1000, 100), "float32", parameter="a", matrix=(1000, 100))
        big: Blocks = [(spec, torch.randn(100_000)), *blocks()]
        psutil.Process(writer._process.pid).rlimit(psutil.RLIMIT_FSIZE, (50_000, psutil.RLIM_INFINITY))
        writer.start(tmp_path, 0, big)
        with pytest.raises(CheckpointError, match="File too large"):
            writer.result()
        psutil.Process(writer._process.pid).rlimit(
            psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY)
        )
        writer.start(tmp_path, 0, big)
        assert writer.result().checksums == written_here(tmp_path / "here", big).checksums
    finally:
        writer.close()


def test_a_process_that_is_killed_while_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an answer is none."""
    half = tmp_path / "half"
    half.write_text("#!/bin/sh\nread request\nprintf '{\"blocks\": ['\nexit 3\n")
    half.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(half))
    writer = BackgroundWriter()
    writer.start(tmp_path, 0, blocks())
    with pytest.raises(CheckpointError, match="ended with exit code 3"):
        writer.result()
    writer.close()


def test_a_killed_process_is_an_error_not_a_wait(tmp_path: Path) -> None:
    """Whether it was killed while it wrote, or before."""
    writer = BackgroundWriter()
    os.kill(writer._process.pid, signal.SIGKILL)
    for _ in range(2):
        writer.start(tmp_path, 0, blocks())
        with pytest.raises(CheckpointError, match="ended with exit code -9"):
            writer.result()
    writer.close()


def test_the_process_dies_with_its_rank() -> None:
    """Killed without a chance to say goodbye."""
    program = (
        "import time\n"
        "from cptron.checkpoint.background import BackgroundWriter\n"
        "print(BackgroundWriter()._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None
        child = psutil.Process(int(rank.stdout.readline()))
        while child.nice() != 19:  # what it does next when it has asked to be killed
            time.sleep(0.01)
        rank.kill()
        psutil.wait_procs([child], timeout=240)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_the_process_has_no_torch() -> None:
    """It is started once for each rank: it must be small."""
    program = "import cptron.checkpoint.save_worker, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=240)
