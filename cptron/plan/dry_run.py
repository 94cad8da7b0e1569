"""`cptron plan --dry-run`: what ranks of a job allocate when the trainer's own engine takes a step without its machine.

Place in the flow: `main` hands over here; a process of its own (`train.dry_run_main`) traces, this file asks and
compares. Imports no torch. Invariant: a number of a trace is shown beside the formula's, never in its place.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from cptron.config.check_mixing import staged_configs
from cptron.config.load import config_to_dict
from cptron.config.schema import Config
from cptron.errors import EXIT_CODE, ConfigError, LaunchError
from cptron.model.architecture import Architecture
from cptron.plan.gpus import Gpu
from cptron.plan.layouts import require_accepted
from cptron.plan.memory import CONTEXT_BYTES, SLACK, Memory, memory_of, memory_of_stage
from cptron.runtime.topology import Layout, Topology

CATEGORIES = ("weights", "gradients", "optimizer", "activations", "working")
Facts = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is to be traced."""

    world_size: int
    rank: int | None = None
    """One rank; None for the stages that matter."""
    all_stages: bool = False
    gpu: Gpu | None = None
    """What it must fit; None asks for the numbers alone."""


def dry_run(config: Config, arch: Architecture, wanted: Wanted) -> Facts:
    """The record of a dry run. Raises a `CptronError` for what the trainer refuses, for what cannot be traced, and
    where a rank does not fit the GPU."""
    _require_engine()
    if wanted.world_size < 1:
        raise ConfigError(f"--world-size {wanted.world_size} must be at least 1; use e.g. 512")
    require_accepted(config, arch, wanted.world_size)
    fullest = _fullest_stage_of_run(config, arch, wanted.world_size)
    require_traceable(fullest)
    topology = Topology(wanted.world_size, Layout.of(fullest.parallel))
    ranks = ranks_to_trace(topology, wanted)
    on_gpu = fullest.runtime.device != "cpu"
    request = {
        "config": config_to_dict(fullest),
        "architecture": arch.to_dict(),
        "world_size": wanted.world_size,
        "ranks": ranks,
        "on_gpu": on_gpu,
    }
    found = [_rank_record(answer, fullest, arch, topology, wanted.gpu) for answer in _traced(request)]
    record = {
        "format": 1,
        "world_size": wanted.world_size,
        "layout": topology.describe(),
        "kernels": "cuda" if on_gpu else "cpu",
        "torch": version("torch"),
        "megatron_core": version("megatron-core"),
        "gpu": asdict(wanted.gpu) if wanted.gpu else None,
        "ranks": found,
        "notes": notes(fullest, on_gpu=on_gpu),
    }
    if wanted.gpu is not None:
        require_fit(found, wanted.gpu)
    return record


