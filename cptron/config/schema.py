"""The run configuration: typed, frozen sections, one field docstring each.

Place in the flow: YAML + `a.b=c` overrides -> `load` builds these sections -> `check` proves them consistent.
Invariant: no section performs I/O, and nothing here imports torch or megatron.

The string literal below a field is its documentation; `docs/configuration.md` is generated from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cptron.config.schema_data import DataConfig, EvalConfig, SourceConfig, StageConfig, ValidSetConfig
from cptron.config.schema_doremi import DoremiConfig
from cptron.config.schema_forgetting import ForgettingConfig
from cptron.config.schema_outputs import CheckpointConfig, LogConfig, MilestoneConfig, RuntimeConfig
from cptron.config.schema_regularise import DistillConfig, FreezeConfig, RegulariseConfig

__all__ = [
    "AdapterConfig",
    "AttentionConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DistillConfig",
    "DoremiConfig",
    "EvalConfig",
    "ForgettingConfig",
    "Fp8Config",
    "FreezeConfig",
    "GuardsConfig",
    "LogConfig",
    "MemoryConfig",
    "MilestoneConfig",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "ParamGroupConfig",
    "RegulariseConfig",
    "RunConfig",
    "RuntimeConfig",
    "SourceConfig",
    "StageConfig",
    "StartConfig",
    "TrainConfig",
    "ValidSetConfig",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Where the run lives and what makes it reproducible."""

    dir: str
    """Output directory: resolved config, metrics, checkpoints, report. Holds exactly one run."""
    name: str = ""
    """Name shown in logs and trackers; empty means the last component of `run.dir`."""
    seed: int = 1234
    """Seed of the data order and of random weights."""
    accept_changes: tuple[str, ...] = ()
    """Keys that a resume may find changed although training depends on them, as `[run.seed]`; see
    [checkpoints](checkpoints.md#changed-keys)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartConfig:
    """Which weights the run starts from. A run already in `run.dir` is always resumed, never restarted."""

    mode: Literal["init_from", "branch", "random"] = "init_from"
    """`init_from`: weights of `start.checkpoint`, new optimizer. `branch`: all of a run's checkpoint, also optimizer,
    step, position in the data and random state. `random`: only when asked for."""
    checkpoint: str = ""
    """Checkpoint made by `cptron convert` (or by a run) whose weights are loaded by `init_from`."""
    hugging_face: str = ""
    """In place of `start.checkpoint`: a Hugging Face model, of which each rank reads its own part at the start."""
    state: Literal["decayed", "constant_phase", "unknown"] = "unknown"
    """Where the base's own pretraining left its learning rate; a checkpoint of a run knows it itself. From the
    `constant_phase` nothing may warm up or exceed `start.lr_at_save`, unless `start.rewarm` says so."""
    lr_at_save: float = 0.0
    """Rate with which the base's own pretraining would have gone on; 0 means not known. A run's checkpoint knows it."""
    lr_peak: float = 0.0
    """Highest rate of the base's own pretraining, for `optim.preset: strong-shift`; 0 means not known."""
    rewarm: bool = False
    """Let the rate rise again from a checkpoint of the constant phase."""
    gate_tolerance_nats: float = 0.0
    """Largest |loss at step 0 - recorded loss| on the probe; 0 means 1e-3 for fp32 and 3e-2 for bf16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """How the model is built. Its shape is that of the weights it starts from."""

    architecture: str = ""
    """JSON file in Hugging Face `config.json` form: what `start.mode: random` builds. Else the weights that the run
    starts from must have exactly this shape, and plans read it where those are not on the machine; empty: any shape."""
    backend: Literal["native", "te"] = "native"
    """Layer implementation: `native` (torch alone) or `te` (Transformer Engine, which must be installed)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How the model and the batch are cut over ranks. Data parallel size is world size / (tp * cp * pp)."""

    tp: int = 1
    """Tensor parallel size; divides attention heads, KV groups and the MLP width."""
    sequence_parallel: bool = True
    """With tp > 1: also cut the sequence over tensor ranks between their matrix products; same numbers, less memory."""
    cp: int = 1
    """Context parallel size: each sequence is cut over so many ranks; 2 * cp (* tp) divides `data.seq_length`."""
    pp: int = 1
    """Pipeline parallel size: stages the layers are cut into."""
    virtual_stages: int = 1
    """Parts of the model on each stage; more than 1 interleaves them (a shorter pipeline bubble, more messages)."""
    first_stage_layers: int = 0
    """Layers on the first stage, which also holds the embedding; 0 means as many as on the others."""
    last_stage_layers: int = 0
    """Layers on the last stage, which also computes the loss; 0 means as many as on the others."""
    overlap: bool = True
    """On GPUs: reduce gradients while the backward pass goes on, and gather parameters while the forward pass does."""
    local_ranks: int = 0
    """Ranks that `cptron train` starts on this machine; 0 means one rank, or the launcher's environment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionConfig:
    """What a token may attend to, and where it stands."""

    document_mask: bool = True
    """Attention never crosses from one document of a sample into another."""
    reset_positions: bool = False
    """Positions start from 0 in every document of a sample, not only in every sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    """What is kept for the backward pass, and in which form. None of these changes the numbers."""

    recompute: Literal["none", "selective", "full"] = "none"
    """`full`: each layer is computed again in the backward pass. `selective`: only `memory.recompute_modules` are."""
    recompute_layers: int = 0
    """With `full`: so many layers of each stage's part are recomputed, the rest kept; 0 means all."""
    recompute_modules: tuple[str, ...] = ("core_attn",)
    """With `selective`: any of `core_attn` and `mlp`; with `model.backend: te` also `layernorm`."""
    offload_modules: tuple[str, ...] = ()
    """On GPUs, with Transformer Engine installed: activations of these modules wait in host memory for the backward
    pass; any of `attn_norm`, `qkv_linear`, `core_attn`, `attn_proj`, `mlp_norm`."""
    logits_chunk_tokens: int = 1024
    """Logits, and their gradient, exist for so many tokens at a time; 0 means for a whole micro-batch at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Config:
    """Matrix products of the layers in 8 bits; weights stay in `train.precision`, masters in fp32."""

    recipe: Literal["none", "tensorwise", "rowwise", "delayed", "blockwise"] = "none"
    """How scales are found. `tensorwise`: the largest value of each tensor. `rowwise` (native only): of each row.
    `delayed`, `blockwise`: `model.backend: te` only."""
    forward_dtype: Literal["e4m3", "e5m2"] = "e4m3"
    """Format of weights and activations."""
    gradient_dtype: Literal["e4m3", "e5m2"] = "e5m2"
    """Format of gradients."""
    bf16_first_layers: int = 0
    """So many layers at the start of the model stay in `train.precision`."""
    bf16_last_layers: int = 0
    """So many layers at the end of the model stay in `train.precision`."""
    without_hardware: Literal["refuse", "emulate", "off"] = "refuse"
    """On a device without FP8 matrix products: stop, compute the same numbers slowly, or train without (and say so)."""
    param_gather: bool = False
    """`model.backend: te` only: parameters are kept and gathered in FP8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """Train small matrices beside the frozen weights instead of the weights."""

    kind: Literal["none", "lora", "dora"] = "none"
    """`lora`: low-rank updates (Hu et al. 2021). `dora`: with a trained magnitude (Liu et al. 2024)."""
    rank: int = 16
    """Inner size of the low-rank product."""
    alpha: float = 32.0
    """The product is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Hugging Face names of the matrices that get an adapter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The size of a step and how long to go on."""

    steps: int
    """Optimizer steps of the whole run; raise it to extend a finished run."""
    global_batch_size: int
    """Sequences in one optimizer step, over all ranks."""
    micro_batch_size: int = 1
    """Sequences in one forward pass of one rank; global_batch_size is a multiple of micro_batch_size * dp."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """`bf16`: bf16 weights and compute with fp32 master weights, gradients and moments. `fp32`: all fp32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamGroupConfig:
    """Parameters that learn at another rate than the rest."""

    match: str
    """Pattern of parameter names, as `*word_embeddings*` or `decoder.layers.0.*` (counted in the whole model)."""
    lr_mult: float = 1.0
    """Their learning rate is this times the schedule's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimizer, global gradient clipping, and a learning rate that is a pure function of the step."""

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    """`sgd`: with momentum, weight decay added to the gradient. `muon`: where the installed megatron-core and
    NVIDIA's emerging_optimizers have it."""
    preset: Literal["none", "strong-shift", "weak-shift", "small-domain", "long-context"] = "none"
    """Gives `schedule`, `lr`, `lr_min` and `warmup_steps` where they are not written; see [schedules](schedules.md)."""
    lr: float = 0.0
    """Peak learning rate, reached after warm-up; to be given, or to be left to `optim.preset`."""
    lr_min: float = 0.0
    """Learning rate at the end of the decay, and the lowest of `inverse_sqrt`."""
    schedule: Literal["cosine", "wsd", "inverse_sqrt", "infinite", "constant"] = "cosine"
    """Shape after warm-up, see [schedules](schedules.md). `wsd`: constant, then a decay. `infinite`: a cool-down to
    `lr_constant`, constant, and a decay only where `anneal_steps` asks for one."""
    warmup_steps: int = 0
    """Linear warm-up: step t (from 0) uses warmup_from + (lr - warmup_from) * (t + 1) / warmup_steps."""
    warmup_from: float = 0.0
    """Rate that the warm-up rises from."""
    decay_steps: int = 0
    """Step (not length) at which `cosine`, `wsd` and `infinite` reach `lr_min`; 0 means `train.steps`."""
    anneal_steps: int = 0
    """Length of the decay of `wsd` and `infinite`, which ends at `decay_steps`; `infinite` with 0 never decays."""
    decay_form: Literal["linear", "cosine", "exponential", "minus_sqrt", "geometric"] = "minus_sqrt"
    """Form of that decay, r from 0 to 1. Share of lr - lr_min left: 1 - r, (1 + cos(pi r)) / 2, 2 * 0.5^r - 1 or
    1 - sqrt(r); `geometric`: lr * (lr_min / lr)^r."""
    lr_constant: float = 0.0
    """Of `infinite`: the rate after the cool-down."""
    cooldown_steps: int = 0
    """Of `infinite`: length of the cool-down, which follows the warm-up."""
    cooldown_form: Literal["cosine", "inverse_sqrt"] = "cosine"
    """Of `infinite`: form of the cool-down."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms and biases are not decayed."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    momentum: float = 0.9
    """Of `sgd` and `muon`."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """Precision in which AdamW keeps its moments; `bf16` halves them, and needs beta2 up to 0.99."""
    groups: tuple[ParamGroupConfig, ...] = ()
    """Parameters with a learning rate of their own; the first pattern that fits counts."""
    frozen: tuple[str, ...] = ()
    """Patterns of parameter names that are not trained."""
    freeze: tuple[FreezeConfig, ...] = ()
    """Parameters, or rows of a vocabulary matrix, that stand still for a while; see [regularisers](regularisers.md)."""
    clip_grad_norm: float = 1.0
    """Largest global L2 norm of the gradient; 0 means no clipping."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardsConfig:
    """What happens at a loss or gradient norm that is far too high, or not finite, before it changes any weight."""

    spike_z: float = 6.0
    """A spike is so many robust standard deviations (1.4826 * MAD) above the median of the values before it; of the
    gradient norm the logarithm is compared."""
    spike_window: int = 128
    """Values before it that loss and gradient norm are compared with, of batches that were trained on."""
    spike_min_history: int = 32
    """Nothing is a spike before so many values are known."""
    on_spike: Literal["log", "skip", "rollback"] = "log"
    """`log`: say so and train on. `skip`: drop the batch without an update. `rollback`: go back to the newest
    checkpoint and drop the data up to and with this batch, from `guards.skip_batches` before it."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """The same for a loss or gradient that is NaN or infinite; `stop` ends the run."""
    skip_batches: int = 16
    """Global batches before the offending one that a rollback drops too."""
    max_actions: int = 8
    """Skips and rollbacks within `guards.spike_window` batches; one more stops the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A whole run."""

    run: RunConfig
    start: StartConfig = field(default_factory=StartConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    fp8: Fp8Config = field(default_factory=Fp8Config)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig
    train: TrainConfig
    optim: OptimConfig
    regularise: RegulariseConfig = field(default_factory=RegulariseConfig)
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    doremi: DoremiConfig = field(default_factory=DoremiConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    forgetting: ForgettingConfig = field(default_factory=ForgettingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
