"""What a fault is, and how its trials are run one after another, counted, and kept where they fail.

Place in the flow: between the faults and the two commands that run them. Invariant: a trial depends on nothing but
the seed, its fault and its number, so that it can be repeated alone.
"""

from __future__ import annotations

import random
import shutil
import statistics
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.injection.ground import Ground


class CannotInject(Exception):
    """This machine does not permit the fault; the message says why."""


@dataclass(frozen=True)
class Trial:
    """One injection: its number among those of its fault, its random numbers, and a directory of its own."""

    ground: Ground
    number: int
    draw: random.Random
    directory: Path

    @property
    def run(self) -> Path:
        """The directory of the run that is broken."""
        return self.directory / "run"


@dataclass(frozen=True)
class Told:
    """What an injection that was survived came to."""

    hit: str
    """Where it struck, or what it was."""
    detected: bool | None = None
    """None where there is nothing to detect."""
    lost_steps: int | None = None
    """Steps that had to be done again; None where no run went on."""
    measured: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """A kind of fault."""

    name: str
    what: str
    """One line for the table."""
    inject: Callable[[Trial], Told]
    full: int
    """Trials of `make faults`."""
    short: tuple[int, ...]
    """Numbers of the trials of `make test`."""


@dataclass
class Count:
    """All trials of a fault."""

    fault: Fault
    told: list[Told] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    """What went wrong, by number of the trial."""
    impossible: str = ""
    duration_s: float = 0.0

    def row(self) -> dict[str, Any]:
        """As it is put on record."""
        lost = [told.lost_steps for told in self.told if told.lost_steps is not None]
        detectable = [told.detected for told in self.told if told.detected is not None]
        measured: dict[str, list[float]] = {}
        for told in self.told:
            for name, value in told.measured.items():
                measured.setdefault(name, []).append(value)
        return {
            "fault": self.fault.name,
            "what": self.fault.what,
            "injected": len(self.told) + len(self.failed),
            "detected": sum(detectable) if detectable else None,
            "survived": len(self.told),
            "lost_steps": {"median": statistics.median(lost), "max": max(lost)} if lost else None,
            "hit": dict(sorted(Counter(told.hit for told in self.told).items())),
            "measured": {
                name: {"median": statistics.median(values), "max": max(values)}
                for name, values in measured.items()
            },
            "failed": {str(number): reason for number, reason in self.failed.items()},
            "not_injected": self.impossible,
            "duration_s": round(self.duration_s, 1),
        }


def run_trials(fault: Fault, ground: Ground, seed: int, numbers: Iterable[int]) -> Count:
    """Inject a fault under each of the numbers. A trial that fails keeps its directory and says how to repeat it."""
    count = Count(fault)
    started_s = time.monotonic()
    for number in numbers:
        directory = ground.directory / "trials" / f"{fault.name.replace(' ', '_')}_{number}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        try:
            told = fault.inject(
                Trial(ground, number, random.Random(f"{seed} {fault.name} {number}"), directory)
            )
        except CannotInject as reason:
            count.impossible = str(reason)
            shutil.rmtree(directory)
        except Exception as error:
            count.failed[number] = f"{type(error).__name__}: {error}".splitlines()[0]
            (directory / "traceback.txt").write_text(traceback.format_exc())
            print(_how_to_repeat(fault, number, seed, directory, error), file=sys.stderr, flush=True)
        else:
            count.told.append(told)
            shutil.rmtree(directory)
    count.duration_s = time.monotonic() - started_s
    return count


def _how_to_repeat(fault: Fault, number: int, seed: int, directory: Path, error: Exception) -> str:
    words = f'--only "{fault.name}" --trial {number} --seed {seed}'
    return (
        f"{fault.name}, trial {number}: {type(error).__name__}: {error}\n  its directory: {directory}\n"
        f"  again: PYTHONPATH=tests python -m faults.injection {words}"
    )
