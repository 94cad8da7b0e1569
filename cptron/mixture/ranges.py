"""What was measured, from the least to the largest; everything else is extrapolation.

Place in the flow: `left_out` and `predict` ask here. Invariant: the range of each share and scalar is looked at on its
own, so a mixture inside may still be far from every measured one.
"""

from __future__ import annotations

from dataclasses import dataclass

from cptron.mixture.points import SAME, SCALARS, Inputs, varies

SLACK = 1e-9
"""Of a share, for rounding."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Least and largest value of everything that can be varied."""

    shares: list[list[float]]
    """By domain."""
    scalars: dict[str, list[float]]
    """Those that were recorded; with one value, both are the same."""

    @staticmethod
    def of(inputs: Inputs) -> Ranges:
        """Of these points."""
        shares = [[float(column.min()), float(column.max())] for column in inputs.shares.T]
        scalars = {}
        for name in SCALARS:
            values = getattr(inputs, name)
            known = values[values == values]
            if len(known) == len(values):
                low, high = float(known.min()), float(known.max())
                scalars[name] = [low, high] if varies(known) else [float(known.mean())] * 2
        return Ranges(shares, scalars)

    def reasons(self, inputs: Inputs, row: int, domains: tuple[str, ...]) -> list[str]:
        """Why the point in this row is outside: empty within."""
        found = []
        for name, share, (low, high) in zip(domains, inputs.shares[row], self.shares, strict=True):
            if not low - SLACK <= share <= high + SLACK:
                found.append(f"share of {name} {share:.4g} is outside {low:.4g} to {high:.4g}")
        return found + self.scalar_reasons(inputs, row)

    def scalar_reasons(self, inputs: Inputs, row: int) -> list[str]:
        """Those that are not about shares."""
        found = []
        for name, (low, high) in self.scalars.items():
            value = float(getattr(inputs, name)[row])
            if not low * (1 - SAME) <= value <= high * (1 + SAME):
                found.append(f"{name} {value:.4g} is outside {low:.4g} to {high:.4g}")
        return found
