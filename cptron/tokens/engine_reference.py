"""The reference engine: the tokenizer's own library, the measure of every faster one.

Place in the flow: `engine.choose_engine` compares the fast engines with it and falls back on it; the fast engines
give it the rare texts that they cannot encode themselves.
Invariant: its ids are those of `Tokenizer.encode_batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cptron.tokens.tokenizer import Tokenizer

Ids = npt.NDArray[np.uint32]
Lengths = npt.NDArray[np.int64]


class Engine(Protocol):
    """Encodes batches of texts. Every method is thread-safe."""

    @property
    def name(self) -> str:
        """Library and version, for people and the manifest."""

    def encode(self, texts: Sequence[bytes]) -> tuple[Ids, Lengths]:
        """All ids one after the other [sum of lengths], and the number of ids of each text [len(texts)].

        `texts` are valid UTF-8; no special tokens are added to them.
        """


class ReferenceEngine:
    """`Tokenizer.encode_batch` as an engine. The tokenizers library uses threads of its own unless
    TOKENIZERS_PARALLELISM=false."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.name = f"reference ({tokenizer.library})"
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[bytes]) -> tuple[Ids, Lengths]:
        """Ids and lengths, see `Engine.encode`."""
        encoded = self._tokenizer.encode_batch([text.decode("utf-8") for text in texts])
        lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
        flat = np.empty(int(lengths.sum()), dtype=np.uint32)
        start = 0
        for ids in encoded:
            flat[start : start + len(ids)] = ids
            start += len(ids)
        return flat, lengths


def encode_halves(
    encode: Callable[[Sequence[bytes]], tuple[Ids, Lengths]], texts: Sequence[bytes]
) -> tuple[Ids, Lengths]:
    """What `encode` gives for the first and the second half of `texts`, put together."""
    half = len(texts) // 2
    (ids, lengths), (more_ids, more_lengths) = encode(texts[:half]), encode(texts[half:])
    return np.concatenate([ids, more_ids]), np.concatenate([lengths, more_lengths])


def replace_texts(
    ids: Ids, lengths: Lengths, which: Sequence[int], texts: Sequence[bytes], engine: Engine
) -> tuple[Ids, Lengths]:
    """`ids` and `lengths` with those of the texts number `which` (ascending) replaced by what `engine` gives."""
    new_ids, new_lengths = engine.encode([texts[number] for number in which])
    old_ends, new_ends = np.cumsum(lengths), np.cumsum(new_lengths)
    parts: list[Ids] = []
    done = 0
    for number, end, length in zip(which, new_ends, new_lengths, strict=True):
        parts += [ids[done : old_ends[number] - lengths[number]], new_ids[end - length : end]]
        done = old_ends[number]
    merged = lengths.copy()
    merged[list(which)] = new_lengths
    return np.concatenate([*parts, ids[done:]]), merged
