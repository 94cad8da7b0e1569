"""The forms of the CMR law (arXiv 2407.17467): one power, or two, of a share or of the training tokens.

Place in the flow: `registry` makes them. The paper writes the domain loss as a s-th power of the domain's percentage R,
changes of loss as powers of the tokens T, and the critical mixture ratio as a power of T. Invariant: an exponent is
never 0, where power and constant would be one and the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cptron.mixture.laws.separable import SeparableLaw
from cptron.mixture.points import Array, Inputs

LEAST_EXPONENT = 1e-4
"""In size; a power this small is a logarithm for every purpose."""
EXPONENTS = (-3.0, 3.0)
PERCENT = 100.0


@dataclass(frozen=True, slots=True)
class PowerLaw(SeparableLaw):
    """alpha x^s + beta."""

    own: tuple[int, ...]
    """Domains whose percentage is x; none: x is the number of tokens."""

    coefficients_nonnegative: ClassVar[bool] = False

    @property
    def formula(self) -> str:
        """With x named."""
        return "αR^s+β, R: percentage of the loss's own domain" if self.own else "αT^s+β, T: training tokens"

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Linear parameters."""
        return ("beta", "alpha")

    @property
    def shapes(self) -> dict[str, tuple[float, float]]:
        """The exponent."""
        return {"s": EXPONENTS}

    @property
    def scalars(self) -> frozenset[str]:
        """Tokens, or none."""
        return frozenset() if self.own else frozenset({"tokens"})

    def basis(self, shape: Array, inputs: Inputs) -> Array:
        """1 and the power."""
        x = PERCENT * own_share(inputs, self.own) if self.own else inputs.tokens
        return np.stack([np.ones_like(x), power(x, shape[0])], axis=1)


@dataclass(frozen=True, slots=True)
class TwoPowers(SeparableLaw):
    """alpha2 T^s2 + alpha3 T^s3 + beta: a general loss that first rises, then recovers."""

    coefficients_nonnegative: ClassVar[bool] = False

    @property
    def formula(self) -> str:
        """As in the paper."""
        return "α2 T^s2 + α3 T^s3 + β, T: training tokens"

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Linear parameters."""
        return ("beta", "alpha2", "alpha3")

    @property
    def shapes(self) -> dict[str, tuple[float, float]]:
        """Both exponents."""
        return {"s2": EXPONENTS, "s3": EXPONENTS}

    @property
    def scalars(self) -> frozenset[str]:
        """The tokens."""
        return frozenset({"tokens"})

    def basis(self, shape: Array, inputs: Inputs) -> Array:
        """1 and both powers."""
        x = inputs.tokens
        return np.stack([np.ones_like(x), power(x, shape[0]), power(x, shape[1])], axis=1)

    def canonical(self, parameters: Array) -> Array:
        """The larger exponent first."""
        beta, alpha2, alpha3, s2, s3 = parameters
        return parameters if s2 >= s3 else np.array([beta, alpha3, alpha2, s3, s2])


def own_share(inputs: Inputs, own: tuple[int, ...]) -> Array:
    """Share of the loss's own domains together."""
    return np.asarray(inputs.shares[:, list(own)].sum(axis=1))


def power(x: Array, exponent: float) -> Array:
    """x to the exponent, which is kept away from 0; infinite at 0 for a negative one."""
    size = max(abs(exponent), LEAST_EXPONENT)
    with np.errstate(divide="ignore"):
        return np.asarray(x ** (size if exponent >= 0 else -size))
