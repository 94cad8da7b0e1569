"""Ranks that fail, die or hang, in real processes: the others end within seconds, and the next start goes on."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from commands import TORCHRUN, call, cptron, records, started, steps
from tiny_world import Layout, World

from cptron.errors import HANG_EXIT_CODE

FAULTY = """
import os, signal, sys, time
from cptron.config.schema import RuntimeConfig
from cptron.errors import DataError

restarts, at_step, *faults = sys.argv[1].split(",")  # what each rank does in that step of the first start
words = sys.argv[2:]

def act(fault):
    os.write(2, f"fault at {time.monotonic()}\\n".encode())
    if fault == "raise":
        raise ValueError("the step went wrong")
    if fault == "refuse":
        raise DataError("a file of one rank is gone; bring it back")
    if fault == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)

from cptron.runtime import failure
failure.GRACE_S, failure.HEAR_S = 1.0, 60.0
if "RANK" not in os.environ:
    from cptron.runtime import supervisor
    supervisor.SETTLE_S = 90.0  # a slow machine is no reason to end a rank before it has spoken
    sys.exit(supervisor.supervise(sys.argv, 2, RuntimeConfig(max_restarts=int(restarts))))

fault = faults[int(os.environ["RANK"])]
if fault != "none" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    from cptron.train import loop
    train_step, taken = loop.train_step, []
    def faulty(*args, **named):
        taken.append(1)
        if len(taken) == int(at_step):
            act(fault)
        return train_step(*args, **named)
    loop.train_step = faulty
from cptron.cli import main
sys.exit(main(["train", *words]))
"""
WITHIN_S = 120.0
"""From the fault to the end of the job; a few seconds where the machine has nothing else to do. Without what is tested
it would be the time of a collective, or that of the sleeping rank."""
TIMEOUT = "runtime.timeout_s=900"


def run_faulty(
    world: World, tmp_path: Path, plan: str, *words: str, launcher: tuple[str, ...] = (sys.executable,)
) -> subprocess.CompletedProcess[str]:
    """Train on two ranks that go wrong as planned: `restarts,step,what rank 0 does,what rank 1 does`."""
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY)
    return call([*launcher, script, plan, world.config, f"run.dir={tmp_path / 'run'}", TIMEOUT, *words], 240)


def seconds_since_the_fault(stderr: str) -> float:
    """The monotonic clock is the machine's, not the process's."""
    found = re.findall(r"^fault at ([\d.]+)$", stderr, re.MULTILINE)
    return time.monotonic() - float(found[-1])


def said(stderr: str) -> list[str]:
    """The lines on standard error, without the mark of the fault."""
    return [line for line in stderr.splitlines() if not line.startswith("fault at ")]


def test_a_failure_is_told_once_and_in_full(world: World, tmp_path: Path) -> None:
    """Its own traceback first, each line with the rank; one line from the rank that has to stop for it."""
    done = run_faulty(world, tmp_path, "0,3,raise,none")
    assert seconds_since_the_fault(done.stderr) < WITHIN_S
    assert done.returncode == 1, done.stderr
    *traceback, last = said(done.stderr)
    assert traceback[0] == "[rank 0] Traceback (most recent call last):"
    assert traceback[-1] == "[rank 0] ValueError: the step went wrong"
    assert all(line.startswith("[rank 0] ") for line in traceback)
    assert last == "cptron: [rank 1] stops because rank 0 failed: ValueError: the step went wrong"


@pytest.mark.more
def test_an_error_of_the_user_that_one_rank_alone_meets(world: World, tmp_path: Path) -> None:
    """In one line, code 2, and not started again; the other rank, which waits outside any collective, ends too."""
    done = run_faulty(world, tmp_path, "3,3,sleep,refuse")
    assert seconds_since_the_fault(done.stderr) < WITHIN_S
    assert done.returncode == 2, done.stderr
    assert sorted(said(done.stderr), reverse=True) == [
        "cptron: error [rank 1]: a file of one rank is gone; bring it back",
        "cptron: [rank 0] stops because rank 1 failed: a file of one rank is gone; bring it back",
    ]


def test_a_killed_rank_is_started_again(world: World, whole_runs: dict[Layout, Path], tmp_path: Path) -> None:
    """SIGKILL, while the other rank waits where no collective can fail: restarted by torchrun's agent from the last
    checkpoint, to the exact curve of an undisturbed run."""
    done = run_faulty(world, tmp_path, "1,13,sleep,die")
    assert done.returncode == 0, done.stderr
    assert sorted(said(done.stderr)) == [
        "cptron: [rank 0] lost contact with rank 1; it was probably killed",
        "cptron: rank 1 was killed by SIGKILL",
        "cptron: starting all ranks again, for the 1. of 1 times",
    ]
    assert [record["step"] for record in records(tmp_path / "run", "start")] == [0, 10]
    assert steps(tmp_path / "run") == steps(whole_runs[Layout(2)])


@pytest.mark.more
def test_a_killed_rank_under_the_users_torchrun(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """`--max-restarts` alone does it, though gloo finds dead addresses in a store that torchrun keeps."""
    torchrun = (*TORCHRUN, "--max-restarts", "1")
    done = run_faulty(world, tmp_path, "0,13,die,none", launcher=torchrun)
    assert done.returncode == 0, done.stderr
    assert "cptron: [rank 1] lost contact with rank 0; it was probably killed" in said(done.stderr)
    assert steps(tmp_path / "run") == steps(whole_runs[Layout(2)])


def test_a_hang_shows_the_stacks_of_every_rank(world: World, tmp_path: Path) -> None:
    """One rank sleeps in a step: code 76, and on standard error and in the run's directory where both were. The
    third step is the first whose time is judged by that of another, so no slow one before it is a hang."""
    done = run_faulty(world, tmp_path, "0,3,none,sleep", "runtime.hang_min_s=4")
    assert seconds_since_the_fault(done.stderr) < WITHIN_S
    assert done.returncode == HANG_EXIT_CODE, done.stderr
    assert re.search(
        r"^cptron: \[rank [01]\] hangs: a step has not ended for \d+ s", done.stderr, re.MULTILINE
    )
    for rank, where in ((0, "in train_step"), (1, "in act")):
        kept = (tmp_path / "run" / "stacks" / f"rank_{rank}.txt").read_text()
        main_thread = kept.split("thread ")[1]
        assert main_thread.startswith("MainThread") and where in main_thread, kept
        assert f"[rank {rank}] thread MainThread, most recent call first:" in done.stderr


def test_ranks_do_not_outlive_a_killed_launcher(world: World, tmp_path: Path) -> None:
    """SIGKILL to `cptron train` alone: its ranks save, stop, and are gone."""
    run = tmp_path / "run"
    words = cptron("train", world.config, f"run.dir={run}", "parallel.local_ranks=2", "train.steps=5000")
    with started(words) as process:
        deadline_s = time.monotonic() + 240
        while not (run / "metrics.jsonl").exists() or len(steps(run)) < 2:
            assert time.monotonic() < deadline_s and process.poll() is None
            time.sleep(0.05)
        ranks = psutil.Process(process.pid).children()
        assert len(ranks) == 2
        process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(ranks, timeout=120)
        assert not alive
    (stop,) = records(run, "stop")
    assert stop["reason"] == f"stopped by SIGTERM after step {stop['step']}"
    assert [record["step"] for record in records(run, "save")][-1] == stop["step"]
