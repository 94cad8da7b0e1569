"""Twins of the compiled index builders, in plain Python and exact integers: slow, and plainly right."""

from __future__ import annotations

from collections.abc import Sequence

MASK = 2**64 - 1


def shuffle(n: int, key: int) -> list[int]:
    """Fisher-Yates from the back, on splitmix64 with Lemire's bounded draws."""
    state = key

    def draw() -> int:
        nonlocal state
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    order = list(range(n))
    for i in range(n - 1, 0, -1):
        bound = i + 1
        product = draw() * bound
        while product & MASK < 2**64 % bound:
            product = draw() * bound
        j = product >> 64
        order[i], order[j] = order[j], order[i]
    return order


def build_sample_index(
    lengths: Sequence[int], doc_order: Sequence[int], seq_length: int
) -> list[tuple[int, int]]:
    """Every token of the concatenation has a (position, offset); sample i starts at token i * seq_length.

    Without a token there is no place to start at: the one row is the end of the order.
    """
    where = [(p, offset) for p, document in enumerate(doc_order) for offset in range(lengths[document])]
    if not where:
        return [(len(doc_order), 0)]
    return where[: (len(where) - 1) // seq_length * seq_length + 1 : seq_length]


def draw_blend(weights: Sequence[int], counts: Sequence[int], n: int) -> tuple[list[int], list[int]]:
    """Always the source furthest behind its share, ties to the first; the sources and the counts after them."""
    total = sum(weights)
    advanced = list(counts)
    chosen = []
    for drawn in range(sum(counts) + 1, sum(counts) + n + 1):
        behind = [weight * drawn - count * total for weight, count in zip(weights, advanced, strict=True)]
        source = behind.index(max(behind))
        advanced[source] += 1
        chosen.append(source)
    return chosen, advanced
