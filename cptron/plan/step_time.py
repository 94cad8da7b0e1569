"""Predicted seconds of an optimizer step under a layout, part by part.

Place in the flow: `search` ranks by it, `totals` multiplies it out, `calibrate` solves it for the part of the peak.
Invariant: a pure function; FLOPs are those of `model.flops`, and recomputation is time but no model FLOP.

Of each part: what is computed at which part of the peak, what is moved at which bandwidth. Assumptions are named
constants here, none of them measured by this project; docs/planning.md compares the sum with published rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from cptron.config.schema import Config
from cptron.model.architecture import Architecture
from cptron.model.flops import attention_flops, matmul_flops_per_token
from cptron.model.stages import stage_sizes
from cptron.plan.activations import BYTES
from cptron.plan.cluster import Cluster
from cptron.plan.memory import tokens_of_micro_batch
from cptron.plan.parameters import held_by_stage, trained_products
from cptron.runtime.topology import Layout

ATTENTION_REACHED = 0.7
"""Of what other products reach, in causal FLOPs: flash attention computes parts of tiles that the mask hides."""
BANDWIDTH_REACHED = 0.8
"""Of the memory's bandwidth, in pointwise work and in the optimizer."""
SIDE_HALF = 128
"""A product whose shortest side is this long reaches half of what a large one does."""
MESSAGE_S = 15e-6
"""Before the first byte of a message between GPUs arrives."""
LAYER_LAUNCH_S = 0.5e-3
"""A layer's forward and backward pass take no less: some hundred kernels, launched one after the other."""
HIDDEN_MESSAGES = 0.9
"""With `parallel.overlap`: the part of data parallel messages that computation hides, where it lasts long enough."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds of a step on the slowest stage."""

    compute: float
    """Matrix products, recomputed ones too, and pointwise work."""
    tensor_messages: float
    context_messages: float
    pipeline_messages: float
    bubble: float
    """Waiting for other stages."""
    data_messages: float
    """What of them is not hidden."""
    optimizer: float

    @property
    def total(self) -> float:
        """Seconds of a step; loading data, evaluating and saving are not in it."""
        return (
            self.compute
            + self.tensor_messages
            + self.context_messages
            + self.pipeline_messages
            + self.bubble
            + self.data_messages
            + self.optimizer
        )


@dataclass(frozen=True, slots=True)
class _Layer:
    """Seconds of one micro-batch in one layer, forward and backward."""

    compute: float
    tensor_messages: float
    context_messages: float

    @property
    def total(self) -> float:
        return self.compute + self.tensor_messages + self.context_messages


def flops_per_token(config: Config, arch: Architecture, *, causal: bool = True) -> float:
    """Model FLOPs of a token, each row one document: `causal`, or with the full square of scores as PaLM counts."""
    s = config.data.seq_length
    return matmul_flops_per_token(arch) + (1 if causal else 2) * attention_flops(arch, [s]) / s


def computed_per_token(config: Config, arch: Architecture) -> float:
    """FLOPs that hardware computes for a token: with what is recomputed, without gradients of frozen weights (hardware
    FLOPs), causal."""
    s = config.data.seq_length
    again, passes = _recomputed_part(config, arch), _passes(config, arch)
    head = 6 * arch.hidden_size * arch.vocab_size
    layers = matmul_flops_per_token(arch) - head
    mlp = 18 * arch.hidden_size * arch.ffn_hidden_size * arch.num_layers
    attention = attention_flops(arch, [s]) / s
    return (
        head * passes
        + mlp * (passes + again.mlp)
        + (layers - mlp) * (passes + again.linear)
        + attention * (1 + again.core)
    )


def _passes(config: Config, arch: Architecture) -> float:
    """Of the three equal products of a weight, forward and for both gradients, the part that is computed: a frozen
    weight has no gradient, its inputs do."""
    return (2 + trained_products(config, arch)) / 3


@dataclass(frozen=True, slots=True)
class _Again:
    """Part of forward and backward that is computed once more: of attention's products with weights, of attention
    itself, of the MLP."""

    linear: float
    core: float
    mlp: float


