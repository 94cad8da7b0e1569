"""Every way to cut a recipe over a number of GPUs that the trainer itself would accept.

Place in the flow: `search` estimates each of them. Invariant: the trainer's own checks decide, the very functions that
a start calls; what is excluded before them is only what cannot pass, or what nobody would want (a tensor parallel
group across nodes).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from cptron.config.check import check_config
from cptron.config.check_engine import check_shape
from cptron.config.check_forgetting import check_probes
from cptron.config.check_mixing import staged_configs
from cptron.config.schema import Config, MemoryConfig, ParallelConfig
from cptron.errors import ConfigError
from cptron.model.architecture import Architecture
from cptron.model.vocab import padded_vocab_size
from cptron.plan.cluster import Cluster

MOST_MICRO_BATCH = 16
MOST_VIRTUAL_STAGES = 8


def require_accepted(config: Config, arch: Architecture, world_size: int) -> None:
    """Raise the `ConfigError` that the trainer would, before it opens any file."""
    check_config(config, world_size)
    check_probes(config, arch)
    for staged, _ in [(config, ""), *staged_configs(config)]:
        check_shape(arch, staged)


def require_sound(config: Config, arch: Architecture) -> None:
    """Raise what is wrong with the recipe however it is cut: so that it is not said of every layout."""
    whole = replace(
        config,
        parallel=replace(
            config.parallel,
            tp=1,
            cp=1,
            pp=1,
            virtual_stages=1,
            first_stage_layers=0,
            last_stage_layers=0,
        ),
        memory=replace(config.memory, recompute_layers=0),
        train=replace(config.train, micro_batch_size=1),
    )
    require_accepted(whole, arch, 1)


def layouts(
    config: Config, arch: Architecture, cluster: Cluster, refused: Counter[str] | None = None
) -> Iterator[Iterator[Config]]:
    """The recipe under each layout and micro-batch, of each the ways of recomputing, the one that does nothing again
    first: those that the trainer accepts. `refused` counts the others by their reason."""
    for parallel in _parallels(config.parallel, arch, cluster):
        lightest = replace(
            config,
            parallel=parallel,
            train=replace(config.train, micro_batch_size=1),
            memory=replace(config.memory, recompute_layers=0),
        )
        if not _is_accepted(lightest, arch, cluster.num_gpus, refused):
            continue
        dp = cluster.num_gpus // (parallel.tp * parallel.cp * parallel.pp)
        for micro in _micro_batches(config, dp):
            train = replace(config.train, micro_batch_size=micro)
            variants = (
                replace(config, parallel=parallel, train=train, memory=memory)
                for memory in _memories(config, arch, parallel)
            )
            yield (one for one in variants if _is_accepted(one, arch, cluster.num_gpus, refused))


def _is_accepted(config: Config, arch: Architecture, world_size: int, refused: Counter[str] | None) -> bool:
    try:
        require_accepted(config, arch, world_size)
    except ConfigError as error:
        if refused is not None:
            refused[_kind(str(error))] += 1
        return False
    return True


def _kind(message: str) -> str:
    """The rule without its numbers."""
    rule = message.partition(";")[0]
    return "".join("N" if char.isdigit() else char for char in rule).replace("NN", "N").replace("NN", "N")


def _parallels(given: ParallelConfig, arch: Architecture, cluster: Cluster) -> Iterator[ParallelConfig]:
    world = cluster.num_gpus
    per_node = min(cluster.gpus_per_node, world)
    for tp in divisors(per_node):
        if world % tp or padded_vocab_size(arch.vocab_size, tp) < tp:
            continue
        for pp in divisors(world // tp):
            if pp > arch.num_layers:
                break
            for first, last in _ends(arch.num_layers, pp):
                for cp in divisors(world // tp // pp):
                    for virtual in _virtual_stages(arch.num_layers, pp, first, last):
                        yield replace(
                            given,
                            tp=tp,
                            cp=cp,
                            pp=pp,
                            virtual_stages=virtual,
                            first_stage_layers=first,
                            last_stage_layers=last,
                        )


def _ends(num_layers: int, pp: int) -> list[tuple[int, int]]:
    """Layers of the first and the last stage, 0 for as many as on the others: even stages, one less on the last where
    that is what divides, one less on both (the embedding and the loss count as layers)."""
    if pp == 1:
        return [(0, 0)]
    found = [(0, 0)] if num_layers % pp == 0 else []
    each = -(-num_layers // pp)
    short = num_layers - (pp - 1) * each
    if num_layers % pp and short > 0:
        found.append((0, short))
    if (num_layers + 2) % pp == 0 and (num_layers + 2) // pp > 1 and pp > 2:
        found.append(((num_layers + 2) // pp - 1,) * 2)
    return found


def _virtual_stages(num_layers: int, pp: int, first: int, last: int) -> list[int]:
    if pp == 1:
        return [1]
    if first or last:
        return [1]
    return [n for n in divisors(num_layers // pp) if n <= MOST_VIRTUAL_STAGES]


def _micro_batches(config: Config, dp: int) -> list[int]:
    return [n for n in divisors(config.train.global_batch_size // dp) if n <= MOST_MICRO_BATCH]


def _memories(config: Config, arch: Architecture, parallel: ParallelConfig) -> list[MemoryConfig]:
    """Nothing recomputed, the MLP, half of the layers, all of them; what the recipe asks for besides stays."""
    plain = replace(config.memory, recompute="none", recompute_layers=0)
    found = [plain]
    modules = tuple(name for name in ("core_attn", "mlp") if name not in plain.offload_modules)
    if "mlp" in modules:
        found.append(replace(plain, recompute="selective", recompute_modules=("mlp",)))
    if not plain.offload_modules:
        smallest = min(
            size
            for size in (
                parallel.first_stage_layers,
                parallel.last_stage_layers,
                arch.num_layers // parallel.pp,
            )
            if size
        )
        half = smallest // parallel.virtual_stages // 2
        if half:
            found.append(replace(plain, recompute="full", recompute_layers=half))
        found.append(replace(plain, recompute="full"))
    return found


def divisors(number: int) -> list[int]:
    """All, in order."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})
