"""Online mixers: what asks for other shares while a run goes on.

Place in the flow: `train.mixing` asks every `data.mixer_every_batches`, puts the answer under the floors and in force.
Invariant: a mixer is a pure function of its state and of what it is told; the state is JSON, in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from cptron.mixture.ado import Ado

Shares = Mapping[str, float]
"""Source -> share of the tokens; they sum to 1."""


class Mixer(Protocol):
    """Made anew from its state for every update."""

    def update(
        self, loss_by_source: Mapping[str, float], tokens: Mapping[str, int], prior: Shares
    ) -> dict[str, float]:
        """The shares that it asks for, of exactly the sources of `prior`, each above 0.

        `loss_by_source` is the mean training loss since the last update in nats per token, of the sources that were
        drawn; `tokens` counts what was trained on of each since the start; `prior` are the shares of the stage at hand.
        """

    def follow(self, shares: Shares) -> None:
        """Told what is in force from now on: its answer under the floors, or what a journal says it was."""

    def to_dict(self) -> dict[str, Any]:
        """Its state."""


def make_mixer(kind: str, state: Mapping[str, Any]) -> Mixer:
    """The mixer `kind` where it stood; from an empty state at its beginning. Raises ValueError on another state."""
    return MIXERS[kind].from_dict(state)


MIXERS = {"ado": Ado}
"""`data.mixer` -> what does it; `static` asks for nothing and is not here."""