def _recomputed_part(config: Config, arch: Architecture) -> _Again:
    memory = config.memory
    if memory.recompute == "full":
        layout = Layout.of(config.parallel)
        per_chunk = max(stage_sizes(arch.num_layers, layout)) // layout.virtual_stages
        part = min(1.0, (memory.recompute_layers or per_chunk) / per_chunk) / 3
        return _Again(part, part, part)
    modules = memory.recompute_modules if memory.recompute == "selective" else ()
    return _Again(0.0, 1 / 3 if "core_attn" in modules else 0.0, 1 / 3 if "mlp" in modules else 0.0)


def step_time(
    config: Config,
    arch: Architecture,
    cluster: Cluster,
    *,
    reached: float,
    messages_factor: float = 1.0,
) -> StepTime:
    """`reached`: the part of the peak that large products reach; `messages_factor` multiplies the time of messages."""
    layout = Layout.of(config.parallel)
    dp = cluster.num_gpus // layout.ranks
    micro_batches = config.train.global_batch_size // (config.train.micro_batch_size * dp)
    layer = _layer(config, arch, cluster, layout, reached, messages_factor)
    head = _head(config, arch, cluster, layout, reached)
    sizes = stage_sizes(arch.num_layers, layout)
    stages = [
        size * layer.total + (head if stage == layout.pp - 1 else 0) for stage, size in enumerate(sizes)
    ]
    slowest = max(range(layout.pp), key=stages.__getitem__)
    waiting = (layout.pp - 1) / layout.virtual_stages * sum(stages) / layout.pp
    data = _data_messages(config, arch, cluster, layout, dp, max(stages), messages_factor)
    return StepTime(
        compute=micro_batches * (sizes[slowest] * layer.compute + (head if slowest == layout.pp - 1 else 0)),
        tensor_messages=micro_batches * sizes[slowest] * layer.tensor_messages,
        context_messages=micro_batches * sizes[slowest] * layer.context_messages,
        pipeline_messages=micro_batches * _hop(config, arch, cluster, layout, dp) * messages_factor,
        bubble=waiting,
        data_messages=data,
        optimizer=_optimizer(config, arch, cluster, layout, dp),
    )


