"""The D-CPT law (arXiv 2406.01375): E + A/N^α + B r^η/D^β + C/(r+ε)^γ, and its cross-domain form with + F/K^μ.

Place in the flow: `registry` makes it with the terms that the data can tell apart. r is the share of the loss's own
domain, D the training tokens, N the parameters of the model, K the learnability of the domain. Invariant: E, A, B, C
and F are not negative, so the loss never rises with N, D or K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cptron.mixture.laws.power import own_share
from cptron.mixture.laws.separable import SeparableLaw
from cptron.mixture.points import Array, Inputs

EXPONENT = (0.01, 3.0)
OFFSET = (1e-4, 0.5)
"""Of epsilon, which keeps the loss finite at a share of 0."""


@dataclass(frozen=True, slots=True)
class DCPTLaw(SeparableLaw):
    """The published form, without the terms of what has one value only: those would be part of E."""

    own: tuple[int, ...]
    """Domains whose share is r."""
    terms: tuple[str, ...]
    """Of `points.SCALARS`, those that vary."""

    coefficients_nonnegative: ClassVar[bool] = True

    @property
    def formula(self) -> str:
        """The terms there are."""
        parts = {"params": "A/N^α", "tokens": "B r^η/D^β", "learnability": "F/K^μ"}
        shown = " + ".join(["E", *(parts[name] for name in parts if name in self.terms), "C/(r+ε)^γ"])
        letters = {
            "params": "N: parameters",
            "tokens": "D: training tokens",
            "learnability": "K: learnability",
        }
        named = [letters[name] for name in letters if name in self.terms]
        return ", ".join([f"{shown}, r: share of the loss's own domain", *named])

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Linear parameters."""
        letters = {"params": "A", "tokens": "B", "learnability": "F"}
        return ("E", "C", *(letters[name] for name in letters if name in self.terms))

    @property
    def shapes(self) -> dict[str, tuple[float, float]]:
        """Exponents and the offset of r."""
        found = {"gamma": EXPONENT, "epsilon": OFFSET}
        if "params" in self.terms:
            found["alpha"] = EXPONENT
        if "tokens" in self.terms:
            found |= {"eta": EXPONENT, "beta": EXPONENT}
        if "learnability" in self.terms:
            found["mu"] = EXPONENT
        return found

    @property
    def scalars(self) -> frozenset[str]:
        """What has a term."""
        return frozenset(self.terms)

    def basis(self, shape: Array, inputs: Inputs) -> Array:
        """The terms without their coefficients."""
        exponents = dict(zip(self.shapes, shape, strict=True))
        share = own_share(inputs, self.own)
        columns = [np.ones_like(share), (share + exponents["epsilon"]) ** -exponents["gamma"]]
        if "params" in self.terms:
            columns.append(inputs.params ** -exponents["alpha"])
        if "tokens" in self.terms:
            columns.append(share ** exponents["eta"] * inputs.tokens ** -exponents["beta"])
        if "learnability" in self.terms:
            columns.append(inputs.learnability ** -exponents["mu"])
        return np.stack(columns, axis=1)
