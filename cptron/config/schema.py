"""The run configuration: typed, frozen sections, one field docstring each.

Place in the flow: YAML + `a.b=c` overrides -> `load` builds these sections -> `check` proves them consistent.
Invariant: no section performs I/O, and nothing here imports torch or megatron.

The string literal below a field is its documentation; `docs/configuration.md` is generated from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


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

    mode: Literal["init_from", "random"] = "init_from"
    """`init_from`: weights of `start.checkpoint`, new optimizer. `random`: only when asked for."""
    checkpoint: str = ""
    """Checkpoint made by `cptron convert` (or by a run) whose weights are loaded by `init_from`."""
    hugging_face: str = ""
    """In place of `start.checkpoint`: a Hugging Face model, of which each rank reads its own part at the start."""
    gate_tolerance_nats: float = 0.0
    """Largest |loss at step 0 - recorded loss| on the probe; 0 means 1e-3 for fp32 and 3e-2 for bf16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """How the model is built. Its shape comes from the starting checkpoint, or from `model.architecture`."""

    architecture: str = ""
    """JSON file in Hugging Face `config.json` form; only for `start.mode: random`, else the checkpoint's is used."""
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
class SourceConfig:
    """One training corpus and its share of the training tokens."""

    name: str
    """Name in metrics, ledger and reports; letters, digits, `_` and `-`."""
    path: str
    """Prefix of the token files: `PATH.bin`, `PATH.idx`, `PATH.manifest.json`."""
    token_share: float
    """Share of training *tokens* drawn from this source; shares are normalised to sum to 1."""
    role: Literal["new", "replay"] = "new"
    """`new`: what the model is to learn. `replay`: data like those it was trained on, so that it does not forget."""
    max_epochs: float = 0.0
    """Passes over this source after which `data.on_max_epochs` acts; 0 means no limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidSetConfig:
    """One validation set, evaluated in file order without shuffling."""

    name: str
    """Name in metrics and reports."""
    path: str
    """Prefix of the token files, as for a source."""
    suite: Literal["", "old", "new", "probe"] = ""
    """What its loss tells: `old`, whether the model forgets; `new`, whether it learns; `probe`, neither alone."""
    max_tokens: int = 0
    """Evaluate at most this many tokens from the start of the set; 0 means all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What is read and in which proportion."""

    seq_length: int
    """Tokens the model predicts in one sequence."""
    sources: tuple[SourceConfig, ...]
    """Training corpora; at least one."""
    valid: tuple[ValidSetConfig, ...] = ()
    """Validation sets; may be empty when `eval.every_steps` is 0 and `eval.at_start` is false."""
    tokenizer: str = ""
    """Tokenizer the data must have been made with; empty means the one in `start.checkpoint`."""
    packing: Literal["joined", "best_fit"] = "joined"
    """`joined`: documents one after the other, cut into samples. `best_fit`: no sample cuts a document that fits."""
    on_max_epochs: Literal["warn", "stop", "redistribute"] = "warn"
    """At a source's `max_epochs`: say so and repeat it, stop the run, or give its share to the other sources."""
    cache_dir: str = ""
    """Directory of index files that all ranks and runs may share (`cptron data prepare`); empty: each makes its own."""
    workers: int = 2
    """Threads of a reading rank that read micro-batches side by side."""
    prefetch_steps: int = 2
    """Global batches read ahead of the step; 0 reads each when it is needed."""
    eod_mask_loss: bool = False
    """Do not count the prediction of a document's first token from the end of the document before it."""
    order: Literal["cptron", "megatron"] = "cptron"
    """`megatron`: exactly the samples of a Megatron-LM run, which can be neither extended nor mixed anew."""
    megatron_samples: int = 0
    """With `order: megatron`: training samples of that run (train_samples, or train_iters * global_batch_size)."""
    megatron_consumed_samples: int = 0
    """With `order: megatron`: samples that run has consumed; a new run goes on after them."""
    megatron_split: str = "100,0,0"
    """With `order: megatron`: that run's `--split`; the training part is used."""


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
    lr: float
    """Peak learning rate, reached after warm-up."""
    lr_min: float = 0.0
    """Learning rate at the end of the decay."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Shape after warm-up: `cosine` from `lr` to `lr_min`, or `constant` at `lr`."""
    warmup_steps: int = 0
    """Linear warm-up: step t (from 0) uses lr * (t + 1) / warmup_steps."""
    decay_steps: int = 0
    """Step at which the cosine reaches `lr_min`; 0 means `train.steps`."""
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
class EvalConfig:
    """When the validation sets are evaluated."""

    at_start: bool = True
    """Evaluate before any update: the baseline against which forgetting is measured."""
    every_steps: int = 0
    """Evaluate after every so many steps, and always after the last; 0 means only after the last."""
    micro_batch_size: int = 0
    """Sequences in one evaluation forward pass of one rank; 0 means `train.micro_batch_size`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MilestoneConfig:
    """A point of the run whose checkpoint is kept for ever."""

    name: str
    """Shown as the reason why the checkpoint is kept; letters, digits, `_` and `-`."""
    tokens: int
    """The first checkpoint at or past so many tokens is the milestone's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When the run's state is saved, as it always is after the last step, and which checkpoints stay."""

    every_steps: int = 0
    """Save after every so many steps; 0 means only after the last step."""
    keep_last: int = 0
    """Keep the newest so many checkpoints; 0 is no rule. With this rule or one of the next two, what no rule keeps is
    deleted after a save; the newest good one is always kept."""
    keep_every_tokens: int = 0
    """Keep the first checkpoint at or past each multiple of so many tokens; 0 is no rule."""
    keep_best: int = 0
    """Keep the so many checkpoints with the lowest `best_metric`; 0 is no rule. `every_steps` is then a multiple of
    `eval.every_steps`, so that every save is evaluated."""
    best_metric: str = ""
    """With `keep_best`: `valid/NAME/loss_nats_per_token` or `valid/NAME/perplexity` of a validation set."""
    milestones: tuple[MilestoneConfig, ...] = ()
    """Checkpoints kept for ever, whatever the other rules say."""
    asynchronous: bool = False
    """Training waits only for the copy to host memory (one more copy of what a rank holds, in its host's memory); a
    process behind each rank writes it."""
    verify: Literal["always", "once", "sizes"] = "always"
    """What is proven of a checkpoint before it is loaded: the sha256 of every file; `once`: of files that this run has
    not proven before; `sizes`: that every file has its size, and the checksums of the weights."""
    on_damage: Literal["previous", "stop"] = "previous"
    """When the newest checkpoint of the run is damaged: name it and go on from the newest good one, or stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """Where metrics go. JSONL is always written; it is the record the others mirror."""

    every_steps: int = 1
    """Console and metric interval in steps."""
    tensorboard: bool = False
    """Also write TensorBoard event files to RUN_DIR/tensorboard (needs the `tensorboard` package)."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Also log to Weights & Biases; `offline` needs no account and no network."""
    wandb_project: str = "cptron"
    """Weights & Biases project."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """Device, backend and patience."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: CUDA and NCCL where a GPU is visible, else CPU and gloo. The engine is the same."""
    threads_per_rank: int = 0
    """CPU threads per rank; 0 means the machine's cores divided by the ranks on it."""
    timeout_s: int = 600
    """A collective that waits longer than this stops the run instead of hanging."""
    time_limit_minutes: float = 0.0
    """The run stops and saves before it has lasted so long, and exits with 75; 0 means no limit."""
    stop_before_job_end: bool = True
    """Under SLURM: also before the end of the job's time, where the job knows it (`SLURM_JOB_END_TIME`)."""
    stop_margin_s: int = 60
    """Seconds that such a stop leaves at least; more once saves or steps have been seen to need more."""
    stop_grace_s: int = 300
    """Seconds that the ranks which `cptron train` started have to save after a signal, before it kills them."""
    max_restarts: int = 0
    """How often `cptron train` starts its ranks again after one was lost, failed or hung; not those that torchrun or
    `srun` started."""
    hang_factor: float = 20.0
    """A step that takes so many times the median of the last ones is a hang: every rank shows its stacks and exits with
    76. 0 turns this off."""
    hang_min_s: int = 300
    """No step of less seconds is a hang."""
    hang_phase_s: int = 3600
    """The start (with the first step), an evaluation or a save may take so many seconds, or `runtime.hang_factor` times
    the longest one before, until it is a hang."""


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
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
