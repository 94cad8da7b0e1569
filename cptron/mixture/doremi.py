"""Group DRO over sources, after Xie et al. 2023 (DoReMi): how much each source's loss counts while a proxy is trained.

Place in the flow: `train.proxy` tells it the excess losses of every global batch. Invariant: a pure function of its
state, which is JSON; the answer is the mean of the weights over the steps, not the last ones.

With lambda_k the mean over the tokens of source k of max(loss - loss of the reference, 0), kept from before where the
batch has none: log alpha_k += step_size * lambda_k, normalised, then alpha = (1 - smoothing) alpha + smoothing / K.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class DomainWeights:
    """Where it stands; each step makes a new one."""

    weights: dict[str, float]
    """alpha, by source; they sum to 1."""
    scores: dict[str, float]
    """lambda, by source, in nats per token."""
    average: dict[str, float]
    """Mean of alpha over the steps: the answer."""
    steps: int = 0

    @classmethod
    def uniform(cls, names: Sequence[str]) -> Self:
        """Before the first step."""
        equal = dict.fromkeys(names, 1.0 / len(names))
        return cls(equal, dict.fromkeys(names, 0.0), equal)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """What `to_dict` returned. Raises ValueError on anything else."""
        try:
            found = cls(**saved)
            numbers = [*found.weights.values(), *found.scores.values(), *found.average.values()]
            if not all(type(number) is float and 0 <= number < math.inf for number in numbers):
                raise TypeError("weights, scores and average must be finite numbers from 0")
            if (
                type(found.steps) is not int
                or not found.weights.keys() == found.scores.keys() == found.average.keys()
            ):
                raise TypeError("weights, scores and average must be of the same sources")
        except (TypeError, AttributeError) as error:
            raise ValueError(f"must be domain weights ({error})") from None
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    def updated(
        self,
        excess_nats: Mapping[str, float],
        tokens: Mapping[str, int],
        step_size: float,
        smoothing: float,
    ) -> DomainWeights:
        """After a global batch with so much excess loss over so many tokens of each source."""
        scores = {
            name: excess_nats[name] / tokens[name] if tokens[name] else score
            for name, score in self.scores.items()
        }
        logs = {name: math.log(weight) + step_size * scores[name] for name, weight in self.weights.items()}
        highest = max(logs.values())
        unscaled = {name: math.exp(log - highest) for name, log in logs.items()}
        total = math.fsum(unscaled.values())
        weights = {
            name: (1 - smoothing) * value / total + smoothing / len(unscaled)
            for name, value in unscaled.items()
        }
        steps = self.steps + 1
        average = {
            name: before + (weights[name] - before) / steps if self.steps else weights[name]
            for name, before in self.average.items()
        }
        return DomainWeights(weights, scores, average, steps)

    def token_weights(self, tokens: Mapping[str, int]) -> dict[str, float]:
        """What a token of each source counts in a batch of so many tokens, so that the mean over all tokens of weight
        * loss is the sum over sources of alpha * mean loss; alpha of the sources that the batch has, of sum 1."""
        present = {name: count for name, count in tokens.items() if count}
        total, known = sum(present.values()), math.fsum(self.weights[name] for name in present)
        return {
            name: self.weights[name] / known * total / present[name] if name in present else 0.0
            for name in tokens
        }
