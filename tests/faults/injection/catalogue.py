"""All faults, with how often each is injected.

Place in the flow: read by `make faults` and by the short form in the tests. Invariant: the short form injects each,
some in `make test` and the others in `make test-more`, but for the pairs of layouts, which `tests/e2e/test_resume.py`
tries on warm ranks.
"""

from __future__ import annotations

from faults.injection.corruption import corrupt
from faults.injection.disk import fill_disk, obstruct
from faults.injection.interruptions import jump_clock, preempt, reshard, two_writers
from faults.injection.kills import kill_all, kill_one
from faults.injection.matrix import PAIRS, change_layout
from faults.injection.trials import Fault
from faults.injection.wrong_numbers import inflate, make_nan

FAULTS = [
    Fault(
        "kill",
        "SIGKILL to all ranks at a random instant of loading, training, saving or pruning",
        kill_all,
        full=100,
        short=(1, 6),
    ),
    Fault(
        "kill one rank",
        "SIGKILL to one of two ranks; the other must end by itself",
        kill_one,
        full=30,
        short=(0,),
    ),
    Fault(
        "corrupt",
        "bit flips, cuts, deletions, swaps in the newest checkpoint",
        corrupt,
        full=200,
        short=tuple(range(8)),
    ),
    Fault(
        "disk full",
        "a small disk fills up before the start or in the middle of a run",
        fill_disk,
        full=24,
        short=(8,),
    ),
    Fault(
        "obstacle",
        "read-only directories, files in the way, directories removed under a run",
        obstruct,
        full=18,
        short=(0,),
    ),
    Fault(
        "clock",
        "the clock jumps by up to a day; files are dated up to a year off",
        jump_clock,
        full=12,
        short=(6,),
    ),
    Fault("two writers", "the same command is started twice", two_writers, full=12, short=(1,)),
    Fault(
        "preempt",
        "SIGTERM or SIGUSR1 to one rank or all, in training or in a save",
        preempt,
        full=24,
        short=(1,),
    ),
    Fault("NaN", "a matrix of one rank becomes NaN", make_nan, full=12, short=(1,)),
    Fault(
        "spike",
        "the last norm of one rank is suddenly 1,000 times too large; the policy is to roll back",
        inflate,
        full=12,
        short=(1,),
    ),
    Fault("reshard", "SIGKILL, then a resume under another layout", reshard, full=24, short=(1,)),
    Fault(
        "layouts",
        "ten steps after a resume, for every pair of layouts",
        change_layout,
        full=len(PAIRS),
        short=(),
    ),
]
