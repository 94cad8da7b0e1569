"""The supervisor of ranks, on small programs in their place: exit codes, restarts, signals."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from commands import call

DRIVER = """
import signal, sys, time
from cptron.config.schema import RuntimeConfig
from cptron.runtime import supervisor
from cptron.runtime.supervisor import supervise

busy = len(sys.argv) > 2
signal.signal(signal.SIGHUP, signal.SIG_IGN if busy else signal.SIG_DFL)  # nohup ignores it, also for these tests
supervisor.SETTLE_S = 120.0  # a rank that comes late is no reason to end it
look = supervisor.RankAgent._look

def looked(agent):
    look(agent)
    open(starts + ".watched", "w").close()
    time.sleep(0.5 if busy else 0)  # ranks end between any two things that it does

supervisor.RankAgent._look = looked
for number, line in enumerate(open(sys.argv[1])):
    restarts, program = line.rstrip("\\n").split(" ", 1)
    starts = f"{sys.argv[1]}.{number}"
    open(starts, "w").close()
    code = supervise(["-c", PRELUDE + program, starts], 2, RuntimeConfig(max_restarts=int(restarts), stop_grace_s=1))
    print(code, open(starts).read().count("0"), flush=True)
"""
PRELUDE = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
with open(sys.argv[1], "a") as stream:
    stream.write(str(rank))
again = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
me, parent = os.getpid(), os.getppid()
def meet():  # both ranks are here, and watched
    open(f"{sys.argv[1]}.{rank}", "w").close()
    while not all(os.path.exists(f"{sys.argv[1]}.{name}") for name in (0, 1, "watched")):
        time.sleep(0.01)
"""
CASES = {
    "finished": ("0 pass", 0, 1),
    "stopped": ("2 sys.exit(75)", 75, 1),
    "one stopped, one lost at the end": ("2 time.sleep(rank); sys.exit([75, 1][rank])", 75, 1),
    "refused": ("2 sys.exit(2)", 2, 1),
    "one refused": ("2 sys.exit([1, 2][rank])", 2, 1),
    "hung": ("0 sys.exit(76)", 76, 1),
    "hung once": ("1 sys.exit([76, 0][again])", 0, 2),
    "failed": ("0 sys.exit(1)", 1, 1),
    "failed, and again": ("2 sys.exit(1)", 1, 3),
    "killed": ("0 os.kill(me, signal.SIGKILL) if rank else time.sleep(1)", 1, 1),
    "killed once": ("1 os.kill(me, signal.SIGKILL) if rank and not again else None", 0, 2),
    "asked before there is a handler": (
        "2 meet(); os.kill(parent, signal.SIGUSR1) if rank == 0 else None; time.sleep(600)",
        75,
        1,
    ),
    "asked, deaf": (
        "2 signal.signal(signal.SIGTERM, signal.SIG_IGN); meet();"
        " os.kill(parent, signal.SIGTERM) if rank == 0 else None; time.sleep(600)",
        1,
        1,
    ),
    "hung up on": (
        "2 meet(); os.kill(parent, signal.SIGHUP) if rank == 0 else None; time.sleep(600)",
        75,
        1,
    ),
    "asked, finished": (
        "2 signal.signal(signal.SIGINT, signal.SIG_IGN); meet(); os.kill(parent, signal.SIGINT); time.sleep(0.5)",
        0,
        1,
    ),
}
"""Restarts and what each rank does; the exit code of all, and how often they were started."""
LEFT = (
    "stopped",
    "one stopped, one lost at the end",
    "refused",
    "hung",
    "failed",
    "killed",
    "asked, finished",
)
"""To `make test-more`."""
AT_ANY_MOMENT = {
    "stopped": ("2 time.sleep(0.4); sys.exit(75)", 75, 1),
    "one finished earlier": ("2 time.sleep(2 * rank)", 0, 1),
    "hung up on, under nohup": ("2 os.kill(parent, signal.SIGHUP); time.sleep(1)", 0, 1),
    "asked, and one had no handler yet": (
        "2 signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), os._exit(1))) if rank else None;"
        " meet(); os.kill(parent, signal.SIGTERM) if rank == 0 else None; time.sleep(600)",
        75,
        1,
    ),
}


def run_cases(tmp_path: Path, cases: dict[str, tuple[str, int, int]], *words: str) -> list[str]:
    """Supervise each of the programs, which must end as it says; what was said on standard error."""
    path = tmp_path / "cases"
    path.write_text("".join(f"{line}\n" for line, _, _ in cases.values()))
    driver = tmp_path / "driver.py"
    driver.write_text(f"PRELUDE = {PRELUDE!r}\n{DRIVER}")
    done = call([sys.executable, driver, path, *words], 240)
    assert done.returncode == 0, done.stderr
    found = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert dict(zip(cases, found, strict=True)) == {name: (code, n) for name, (_, code, n) in cases.items()}
    return done.stderr.splitlines()


def test_codes_and_restarts(tmp_path: Path) -> None:
    """Only what failed is started again, and the code says what happened."""
    said = run_cases(tmp_path, {name: case for name, case in CASES.items() if name not in LEFT})
    assert said.count("cptron: rank 1 was killed by SIGKILL") == 1
    assert "cptron: 2 rank(s) did not stop within 1 s of SIGTERM; killing them" in said
    assert "cptron: stopped by SIGUSR1 before the first step; start again to go on" in said
    assert all(line.startswith("cptron: ") for line in said), "torchrun's own lines are not wanted"


@pytest.mark.more
def test_other_codes_and_restarts(tmp_path: Path) -> None:
    """The same of the cases that were left out."""
    said = run_cases(tmp_path, {name: CASES[name] for name in LEFT})
    assert said.count("cptron: rank 1 was killed by SIGKILL") == 1
    assert all(line.startswith("cptron: ") for line in said), "torchrun's own lines are not wanted"


@pytest.mark.more
def test_ranks_that_end_at_any_moment(tmp_path: Path) -> None:
    """Their own codes count, also those that torchrun's agent is told of first."""
    said = run_cases(tmp_path, AT_ANY_MOMENT, "busy")
    assert said == ["cptron: stopped by SIGTERM before the first step; start again to go on"]
