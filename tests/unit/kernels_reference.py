"""The kernels once more, in plain Python: short, slow and independent of the C++."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

MASK = 2**64 - 1


def splitmix64(key: int, count: int) -> list[int]:
    """The first `count` draws."""
    drawn = []
    for step in range(1, count + 1):
        z = (key + step * 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        drawn.append(z ^ (z >> 31))
    return drawn


def permutation(n: int, key: int) -> list[int]:
    """A Feistel network over rows x columns; what falls beyond n is sent through again."""
    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    keys = splitmix64(key, 24 if n < 4096 else 4)

    def scatter(x: int, round_key: int, bound: int) -> int:
        z = ((x + round_key) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 32)) * 0x94D049BB133111EB) & MASK
        return (z >> 32) * bound >> 32

    def once(index: int) -> int:
        row, column = divmod(index, columns)
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            row = (row + scatter(column, even, rows)) % rows
            column = (column + scatter(row, odd, columns)) % columns
        return row * columns + column

    def walk(index: int) -> int:
        index = once(index)
        while index >= n:
            index = once(index)
        return index

    return [walk(index) for index in range(n)]


def key(seed: int, identity: str, epoch: int, purpose: str) -> int:
    """64-bit key of a permutation, as documented."""
    return int.from_bytes(
        hashlib.sha256(f"{seed}|{identity}|{epoch}|{purpose}".encode()).digest()[:8], "little"
    )


def joined(
    documents: Sequence[Sequence[int]], seq_length: int, document_key: int, sample_key: int
) -> list[list[int]]:
    """Tokens of every sample of an epoch, in the order of the samples."""
    stream = [token for at in permutation(len(documents), document_key) for token in documents[at]]
    count = -(-(len(stream) - 1) // seq_length)
    return [stream[i * seq_length : (i + 1) * seq_length + 1] for i in permutation(count, sample_key)]


def best_fit(
    documents: Sequence[Sequence[int]], seq_length: int, document_key: int | None, window: int = 1024
) -> list[list[tuple[int, int, int]]]:
    """(document, offset, predictions) of each row, before the rows are shuffled. No key: documents stay as given."""
    order = range(len(documents)) if document_key is None else permutation(len(documents), document_key)
    rows: list[list[tuple[int, int, int]]] = []
    for start in range(0, len(order), window):
        pieces = [
            (document, offset, min(seq_length, len(documents[document]) - 1 - offset))
            for document in order[start : start + window]
            for offset in range(0, len(documents[document]) - 1, seq_length)
        ]
        here: list[list[tuple[int, int, int]]] = []
        for piece in sorted(pieces, key=lambda piece: -piece[2]):
            rooms = [(seq_length - sum(p[2] for p in row), number) for number, row in enumerate(here)]
            fitting = [room for room in rooms if room[0] >= piece[2]]
            if fitting:
                here[min(fitting)[1]].append(piece)
            else:
                here.append([piece])
        rows += here
    return rows


def blend(weights: Sequence[int], counts: Sequence[int], n: int) -> tuple[list[int], list[int]]:
    """Tijdeman's rule by exact fractions: of the sources that may come, the one whose time runs out first."""
    drawn, counts = [], list(counts)
    if len(weights) == 1:
        return [0] * n, [counts[0] + n]
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    margin = Fraction(1, 2 * len(weights) - 2)
    for place in range(sum(counts) + 1, sum(counts) + n + 1):
        open_sources = [
            (math.floor((counts[i] + 1 - margin) / share) + 1, i)
            for i, share in enumerate(shares)
            if place * share - counts[i] >= margin
        ]
        source = min(open_sources)[1]
        drawn.append(source)
        counts[source] += 1
    return drawn, counts
