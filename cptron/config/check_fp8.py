"""Which sizes FP8 matrix products can have.

Place in the flow: called by `check_engine` once the model's shape is known. Invariant: a model that passes here can be
multiplied on hardware; the emulation on a CPU has no such rule, but keeps it, so that what runs here runs there.
"""

from __future__ import annotations

from cptron.errors import ConfigError

FP8_CAPABILITY = (8, 9)
"""First CUDA compute capability whose tensor cores multiply FP8: Ada, then Hopper."""

ALIGNMENT = 16
"""Tensor cores contract and write 8-bit operands in multiples of this."""


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
