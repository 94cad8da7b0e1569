"""Fits the planner to real logs: the part of the peak that was reached, and the memory that was allocated.

Place in the flow: `main` calls it for `--calibrate`; `fit_file` keeps what it found. Imports no torch. Invariant: one
unknown for one measured median, in the formula that plans; a log that does not suffice is refused, never averaged
over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cptron.checkpoint import layout as checkpoint_layout
from cptron.config.check_mixing import staged_configs
from cptron.config.load import load_config
from cptron.config.schema import Config
from cptron.errors import CptronError, DataError
from cptron.model.architecture import Architecture
from cptron.plan.cluster import Cluster
from cptron.plan.efficiency import Efficiency
from cptron.plan.layouts import require_accepted
from cptron.plan.memory import memory_of_stage
from cptron.plan.shape import model_of
from cptron.plan.steady import number_of, steady_steps
from cptron.plan.step_time import step_time
from cptron.runtime.topology import Layout, Topology

GIB = 2**30
MOST_SPREAD = 0.25
"""Of (90 % quantile - 10 % quantile) / median of the step times."""
ELSEWHERE = 0.1
"""Part by which another layout than the log's may reach more or less: assumed."""
PLAUSIBLE = (0.5, 1.5)
"""Measured / predicted memory; beyond, the log's memory is not that of a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogFit:
    """One log against the formula."""

    log: str
    layout: str
    num_gpus: int
    steps_used: int
    steps_left_out: int
    step_time_s: tuple[float, float, float]
    """Measured: 10 % quantile, median, 90 % quantile."""
    reached: float
    """Part of the peak with which the formula gives the median."""
    predicted_s: float
    """With the part that all logs have together."""
    memory_gib: float
    """Measured on rank 0."""
    predicted_memory_gib: float
    """Of a rank of the first stage, before the factor."""

    @property
    def residual(self) -> float:
        """Predicted / measured step time, less 1."""
        return self.predicted_s / self.step_time_s[1] - 1


@dataclass(frozen=True, slots=True)
class _Read:
    """A log with the run that it is of."""

    found: LogFit
    config: Config
    arch: Architecture
    place: Cluster
    on_gpus: bool


@dataclass(frozen=True, slots=True)
class Fit:
    """All logs together."""

    gpu: str
    efficiency: Efficiency
    logs: tuple[LogFit, ...]
    notes: tuple[str, ...]


def fit(paths: Sequence[Path], cluster: Cluster, model: Path | None, num_gpus: int | None) -> Fit:
    """Fit `metrics.jsonl` files of runs on this kind of GPU. `num_gpus` where a log does not tell it. Raises
    `DataError` where a log does not suffice."""
    read = [_read(path, cluster, model, num_gpus) for path in paths]
    reached = float(np.median([one.found.reached for one in read]))
    logs = tuple(
        replace(
            one.found,
            predicted_s=step_time(one.config, one.arch, one.place, reached=reached).total,
        )
        for one in read
    )
    factor, notes = _memory_factor(read)
    slowest = min(found.reached * found.step_time_s[1] / found.step_time_s[2] for found in logs)
    fastest = max(found.reached * found.step_time_s[1] / found.step_time_s[0] for found in logs)
    efficiency = Efficiency(
        low=min(slowest, reached * (1 - ELSEWHERE)),
        expected=reached,
        high=max(fastest, reached * (1 + ELSEWHERE)),
        memory_factor=factor,
        source=f"fitted to {', '.join(found.log for found in logs)}",
        is_measured=True,
    )
    return Fit(cluster.gpu.name, efficiency, logs, notes)


def _memory_factor(read: Sequence[_Read]) -> tuple[float, tuple[str, ...]]:
    """The largest of all logs, and a note where it is not that of a GPU's allocator."""
    factors = [one.found.memory_gib / one.found.predicted_memory_gib for one in read]
    if all(one.on_gpus for one in read) and all(PLAUSIBLE[0] <= factor <= PLAUSIBLE[1] for factor in factors):
        return max(factors), ()
    listed = ", ".join(f"{factor:.2f}" for factor in factors)
    return 1.0, (
        f"measured memory is {listed} times the predicted one and not, or not plausibly, that of a GPU's allocator "
        "(on a CPU it is the process's): memory is not calibrated",
    )


def _read(path: Path, cluster: Cluster, model: Path | None, num_gpus: int | None) -> _Read:
    steady = steady_steps(path)
    config = load_config(path.parent / "config.yaml").config
    if config.data.stages:
        config = staged_configs(config)[min(steady.stage, len(config.data.stages) - 1)][0]
    times = np.array([record["step_time_s"] for record in steady.steps])
    low, median, high = (float(value) for value in np.quantile(times, (0.1, 0.5, 0.9)))
    if (high - low) / median > MOST_SPREAD:
        raise DataError(
            f"{path}: the steps took {low:.3g} to {high:.3g} s (10 to 90 %), a spread of {(high - low) / median:.0%} "
            f"of the median, at most {MOST_SPREAD:.0%} can be fitted; use a log of a quiet machine"
        )
    count = num_gpus or steady.world_size
    if not count:
        raise DataError(
            f"{path} does not say on how many GPUs its {len(times)} steps ran; give --calibrate-gpus"
        )
    arch = _model(config, path, model)
    require_accepted(config, arch, count)
    layout = Topology(count, Layout.of(config.parallel)).describe()
    if steady.layout not in ("", layout):
        raise DataError(
            f"{path} ends with steps of {steady.layout}, but config.yaml beside it says {layout}; use the log of a run "
            "that was not changed after them"
        )
    place = replace(cluster, num_gpus=count)
    measured = float(np.median([number_of(path, record, "mem_peak_gib") for record in steady.steps]))
    found = LogFit(
        log=str(path),
        layout=layout,
        num_gpus=count,
        steps_used=len(times),
        steps_left_out=steady.left_out,
        step_time_s=(low, median, high),
        reached=_solve(config, arch, place, median, path),
        predicted_s=median,
        memory_gib=measured,
        predicted_memory_gib=memory_of_stage(config, arch, count, 0).allocated / GIB,
    )
    return _Read(found, config, arch, place, steady.on_gpus)


def _model(config: Config, path: Path, model: Path | None) -> Architecture:
    """That of the run's own checkpoints, where it has any."""
    if model is None:
        for _, directory in reversed(checkpoint_layout.list_checkpoints(path.parent / "checkpoints")):
            try:
                return checkpoint_layout.read_manifest(directory).arch
            except CptronError:
                continue
    return model_of(config, model)


def _solve(config: Config, arch: Architecture, cluster: Cluster, measured_s: float, path: Path) -> float:
    """The part of the peak with which the formula takes `measured_s`: by halving, the time falls with the part."""

    def predicted(reached: float) -> float:
        return step_time(config, arch, cluster, reached=reached).total

    low, high = 1e-4, 1.0
    if predicted(high) > measured_s:
        raise DataError(
            f"{path}: a step took {measured_s:.4g} s, but {cluster.num_gpus} {cluster.gpu.name} at their peak take "
            f"{predicted(high):.4g} s; give the GPU it ran on with --gpu, and its number with --calibrate-gpus"
        )
    if predicted(low) < measured_s:
        raise DataError(
            f"{path}: a step took {measured_s:.4g} s, which is below a ten-thousandth of the peak of "
            f"{cluster.num_gpus} {cluster.gpu.name}; give the GPU it ran on with --gpu or --gpu-file"
        )
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if predicted(middle) > measured_s else (low, middle)
    return math.sqrt(low * high)
