"""Sections of the configuration about what a run keeps and says, and how long it waits.

Place in the flow: part of `schema`. Invariant: as there, plain values and no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
    straggler_every_steps: int = 10
    """With more than one rank: measure every so many steps what each rank does by itself, without waiting for others,
    and name those that are slow; five measurements are needed. 0 turns this off. See [health](health.md)."""
    straggler_factor: float = 1.2
    """A rank is slow when it takes more than so many times what the ranks with the same work take."""
