"""Shares that follow how fast each source is still learned, after Jiang et al. 2024 (arXiv 2410.11820). Experimental.

Place in the flow: one of the mixers. Invariant: formulas and constants are those of the paper as reported; the fit of
the laws is our own (`loss_law`).

At each update, with n_k tokens of source k trained on and the law L_k of its losses so far:
  speed_k = alpha_k (L_k - eps_k) / n_k, what one more token of k is expected to lower its loss by
  rho_k ~ prior_k * sqrt(credit_k) * speed_k, none below 0.01
  policy = 0.1 rho + 0.9 average;  average: mean of all policies;  credit = 0.1 policy + 0.9 credit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from cptron.data.floors import Floors, floored, is_usable
from cptron.mixture.loss_law import fit_law

NEW = 0.1
"""Part of the newest preference in the policy, and of the newest policy in the credit."""
LEAST = 0.01
"""Lowest share that a preference gives a source, where there are not so many that it cannot."""
MIN_POINTS = 5
"""Losses of a source before its law is fitted."""
MOST_POINTS = 256
"""Losses kept of a source; beyond that every second of the old ones goes."""


@dataclass
class Ado:
    """Losses so far, and the policies that were in force."""

    points: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Of each source: tokens trained on, and mean loss since the update before."""
    average: dict[str, float] = field(default_factory=dict)
    credit: dict[str, float] = field(default_factory=dict)
    policies: int = 0
    """Of which `average` is the mean."""

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """What `to_dict` returned, or an empty mapping. Raises ValueError on anything else."""
        if not saved:
            return cls()
        try:
            points = {
                name: [(int(tokens), float(loss)) for tokens, loss in of_one]
                for name, of_one in saved["points"].items()
            }
            average, credit = dict(saved["average"]), dict(saved["credit"])
            found = cls(points, average, credit, int(saved["policies"]))
            numbers = [number for of_one in points.values() for point in of_one for number in point]
            if not all(0 < float(n) < math.inf for n in (*numbers, *average.values(), *credit.values())):
                raise TypeError("numbers must be finite and more than 0")
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"must be the state of ado ({error!r})") from None
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        points = {name: [list(point) for point in of_one] for name, of_one in self.points.items()}
        return {
            "points": points,
            "average": dict(self.average),
            "credit": dict(self.credit),
            "policies": self.policies,
        }

    def update(
        self, loss_by_source: Mapping[str, float], tokens: Mapping[str, int], prior: Mapping[str, float]
    ) -> dict[str, float]:
        """The policy; `prior` until every source of it has a law."""
        for name, loss in loss_by_source.items():
            kept = self.points.setdefault(name, [])
            kept.append((tokens[name], loss))
            if len(kept) > MOST_POINTS:
                del kept[:-1:2]
        if any(len(self.points.get(name, [])) < MIN_POINTS for name in prior):
            return dict(prior)
        average = _over(prior, self.average)
        preferred = self._preference(prior)
        return {name: NEW * preferred[name] + (1 - NEW) * average[name] for name in prior}

    def follow(self, shares: Mapping[str, float]) -> None:
        """Enter what is in force into average and credit."""
        self.policies += 1
        for name, share in shares.items():
            before = self.average.get(name, share)
            self.average[name] = before + (share - before) / self.policies
            self.credit[name] = NEW * share + (1 - NEW) * self.credit.get(name, share)

    def _preference(self, prior: Mapping[str, float]) -> dict[str, float]:
        credit = _over(prior, self.credit)
        gains = {
            name: prior[name] * math.sqrt(credit[name]) * fit_law(self.points[name]).speed(self.points[name][-1][0])
            for name in prior
        }  # fmt: skip
        if not is_usable(gains.values()):
            return dict(prior)
        return floored(gains, Floors(min_share=dict.fromkeys(prior, min(LEAST, 0.5 / len(prior)))))


def _over(prior: Mapping[str, float], values: Mapping[str, float]) -> dict[str, float]:
    """`values` of the sources of `prior`, which stands in for one that has none, with the sum 1."""
    found = {name: values.get(name, share) for name, share in prior.items()}
    total = math.fsum(found.values())
    return {name: value / total for name, value in found.items()}
