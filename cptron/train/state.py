"""The state of a run that is not a tensor: small, explicit, JSON.

Place in the flow: advanced by the loop, stored in every checkpoint as `state.json`. Invariant: with the
weights, the optimizer and the configuration it determines everything that follows.
"""

from __future__ import annotations

import base64
import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from cptron.data.ledger import Ledger
from cptron.errors import CheckpointError
from cptron.forgetting.reaction import Reaction
from cptron.forgetting.watch import Watch
from cptron.json_text import parse_json
from cptron.mixture.doremi import DomainWeights
from cptron.train.accounting import SourceAccounts
from cptron.train.spikes import SpikeHistory

ROUNDING = 1e-9
"""Of factors that were multiplied and divided."""


@dataclass
class TrainState:
    """Where the run stands."""

    step: int = 0
    tokens_total: int = 0
    """Predicted tokens that were trained on."""
    ledger: Ledger = field(default_factory=Ledger)
    batches_drawn: int = 0
    """Global batches drawn, trained on or not: the number of the last one."""
    tokens_skipped: int = 0
    """Predicted tokens of batches that the guards dropped."""
    spike_history: SpikeHistory = field(default_factory=SpikeHistory)
    journal_entries: int = 0
    """Actions of the guards that are in this state, or lie ahead of it."""
    evaluated_tokens: int = 0
    """`tokens_total` at the last evaluation."""
    watch: Watch = field(default_factory=Watch)
    """What the forgetting monitor remembers."""
    reaction: Reaction = field(default_factory=Reaction)
    """What it has done."""
    trained: SourceAccounts = field(default_factory=SourceAccounts)
    """Loss and tokens by source of what was trained on."""
    stage: int = 0
    """Number of the stage that the last batch drawn belongs to; 0 without stages."""
    share_factors: dict[str, float] = field(default_factory=dict)
    """What a mixer multiplies the shares of sources with; a source that is not named has 1."""
    mixing: dict[str, Any] = field(default_factory=dict)
    """Of an online mixer: its last batch, what was trained on until then, its own state and factors."""
    doremi: dict[str, Any] = field(default_factory=dict)
    """Of a proxy: `mixture.doremi.DomainWeights`."""

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """The state of a checkpoint, from what `read_state` has found valid."""
        return cls(
            step=saved["step"],
            tokens_total=saved["tokens_total"],
            ledger=Ledger.from_dict(saved["ledger"]),
            batches_drawn=saved["batches_drawn"],
            tokens_skipped=saved["tokens_skipped"],
            spike_history=SpikeHistory.from_dict(saved["spike_history"]),
            journal_entries=saved["journal_entries"],
            evaluated_tokens=saved["evaluated_tokens"],
            watch=Watch.from_dict(saved["watch"]),
            reaction=Reaction.from_dict(saved["reaction"]),
            trained=SourceAccounts.from_dict(saved["trained"]),
            stage=saved["stage"],
            share_factors=dict(saved["share_factors"]),
            mixing=dict(saved["mixing"]),
            doremi=dict(saved["doremi"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `from_dict` inverts it."""
        return {
            "step": self.step,
            "tokens_total": self.tokens_total,
            "ledger": self.ledger.to_dict(),
            "batches_drawn": self.batches_drawn,
            "tokens_skipped": self.tokens_skipped,
            "spike_history": self.spike_history.to_dict(),
            "journal_entries": self.journal_entries,
            "evaluated_tokens": self.evaluated_tokens,
            "watch": self.watch.to_dict(),
            "reaction": self.reaction.to_dict(),
            "trained": self.trained.to_dict(),
            "stage": self.stage,
            "share_factors": dict(self.share_factors),
            "mixing": copy.deepcopy(self.mixing),
            "doremi": copy.deepcopy(self.doremi),
        }


def without_mixer(state: TrainState) -> None:
    """Take out of the shares what a mixer has made of them, which is no longer asked."""
    for name, factor in state.mixing.get("factors", {}).items():
        rest = state.share_factors.pop(name, 1.0) / factor
        if abs(rest - 1.0) > ROUNDING:
            state.share_factors[name] = rest
    state.mixing = {}


def read_state(path: Path) -> dict[str, Any]:
    """Contents of a checkpoint's `state.json`: those of a `TrainState`, and the `random_states` by rank.

    Raises `CheckpointError` when it is missing or damaged.
    """
    try:
        saved = parse_json(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); the checkpoint holds weights only or is damaged"
        ) from None
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path} holds a {type(saved).__name__}, not an object; use another checkpoint")
    new = TrainState().to_dict()
    saved = {**{key: new[key] for key in _LATER}, **saved}
    for key, (valid, rule) in _VALID.items():
        if key not in saved:
            raise CheckpointError(f"{path} lacks {key}; use another checkpoint")
        if not valid(saved[key]):
            raise CheckpointError(
                f"{path} is damaged: {key} is {saved[key]!r:.40}, must be {rule}; use another checkpoint"
            )
    return saved


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0  # JSON's true is an int to isinstance


def _is_read_by(read: Callable[[Any], Any]) -> Callable[[Any], bool]:
    """Whether `read` takes a value, which raises ValueError where it does not."""

    def is_read(value: Any) -> bool:
        try:
            read(value)
        except ValueError:
            return False
        return True

    return is_read


_is_accounts = _is_read_by(SourceAccounts.from_dict)


def _is_factors(value: Any) -> bool:
    return isinstance(value, dict) and all(
        type(factor) is float and 0 <= factor < math.inf for factor in value.values()
    )


def _is_mixing(value: Any) -> bool:
    if value == {}:
        return True
    if (
        not isinstance(value, dict)
        or not _is_count(value.get("batch"))
        or not _is_accounts(value.get("seen"))
    ):
        return False
    factors = value.get("factors", {})
    return _is_count(value.get("decisions", 0)) and _is_factors(factors) and all(factors.values())


def _is_doremi(value: Any) -> bool:
    try:
        return value == {} or bool(DomainWeights.from_dict(value))
    except ValueError:
        return False


def _is_random_states(value: Any) -> bool:
    """One by rank, each of which `set_random_state` takes."""
    if not isinstance(value, list) or not all(isinstance(state, dict) for state in value):
        return False
    try:
        return all(len(_decode(text)) > 0 for state in value for text in state.values())
    except (TypeError, ValueError):
        return False


_VALID: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (_is_count, "a whole number from 0"),
    "tokens_total": (_is_count, "a whole number from 0"),
    "ledger": (lambda value: isinstance(value, dict), "an object"),
    "batches_drawn": (_is_count, "a whole number from 0"),
    "tokens_skipped": (_is_count, "a whole number from 0"),
    "spike_history": (_is_read_by(SpikeHistory.from_dict), "lists of as many losses as gradient norms"),
    "journal_entries": (_is_count, "a whole number from 0"),
    "evaluated_tokens": (_is_count, "a whole number from 0"),
    "watch": (_is_read_by(Watch.from_dict), "what a monitor remembers"),
    "reaction": (_is_read_by(Reaction.from_dict), "two factors, two counts and a truth value"),
    "trained": (_is_accounts, "a sum of losses and a number of tokens by source"),
    "stage": (_is_count, "a whole number from 0"),
    "share_factors": (_is_factors, "finite numbers from 0 by source"),
    "mixing": (_is_mixing, "the state of an online mixer"),
    "doremi": (_is_doremi, "weights by source"),
    "random_states": (_is_random_states, "a list of generator states in base64"),
}
"""What `state.json` must hold: a check, and the rule in words."""
_LATER = (
    *("evaluated_tokens", "watch", "reaction"),
    *("trained", "stage", "share_factors", "mixing", "doremi"),
)
"""What the checkpoints of earlier versions lack: it is as at the start."""


def random_state() -> dict[str, str]:
    """This rank's generator states, base64."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in states.items()}


def set_random_state(encoded: dict[str, str]) -> None:
    """Restore what `random_state` returned. Raises `CheckpointError` when torch does not take it."""
    for name, text in encoded.items():
        state = torch.frombuffer(_decode(text), dtype=torch.uint8)
        try:
            if name == "cpu":
                torch.set_rng_state(state)
            elif torch.cuda.is_available():
                torch.cuda.set_rng_state(state)
        except (RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"the checkpoint's random state for {name} is damaged ({reason}); use another checkpoint"
            ) from None


def _decode(text: str) -> bytearray:
    """Raises `ValueError` or `TypeError` on what is not base64."""
    return bytearray(base64.b64decode(text, validate=True))