def ranks_to_trace(topology: Topology, wanted: Wanted) -> list[int]:
    """The rank asked for; else the first rank of all stages, or of the first, the second (of those between the ends the
    one with most in flight) and the last. Raises `ConfigError` for a rank that is not there."""
    if wanted.rank is not None:
        if not 0 <= wanted.rank < topology.world_size:
            raise ConfigError(
                f"--rank {wanted.rank} is not one of the {topology.world_size} ranks; use 0 to "
                f"{topology.world_size - 1}"
            )
        return [wanted.rank]
    pp = topology.layout.pp
    stages = range(pp) if wanted.all_stages else sorted({0, min(1, pp - 1), pp - 1})
    return [stage * topology.world_size // pp for stage in stages]


def _fullest_stage_of_run(config: Config, arch: Architecture, world_size: int) -> Config:
    """The configuration in the stage of the run that needs most, by the formulas."""
    stages = [config, *(staged for staged, _ in staged_configs(config))]
    return max(stages, key=lambda staged: memory_of(staged, arch, world_size).total)


def _require_engine() -> None:
    absent = [name for name in ("torch", "megatron.core") if not _is_installed(name)]
    if absent:
        raise LaunchError(
            f"--dry-run builds the real model and needs {' and '.join(absent)}, not installed here; install cptron "
            "with its engine, or leave --dry-run out: the plan itself needs neither"
        )


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def require_traceable(config: Config) -> None:
    """Raise `ConfigError` for what has no form without a GPU, or is read from files that the engine does not make."""
    wanted = config.regularise
    reasons = {
        f"model.backend={config.model.backend}": (config.model.backend == "te", "model.backend=native"),
        f"fp8.recipe={config.fp8.recipe}": (config.fp8.recipe != "none", "fp8.recipe=none"),
        "memory.offload_modules": (bool(config.memory.offload_modules), "memory.offload_modules=[]"),
        f"doremi.reference={config.doremi.reference}": (bool(config.doremi.reference), "doremi.reference=''"),
        "regularise.l2sp": (bool(wanted.l2sp), "regularise.l2sp=0"),
        "regularise.ewc": (bool(wanted.ewc), "regularise.ewc=0"),
        "regularise.agem": (wanted.agem, "regularise.agem=false"),
        "regularise.distill": (bool(wanted.distill.weight), "regularise.distill.weight=0"),
    }
    for what, (asked, instead) in reasons.items():
        if asked:
            raise ConfigError(
                f"--dry-run cannot trace {what}; add {instead} to see the rest, or leave --dry-run out: the formulas "
                "know it"
            )


def _traced(request: Facts) -> list[Facts]:
    """What the process answers. Raises `LaunchError` with its last line where it does not."""
    done = subprocess.run(
        [sys.executable, "-m", "cptron.train.dry_run_main"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=dict(os.environ, CUDA_VISIBLE_DEVICES=""),
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        if done.returncode == EXIT_CODE:
            raise LaunchError(lines[-1].removeprefix("error: "))
        sys.stderr.write(done.stderr)
        raise LaunchError(
            f"the process of --dry-run failed ({lines[-1]}); leave --dry-run out, and report this as a bug"
        )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _rank_record(
    answer: Facts, config: Config, arch: Architecture, topology: Topology, gpu: Gpu | None
) -> Facts:
    """One rank's traced bytes beside those of the formulas."""
    rank, stage = answer["rank"], topology.pp_rank(answer["rank"])
    planned = memory_of_stage(config, arch, topology.world_size, stage)
    traced = dict(answer["peak"]["by_category"])
    allocated = sum(traced.values())
    total = allocated * (1 + SLACK) + CONTEXT_BYTES
    train = config.train
    return {
        "rank": rank,
        "place": topology.place(rank),
        "stage": stage,
        "micro_batches": train.global_batch_size // (train.micro_batch_size * topology.dp),
        "micro_batches_traced": answer["micro_batches"],
        "fullest_in": answer["peak"]["phase"],
        "before_the_first_step": sum(answer["static"]["by_category"].values()),
        "traced": traced | {"allocated": allocated, "total": total},
        "planned": _planned(planned),
        "planned_over_traced": _ratios(planned, traced, allocated),
        "left_bytes": gpu.memory_bytes - total if gpu else None,
        "cpu_s": answer["cpu_s"],
    }


def _planned(memory: Memory) -> Facts:
    found = {name: getattr(memory, name) for name in CATEGORIES}
    return found | {"allocated": memory.allocated, "total": memory.total}


def _ratios(planned: Memory, traced: Facts, allocated: int) -> Facts:
    """Relative differences of the formulas; None where nothing was traced. Where activations end and working memory
    begins is another line in the formulas: both together are compared, too."""
    pairs = {name: (getattr(planned, name), traced[name]) for name in CATEGORIES}
    pairs["activations_and_working"] = (
        planned.activations + planned.working,
        traced["activations"] + traced["working"],
    )
    pairs["allocated"] = (planned.allocated, allocated)
    return {name: mine / seen - 1 if seen else None for name, (mine, seen) in pairs.items()}


def notes(config: Config, *, on_gpu: bool) -> list[str]:
    """What a trace is and is not."""
    if not on_gpu:
        return ["runtime.device=cpu: traced with the kernels of a CPU; what is freed within one is not seen"]
    found = [
        "traced as on a GPU, without one: flash attention, norms and compiled pointwise work count as one kernel each; "
        "workspaces inside kernels, of cuBLAS and NCCL are not seen: the context stands for them",
        "attention by the kernels for several documents in a row, each row nearly one document: the most keys"
        if config.attention.document_mask
        else "attention over whole rows",
        f"total is allocated plus {SLACK:.1%} between blocks and {CONTEXT_BYTES / 1e9:g} GB of context, assumed",
    ]
    if find_spec("fused_weight_gradient_mlp_cuda") is None:
        found.append("without Apex's weight gradients, which add to the buffer in place and need less")
    return found


def require_fit(ranks: Sequence[Facts], gpu: Gpu) -> None:
    """Raise `ConfigError` where a traced rank does not fit."""
    worst = min(ranks, key=lambda facts: facts["left_bytes"])
    if worst["left_bytes"] < 0:
        traced, over = worst["traced"], -worst["left_bytes"]
        largest = max(CATEGORIES, key=lambda name: traced[name])
        raise ConfigError(
            f"--gpu {gpu.name}: rank {worst['rank']} ({worst['place']}) needs {traced['total'] / 2**30:.1f} GiB as "
            f"traced, {over / 2**30:.1f} GiB more than it has; {largest} {traced[largest] / 2**30:.1f} GiB; plan "
            "without --dry-run for layouts that fit"
        )
