"""What advice is given about: the base, the corpora, the budget, and what people declare.

Place in the flow: `corpora`, `base` and `losses` read it from disk, `advice` turns it into choices. Invariant: plain
values; facts that pass `check_facts` always lead to advice or to one of the refusals of the rules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cptron.errors import ConfigError

Suite = Literal["old", "new", "probe"]
_NAME = re.compile(r"[A-Za-z0-9_-]+")
PROBES = ("induction", "mapping")
"""Names of the monitor's own sets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """The model to start from."""

    path: str
    kind: Literal["checkpoint", "hugging_face"]
    family: str
    parameters: int
    vocab_size: int
    max_positions: int
    tied_embeddings: bool
    rope: str
    """In words."""
    instruct: bool
    """Answers instructions, as far as is known: it has a chat template, or the user says so."""
    instruct_from: Literal["template", "declared"] = "template"
    state: Literal["decayed", "constant_phase", "unknown"] = "unknown"
    state_from: Literal["checkpoint", "declared"] = "declared"
    """A run's checkpoint tells its state itself."""
    lr_at_save: float = 0.0
    """Rate that the pretraining would have gone on with; 0: not known."""
    lr_peak: float = 0.0
    """Highest rate of the pretraining; 0: not known."""
    flops_per_token: float = 0.0
    """Training FLOPs of a token in products with weights."""
    attention_flops_per_position: float = 0.0
    """Training FLOPs of attention for a token, for each token of a sequence of one document."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthBin:
    """Documents of `first` to `last` tokens."""

    first: int
    last: int
    documents: int
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Token files to train on."""

    name: str
    path: str
    documents: int
    tokens: int
    median_tokens: float
    """Of a document."""
    longest_tokens: int
    """Of a document."""
    lengths: tuple[LengthBin, ...] = ()

    def share_in_longer(self, limit: int) -> float:
        """Share of the tokens in documents of more than `limit` tokens, by whole bins: a lower bound."""
        return sum(one.tokens for one in self.lengths if one.first > limit) / max(1, self.tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Token files to evaluate on."""

    name: str
    path: str
    suite: Suite
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepZeroLoss:
    """What the base has before any training."""

    name: str
    suite: Literal["old", "new"]
    nats_per_token: float
    bits_per_byte: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All of it."""

    base: Base
    new: tuple[Corpus, ...]
    replay: tuple[Corpus, ...] = ()
    chat: tuple[Corpus, ...] = ()
    """Conversations for an instruct base."""
    valid: tuple[Held, ...] = ()
    losses: tuple[StepZeroLoss, ...] = ()
    budget_tokens: int
    budget_from: str = "declared"
    """How it was found, in words."""
    max_epochs: float = 4.0
    """Passes over a corpus that are allowed."""
    language: Literal["same", "other", "unknown"] = "unknown"
    """Whether the new data are in a language, or of a modality, that the base has hardly seen."""
    general: Literal["wanted", "essential"] = "wanted"
    """What the base can do is wanted, or must not suffer."""
    goal: Literal["domain", "long-context"] = "domain"
    seq_length: int = 0
    """Asked for; 0 leaves it to the advice."""
    ranks: int = 1
    """Data parallel ranks that will train; the batch is a multiple."""
    run_dir: str = "runs/advised"

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """New ones first."""
        return (*self.new, *self.replay, *self.chat)


def check_facts(facts: Facts) -> None:
    """Raises `ConfigError` where no advice can be given."""
    if not facts.new:
        raise ConfigError(
            f"no new data are named for {facts.base.path}, and there is nothing to learn; give --new NAME=PREFIX"
        )
    if facts.budget_tokens < 1:
        raise ConfigError(
            f"the budget is {facts.budget_tokens} tokens, at least 1 is needed; give --tokens, or --gpu-hours "
            "with --tokens-per-gpu-second"
        )
    if not 0 < facts.max_epochs < math.inf:
        raise ConfigError(f"--max-epochs={facts.max_epochs} must be more than 0; use e.g. 4")
    if facts.ranks < 1:
        raise ConfigError(f"--ranks={facts.ranks} must be at least 1; give the number of data parallel ranks")
    if facts.chat and not facts.base.instruct:
        raise ConfigError(
            f"--chat {facts.chat[0].name} is instruct replay, and {facts.base.path} is no instruct model (it "
            "has no chat template, or --instruct no); give the conversations as --new, or --instruct yes"
        )
    _check_lengths(facts)
    _check_rates(facts.base)
    _check_names("training source", [corpus.name for corpus in facts.corpora])
    _check_names("validation set", [held.name for held in facts.valid])
    for corpus in facts.corpora:
        if corpus.tokens < 2:
            raise ConfigError(
                f"{corpus.name} ({corpus.path}) has {corpus.tokens} tokens, at least 2 are needed; leave it out"
            )
    for held in facts.valid:
        if held.name in PROBES:
            raise ConfigError(
                f"the validation set {held.name} has the name of a probe of the monitor; rename it"
            )


def _check_lengths(facts: Facts) -> None:
    most = facts.base.max_positions
    if facts.seq_length < 0 or facts.seq_length > most:
        raise ConfigError(
            f"--seq-length={facts.seq_length} must be from 1 to the {most} positions of {facts.base.path}; "
            "lower it, or give the base more positions (max_position_embeddings and its rope in config.json) "
            "before it is converted"
        )
    long = facts.seq_length or most
    if facts.goal == "long-context" and long <= 8192:
        raise ConfigError(
            f"--goal=long-context with sequences of {long} tokens is not long; give the base more positions "
            f"than its {most} (max_position_embeddings and its rope in config.json) before it is converted, or "
            "a larger --seq-length"
        )


def _check_rates(base: Base) -> None:
    for key, rate in (("--lr-at-save", base.lr_at_save), ("--lr-peak", base.lr_peak)):
        if not 0 <= rate < 1:
            raise ConfigError(f"{key}={rate} must be from 0 (not known) to below 1; give e.g. 3e-4")
    if base.lr_peak and base.lr_at_save > base.lr_peak:
        raise ConfigError(
            f"--lr-at-save={base.lr_at_save} is above --lr-peak={base.lr_peak}, the highest rate; correct one "
            "of them"
        )


def _check_names(what: str, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{what} {name!r} must be named in letters, digits, _ and -; use NAME=PREFIX")
        if name in names[:number]:
            raise ConfigError(f"{what} {name} is named twice; give every one its own name")