def _layer(
    config: Config, arch: Architecture, cluster: Cluster, layout: Layout, reached: float, factor: float
) -> _Layer:
    tokens, s = tokens_of_micro_batch(config), config.data.seq_length
    h, f, e = arch.hidden_size, arch.ffn_hidden_size, BYTES[config.train.precision]
    q, k = arch.num_attention_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    gpu, precision = cluster.gpu, config.train.precision
    again, passes = _recomputed_part(config, arch), _passes(config, arch)
    shortest = min(tokens, h, q // layout.tp, f // layout.tp)
    part = reached * shortest / (shortest + SIDE_HALF)
    peak = gpu.peak(precision, fp8=config.fp8.recipe != "none") * part
    linear = 6 * h * (2 * q + 2 * k) * (passes + again.linear) + 18 * h * f * (passes + again.mlp)
    scores = attention_flops(arch, [s]) / s / arch.num_layers * (1 + again.core)
    scores_peak = gpu.peak(precision) * reached * ATTENTION_REACHED
    products = tokens / layout.tp * (linear / peak + scores / scores_peak)
    moved = (
        e * tokens / layout.tp * (30 * h + 6 * (q + k) + 9 * f)
    )  # read and written, forward and twice backward
    pointwise = moved / (gpu.memory_gb_per_s * 1e9 * BANDWIDTH_REACHED)
    return _Layer(
        compute=max(products + pointwise, LAYER_LAUNCH_S),
        tensor_messages=_tensor_messages(config, cluster, layout, e * tokens * h, again.linear) * factor,
        context_messages=_context_messages(cluster, layout, e * tokens * 2 * k / layout.tp) * factor,
    )


def _tensor_messages(
    config: Config, cluster: Cluster, layout: Layout, whole_bytes: float, again: float
) -> float:
    """Two gathers and two sums of the hidden states forward, the same backward, where products hide half of them (an
    all-reduce is as long as a gather and a scattered sum); what is recomputed sends its messages again."""
    if layout.tp == 1:
        return 0.0
    count = 4 + 0.5 * (6 if layout.sequence_parallel else 4) + 4 * 3 * again
    each = whole_bytes * (layout.tp - 1) / layout.tp / cluster.bytes_per_s(layout.tp) + MESSAGE_S
    return count * each


def _context_messages(cluster: Cluster, layout: Layout, own_bytes: float) -> float:
    """Keys and values gathered in the forward pass, their gradients summed in the backward pass."""
    if layout.cp == 1:
        return 0.0
    bandwidth = cluster.bytes_per_s(layout.tp * layout.cp)
    return 2 * (own_bytes * (layout.cp - 1) / bandwidth + MESSAGE_S)


def _head(config: Config, arch: Architecture, cluster: Cluster, layout: Layout, reached: float) -> float:
    """Output layer and loss of a micro-batch: its products are never in FP8; logits are read and written some ten times
    in fp32."""
    tokens, gpu = tokens_of_micro_batch(config), cluster.gpu
    rows = arch.vocab_size / layout.tp
    flops = 6 * tokens * arch.hidden_size * rows * _passes(config, arch)
    products = flops / (gpu.peak(config.train.precision) * reached)
    return products + 40 * tokens * rows / (gpu.memory_gb_per_s * 1e9 * BANDWIDTH_REACHED)


def _hop(config: Config, arch: Architecture, cluster: Cluster, layout: Layout, dp: int) -> float:
    """Hidden states to the next stage and gradients back, for one micro-batch; interleaving sends more of them and
    hides half."""
    if layout.pp == 1:
        return 0.0
    cut = layout.tp if layout.sequence_parallel else 1
    size = BYTES[config.train.precision] * tokens_of_micro_batch(config) * arch.hidden_size / cut
    neighbours = layout.tp * layout.cp * dp + 1  # ranks from one stage to the next
    each = size / cluster.bytes_per_s(neighbours) + MESSAGE_S
    return 2 * each * (1.0 if layout.virtual_stages == 1 else 0.5 * layout.virtual_stages)


def _data_messages(
    config: Config,
    arch: Architecture,
    cluster: Cluster,
    layout: Layout,
    dp: int,
    micro_batch_s: float,
    factor: float,
) -> float:
    """fp32 gradients summed over data and context ranks, then parameters gathered. With overlap the first is hidden
    behind the last micro-batch's backward pass, the second behind the first one's forward pass."""
    shards = dp * layout.cp
    if shards == 1:
        return 0.0
    trained = max(held.trained for held in held_by_stage(config, arch))
    bandwidth = cluster.bytes_per_s(layout.tp * shards)
    part = (shards - 1) / shards * factor / bandwidth
    summed, gathered = 4 * trained * part, BYTES[config.train.precision] * trained * part
    if config.optim.name == "muon":  # not divided: an all-reduce, and nothing to gather
        summed, gathered = 2 * summed, 0.0
    if not config.parallel.overlap or config.adapter.kind != "none":
        return summed + gathered
    return _not_hidden(summed, micro_batch_s * 2 / 3) + _not_hidden(gathered, micro_batch_s / 3)


def _not_hidden(message_s: float, compute_s: float) -> float:
    return message_s - min(HIDDEN_MESSAGES * message_s, compute_s)


def _optimizer(config: Config, arch: Architecture, cluster: Cluster, layout: Layout, dp: int) -> float:
    """Gradients zeroed, measured and read; masters and moments read and written: 26 bytes of a divided parameter, 8 of
    one that is not."""
    trained = max(held.trained for held in held_by_stage(config, arch))
    shards = 1 if config.optim.name == "muon" else dp * layout.cp
    moved = trained * (8 + 26 / shards)
    return moved / (cluster.gpu.memory_gb_per_s * 1e9 * BANDWIDTH_REACHED)
