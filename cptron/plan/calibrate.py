"""Fits the planner to real logs: the part of the peak that was reached, and the memory that was allocated.

Place in the flow: `main` calls it for `--calibrate`; `fit_file` keeps what it found. Imports no torch. Invariant: one
unknown for one measured median, in the formula that plans; a log that does not suffice is refused, never averaged
over.
"""

from __future__ import annotations

import math
import re
from collections import Counter
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
from cptron.plan.step_time import step_time
from cptron.report.sinks import Record, read_records
from cptron.runtime.topology import Layout, Topology

GIB = 2**30
LEFT_OUT = 5
"""Steps after each start, which warm up caches, compilers and pages."""
LEAST_STEPS = 20
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
class Fit:
    """All logs together."""

    gpu: str
    efficiency: Efficiency
    logs: tuple[LogFit, ...]
    notes: tuple[str, ...]


def fit(paths: Sequence[Path], cluster: Cluster, model: Path | None, num_gpus: int | None) -> Fit:
    """Fit `metrics.jsonl` files of runs on this kind of GPU. `num_gpus` where no checkpoint of a run tells it. Raises
    `DataError` where a log does not suffice."""
    read = [_read(path, cluster, model, num_gpus) for path in paths]
    reached = float(np.median([found.reached for found, *_ in read]))
    logs = tuple(
        replace(found, predicted_s=step_time(config, arch, place, reached=reached).total)
        for found, config, arch, place in read
    )
    factors = [found.memory_gib / found.predicted_memory_gib for found in logs]
    plausible = all(PLAUSIBLE[0] <= factor <= PLAUSIBLE[1] for factor in factors)
    notes = () if plausible else (_implausible(factors),)
    slowest = min(found.reached * found.step_time_s[1] / found.step_time_s[2] for found in logs)
    fastest = max(found.reached * found.step_time_s[1] / found.step_time_s[0] for found in logs)
    efficiency = Efficiency(
        low=min(slowest, reached * (1 - ELSEWHERE)),
        expected=reached,
        high=max(fastest, reached * (1 + ELSEWHERE)),
        memory_factor=max(factors) if plausible else 1.0,
        source=f"fitted to {', '.join(found.log for found in logs)}",
        is_measured=True,
    )
    return Fit(cluster.gpu.name, efficiency, logs, notes)


def _implausible(factors: Sequence[float]) -> str:
    listed = ", ".join(f"{factor:.2f}" for factor in factors)
    return (
        f"measured memory is {listed} times the predicted one, so it is not that of a GPU's allocator (on a CPU "
        "it is the process's): memory is not calibrated"
    )


def _read(
    path: Path, cluster: Cluster, model: Path | None, num_gpus: int | None
) -> tuple[LogFit, Config, Architecture, Cluster]:
    if not path.is_file():
        raise DataError(f"--calibrate {path} does not exist; name the metrics.jsonl of a run")
    config = load_config(path.parent / "config.yaml").config
    steps, left_out, stage = _steady(path, read_records(path))
    if config.data.stages:
        config = staged_configs(config)[min(stage, len(config.data.stages) - 1)][0]
    times = np.array([record["step_time_s"] for record in steps])
    low, median, high = (float(value) for value in np.quantile(times, (0.1, 0.5, 0.9)))
    if (high - low) / median > MOST_SPREAD:
        raise DataError(
            f"{path}: the steps took {low:.3g} to {high:.3g} s (10 to 90 %), a spread of {(high - low) / median:.0%} "
            f"of the median, at most {MOST_SPREAD:.0%} can be fitted; use a log of a quiet machine"
        )
    count = num_gpus or _world_of(path)
    place = replace(cluster, num_gpus=count)
    arch = _model(config, path, model)
    require_accepted(config, arch, count)
    reached = _solve(config, arch, place, median, path)
    measured = float(np.median([_number(path, record, "mem_peak_gib") for record in steps]))
    found = LogFit(
        log=str(path),
        layout=_layout_name(config, count),
        num_gpus=count,
        steps_used=len(steps),
        steps_left_out=left_out,
        step_time_s=(low, median, high),
        reached=reached,
        predicted_s=median,
        memory_gib=measured,
        predicted_memory_gib=memory_of_stage(config, arch, count, 0).allocated / GIB,
    )
    return found, config, arch, place


def _layout_name(config: Config, count: int) -> str:
    return Topology(count, Layout.of(config.parallel)).describe()


def _steady(path: Path, records: Sequence[Record]) -> tuple[list[Record], int, int]:
    """Steps of the stage that has most of them, without those that follow a start; how many were left out; the
    stage."""
    since_start, kept, left_out = 0, list[Record](), 0
    before: int | None = None
    for record in records:
        if record["kind"] == "start":
            since_start = 0
        if record["kind"] != "step":
            continue
        if before is not None and record["step"] <= before:
            since_start = 0  # gone back: a restart without a record of it
        before = record["step"]
        _number(path, record, "step_time_s")
        since_start += 1
        if since_start <= LEFT_OUT:
            left_out += 1
        else:
            kept.append(record)
    stage, _ = Counter(int(record.get("stage", 0)) for record in kept).most_common(1)[0] if kept else (0, 0)
    used = [record for record in kept if int(record.get("stage", 0)) == stage]
    left_out += len(kept) - len(used)
    if len(used) < LEAST_STEPS:
        raise DataError(
            f"{path} has {len(used)} steps after warming up ({left_out} left out), must have at least {LEAST_STEPS}; "
            "train longer, or set log.every_steps lower"
        )
    return used, left_out, stage


def _number(path: Path, record: Record, key: str) -> float:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise DataError(
            f"{path}: step {record['step']} has {key}={value!r}, must be a number above 0; use a log of cptron train"
        )
    return float(value)


def _world_of(path: Path) -> int:
    """From the layout that the newest checkpoint says it was saved under."""
    for _, directory in reversed(checkpoint_layout.list_checkpoints(path.parent / "checkpoints")):
        try:
            name = checkpoint_layout.read_manifest(directory).layout
        except CptronError:
            continue
        parts = dict(re.findall(r"(?:^|_)(tp|cp|pp|dp)(\d+)", name))
        if "dp" in parts:
            return math.prod(int(size) for size in parts.values())
    raise DataError(
        f"{path.parent} has no checkpoint that tells on how many GPUs it ran; say it with --calibrate-gpus"
    )


def _model(config: Config, path: Path, model: Path | None) -> Architecture:
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
