"""Bytes on the fullest rank of a layout, by what they are for.

Place in the flow: `search` rejects what does not fit. Invariant: weights, gradients and optimizer state are those that
the engine allocates, exactly but for padding of its buffers; everything else is a formula, with its assumptions
beside it. More data parallel ranks never need more on one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cptron.checkpoint.space import MASTER_BYTES, MOMENT_BYTES, MOMENTS
from cptron.config.schema import Config, MemoryConfig
from cptron.model.architecture import Architecture
from cptron.model.stages import stage_sizes
from cptron.model.vocab import padded_vocab_size
from cptron.plan.activations import BYTES, chunks_in_flight, input_of_layer, kept_by_layer
from cptron.plan.parameters import Held, held_by_stage
from cptron.runtime.topology import Layout

GRADIENT_BYTES = 4
CONTEXT_BYTES = 2.2e9
"""CUDA's context, cuBLAS and NCCL, outside torch: 1.5 to 3 GB (cpt_reference: assumed, not measured here)."""
SLACK = 0.065
"""Of what torch has allocated, lost between blocks: 5 to 8 %."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on one rank at its fullest moment."""

    stage: int
    """Pipeline stage of that rank."""
    weights: float
    gradients: float
    optimizer: float
    """Masters, moments, and what a regulariser keeps of each trained weight."""
    teacher: float
    """A second model's weights."""
    activations: float
    working: float
    """What exists only while a layer or the loss is computed."""
    slack: float
    context: float

    @property
    def allocated(self) -> float:
        """What torch's allocator has given out: `mem_peak_gib` of a run."""
        return self.weights + self.gradients + self.optimizer + self.teacher + self.activations + self.working

    @property
    def total(self) -> float:
        """What the GPU must have."""
        return self.allocated + self.slack + self.context


def static_bytes(config: Config, held: Held, shards: int) -> tuple[float, float, float]:
    """Weights, gradients and optimizer state of a rank whose optimizer is divided over `shards` ranks: in bf16 with
    AdamW 2 + 4 + 12 / shards bytes a parameter."""
    precision, optim = config.train.precision, config.optim
    moments = MOMENTS[optim.name] * MOMENT_BYTES[optim.moments if optim.name == "adamw" else "fp32"]
    state = moments + (MASTER_BYTES if precision == "bf16" else 0) + _regulariser_bytes(config)
    divided = 1 if optim.name == "muon" else shards
    return (
        BYTES[precision] * held.total,
        GRADIENT_BYTES * held.trained,
        state * held.trained / divided,
    )


def _regulariser_bytes(config: Config) -> int:
    """Of each weight that the rank's optimizer updates: the starting weights, their importance, a second gradient."""
    wanted, e = config.regularise, BYTES[config.train.precision]
    start = e if wanted.l2sp or wanted.ewc else 0
    return start + (4 if wanted.ewc else 0) + (4 if wanted.agem else 0)


def memory_of(config: Config, arch: Architecture, world_size: int, *, factor: float = 1.0) -> Memory:
    """The fullest rank. `factor`: measured / predicted of a run's allocated bytes, from a calibration.

    Of the stages between the first and the last the earliest keeps most in flight.
    """
    last = config.parallel.pp - 1
    found = [
        memory_of_stage(config, arch, world_size, stage, factor) for stage in sorted({0, min(1, last), last})
    ]
    return max(found, key=lambda memory: memory.total)


def memory_of_stage(
    config: Config, arch: Architecture, world_size: int, stage: int, factor: float = 1.0
) -> Memory:
    """A rank of one pipeline stage."""
    layout = Layout.of(config.parallel)
    dp = world_size // layout.ranks
    held = held_by_stage(config, arch)[stage]
    weights, gradients, optimizer = static_bytes(config, held, dp * layout.cp)
    live = config.regularise.distill.weight and config.regularise.distill.teacher == "live"
    found = Memory(
        stage=stage,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        teacher=weights if live else 0.0,
        activations=_activations(config, arch, layout, stage, dp),
        working=_working(config, arch, layout, stage),
        slack=0.0,
        context=CONTEXT_BYTES,
    )
    scaled = factor * found.allocated
    return replace(found, slack=scaled * (1 + SLACK) - found.allocated)


def tokens_of_micro_batch(config: Config) -> int:
    """Tokens of a micro-batch on one context rank."""
    return config.train.micro_batch_size * config.data.seq_length // config.parallel.cp


