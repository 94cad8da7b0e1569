"""Sections of the configuration about data: what is trained and what is evaluated on.

Place in the flow: part of `schema`. Invariant: as there, plain values and no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


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
    """Passes over this source, over all stages together, after which `data.on_max_epochs` acts; 0 means no limit."""
    min_share: float = 0.0
    """An online mixer, or the monitor, never takes its share of the tokens below this."""
    order: Literal["shuffled", "given"] = "shuffled"
    """`given`: documents, and their samples, in the order of the files in every epoch, as for files sorted by
    difficulty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """A part of the run with its own blend, sequence length, batch and rate; see [mixing](mixing.md)."""

    until_tokens: int = 0
    """It ends with the global batch by which so many tokens were drawn since the start of the run. The last stage has
    neither this nor the next key."""
    until_lr_frac: float = 0.0
    """It ends where the schedule has fallen to this part of `optim.lr`, as 0.2; counted beforehand, in tokens of mean
    batches."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Source -> share of the tokens; sources that are not named are not drawn. Empty: the sources' `token_share`."""
    seq_length: int = 0
    """Tokens predicted in a sequence; 0 means `data.seq_length`. In samples of another length each source begins anew,
    in an account of its own."""
    global_batch_size: int = 0
    """Sequences in one optimizer step; 0 means `train.global_batch_size`."""
    lr_scale: float = 1.0
    """The schedule's learning rate is multiplied by it."""


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
    stages: tuple[StageConfig, ...] = ()
    """Blends that follow one another; empty: the sources' `token_share` to the end."""
    replay_floor: float = 0.0
    """Share of the tokens that sources of role `replay` have together at least, whatever a mixer or the monitor says; a
    stage with less is refused."""
    mixer: Literal["static", "ado"] = "static"
    """`static`: shares are as configured. `ado` (experimental): they follow how fast each source is still learned; see
    [mixing](mixing.md#online-mixers)."""
    mixer_every_batches: int = 100
    """Global batches after which an online mixer sets new shares."""
    mixer_skip_batches: int = 500
    """An online mixer takes no notice of the losses of so many first global batches."""
    valid: tuple[ValidSetConfig, ...] = ()
    """Validation sets; may be empty when nothing asks for an evaluation (`eval.at_start`, `eval.every_steps`,
    `eval.every_tokens`)."""
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
class EvalConfig:
    """When the validation sets are evaluated."""

    at_start: bool = True
    """Evaluate before any update: the baseline against which forgetting is measured."""
    every_steps: int = 0
    """Evaluate after every so many steps, and always after the last; 0 means only after the last."""
    every_tokens: int = 0
    """Evaluate also after the step that reaches or passes a multiple of so many trained tokens; 0 is off."""
    micro_batch_size: int = 0
    """Sequences in one evaluation forward pass of one rank; 0 means `train.micro_batch_size`."""
