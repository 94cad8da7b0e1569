"""What is a spike and what is not, on synthetic curves."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.config.schema import GuardsConfig
from cptron.train.spikes import LOG_NORM_FLOOR, NOT_KNOWN, Scores, SpikeHistory, robust_z

GUARDS = GuardsConfig()
VALUES = st.floats(1e-6, 1e6)


def alarms(losses: Sequence[float], norms: Sequence[float], guards: GuardsConfig = GUARDS) -> list[int]:
    """Places of a curve that are spikes; all are trained on."""
    history, found = SpikeHistory(), []
    for at, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        if history.scores(loss, norm, guards).highest > guards.spike_z:
            found.append(at)
        history.learn(loss, norm, guards.spike_window)
    return found


def curve(seed: int, length: int, noise: float) -> tuple[list[float], list[float]]:
    """A decay as of a new run: loss from 11 to 2 with normal noise, skewed norms that rise in warm-up and then fall."""
    draw = random.Random(seed)
    losses = [2 + 9 * math.exp(-at / 150) + draw.gauss(0, noise) for at in range(length)]
    rise = [min(1.0, (at + 1) / 100) * (0.4 + 2 * math.exp(-at / 300)) for at in range(length)]
    return losses, [norm * math.exp(draw.gauss(0, 0.25)) for norm in rise]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_no_alarm_on_a_noisy_decay_with_warmup(seed: int, noise: float) -> None:
    """2,000 steps of it, and the same curve at another scale."""
    losses, norms = curve(seed, 2000, noise)
    assert alarms(losses, norms) == []
    assert alarms([1000 * loss for loss in losses], [norm / 1000 for norm in norms]) == []


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(300, 590), st.sampled_from(["loss", "norm"]))
def test_a_spike_is_found_and_leaves_no_echo(seed: int, at: int, what: str) -> None:
    """15 deviations of the noise, anywhere in a settled curve; nothing else is a spike, before or after."""
    draw = random.Random(seed)
    losses = [2 + draw.gauss(0, 0.05) for _ in range(600)]
    norms = [0.5 * math.exp(draw.gauss(0, 0.2)) for _ in range(600)]
    assert alarms(losses, norms, replace(GUARDS, spike_z=7.5)) == []
    if what == "loss":
        losses[at] = 2 + 15 * 0.05
    else:
        norms[at] = 0.5 * math.exp(15 * 0.2)
    assert alarms(losses, norms, replace(GUARDS, spike_z=7.5)) == [at]


def test_a_fall_is_no_spike() -> None:
    """Only high values are."""
    losses, norms = curve(0, 400, 0.01)
    losses[300], norms[350] = 0.0, 1e-9
    assert alarms(losses, norms) == []


@pytest.mark.parametrize("level", [0.0, 1e-9, 2.0, 1e4])
def test_a_flat_curve(level: float) -> None:
    """The last bits are no spike, and neither are a few percent; twice the level and a bit is one."""
    flat = [level] * 200
    assert alarms(flat, flat) == []
    assert alarms([*flat, level * 1.05 + 0.005], [*flat, level * 1.3]) == []
    assert alarms([*flat, 2 * level + 0.01], [*flat, level]) == [200]
    assert alarms([*flat, level], [*flat, 2 * level + 1e-6]) == [200]


def test_nothing_is_a_spike_before_there_is_history() -> None:
    """One value less than needed: not known; with it, found."""
    for count, expected in ((31, []), (32, [32])):
        values = [1.0] * count
        assert alarms([*values, 50.0], [*values, 1.0]) == expected


@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=200), st.integers(2, 150))
def test_scores_are_those_of_the_window(values: list[tuple[float, float]], window: int) -> None:
    """Whatever came earlier is forgotten; equal to the definition; the same after a checkpoint."""
    guards = GuardsConfig(spike_window=window, spike_min_history=2)
    history = SpikeHistory()
    for loss, norm in values[:-1]:
        history.learn(loss, norm, window)
    assert len(history.loss) == min(window, len(values) - 1)
    loss, norm = values[-1]
    scores = history.scores(loss, norm, guards)
    saved = SpikeHistory.from_dict(json.loads(json.dumps(history.to_dict())))
    assert saved == history and saved.scores(loss, norm, guards) == scores
    if len(values) < 3:
        assert scores == NOT_KNOWN
        return
    losses = [value for value, _ in values[:-1]][-window:]
    norms = [math.log(value) for _, value in values[:-1]][-window:]
    expected = []
    for value, before, floor in (
        (loss, losses, max(0.01 * statistics.median(losses), 1e-3)),
        (math.log(norm), norms, LOG_NORM_FLOOR),
    ):
        median = statistics.median(before)
        mad = statistics.median([abs(other - median) for other in before])
        expected.append((value - median) / max(1.4826 * mad, floor))
    assert scores == pytest.approx(Scores(*expected))


def test_a_wider_window_than_was_kept() -> None:
    """After a change of `guards.spike_window` the history fills up; a smaller one counts at once."""
    history = SpikeHistory()
    for value in range(100):
        history.learn(float(value), 1.0, 50)
    assert history.loss == [float(value) for value in range(50, 100)]
    narrow = GuardsConfig(spike_window=3, spike_min_history=3)
    assert history.scores(98.0, 1.0, narrow).loss == robust_z(98.0, [97.0, 98.0, 99.0], 0.98)
    history.learn(5.0, 1.0, 128)
    assert len(history.loss) == 51


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_gets_into_the_history(value: float) -> None:
    """Such a batch is never trained on; to learn from it is a bug."""
    for words in ((value, 1.0), (1.0, value)):
        with pytest.raises(AssertionError):
            SpikeHistory().learn(*words, 128)


@pytest.mark.parametrize(
    "saved",
    [
        None,
        [],
        {},
        {"loss": []},
        {"loss": [], "grad_norm": [], "more": []},
        {"loss": [1.0], "grad_norm": []},
        {"loss": [1], "grad_norm": [1.0]},
        {"loss": [True], "grad_norm": [1.0]},
        {"loss": [math.nan], "grad_norm": [1.0]},
        {"loss": "a", "grad_norm": "b"},
        {"loss": [[1.0]], "grad_norm": [1.0]},
    ],
)
def test_a_damaged_history_is_refused(saved: object) -> None:
    """As ValueError, which `read_state` makes an error of the checkpoint."""
    with pytest.raises(ValueError, match="must"):
        SpikeHistory.from_dict(saved)  # type: ignore[arg-type]
