"""DoReMi's group DRO: the update against the formulas written out in numpy, and the weights of tokens."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.mixture.doremi import DomainWeights

NAMES = ("a", "b", "c")
STEP = st.tuples(
    st.lists(st.floats(0, 50), min_size=3, max_size=3), st.lists(st.integers(0, 40), min_size=3, max_size=3)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, min_size=1, max_size=8), st.floats(0.1, 2.0), st.sampled_from([1e-3, 0.1, 0.0]))
def test_the_update_is_the_written_one(
    steps: list[tuple[list[float], list[int]]], step_size: float, smoothing: float
) -> None:
    """Exponentiated gradient, smoothing, scores kept where a source is missing, mean over the steps; through JSON."""
    found = DomainWeights.uniform(NAMES)
    alpha, score, history = np.full(3, 1 / 3), np.zeros(3), []
    for excess, tokens in steps:
        found = DomainWeights.from_dict(json.loads(json.dumps(found.to_dict()))).updated(
            dict(zip(NAMES, excess, strict=True)), dict(zip(NAMES, tokens, strict=True)), step_size, smoothing
        )
        for k in range(3):
            if tokens[k]:
                score[k] = excess[k] / tokens[k]
        if smoothing == 0 and float(np.ptp(step_size * score)) * len(steps) > 500:
            return  # a weight of 0 has no logarithm: with smoothing there is none
        unnormalised = alpha * np.exp(step_size * (score - score.max()))
        alpha = (1 - smoothing) * unnormalised / unnormalised.sum() + smoothing / 3
        history.append(alpha)
        assert list(found.weights.values()) == pytest.approx(alpha.tolist(), rel=1e-9)
        assert list(found.scores.values()) == pytest.approx(score.tolist(), rel=1e-12)
    assert list(found.average.values()) == pytest.approx(np.mean(history, 0).tolist(), rel=1e-9)
    assert found.steps == len(steps)


@given(st.lists(st.integers(0, 100), min_size=3, max_size=3).filter(any))
def test_tokens_count_so_that_sources_count_alpha(counts: list[int]) -> None:
    """The mean over all tokens of weight * loss is the sum over sources of alpha * mean loss."""
    alpha = dict(zip(NAMES, (0.5, 0.3, 0.2), strict=True))
    weights = DomainWeights(alpha, dict.fromkeys(NAMES, 0.0), alpha).token_weights(
        dict(zip(NAMES, counts, strict=True))
    )
    loss = {"a": 1.0, "b": 10.0, "c": 100.0}
    mean = sum(weights[n] * count * loss[n] for n, count in zip(NAMES, counts, strict=True)) / sum(counts)
    here = [n for n, count in zip(NAMES, counts, strict=True) if count]
    expected = sum(alpha[n] * loss[n] for n in here) / sum(alpha[n] for n in here)
    assert mean == pytest.approx(expected)


@pytest.mark.parametrize(
    "saved",
    [
        {"weights": {"a": 1.0}},
        {"weights": {"a": 1.0}, "scores": {}, "average": {"a": 1.0}},
        {"weights": {"a": math.nan}, "scores": {"a": 0.0}, "average": {"a": 1.0}},
        {"weights": [1.0], "scores": {"a": 0.0}, "average": {"a": 1.0}},
        {"weights": {"a": 1.0}, "scores": {"a": 0.0}, "average": {"a": 1.0}, "steps": True},
        {"other": 1},
    ],
)
def test_another_state_is_refused(saved: dict[str, object]) -> None:
    """Rather than to weight by it."""
    with pytest.raises(ValueError, match="must be domain weights"):
        DomainWeights.from_dict(saved)
