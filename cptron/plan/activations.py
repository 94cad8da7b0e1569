"""What one layer keeps for its backward pass, in bytes a token, and how many layers' worth a stage keeps at once.

Place in the flow: `memory` multiplies it out. Invariant: a list of the tensors that the native layers save, one term
each, so that a change of a layer is a change of one line here. Compared with what autograd saves in the real layers
on a CPU, where pointwise work is not fused: `fused=False`.

Sizes: h hidden, q and k all query and key/value channels, f the MLP's width, n query heads; e bytes of an element.
"""

from __future__ import annotations

from dataclasses import dataclass

from cptron.config.schema import Config, MemoryConfig
from cptron.model.architecture import Architecture
from cptron.runtime.topology import Layout

BYTES = {"bf16": 2, "fp32": 4}
STATISTIC_BYTES = 4


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes a token of one layer, by how tensor parallel ranks cut them."""

    hidden: float
    """Cut only under sequence parallelism."""
    inner: float
    """Cut over tensor ranks: between the two matrix products of attention and of the MLP."""

    def on_rank(self, layout: Layout) -> float:
        """Bytes a token of this context rank's part of the sequence."""
        return self.hidden / (layout.tp if layout.sequence_parallel else 1) + self.inner / layout.tp

    def __add__(self, other: Kept) -> Kept:
        return Kept(self.hidden + other.hidden, self.inner + other.inner)


def kept_by_layer(
    config: Config, arch: Architecture, memory: MemoryConfig | None = None, *, fused: bool = True
) -> Kept:
    """Of a layer that is not recomputed as a whole; `memory` in place of the configuration's."""
    memory = memory or config.memory
    selective = set(memory.recompute_modules) if memory.recompute == "selective" else set()
    offloaded = set(memory.offload_modules)
    e = BYTES[config.train.precision]
    low = 1 if config.fp8.recipe != "none" else e
    kept = _norms(arch, e, low, fused, recomputed="layernorm" in selective)
    kept += _attention(config, arch, e, low, recomputed="core_attn" in selective)
    kept += Kept(0, 0) if "mlp" in selective else _mlp(arch, e, low, fused)
    return Kept(kept.hidden - _offloaded(offloaded, arch, e).hidden, kept.inner)


def input_of_layer(config: Config, arch: Architecture) -> Kept:
    """All that a layer keeps that is recomputed as a whole."""
    return Kept(BYTES[config.train.precision] * arch.hidden_size, 0)


def _norms(arch: Architecture, e: int, low: int, fused: bool, *, recomputed: bool) -> Kept:
    """Inputs of the norms, their statistics, and the inputs of the two matrix products that follow (FP8 keeps those in
    8 bits). Unfused, a norm keeps its input and its normalised output in fp32."""
    h, count = arch.hidden_size, 4 if arch.norm_placement == "sandwich" else 2
    of_norm = (e if fused else 8) * h + STATISTIC_BYTES
    return Kept(count * of_norm + (0 if recomputed else 2 * low * h), 0)


def _attention(config: Config, arch: Architecture, e: int, low: int, *, recomputed: bool) -> Kept:
    """Rotated queries and keys; the product of q, k and v, which the values are a part of; the output, and its
    log-sum-exp. Context ranks keep keys and values of all that they attend to in place of that product."""
    q, k = arch.num_attention_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    cp = config.parallel.cp
    product = q + 2 * k
    output = e * q + (
        low * q if low != e else 0
    )  # attention keeps its own, FP8 the next product's input beside it
    normed = {"none": 0, "head": q, "projection": q + k}[arch.qk_norm]
    if recomputed:
        return Kept(0, e * (q + product + normed) + output)
    statistics = STATISTIC_BYTES * arch.num_attention_heads
    if cp > 1:  # rank r attends with its chunks r and 2 cp - 1 - r to 2 cp + 1 chunks of keys
        return Kept(0, e * (q + 2 * k * (cp + 0.5) + normed) + output + statistics)
    return Kept(0, e * (q + k + product + normed) + output + statistics)


def _mlp(arch: Architecture, e: int, low: int, fused: bool) -> Kept:
    """The product of gate and up, and the input of the down projection. Unfused also the activated gate and the up
    half."""
    f = arch.ffn_hidden_size
    in_one_kernel = fused and arch.activation == "silu"
    return Kept(0, (2 * e if in_one_kernel else 4 * e) * f + low * f)


def _offloaded(modules: set[str], arch: Architecture, e: int) -> Kept:
    """Inputs that wait in host memory: of the norms and of the first product. Of the others none is counted."""
    each = {"attn_norm": 1, "mlp_norm": 1, "qkv_linear": 1}
    return Kept(sum(count for name, count in each.items() if name in modules) * e * arch.hidden_size, 0)


def chunks_in_flight(layout: Layout, stage: int, num_micro_batches: int) -> int:
    """Parts of the model, each with one micro-batch, whose activations a stage keeps at its fullest moment: 1F1B, or
    interleaved (Narayanan et al. 2021), as megatron-core counts its warm-up."""
    after = layout.pp - 1 - stage
    if layout.virtual_stages == 1:
        return min(num_micro_batches, after + 1)
    warm_up = 2 * after + (layout.virtual_stages - 1) * layout.pp
    return min(num_micro_batches * layout.virtual_stages, warm_up + 1)
