"""A plan as one JSON object: what `--json` prints and what `shown` makes text of.

Place in the flow: the last step of `main`. Invariant: every quantity has its unit in its name; a predicted range is
`expected`, `low` and `high`; nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cptron.checkpoint.space import checkpoint_bytes, most_kept
from cptron.config.schema import Config, ParallelConfig
from cptron.model.architecture import Architecture
from cptron.plan.cluster import Cluster
from cptron.plan.corpus import SourcePlan
from cptron.plan.efficiency import Efficiency
from cptron.plan.memory import Memory
from cptron.plan.parameters import held_by_stage
from cptron.plan.search import Estimate, Found
from cptron.plan.shape import base_of
from cptron.plan.step_time import computed_per_token, flops_per_token
from cptron.plan.totals import Totals
from cptron.runtime.topology import Layout, Topology

FORMAT = 1
Facts = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that a plan found."""

    config: Config
    """The recipe with the tokens asked for, as it cuts itself."""
    arch: Architecture
    cluster: Cluster
    efficiency: Efficiency
    found: Found
    as_written: Estimate | None
    """The recipe's own layout; None where the trainer refuses it on these GPUs."""
    refusal: str
    """Why it does."""
    ranked: Sequence[tuple[Estimate, Totals]]
    """The fastest that fit."""
    corpus: Sequence[SourcePlan]


def plan_record(plan: Plan, most_rejected: int = 3) -> Facts:
    """The whole plan."""
    return {
        "format": FORMAT,
        "predicted": not plan.efficiency.is_measured,
        "cluster": _cluster(plan.cluster),
        "model": _model(plan),
        "efficiency": asdict(plan.efficiency),
        "as_written": _as_written(plan),
        "layouts": [_layout(estimate, total, plan) for estimate, total in plan.ranked],
        "layouts_that_fit": len(plan.found.fitting),
        "layouts_too_large": len(plan.found.too_large),
        "faster_but_too_large": [
            _too_large(estimate, plan.cluster) for estimate in _faster(plan)[:most_rejected]
        ],
        "layouts_refused": dict(plan.found.refused.most_common()),
        "checkpoints": checkpoints_record(plan.config, plan.arch),
        "corpus": [asdict(source) | {"is_exhausted": source.is_exhausted} for source in plan.corpus],
    }


def _cluster(cluster: Cluster) -> Facts:
    return asdict(cluster) | {"num_nodes": cluster.num_nodes, "memory_bytes": cluster.gpu.memory_bytes}


def _model(plan: Plan) -> Facts:
    whole = plan.ranked[0][0].config if plan.ranked else plan.config
    layout = Layout.of(whole.parallel)
    config, arch = plan.config, plan.arch
    return {
        "family": arch.family,
        "parameters": model_parameters(config, arch),
        "parameters_on_fullest_stage": max(held.total for held in held_by_stage(whole, arch)),
        "tensor_ranks": layout.tp,
        "flops_per_token_causal": flops_per_token(config, arch),
        "flops_per_token_full_attention": flops_per_token(config, arch, causal=False),
    }


def model_parameters(config: Config, arch: Architecture) -> int:
    """Of the whole model, with the rows that pad its vocabulary for one tensor rank, adapters included."""
    (held,) = held_by_stage(replace(config, parallel=ParallelConfig()), arch)
    return held.total


def _as_written(plan: Plan) -> Facts:
    if plan.as_written is None:
        return {"fits": False, "refused": plan.refusal}
    estimate = plan.as_written
    facts = _described(estimate, plan.cluster)
    return facts | {"fits": facts["memory"]["left_bytes"] >= 0}


def _layout(estimate: Estimate, total: Totals, plan: Plan) -> Facts:
    return (
        _described(estimate, plan.cluster)
        | {"computed_flops_per_token": computed_per_token(estimate.config, plan.arch)}
        | asdict(total)
    )


def _described(estimate: Estimate, cluster: Cluster) -> Facts:
    config = estimate.config
    layout = Layout.of(config.parallel)
    return {
        "layout": Topology(cluster.num_gpus, layout).describe(),
        "overrides": overrides(config),
        "dp": cluster.num_gpus // layout.ranks,
        "micro_batches": config.train.global_batch_size
        * layout.ranks
        // (config.train.micro_batch_size * cluster.num_gpus),
        "memory": memory_record(estimate.memory, cluster),
        "step_time_s": estimate.time.total,
        "step_time_parts_s": asdict(estimate.time),
    }


def _faster(plan: Plan) -> list[Estimate]:
    """Layouts that would beat the best one if they fitted."""
    best = plan.found.fitting[0].seconds_per_token
    return [estimate for estimate in plan.found.too_large if estimate.seconds_per_token < best]


def _too_large(estimate: Estimate, cluster: Cluster) -> Facts:
    facts = _described(estimate, cluster)
    return facts | {"reason": too_large_reason(estimate.memory, cluster)}


def memory_record(memory: Memory, cluster: Cluster) -> Facts:
    """Bytes by category, and what is left of the GPU's."""
    return asdict(memory) | {
        "allocated": memory.allocated,
        "total": memory.total,
        "left_bytes": cluster.gpu.memory_bytes - memory.total,
    }


def too_large_reason(memory: Memory, cluster: Cluster) -> str:
    """By how much, and what most of it is for."""
    parts = {
        name: getattr(memory, name)
        for name in ("weights", "gradients", "optimizer", "teacher", "activations", "working")
    }
    largest = max(parts, key=parts.__getitem__)
    over = memory.total - cluster.gpu.memory_bytes
    return (
        f"needs {memory.total / 2**30:.1f} GiB, {over / 2**30:.1f} GiB more than {cluster.gpu.name} has; "
        f"{largest} {parts[largest] / 2**30:.1f} GiB"
    )


def overrides(config: Config) -> list[str]:
    """What to give to `cptron train` beside the recipe."""
    parallel, memory = config.parallel, config.memory
    found = [
        f"parallel.{name}={getattr(parallel, name)}"
        for name in ("tp", "cp", "pp", "virtual_stages", "first_stage_layers", "last_stage_layers")
    ]
    found += [
        f"train.micro_batch_size={config.train.micro_batch_size}",
        f"memory.recompute={memory.recompute}",
    ]
    if memory.recompute == "selective":
        found.append(f"memory.recompute_modules=[{','.join(memory.recompute_modules)}]")
    return [*found, f"memory.recompute_layers={memory.recompute_layers}", f"train.steps={config.train.steps}"]


def checkpoints_record(config: Config, arch: Architecture) -> Facts:
    """Size of one checkpoint, and of all that are there at once."""
    size = checkpoint_bytes(config, arch, base_of(config))
    count = most_kept(config, [])
    return {"bytes_each": size, "most_at_once": count, "bytes_at_once": size * count}
