"""Section of the configuration about weights by source that a proxy model finds.

Place in the flow: part of `schema`. Invariant: as there, plain values and no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class DoremiConfig:
    """Train a proxy by group DRO, whose answer is a blend; see [mixing](mixing.md#doremi)."""

    reference: str = ""
    """Checkpoint of a small model that was trained on the same sources; empty: an ordinary run. `cptron doremi` sets
    it."""
    step_size: float = 1.0
    """What an excess loss is multiplied with before it is added to the logarithm of a source's weight."""
    smoothing: float = 1e-3
    """Part of the weights that is uniform."""
