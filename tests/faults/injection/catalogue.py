"""All faults, with how often each is injected.

Place in the flow: read by `make faults` and by the short form in the tests. Invariant: the short form injects each.
"""

from __future__ import annotations

from faults.injection.corruption import corrupt
from faults.injection.disk import fill_disk, obstruct
from faults.injection.interruptions import jump_clock, make_nan, preempt, reshard, two_writers
from faults.injection.kills import kill_all, kill_one
from faults.injection.trials import Fault

FAULTS = [
    Fault(
        "kill",
        "SIGKILL to all ranks at a random instant of loading, training, saving or pruning",
        kill_all,
        100,
        2,
    ),
    Fault("kill one rank", "SIGKILL to one of two ranks; the other must end by itself", kill_one, 30, 1),
    Fault("corrupt", "bit flips, cuts, deletions, swaps in the newest checkpoint", corrupt, 200, 11),
    Fault("disk full", "a small disk fills up before the start or in the middle of a run", fill_disk, 24, 1),
    Fault(
        "obstacle",
        "read-only directories, files in the way, directories removed under a run",
        obstruct,
        18,
        1,
    ),
    Fault("clock", "the clock jumps by up to a day; files are dated up to a year off", jump_clock, 12, 1),
    Fault("two writers", "the same command started twice", two_writers, 12, 1),
    Fault("preempt", "SIGTERM or SIGUSR1 to one rank or all, in training or in a save", preempt, 24, 1),
    Fault("NaN", "a weight of one rank becomes NaN", make_nan, 12, 1),
    Fault("reshard", "SIGKILL, then a resume under another layout", reshard, 24, 1),
]
