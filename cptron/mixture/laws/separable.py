"""Laws that are linear in most of their parameters, and their least squares.

Place in the flow: the base of all laws but the ridge. The shapes (exponents) are searched by scipy's bounded
trust-region least squares from many starts; for given shapes the rest is a linear problem, solved exactly (variable
projection). Invariant: the same data and seed give the same parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib.util import find_spec
from typing import ClassVar

import numpy as np

from cptron.errors import ConfigError
from cptron.mixture.points import Array, Inputs

SCREENED = 64
"""Random shapes looked at; the best STARTS of them are refined."""
STARTS = 4
MOST_EVALUATIONS = 200
"""Of the residuals, for one start."""


class SeparableLaw(ABC):
    """sum of coefficient x basis function; the basis depends on the shapes."""

    coefficients_nonnegative: ClassVar[bool]

    @property
    @abstractmethod
    def coefficients(self) -> tuple[str, ...]:
        """Names of the linear parameters, in the order of the basis."""

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[float, float]]:
        """Name and bounds of every nonlinear parameter."""

    @abstractmethod
    def basis(self, shape: Array, inputs: Inputs) -> Array:
        """The basis functions at every point, n x coefficients."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Coefficients, then shapes."""
        return (*self.coefficients, *self.shapes)

    def values(self, parameters: Array, inputs: Inputs) -> Array:
        """The law at every point."""
        count = len(self.coefficients)
        with np.errstate(all="ignore"):
            found = self.basis(parameters[count:], inputs) @ parameters[:count]
        return np.where(np.isfinite(found), found, np.inf)

    def num_effective(self, inputs: Inputs, losses: Array) -> float:
        """Every parameter counts."""
        return len(self.parameters)

    def canonical(self, parameters: Array) -> Array:
        """The same law, with parameters in the order that is reported where several orders mean the same."""
        return parameters

    def fit(
        self, inputs: Inputs, losses: Array, rng: np.random.Generator, start: Array | None = None
    ) -> Array:
        """Least squares. With `start` the search begins there only. Raises `ConfigError` without scipy."""
        require_scipy()
        from scipy.optimize import least_squares

        low, high = np.array(list(self.shapes.values())).T

        def residuals(shape: Array) -> Array:
            matrix = self.basis(shape, inputs)
            return np.asarray(matrix @ self._solve(matrix, losses) - losses)

        if start is not None:
            starts = [np.clip(start[len(self.coefficients) :], low, high)]
        else:
            screened = [_sample(low, high, rng) for _ in range(SCREENED)]
            starts = sorted(screened, key=lambda shape: float(np.sum(residuals(shape) ** 2)))[:STARTS]
        found = [
            least_squares(
                residuals,
                _inside(shape, low, high),
                bounds=(low, high),
                x_scale=high - low,
                ftol=1e-9,
                xtol=1e-9,
                gtol=1e-9,
                max_nfev=MOST_EVALUATIONS,
            )
            for shape in starts
        ]
        shape = min(found, key=lambda one: float(one.cost)).x
        return self.canonical(np.concatenate([self._solve(self.basis(shape, inputs), losses), shape]))

    def _solve(self, matrix: Array, losses: Array) -> Array:
        """The coefficients for given shapes; columns are brought to one size first."""
        sizes = np.linalg.norm(matrix, axis=0)
        sizes[sizes == 0] = 1.0
        if self.coefficients_nonnegative:
            from scipy.optimize import nnls

            return np.asarray(nnls(matrix / sizes, losses, maxiter=100 * len(sizes))[0] / sizes)
        return np.asarray(np.linalg.lstsq(matrix / sizes, losses, rcond=None)[0] / sizes)


def require_scipy() -> None:
    """Raise `ConfigError` where scipy, which only fitting needs, is not installed."""
    if find_spec("scipy") is None:
        raise ConfigError(
            "fitting a law with exponents needs the package scipy, not installed; pip install 'cptron[mixlaw]'"
        )


def _sample(low: Array, high: Array, rng: np.random.Generator) -> Array:
    """Uniform within the bounds; in the logarithm where both are positive."""
    part = rng.random(len(low))
    positive = low > 0
    safe_low, safe_high = np.where(positive, low, 1.0), np.where(positive, high, 1.0)
    logarithmic = safe_low * (safe_high / safe_low) ** part
    return np.where(positive, logarithmic, low + (high - low) * part)


def _inside(shape: Array, low: Array, high: Array) -> Array:
    """Strictly within the bounds, as the solver demands of a start."""
    margin = 1e-9 * (high - low)
    return np.clip(shape, low + margin, high - margin)
