"""What would have to change where a recipe does not fit: more GPUs, or one option.

Place in the flow: asked when a search finds nothing. Invariant: each answer was tried: it has a layout that the trainer
accepts and that fits by the formula.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cptron.config.schema import AdapterConfig, Config, ParallelConfig
from cptron.errors import ConfigError
from cptron.model.architecture import Architecture
from cptron.plan.cluster import Cluster
from cptron.plan.gpus import GPUS, Gpu
from cptron.plan.layouts import layouts, require_sound
from cptron.plan.memory import Memory, memory_of, static_bytes
from cptron.plan.parameters import held_by_stage

MOST_NODES = 1024


@dataclass(frozen=True, slots=True)
class Remedy:
    """Something that makes it fit."""

    change: str
    """In the words of the command line or the configuration."""
    config: Config
    """With a layout that fits."""
    memory: Memory


def leanest(
    config: Config, arch: Architecture, cluster: Cluster, factor: float = 1.0
) -> tuple[Config, Memory] | None:
    """The accepted layout that needs the least memory; None where none is accepted."""
    found: tuple[Config, Memory] | None = None
    for variants in layouts(config, arch, cluster):
        for candidate in variants:
            if candidate.train.micro_batch_size > 1 or candidate.parallel.virtual_stages > 1:
                break  # more of either never needs less
            memory = memory_of(candidate, arch, cluster.num_gpus, factor=factor)
            if found is None or memory.total < found[1].total:
                found = candidate, memory
    return found


def smallest_cluster(
    config: Config, arch: Architecture, cluster: Cluster, factor: float = 1.0
) -> Remedy | None:
    """The smallest number of these GPUs on which it fits; None where 1024 nodes are not enough."""
    (whole,) = held_by_stage(replace(config, parallel=ParallelConfig()), arch)
    divided_at_best = sum(static_bytes(config, whole, 1))
    for count in _counts(cluster):
        if divided_at_best / count > cluster.gpu.memory_bytes:
            continue
        found = leanest(config, arch, replace(cluster, num_gpus=count), factor)
        if found and found[1].total <= cluster.gpu.memory_bytes:
            return Remedy(f"--gpus {count}", *found)
    return None


def _counts(cluster: Cluster) -> Iterator[int]:
    """Parts of a node, then nodes: each number up to 16, then steps of a sixteenth."""
    count = 1
    while count < cluster.gpus_per_node:
        if cluster.gpus_per_node % count == 0:
            yield count
        count += 1
    nodes = 1
    while nodes <= MOST_NODES:
        yield nodes * cluster.gpus_per_node
        nodes += max(1, 2 ** (nodes.bit_length() - 5)) if nodes >= 16 else 1


def options(config: Config, arch: Architecture, cluster: Cluster, factor: float = 1.0) -> list[Remedy]:
    """Single changes after which it fits on the same number of GPUs."""
    found = []
    for change, changed, gpu in _changes(config, cluster):
        other = replace(cluster, gpu=gpu)
        try:
            require_sound(changed, arch)
        except ConfigError:
            continue
        lean = leanest(changed, arch, other, factor)
        if lean and lean[1].total <= other.gpu.memory_bytes:
            found.append(Remedy(change, *lean))
    return found


def _changes(config: Config, cluster: Cluster) -> Iterator[tuple[str, Config, Gpu]]:
    optim, data, memory, gpu = config.optim, config.data, config.memory, cluster.gpu
    larger = sorted(
        (other for other in GPUS.values() if other.memory_gib > 1.1 * gpu.memory_gib),
        key=lambda other: other.memory_gib,
    )
    for other in larger:
        yield f"--gpu {other.name}", config, other
    if optim.name == "adamw" and optim.moments == "fp32":
        yield "optim.moments=bf16", replace(config, optim=replace(optim, moments="bf16")), gpu
    if memory.logits_chunk_tokens == 0:
        changed = replace(config, memory=replace(memory, logits_chunk_tokens=1024))
        yield "memory.logits_chunk_tokens=1024", changed, gpu
    if not config.parallel.sequence_parallel:
        changed = replace(config, parallel=replace(config.parallel, sequence_parallel=True))
        yield "parallel.sequence_parallel=true", changed, gpu
    if config.train.precision == "fp32":
        yield "train.precision=bf16", replace(config, train=replace(config.train, precision="bf16")), gpu
    if data.seq_length % 2 == 0:
        changed = replace(config, data=replace(data, seq_length=data.seq_length // 2))
        yield f"data.seq_length={data.seq_length // 2}", changed, gpu
    if config.adapter.kind == "none":
        changed = replace(config, adapter=AdapterConfig(kind="lora"))
        yield "adapter.kind=lora (which trains other weights)", changed, gpu