def _activations(config: Config, arch: Architecture, layout: Layout, stage: int, dp: int) -> float:
    """What all chunks in flight keep; a stage that is not the last also keeps what it has sent."""
    tokens = tokens_of_micro_batch(config)
    per_chunk = stage_sizes(arch.num_layers, layout)[stage] // layout.virtual_stages
    micro_batches = config.train.global_batch_size // (config.train.micro_batch_size * dp)
    recomputed = _recomputed(config, per_chunk)
    whole, short = kept_by_layer(config, arch), input_of_layer(config, arch)
    of_chunk = (per_chunk - recomputed) * whole.on_rank(layout) + recomputed * short.on_rank(layout)
    if stage < layout.pp - 1 or layout.virtual_stages > 1:
        of_chunk += short.on_rank(layout)
    of_chunk += _rotary_tables(config, arch)
    return chunks_in_flight(layout, stage, micro_batches) * tokens * of_chunk


def _rotary_tables(config: Config, arch: Architecture) -> float:
    """Cosines and sines, a token: those of its positions, which each part of the model looks up anew."""
    e = 4 if arch.rotation_in_fp32 else BYTES[config.train.precision]
    return e * arch.rotated_channels * (1 if arch.rope_local_theta is None else 2)


def _recomputed(config: Config, per_chunk: int) -> int:
    if config.memory.recompute != "full":
        return 0
    return min(per_chunk, config.memory.recompute_layers or per_chunk)


def _working(config: Config, arch: Architecture, layout: Layout, stage: int) -> float:
    """The larger of what the loss needs, on the last stage, and what a layer's backward pass does; and the buffer that
    sequence parallelism gathers into."""
    e, tokens = BYTES[config.train.precision], tokens_of_micro_batch(config)
    gathered = e * tokens * arch.hidden_size if layout.sequence_parallel else 0
    of_layer = _backward_of_layer(config, arch, layout, tokens)
    of_loss = _loss(config, arch, layout, tokens) if stage == layout.pp - 1 else 0
    return gathered + max(of_layer, of_loss)


def _backward_of_layer(config: Config, arch: Architecture, layout: Layout, tokens: int) -> float:
    """The fullest moment of the MLP's backward pass, and all that a recomputed layer, or the recomputed part of one,
    keeps."""
    gradients = _backward_of_mlp(config, arch, layout, tokens)
    if config.memory.recompute == "none":
        return gradients
    nothing = MemoryConfig(offload_modules=config.memory.offload_modules)
    again = kept_by_layer(config, arch, nothing).on_rank(layout)
    already = (
        input_of_layer(config, arch) if config.memory.recompute == "full" else kept_by_layer(config, arch)
    )
    return gradients + tokens * (again - already.on_rank(layout))


def _backward_of_mlp(config: Config, arch: Architecture, layout: Layout, tokens: int) -> float:
    """At the down projection: the gradient of its output, gathered, that of its input, and its own. At the first
    product: the gradients of both sides of it, and its own, less what the layer has let go by then."""
    e, h, f = BYTES[config.train.precision], arch.hidden_size, arch.ffn_hidden_size / layout.tp
    sent_on = tokens * e * h / (layout.tp if layout.sequence_parallel else 1)
    at_second = tokens * e * (h + f) + e * f * h
    at_first = tokens * e * (h - f) + 2 * e * f * h
    return max(at_second, at_first) + sent_on


def _loss(config: Config, arch: Architecture, layout: Layout, tokens: int) -> float:
    """Logits in the model's precision and their exponentials in fp32 for a chunk of tokens; the gradient of the output
    matrix (summed in fp32 over chunks, beside a chunk's own), and hidden states with their gradients."""
    e, h = BYTES[config.train.precision], arch.hidden_size
    rows = padded_vocab_size(arch.vocab_size, layout.tp) // layout.tp
    chunk = min(config.memory.logits_chunk_tokens or tokens, tokens)
    of_matrix = rows * h * ((4 + e) if chunk < tokens else e)
    trained = config.adapter.kind == "none"
    final_norm = tokens * (e * h + STATISTICS) / (layout.tp if layout.sequence_parallel else 1)
    return chunk * rows * (e + 4) + (of_matrix if trained else 0) + 2 * tokens * e * h + final_norm


STATISTICS = 4
"""Bytes a token that a norm keeps beside its input."""
