"""What is asked of the sources of a run.

Place in the flow: made of the configuration by `open`, followed by `stream`. Invariant: with the ledger it decides
every sample; nothing here changes while a stream draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cptron.data.floors import Floors, is_usable
from cptron.data.source import TokenSource
from cptron.data.stages import Stage, tokens_per_sample
from cptron.forgetting.reaction import raised_shares

OnMaxEpochs = Literal["warn", "stop", "redistribute"]


@dataclass(frozen=True, slots=True)
class Mix:
    """Blends, and what limits them."""

    token_shares: tuple[float, ...]
    """Share of the tokens of each source; any positive numbers."""
    max_epochs: tuple[float, ...]
    """Passes over each source after which `on_max_epochs` acts; 0 for no limit."""
    on_max_epochs: OnMaxEpochs
    stages: tuple[Stage, ...] = ()
    """Blends that follow one another; empty: `token_shares` to the end."""
    floors: Floors = field(default_factory=Floors)
    factors: tuple[float, ...] = ()
    """What a mixer multiplies each source's share with, in whatever stage; empty: nothing."""
    is_replay: tuple[bool, ...] = ()
    """Whether each source is replay; empty: none is."""
    replay_factor: float = 1.0
    """What the forgetting monitor multiplies the share of replay with, up to its cap, in whatever stage."""

    @property
    def blends(self) -> tuple[Stage, ...]:
        """The stages; one that does not end where none are asked for."""
        return self.stages or (Stage(self.token_shares),)

    def asked(self, stage: Stage, sources: Sequence[int]) -> list[float]:
        """Proportions of some sources in a stage, before floors; those of the stage where the factors leave nothing."""
        shares = [stage.token_shares[index] for index in sources]
        factors = [self.factors[index] if self.factors else 1.0 for index in sources]
        products = [share * factor for share, factor in zip(shares, factors, strict=True)]
        asked = products if is_usable(products) else shares
        if self.replay_factor == 1 or not asked:
            return asked
        return [*raised_shares(asked, [self.is_replay[index] for index in sources], self.replay_factor)]

    def tokens_per_batch(self, sources: Sequence[Sequence[TokenSource]]) -> list[float]:
        """Mean of each stage, given its sources; 0 where no stage says how many sequences a batch has."""
        return [
            stage.global_batch_size
            * tokens_per_sample(stage.token_shares, [source.predictions_per_sample for source in used])
            for stage, used in zip(self.blends, sources, strict=True)
        ]
