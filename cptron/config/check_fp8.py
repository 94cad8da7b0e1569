"""Rules of FP8: which recipe goes with what, and which sizes its matrix products can have.

Place in the flow: called by `check_engine`, before and once the model's shape is known. Invariant: a model that passes
here can be multiplied on hardware; the emulation on a CPU has no such rule, but keeps it, so that what runs here runs
there.
"""

from __future__ import annotations

from cptron.config.schema import Config
from cptron.errors import ConfigError, either

RECIPES = {"native": ("none", "tensorwise", "rowwise"), "te": ("none", "tensorwise", "delayed", "blockwise")}

FP8_CAPABILITY = (8, 9)
"""First CUDA compute capability whose tensor cores multiply FP8: Ada, then Hopper."""

ALIGNMENT = 16
"""Tensor cores contract and write 8-bit operands in multiples of this."""


def check_fp8(config: Config) -> None:
    """Raise `ConfigError` for what FP8 does not go together with."""
    backend, fp8 = config.model.backend, config.fp8
    if fp8.recipe not in RECIPES[backend]:
        raise ConfigError(
            f"fp8.recipe={fp8.recipe} is not offered by model.backend={backend}; use {either(RECIPES[backend])}"
        )
    if fp8.recipe != "none" and fp8.forward_dtype == "e5m2":
        raise ConfigError(
            f"fp8.forward_dtype={fp8.forward_dtype} multiplies e5m2 by e5m2, which no hardware does; "
            "use fp8.forward_dtype=e4m3"
        )
    if fp8.param_gather:
        _check_param_gather(config)
    if backend == "native" or fp8.recipe == "none":
        return
    if fp8.without_hardware == "emulate":
        raise ConfigError(
            f"fp8.without_hardware={fp8.without_hardware} is offered by model.backend=native only; use refuse or off"
        )
    _check_recompute(config)
    if fp8.recipe == "delayed" and fp8.bf16_first_layers + fp8.bf16_last_layers:
        raise ConfigError(
            f"fp8.recipe={fp8.recipe} keeps no layer in bf16, but fp8.bf16_first_layers={fp8.bf16_first_layers} and "
            f"fp8.bf16_last_layers={fp8.bf16_last_layers}; set them to 0 or use fp8.recipe=tensorwise"
        )


def _check_recompute(config: Config) -> None:
    recomputed = config.memory.recompute_modules if config.memory.recompute == "selective" else ()
    if config.fp8.recipe == "delayed" and "layernorm" in recomputed:
        raise ConfigError(
            f"fp8.recipe={config.fp8.recipe} cannot recompute layernorm (megatron-core refuses the two together); "
            "use fp8.recipe=tensorwise, or memory.recompute_modules without layernorm"
        )


def _check_param_gather(config: Config) -> None:
    asked = f"fp8.param_gather={config.fp8.param_gather}"
    if config.model.backend != "te":
        raise ConfigError(f"{asked} needs model.backend=te; set it to false or choose that backend")
    if config.fp8.recipe == "none":
        raise ConfigError(
            f"{asked} keeps parameters in FP8, but fp8.recipe=none; choose a recipe or set it to false"
        )
    if config.optim.name == "muon":
        raise ConfigError(
            f"{asked} gathers what the optimizer divided over ranks, but optim.name=muon divides nothing; "
            "use adamw, or set it to false"
        )


def check_fp8_layers(config: Config, num_layers: int) -> None:
    """Raise `ConfigError` when the layers that are to stay in bf16 cannot."""
    fp8, pp = config.fp8, config.parallel.pp
    kept = fp8.bf16_first_layers + fp8.bf16_last_layers
    if kept >= num_layers:
        raise ConfigError(
            f"fp8.bf16_first_layers + fp8.bf16_last_layers = {kept} leaves no layer of {num_layers} in FP8; "
            "lower them, or set fp8.recipe=none"
        )
    most = num_layers // pp
    if config.model.backend == "te" and max(fp8.bf16_first_layers, fp8.bf16_last_layers) > most:
        raise ConfigError(
            f"fp8.bf16_first_layers={fp8.bf16_first_layers} and fp8.bf16_last_layers={fp8.bf16_last_layers} must be at "
            f"most num_layers={num_layers} / parallel.pp={pp} = {most} with model.backend=te; lower them"
        )


def check_fp8_shapes(
    *, hidden: int, ffn_on_rank: int, heads_on_rank: int, qkv_rows_on_rank: int, tokens: int
) -> None:
    """Raise `ConfigError` for a size that FP8 matrix products cannot contract or write.

    `ffn_on_rank` is ffn / tp, `heads_on_rank` heads * head size / tp, `qkv_rows_on_rank` the rows of q, k and v / tp;
    `tokens` those of a micro-batch on one rank after the cut over parallel.cp: the weight gradients contract them.
    """
    sizes = {
        "hidden size": (hidden, ""),
        "ffn size / parallel.tp": (ffn_on_rank, " or lower parallel.tp"),
        "heads * head size / parallel.tp": (heads_on_rank, " or lower parallel.tp"),
        "rows of query, key and value / parallel.tp": (qkv_rows_on_rank, " or lower parallel.tp"),
        "tokens of a micro-batch / parallel.cp": (
            tokens,
            " or change data.seq_length or train.micro_batch_size",
        ),
    }
    for name, (size, remedy) in sizes.items():
        if size % ALIGNMENT:
            raise ConfigError(
                f"{name} = {size} must be a multiple of {ALIGNMENT} for FP8 matrix products; "
                f"set fp8.recipe=none{remedy}"
            )
