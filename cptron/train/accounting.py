"""What was trained on of each source: loss and tokens since the start of the run.

Place in the flow: the loop adds every step, checkpoints keep it, `metrics` and `cptron inspect` show it. Invariant: as
exact across a resume as the steps themselves; batches that the guards dropped are in the ledger and not in here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np


@dataclass
class Trained:
    """One source."""

    loss_nats: float = 0.0
    """Sum over its tokens of their loss when they were trained on."""
    tokens: int = 0
    """Those that the loss mask counts."""


@dataclass
class SourceAccounts:
    """Every source that was ever trained on, by name."""

    sources: dict[str, Trained] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """What `to_dict` returned. Raises ValueError on anything else."""
        if not isinstance(saved, Mapping):
            raise ValueError("must be an object")
        found = {}
        for name, values in saved.items():
            if not isinstance(values, Mapping) or set(values) != {"loss_nats", "tokens"}:
                raise ValueError("must hold loss_nats and tokens of each source")
            loss, tokens = values["loss_nats"], values["tokens"]
            if type(tokens) is not int or tokens < 0 or type(loss) is not float or not math.isfinite(loss):
                raise ValueError("must hold finite sums of losses and numbers of tokens")
            found[name] = Trained(loss, tokens)
        return cls(found)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {name: asdict(trained) for name, trained in self.sources.items()}

    def tokens(self, name: str) -> int:
        """Tokens of a source that were trained on."""
        return self.sources[name].tokens if name in self.sources else 0

    def add(self, names: Sequence[str], loss_nats_K: np.ndarray, tokens_K: np.ndarray) -> None:
        """Enter a step, by the sources `names` (K of them)."""
        for name, loss, tokens in zip(names, loss_nats_K.tolist(), tokens_K.tolist(), strict=True):
            if tokens:
                trained = self.sources.setdefault(name, Trained())
                trained.loss_nats += loss
                trained.tokens += int(tokens)
