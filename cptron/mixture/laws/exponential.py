"""The data-mixing law (arXiv 2403.16952): c + k exp(Σ t_j r_j) over the shares r_j of all domains.

Place in the flow: `registry` makes it. The shares sum to one, so only differences of the t_j mean anything. Invariant:
t of the first domain is 0, its size is part of k; c and k are not negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cptron.mixture.laws.separable import SeparableLaw
from cptron.mixture.points import Array, Inputs

SLOPES = (-20.0, 20.0)


@dataclass(frozen=True, slots=True)
class ExponentialLaw(SeparableLaw):
    """c + k exp(t . r)."""

    domains: tuple[str, ...]

    coefficients_nonnegative: ClassVar[bool] = True

    @property
    def formula(self) -> str:
        """As in the paper."""
        return f"c + k exp(Σ t_j r_j), r: shares, t of {self.domains[0]} is 0"

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Linear parameters."""
        return ("c", "k")

    @property
    def shapes(self) -> dict[str, tuple[float, float]]:
        """A slope for every domain but the first."""
        return {f"t/{name}": SLOPES for name in self.domains[1:]}

    @property
    def scalars(self) -> frozenset[str]:
        """None."""
        return frozenset()

    def basis(self, shape: Array, inputs: Inputs) -> Array:
        """1 and the exponential."""
        grown = np.exp(inputs.shares[:, 1:] @ shape)
        return np.stack([np.ones_like(grown), grown], axis=1)
