"""Rules of the engine: how parallelisms, memory options, FP8, adapters and backends go together.

Place in the flow: called by `check`. Invariant: whatever passes here composes; every refusal names the nearest
choice that is legal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cptron.config.check_fp8 import check_fp8, check_fp8_layers, check_fp8_shapes
from cptron.config.schema import AdapterConfig, Config
from cptron.errors import ConfigError, either
from cptron.model.families import family_of
from cptron.model.families.family import ADAPTABLE
from cptron.runtime.topology import Layout

if TYPE_CHECKING:
    from cptron.model.architecture import Architecture

RECOMPUTABLE = {"native": ("core_attn", "mlp"), "te": ("core_attn", "mlp", "layernorm")}
OFFLOADABLE = ("attn_norm", "qkv_linear", "core_attn", "attn_proj", "mlp_norm")


def nearest_multiples(value: int, unit: int) -> str:
    """The multiples of `unit` around `value`."""
    below = value // unit * unit
    return either([size for size in (below, below + unit) if size])


def check_engine(config: Config, world_size: int) -> None:
    """Check what needs only the configuration and the number of ranks. Raises `ConfigError`."""
    layout = Layout.of(config.parallel)
    _check_world(config, layout, world_size)
    _check_sequence(config, layout)
    _check_interleaving(config, layout, world_size // layout.ranks)
    _check_backend(config)
    check_fp8(config)
    _check_memory(config)
    if config.adapter.kind != "none":
        _check_adapter(config.adapter)
        if config.start.mode == "random":
            raise ConfigError(
                f"adapter.kind={config.adapter.kind} stands beside trained weights, but start.mode=random has none; "
                "use start.mode=init_from"
            )
        if config.optim.frozen:
            raise ConfigError(
                f"optim.frozen={list(config.optim.frozen)} freezes what adapter.kind={config.adapter.kind} freezes "
                "anyway; remove it, or narrow adapter.targets"
            )


def _check_world(config: Config, layout: Layout, world_size: int) -> None:
    tp, cp, pp = layout.tp, layout.cp, layout.pp
    if world_size < 1 or world_size % layout.ranks:
        product = f"parallel.tp={tp} * " + (f"parallel.cp={cp} * " if cp > 1 else "") + f"parallel.pp={pp}"
        raise ConfigError(
            f"{product} = {layout.ranks} must divide the world size {world_size}; "
            f"use {_other_worlds(layout, world_size)}"
        )
    dp = world_size // layout.ranks
    micro, batch = config.train.micro_batch_size, config.train.global_batch_size
    if batch % (micro * dp):
        raise ConfigError(
            f"train.global_batch_size={batch} must be a multiple of train.micro_batch_size={micro} * dp={dp} "
            f"= {micro * dp}; use {nearest_multiples(batch, micro * dp)}"
        )


def _other_worlds(layout: Layout, world_size: int) -> str:
    """What fits: numbers of ranks around this one, or another size of one axis on these ranks."""
    found = [f"{nearest_multiples(world_size, layout.ranks)} ranks"]
    for name, size in (("tp", layout.tp), ("cp", layout.cp), ("pp", layout.pp)):
        share, rest = divmod(max(world_size, 0), layout.ranks // size)
        if size > 1 and share and not rest:
            legal = [n for n in range(1, share + 1) if share % n == 0]
            found.append(f"parallel.{name}={either(legal)}")
    return ", or ".join(found)


def _check_sequence(config: Config, layout: Layout) -> None:
    unit, seq_length = layout.sequence_unit, config.data.seq_length
    if seq_length % unit:
        parts = [f"2 * parallel.cp={layout.cp}"] if layout.cp > 1 else []
        parts += [f"parallel.tp={layout.tp} (sequence parallel)"] if layout.sequence_parallel else []
        raise ConfigError(
            f"data.seq_length={seq_length} must be a multiple of {' * '.join(parts)} = {unit}; "
            f"use {nearest_multiples(seq_length, unit)}"
        )


def _check_interleaving(config: Config, layout: Layout, dp: int) -> None:
    if layout.virtual_stages == 1:
        return
    if layout.pp == 1:
        raise ConfigError(
            f"parallel.virtual_stages={layout.virtual_stages} interleaves pipeline stages, but parallel.pp=1 has one; "
            "use virtual_stages=1 or more stages"
        )
    unit = config.train.micro_batch_size * dp * layout.pp
    batch = config.train.global_batch_size
    if batch % unit:
        raise ConfigError(
            f"train.global_batch_size={batch} must be a multiple of train.micro_batch_size="
            f"{config.train.micro_batch_size} * dp={dp} * parallel.pp={layout.pp} = {unit} with "
            f"parallel.virtual_stages={layout.virtual_stages}; use {nearest_multiples(batch, unit)}"
        )


def _check_backend(config: Config) -> None:
    if config.model.backend == "native":
        return
    parallel = config.parallel
    if parallel.cp > 1 and config.attention.document_mask:
        raise ConfigError(
            f"model.backend=te with parallel.cp={parallel.cp} cuts rows, not documents, over context ranks, so "
            "attention.document_mask=true would not hold; use model.backend=native or attention.document_mask=false"
        )
    if config.adapter.kind != "none":
        raise ConfigError(
            f"adapter.kind={config.adapter.kind} is offered by model.backend=native only; use that backend"
        )


def _check_memory(config: Config) -> None:
    memory, backend = config.memory, config.model.backend
    for key, names, known in (
        ("memory.recompute_modules", memory.recompute_modules, RECOMPUTABLE[backend]),
        ("memory.offload_modules", memory.offload_modules, OFFLOADABLE),
    ):
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"{key} has {name!r}, which cannot be had with model.backend={backend}; use {either(known)}"
                )
    if memory.recompute_layers and memory.recompute != "full":
        raise ConfigError(
            f"memory.recompute_layers={memory.recompute_layers} counts layers of memory.recompute=full, but it is "
            f"{memory.recompute}; set memory.recompute=full or leave the count 0"
        )
    if memory.recompute == "selective" and not memory.recompute_modules:
        raise ConfigError(
            "memory.recompute_modules=[] but memory.recompute=selective; name some, or use none"
        )
    if memory.offload_modules and memory.recompute == "full":
        raise ConfigError(
            f"memory.offload_modules={list(memory.offload_modules)} offloads what memory.recompute=full does not keep; "
            "use one of the two"
        )
    both = [name for name in memory.offload_modules if name in memory.recompute_modules]
    if memory.recompute == "selective" and both:
        raise ConfigError(
            f"memory.offload_modules has {', '.join(both)}, of which memory.recompute_modules keeps nothing to "
            "offload; name it in one of the two"
        )
    if "attn_proj" in memory.offload_modules and "core_attn" not in memory.offload_modules:
        raise ConfigError(
            "memory.offload_modules has attn_proj without core_attn, whose output it is; add core_attn"
        )


def _check_adapter(adapter: AdapterConfig) -> None:
    if not adapter.targets:
        raise ConfigError(
            f"adapter.targets=[] leaves adapter.kind={adapter.kind} nothing to train; name some"
        )
    for target in adapter.targets:
        if target not in ADAPTABLE:
            raise ConfigError(
                f"adapter.targets has {target!r}, which is no matrix of a layer; use {either(ADAPTABLE)}"
            )
    if adapter.rank < 1 or adapter.alpha <= 0:
        raise ConfigError(
            f"adapter.rank={adapter.rank} and adapter.alpha={adapter.alpha} must be at least 1 and more than 0; "
            "use e.g. 16 and 32"
        )


def check_shape(arch: Architecture, config: Config) -> None:
    """Check that a model of this shape can be built as configured and reads `data.seq_length` tokens.

    Raises `ConfigError`. The vocabulary is padded to a multiple of tp, so it sets no rule.
    """
    from cptron.model.stages import stage_sizes

    layout, seq_length = Layout.of(config.parallel), config.data.seq_length
    cut_by_tp = {
        "num_attention_heads": arch.num_attention_heads,
        "num_kv_heads": arch.num_kv_heads,
        "ffn_hidden_size": arch.ffn_hidden_size,
    }
    legal = [
        n for n in range(1, min(cut_by_tp.values()) + 1) if all(size % n == 0 for size in cut_by_tp.values())
    ]
    for name, value in cut_by_tp.items():
        if value % layout.tp:
            raise ConfigError(f"parallel.tp={layout.tp} must divide {name}={value}; use {either(legal)}")
    sizes = stage_sizes(arch.num_layers, layout)
    if config.memory.recompute_layers > max(sizes) // layout.virtual_stages:
        raise ConfigError(
            f"memory.recompute_layers={config.memory.recompute_layers} is more than the "
            f"{max(sizes) // layout.virtual_stages} layers of a stage's part; use 0 for all"
        )
    if config.model.backend == "te":
        _check_te_computes(arch)
    if config.adapter.kind != "none":
        _check_adaptable(arch, config.adapter)
    if config.fp8.recipe != "none":
        check_fp8_layers(config, arch.num_layers)
        check_fp8_shapes(
            hidden=arch.hidden_size,
            ffn_on_rank=arch.ffn_hidden_size // layout.tp,
            heads_on_rank=arch.num_attention_heads * arch.head_dim // layout.tp,
            qkv_rows_on_rank=(arch.num_attention_heads + 2 * arch.num_kv_heads) * arch.head_dim // layout.tp,
            tokens=config.train.micro_batch_size * seq_length // layout.cp,
        )
    if seq_length > arch.max_position_embeddings:
        raise ConfigError(
            f"data.seq_length={seq_length} is more than the model's max_position_embeddings="
            f"{arch.max_position_embeddings}; use at most {arch.max_position_embeddings}"
        )


def _check_te_computes(arch: Architecture) -> None:
    """Raise `ConfigError` for what Transformer Engine's layers, as they are used here, would leave out."""
    windows = arch.sliding_window is not None and arch.sliding_window < arch.max_position_embeddings
    missing = {
        f"norms placed {arch.norm_placement}": arch.norm_placement != "pre",
        "norms of whole queries and keys": arch.qk_norm == "projection",
        "norms that multiply by 1 + weight": arch.zero_centered_norm,
        f"the activation {arch.activation}": arch.activation != "silu",
        f"an attention scale of {arch.attention_scale}": arch.attention_scale is not None,
        f"a sliding window of {arch.sliding_window}": windows,
        "layers without rotation": bool(arch.unrotated_layers),
        "two rotary tables": arch.rope_local_theta is not None,
    }
    found = [name for name, needed in missing.items() if needed]
    if found:
        raise ConfigError(
            f"model.backend=te does not compute what a {arch.family} model needs: {', '.join(found)}; "
            "use model.backend=native"
        )


def _check_adaptable(arch: Architecture, adapter: AdapterConfig) -> None:
    """Raise `ConfigError` for targets that are parts of fused matrices in the Hugging Face model: PEFT would have one
    adapter for all of such a matrix."""
    adaptable = family_of(arch.family).adaptable
    fused = [target for target in adapter.targets if target not in adaptable]
    if fused:
        raise ConfigError(
            f"adapter.targets has {', '.join(fused)}, which a {arch.family} model has as parts of fused matrices only; "
            f"use adapter.targets=[{','.join(adaptable)}]"
        )
