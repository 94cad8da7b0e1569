"""Probes: what is counted in them can be looked up in the context, or can not; and any cut gives the same windows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cptron.config.schema_forgetting import ForgettingConfig
from cptron.forgetting.probes import ProbeSet, probe_sets

VOCAB = 90


def made(
    length: int = 32, pairs: int = 4, cut: tuple[int, int, int] = (3, 0, 1), unit: int = 1
) -> list[ProbeSet]:
    """Five sequences of each."""
    config = ForgettingConfig(
        induction_sequences=5, mapping_sequences=5, mapping_pairs=pairs, probe_tokens=length
    )
    return probe_sets(config, 7, VOCAB, cut, unit)


def windows(probe: ProbeSet) -> dict[int, tuple[list[int], list[int], list[float]]]:
    """Number -> inputs, labels, mask of every window of one rank."""
    return {
        number: (tokens.tolist(), labels.tolist(), mask.tolist())
        for batch in probe
        for number, tokens, labels, mask in zip(
            batch.source_B.tolist(), batch.tokens_BS, batch.labels_BS, batch.loss_mask_BS, strict=True
        )
        if number < probe.num_windows
    }


def told_by_context(probe: ProbeSet, tokens: list[int], place: int) -> bool:
    """Whether the token at `place` has followed its predecessor before."""
    return tokens[place] in {
        after for before, after in itertools.pairwise(tokens[:place]) if before == tokens[place - 1]
    }


@given(st.sampled_from([(8, 2), (31, 4), (32, 4), (64, 5)]))
def test_what_is_counted_can_be_looked_up_or_not(shape: tuple[int, int]) -> None:
    """Even windows count what no context tells, odd ones what it does; both of the same tokens, and of each some."""
    for probe in made(*shape):
        found = windows(probe)
        assert len(found) == 10
        counted = 0
        for number, (inputs, labels, mask) in found.items():
            tokens = [*inputs, labels[-1]]
            places = [place + 1 for place, counts in enumerate(mask) if counts]
            assert places and {told_by_context(probe, tokens, place) for place in places} == {number % 2 == 1}
            assert tokens == [*found[number ^ 1][0], found[number ^ 1][1][-1]]
            counted += len(places)
        assert probe.num_predicted_tokens == counted
        assert len({tuple(inputs) for inputs, _, _ in found.values()}) == 5


@pytest.mark.parametrize("unit", [1, 8])
def test_any_cut_gives_the_same_windows(unit: int) -> None:
    """Over all ranks, whatever fills them up."""
    whole = [windows(probe) for probe in made()]
    for size, micro in ((2, 1), (3, 2), (2, 4)):
        ranks = [made(cut=(micro, rank, size), unit=unit) for rank in range(size)]
        for kind, expected in enumerate(whole):
            joined: dict[int, tuple[list[int], list[int], list[float]]] = {}
            for rank in ranks:
                joined |= windows(rank[kind])
                assert rank[kind].num_micro_batches == ranks[0][kind].num_micro_batches
            assert {
                number: tuple(part[:31] for part in values) for number, values in joined.items()
            } == expected
            assert not np.any([values[2][31:] for values in joined.values() if len(values[2]) > 31])


def test_the_seed_and_the_numbers_decide_which() -> None:
    """Fingerprints tell probes apart that are not the same."""
    config = ForgettingConfig(induction_sequences=2)
    (one,) = probe_sets(config, 7, VOCAB * 2, (1, 0, 1), 1)
    (same,) = probe_sets(config, 7, VOCAB * 2, (4, 0, 2), 8)
    (other,) = probe_sets(config, 8, VOCAB * 2, (1, 0, 1), 1)
    assert one.facts == same.facts != other.facts
    assert windows(one) != windows(other)
