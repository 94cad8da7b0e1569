"""Sections of the configuration about data: what is trained and what is evaluated on.

Place in the flow: part of `schema`. Invariant: as there, plain values and no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
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
