"""The corpus of a recipe: how many tokens each source gives and how often it is seen.

Place in the flow: beside the layouts in a plan. Imports no torch. Invariant: counts are those of the token files where
they are on this machine; where not, what is not known is said to be unknown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cptron.config.schema import Config
from cptron.data.content import open_content
from cptron.plan.search import tokens_per_step, weighted_stages
from cptron.tokens.index_layout import idx_path


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """One training source."""

    name: str
    role: str
    share: float
    """Of the run's tokens, over all its stages."""
    drawn_tokens: float
    tokens: int | None
    """In its files; None where they are not on this machine."""
    epochs: float | None
    max_epochs: float
    """0: no limit."""

    @property
    def is_exhausted(self) -> bool:
        """The run asks for more than the recipe allows."""
        return bool(self.epochs and self.max_epochs and self.epochs > self.max_epochs)


def corpus_of(config: Config) -> list[SourcePlan]:
    """Every source. Raises `DataError` where its files are damaged."""
    total = config.train.steps * tokens_per_step(config)
    shares = {source.name: 0.0 for source in config.data.sources}
    stages = config.data.stages or (None,)
    for stage, (_, part) in zip(stages, weighted_stages(config), strict=True):
        blend = dict(stage.shares) if stage is not None and stage.shares else {}
        blend = blend or {source.name: source.token_share for source in config.data.sources}
        whole = math.fsum(blend.values())
        for name, share in blend.items():
            shares[name] += part * share / whole
    found = []
    for source in config.data.sources:
        drawn = shares[source.name] * total
        tokens = open_content(source.path).tokens.num_tokens if idx_path(source.path).is_file() else None
        epochs = drawn / tokens if tokens else None
        found.append(
            SourcePlan(
                source.name, source.role, shares[source.name], drawn, tokens, epochs, source.max_epochs
            )
        )
    return found
