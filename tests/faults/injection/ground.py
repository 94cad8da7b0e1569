"""Where trials happen: the tiny world, a run short enough to be broken by the hundred, and undisturbed runs to compare
with.

Place in the flow: every fault's trial gets it. Invariant: an undisturbed run is made by the same processes as the
disturbed ones, so that its times say when what happens in them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commands import evals, records, steps
from faults.injection.ranks import END_S, Ranks, training
from tiny_world import ONE, Layout, World

from cptron.checkpoint.layout import list_checkpoints

STEPS = 10
EVERY_STEPS = 2
KEEP_LAST = 3
SETTINGS = [
    f"train.steps={STEPS}",
    "train.global_batch_size=4",
    "optim.warmup_steps=1",
    f"optim.decay_steps={STEPS}",
    "eval.every_steps=5",
    "eval.micro_batch_size=4",
    "data.valid.domain.max_tokens=300",
    "data.valid.general.max_tokens=300",
    f"checkpoint.every_steps={EVERY_STEPS}",
    f"checkpoint.keep_last={KEEP_LAST}",
    "runtime.timeout_s=600",  # so that no rank is ended by a collective that gives up
]
"""Five saves in ten steps, the last two of which delete an older checkpoint."""

LAYOUTS = [
    ONE,
    Layout(2),
    Layout(2, tp=2),
    Layout(2, pp=2),
    Layout(2, cp=2),
    Layout(2, pp=2, virtual_stages=2),
]
"""Under which runs are broken."""

Curve = tuple[list[dict[str, Any]], list[dict[str, Any]]]
POLL_S = 0.001


@dataclass
class Undisturbed:
    """A whole run, and when it did what, in seconds from its start."""

    run: Path
    curve: Curve
    loaded_s: float = 0.0
    duration_s: float = 0.0
    saves: dict[int, tuple[float, float]] = field(default_factory=dict)
    """First and last sight of the working directory of each step's save."""


@dataclass
class Ground:
    """The world, a directory for undisturbed runs, and the runs themselves."""

    world: World
    directory: Path
    _made: dict[tuple[str, ...], Undisturbed] = field(default_factory=dict)

    def words(self, run: Path, layout: Layout, options: Sequence[str] = ()) -> list[str]:
        """Arguments of `cptron train` for a run."""
        settings = [*SETTINGS, *layout.overrides, *options]
        return [str(self.world.config), f"run.dir={run}", *settings]

    def start(
        self, run: Path, layout: Layout, options: Sequence[str] = (), change: str = "", **given: object
    ) -> AbstractContextManager[Ranks]:
        """Ranks that train into `run` and say what they do into the `logs` beside it, but on the ground's own disk."""
        words = self.words(run, layout, options)
        beside = run.parent
        beside.mkdir(parents=True, exist_ok=True)
        while beside.stat().st_dev != self.directory.stat().st_dev:
            beside = beside.parent
        return training(words, layout.world_size, beside / "logs", change, **given)

    def finish(self, run: Path, layout: Layout, options: Sequence[str] = ()) -> Ranks:
        """Train to the end; every rank must get there."""
        with self.start(run, layout, options) as ranks:
            codes = ranks.wait()
        assert set(codes) == {0}, f"the same command again ended with {codes}: {ranks.text()[-2000:]}"
        return ranks

    def undisturbed(self, layout: Layout, options: Sequence[str] = ()) -> Undisturbed:
        """The whole run under a layout, and its times."""
        key = (str(layout), *options)
        if key not in self._made:
            run = self.directory / "undisturbed" / "_".join(key) / "run"
            shutil.rmtree(run, ignore_errors=True)  # of an earlier session
            with self.start(run, layout, options) as ranks:
                found = _watch(ranks, run)
                codes = ranks.wait()
            assert set(codes) == {0}, f"an undisturbed run ended with {codes}: {ranks.text()[-2000:]}"
            found.curve = curve(run)
            assert found.curve[0], "the run has taken no step"
            self._made[key] = found
        return self._made[key]


def _watch(ranks: Ranks, run: Path) -> Undisturbed:
    """When what appeared, until all ranks have ended."""
    found = Undisturbed(run, ([], []))
    while not ranks.ended():
        now = time.monotonic() - ranks.started_s
        if not found.loaded_s and (run / "metrics.jsonl").exists():
            found.loaded_s = now
        for step in writing(run):
            begin, _ = found.saves.get(step, (now, now))
            found.saves[step] = (begin, now)
        time.sleep(POLL_S)
    found.duration_s = time.monotonic() - ranks.started_s
    return found


def curve(run: Path) -> Curve:
    """What each step and each evaluation computed."""
    return steps(run), evals(run)


def writing(run: Path) -> list[int]:
    """Steps whose checkpoint is being written, or was when its writer was killed."""
    return [int(path.name.rsplit("_", 1)[1]) for path in (run / "checkpoints").glob(".writing_step_*")]


def newest_step(run: Path) -> int:
    """Step of the newest published checkpoint; 0 where there is none."""
    return max((step for step, _ in list_checkpoints(run / "checkpoints")), default=0)


def last_step(run: Path) -> int:
    """The last step on record; 0 where there is none."""
    found = steps(run) if (run / "metrics.jsonl").exists() else []
    return int(found[-1]["step"]) if found else 0


def resumed_step(run: Path) -> int:
    """The step that the last start of a run went on from."""
    return int(records(run, "start")[-1]["step"])


def await_sight(ranks: Ranks, sight: Callable[[], object]) -> bool:
    """Return as soon as `sight` is true, or false once all ranks have ended without it."""
    deadline = time.monotonic() + END_S
    while not sight():
        if ranks.ended():
            return bool(sight())
        assert time.monotonic() < deadline, f"nothing came of the run within {END_S:g} s"
        time.sleep(POLL_S)
    return True
