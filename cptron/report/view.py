"""A run as charts see it: few enough points, each with its step, tokens and hours.

Place in the flow: `run_log` -> here -> `charts`, `forgetting`, `compare`. Invariant: lines of one view share one grid
for what there is once, one for what there is of every source, and one for evaluations.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from cptron.errors import ConfigError
from cptron.plan.gpus import Gpu
from cptron.report.console import valid_sets
from cptron.report.places import Places
from cptron.report.run_log import RunLog
from cptron.report.spec import Line, Values
from cptron.report.steplog import Numbers, StepLog
from cptron.report.thin import Thinned, buckets_for, thin

DOTS = 60
"""Evaluations up to so many get a mark each."""


class View:
    """Of one run, its `index` among those shown. With a `gpu` there is MFU."""

    def __init__(self, log: RunLog, index: int = 0, runs: int = 1, gpu: Gpu | None = None) -> None:
        self.log, self.index = log, index
        self.steps: StepLog = log.steps
        self.evals = StepLog()
        for record in log.evals:
            self.evals.add(record)
        self.places = Places(log.steps, log.evals, log.config)
        self.sources = [source.name for source in log.config.data.sources]
        few, many = buckets_for(runs * 20), buckets_for(runs * (5 * len(self.sources) + 20))
        self.thinned = thin(log.steps, self.places, few, log.gaps())
        self.sourced = self.thinned if few == many else thin(log.steps, self.places, many, log.gaps())
        self._evals = thin(self.evals, self.places, few)
        self.peak_tflop_per_s = _peak(log, gpu)
        self.gpu_name = gpu.name if gpu else ""

    @cached_property
    def valid_sets(self) -> list[str]:
        """Validation sets of the last evaluation; of any, where it has none."""
        return valid_sets(self.log.evals[-1]) if self.log.evals else []

    @property
    def title(self) -> str:
        """The run's name."""
        return self.log.name

    def largest_sources(self, count: int) -> list[str]:
        """Those of which most was drawn."""
        drawn = {name: self.steps.last(f"tokens/{name}") for name in self.sources}
        order = sorted(self.sources, key=lambda name: -(drawn[name] if math.isfinite(drawn[name]) else 0.0))
        return order[:count]

    def means(self, label: str, name: str, color: int, off: bool = False) -> Line:
        """A metric of the steps: mean and extremes."""
        thinned = self._grid_for(name)
        return Line(label=label, grid=thinned.grid, values=thinned.means(name), color=color, off=off)

    def samples(self, label: str, name: str, color: int, off: bool = False) -> Line:
        """A metric of the steps that does not jump about."""
        thinned = self._grid_for(name)
        return Line(label=label, grid=thinned.grid, values=thinned.samples(name), color=color, off=off)

    def sampled_column(self, name: str) -> Numbers:
        """The same as numbers, NaN where absent."""
        return np.array(self._grid_for(name).samples(name).y, dtype=np.float64)

    def _grid_for(self, name: str) -> Thinned:
        """A metric of a source has its name behind a `/`."""
        return self.sourced if "/" in name else self.thinned

    def derived(self, label: str, column: Numbers, color: int) -> Line:
        """A column that is made of others."""
        values = self.thinned.means_of(column)
        return Line(label=label, grid=self.thinned.grid, values=values, color=color)

    def evaluated(self, label: str, name: str, color: int) -> Line:
        """A metric of the evaluations."""
        few = len(self.evals) <= DOTS
        return Line(label=label, grid=self._evals.grid, values=self._evals.means(name), color=color, dots=few)

    def interval(self, label: str, prefix: str, color: int) -> Line:
        """A change of the evaluations with its interval; ends that are not finite are left out."""
        estimate, low, high = (self._evals.samples(f"{prefix}_{end}").y for end in ("nats", "low", "high"))
        return Line(
            label=label, grid=self._evals.grid, values=Values(estimate, low, high), color=color,
            interval=True, dots=len(self.evals) <= DOTS,
        )  # fmt: skip

    def replayed(self, name: str) -> list[Line]:
        """What later starts have made again."""
        lines = []
        for left in self.log.replayed:
            old = thin(left, self.places, 400)
            lines.append(Line(label="replayed", grid=old.grid, values=old.means(name), color=0, faint=True))
        return lines

    def tokens_per_s_per_rank(self) -> Numbers:
        """By the number of ranks that each start says; one, where none does."""
        return self.steps.column("tokens_per_s") / self._world_sizes()

    def _world_sizes(self) -> Numbers:
        sizes = np.ones(len(self.steps))
        for start in self.log.of_kind("start"):
            size = start.get("world_size")
            if type(size) is int and size > 0:
                sizes[self.steps.steps > start["step"]] = size
        return sizes


def _peak(log: RunLog, gpu: Gpu | None) -> float:
    """TFLOP/s of one GPU at the run's precision; 0 where no GPU is named. Raises `ConfigError` for a run on CPUs."""
    if gpu is None:
        return 0.0
    if any(start.get("device") == "cpu" for start in log.of_kind("start")[-1:]):
        raise ConfigError(f"--gpu {gpu.name}: {log.directory} was trained on CPUs; leave --gpu out")
    return gpu.peak(log.config.train.precision, fp8=log.config.fp8.recipe != "none") / 1e12
