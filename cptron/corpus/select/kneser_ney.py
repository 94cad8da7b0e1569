"""An n-gram model with interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998), over words.

Place in the flow: `steps/ngram_perplexity` trains one, and measures documents with it. Invariant: the probabilities of
all words of the vocabulary, the unknown word among them, sum to one behind every context.

An n-gram is known by 64 bits of it, in sorted arrays. A word that the vocabulary lacks costs the unknown word's
probability, and its bytes at 8 bits each: so that bits per byte are of the text, and no garble is cheap.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptron.corpus.select.array_file import load_arrays, save_arrays
from cptron.corpus.select.causal_lm import Score
from cptron.corpus.select.ngrams import mixed
from cptron.corpus.words import tokens_of
from cptron.errors import DataError

UNKNOWN, BEGIN, END = 0, 1, 2
_FIRST_WORD = 3
Keys = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class _Order:
    """N-grams of one length."""

    keys: Keys
    """Sorted; of the n-grams."""
    alphas: NDArray[np.float64]
    """Discounted probability of each."""
    contexts: Keys
    """Sorted; of the n-grams without their last word."""
    gammas: NDArray[np.float64]
    """What each leaves to the shorter context."""

    @property
    def is_sound(self) -> bool:
        """One number for each key, of the right types."""
        pairs = ((self.keys, self.alphas), (self.contexts, self.gammas))
        return all(
            keys.ndim == 1
            and keys.shape == values.shape
            and keys.dtype == np.uint64
            and values.dtype == np.float64
            for keys, values in pairs
        )


class NgramModel:
    """Words, and probabilities of n-grams of 1 to `order` words."""

    def __init__(self, words: Sequence[str], orders: Sequence[_Order]) -> None:
        self._words, self._orders = list(words), list(orders)
        self._ids = {word: number for number, word in enumerate(words, _FIRST_WORD)}

    @property
    def num_words(self) -> int:
        """Of the vocabulary, with the unknown word and the end of a line."""
        return len(self._words) + 2

    @property
    def num_ngrams(self) -> list[int]:
        """By length."""
        return [len(order.keys) for order in self._orders]

    @classmethod
    def train(cls, texts: Iterable[str], order: int, min_count: int) -> NgramModel:
        """From a reference; words met less than `min_count` times become the unknown word."""
        lines = [words for text in texts for words in lines_of(text)]
        met = Counter(word for words in lines for word in words)
        vocabulary = sorted(word for word, count in met.items() if count >= min_count)
        model = cls(vocabulary, [])
        grams = _Grams.of([model.ids_of(words) for words in lines], order)
        model._orders = [grams.order(length) for length in range(1, order + 1)]
        return model

    def ids_of(self, words: Sequence[str]) -> list[int]:
        """A line's words, with its end."""
        return [*(self._ids.get(word, UNKNOWN) for word in words), END]

    def score(self, text: str) -> Score | None:
        """Loss of a text, each line of which begins anew; None where it has no words."""
        lines = lines_of(text)
        if not lines:
            return None
        ids = [self.ids_of(words) for words in lines]
        nats = -float(np.log(self.probabilities(ids)).sum())
        unknown = sum(len(word.encode()) for words in lines for word in words if word not in self._ids)
        num_bytes = len(text.encode("utf-8", "surrogatepass"))
        return Score(nats + unknown * math.log(256), sum(map(len, ids)), num_bytes)

    def probabilities(self, lines: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Of every word of some lines behind those before it."""
        keys = _keys_of(lines, len(self._orders))
        result = np.full(len(keys[0].grams), 1.0 / self.num_words)
        for order, at in zip(self._orders, keys, strict=True):
            gammas = _looked_up(order.contexts, order.gammas, at.contexts, 1.0)
            alphas = _looked_up(order.keys, order.alphas, at.grams, 0.0)
            result = np.where(at.valid, alphas + gammas * result, result)
        return result

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """Into a file."""
        arrays: dict[str, NDArray[Any]] = {
            "words": np.frombuffer("\n".join(self._words).encode("utf-8", "surrogatepass"), np.uint8)
        }
        for length, order in enumerate(self._orders, 1):
            for name in _Order.__dataclass_fields__:
                arrays[f"{name}_{length}"] = getattr(order, name)
        save_arrays(path, {**about, "order": len(self._orders)}, arrays)

    @classmethod
    def load(cls, path: Path, remedy: str) -> NgramModel:
        """From a file. Raises DataError where it is none."""
        about, arrays = load_arrays(path, remedy)
        try:
            words = arrays["words"].tobytes().decode("utf-8", "surrogatepass").split("\n")
            orders = [
                _Order(**{name: arrays[f"{name}_{length}"] for name in _Order.__dataclass_fields__})
                for length in range(1, about["order"] + 1)
            ]
            if not orders or not all(order.is_sound for order in orders):
                raise ValueError("its arrays do not fit together")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no model of n-grams ({error}); {remedy}") from None
        return cls([word for word in words if word], orders)


def lines_of(text: str) -> list[list[str]]:
    """Words and marks of each line that has any, in lower case."""
    return [words for line in text.lower().splitlines() if (words := tokens_of(line))]


@dataclass(frozen=True, slots=True)
class _At:
    """Keys of the n-grams of one length that end at each word."""

    grams: Keys
    contexts: Keys
    """Without the last word."""
    valid: NDArray[np.bool_]
    """Whether the n-gram begins within the line, the beginning of which counts as a word."""
    suffixes: Keys
    """Without the first word: the n-gram that the next shorter order has there."""


def _keys_of(lines: Sequence[Sequence[int]], order: int) -> list[_At]:
    """For lengths 1 to `order`, at every word of all lines but their beginnings."""
    lengths = np.array([len(line) + 1 for line in lines])
    ids = np.fromiter((word for line in lines for word in (BEGIN, *line)), np.uint64, int(lengths.sum()))
    begins = np.repeat(np.cumsum(lengths) - lengths, lengths)
    places = np.arange(len(ids))
    real = places != begins
    hashed = mixed(ids)
    found: list[_At] = []
    grams, contexts = hashed.copy(), np.zeros_like(ids)
    suffixes = np.zeros_like(ids)
    for length in range(1, order + 1):
        valid = places - (length - 1) >= begins
        if length > 1:
            suffixes = grams
            contexts = _shifted(grams, 1)
            # The key of w1..wn is made of that of w1..wn-1 and of wn.
            grams = mixed(contexts * np.uint64(3) ^ hashed)
            contexts = np.where(valid, contexts, np.uint64(0))
        found.append(_At(grams[real], contexts[real], valid[real], suffixes[real]))
    return found


def _shifted(values: Keys, by: int) -> Keys:
    return np.concatenate([np.zeros(by, np.uint64), values[:-by]])


@dataclass(frozen=True, slots=True)
class _Grams:
    """N-grams of all lengths of the reference, distinct, with what is counted of them."""

    at: list[_At]
    longest: int

    @classmethod
    def of(cls, lines: Sequence[Sequence[int]], order: int) -> _Grams:
        """Of the lines of a reference."""
        return cls(_keys_of(lines, order), order)

    def order(self, length: int) -> _Order:
        """Probabilities of the n-grams of one length. The longest are counted; shorter ones by how many words they are
        met behind, but for those that begin a line, which nothing can stand before."""
        at = self.at[length - 1]
        keys, first, counts = np.unique(at.grams[at.valid], return_index=True, return_counts=True)
        contexts = at.contexts[at.valid][first]
        if length < self.longest:
            longer = self.at[length]
            _, one = np.unique(longer.grams[longer.valid], return_index=True)
            behind, times = np.unique(longer.suffixes[longer.valid][one], return_counts=True)
            counts = np.where(np.isin(keys, behind), _looked_up(behind, times, keys, 0), counts)
        discounts = _discounts(counts)
        discount = discounts[np.minimum(counts, 3)]
        known, which = np.unique(contexts, return_inverse=True)
        totals = np.bincount(which, weights=counts)
        left = np.bincount(which, weights=discount)
        return _Order(keys, (counts - discount) / totals[which], known, left / totals)


def _discounts(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of n-grams counted 0, 1, 2 and more times, from how many there are; a half where that says nothing."""
    n = [int(np.count_nonzero(counts == number)) for number in range(1, 5)]
    if min(n[:2]) == 0:
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = n[0] / (n[0] + 2 * n[1])
    found = [
        number - (number + 1) * y * n[number] / n[number - 1] if n[number - 1] else 0.5
        for number in (1, 2, 3)
    ]
    return np.array([0.0, *(min(max(value, 0.1), number - 0.1) for number, value in enumerate(found, 1))])


def _looked_up(keys: Keys, values: NDArray[Any], wanted: Keys, default: float) -> NDArray[Any]:
    if not len(keys):
        return np.full(len(wanted), default)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], default)
