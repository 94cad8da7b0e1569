"""The ledger of traced memory, by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cptron.trace.ledger import ACTIVATIONS, WEIGHTS, WORKING, Ledger


def test_categories_follow_from_the_life_of_a_block() -> None:
    """A weight; an activation, which outlives its forward pass; what does not; and a buffer that stays."""
    ledger = Ledger()
    ledger.begin("build")
    ledger.made("weight", 100)
    ledger.is_for(["weight"], WEIGHTS)
    ledger.begin("step")
    ledger.begin_forward()
    ledger.made("short", 7)
    ledger.made("kept", 10)
    ledger.made("buffer", 3)
    ledger.freed("short")
    ledger.end_forward()
    ledger.made("gradient", 20)
    ledger.freed("kept")
    ledger.freed("gradient")
    ledger.close()
    ledger.freed("buffer")
    peak = ledger.peak()
    assert peak.phase == "step" and peak.allocated == 133
    assert {name: size for name, size in peak.by_category.items() if size} == {
        WEIGHTS: 100,
        ACTIVATIONS: 10,
        WORKING: 23,
    }


def test_what_was_received_is_an_activation_and_sizes_are_rounded() -> None:
    """Made before the forward pass that it is for; said when that begins."""
    ledger = Ledger(unit=512)
    ledger.made("received", 1)
    ledger.is_for(["received", "unknown"], ACTIVATIONS)
    ledger.is_for(["received"], WEIGHTS)
    assert ledger.now().by_category[ACTIVATIONS] == 512
    ledger.freed("received")
    assert ledger.now().allocated == 0 and ledger.peak().allocated == 512


@given(sizes=st.lists(st.integers(0, 1000), max_size=30), seed=st.randoms(use_true_random=False))
def test_peak_is_that_of_a_running_sum(sizes: list[int], seed: object) -> None:
    """Against counting along, with blocks freed in any order."""
    ledger, alive, most = Ledger(), dict[int, int](), 0
    for number, size in enumerate(sizes):
        ledger.made(number, size)
        alive[number] = size
        most = max(most, sum(alive.values()))
        for key in [key for key in alive if seed.random() < 0.4]:  # type: ignore[attr-defined]
            ledger.freed(key)
            del alive[key]
    assert ledger.peak().allocated == most
    assert ledger.now().allocated == sum(alive.values())
