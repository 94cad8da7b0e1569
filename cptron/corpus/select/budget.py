"""Which documents a budget buys: the best, or drawn with their weights.

Place in the flow: the end of every selection. Invariant: one order decides: by key, then by place in the corpus; noise
comes from documents' ids, so what is chosen depends on neither workers nor shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cptron.corpus.document import Document
from cptron.corpus.token_counter import TokenCounter

Unit = Literal["bytes", "tokens", "documents"]
REASONS = ("not_selected", "longer_than_budget")


class BudgetSettings(Protocol):
    """Settings that every step with a budget has."""

    @property
    def budget_share(self) -> float: ...
    @property
    def budget(self) -> int: ...
    @property
    def unit(self) -> Unit: ...
    @property
    def tokenizer(self) -> str: ...


def budget_problem(config: BudgetSettings) -> str:
    """What is wrong with the settings, if anything."""
    if not 0 < config.budget_share <= 1:
        return f"budget_share {config.budget_share} must be above 0 and at most 1; correct it"
    if config.budget < 0:
        return f"budget {config.budget} must be 0 (for budget_share) or more; correct it"
    if (config.unit == "tokens") != bool(config.tokenizer):
        return (
            f"tokenizer {config.tokenizer!r} must be given for the unit tokens, and for no other; correct it"
        )
    return ""


def tokenizer_files(config: BudgetSettings) -> list[Path]:
    """For a step's `files`."""
    path = Path(config.tokenizer)
    if not config.tokenizer:
        return []
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    return [path / name for name in names if (path / name).is_file()] if path.is_dir() else [path]


class Sizes:
    """Sizes of documents in the unit of a budget, as they pass by."""

    def __init__(self, config: BudgetSettings) -> None:
        self._is_bytes = config.unit == "bytes"
        self._tokens = TokenCounter(config.tokenizer) if config.unit == "tokens" else None
        self._sizes: list[int] = []

    def add(self, document: Document) -> None:
        """Measure the next document."""
        if self._tokens:
            self._tokens.add(document.text)
        else:
            self._sizes.append(document.num_bytes if self._is_bytes else 1)

    def array(self) -> NDArray[np.int64]:
        """All of them, in order."""
        return self._tokens.counts() if self._tokens else np.array(self._sizes, np.int64)


def choose(
    keys: NDArray[np.float64], sizes: NDArray[np.int64], config: BudgetSettings
) -> tuple[NDArray[np.uint8], int]:
    """Verdicts (0 keeps, else `REASONS` from 1) and the budget. Kept are the documents with the largest keys, as long
    as their sizes fit together; those that alone are longer than the budget are passed over."""
    budget = config.budget or int(config.budget_share * int(sizes.sum()))
    fits = sizes <= budget
    order = np.argsort(-keys, kind="stable")
    order = order[fits[order]]
    taken = order[np.cumsum(sizes[order]) <= budget]
    codes = np.where(fits, 1, 2).astype(np.uint8)
    codes[taken] = 0
    return codes, budget


def gumbel(uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Noise which, added to log weights, makes the largest of them a draw without replacement by these weights."""
    return np.asarray(-np.log(-np.log(_inside(uniform))))


def efraimidis_spirakis(uniform: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of the keys u^(1/w): the largest are a draw without replacement by the weights; none of weight 0
    comes before another."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(weights > 0, np.log(_inside(uniform)) / weights, -np.inf))


def _inside(uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(uniform, 2.0**-53, 1 - 2.0**-53)


def quantile_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the values that are smaller, equal ones counted half: above 0, below 1."""
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return below / (2 * max(1, len(values)))


def by_shard(
    lengths: Sequence[int], *arrays: NDArray[np.generic]
) -> Iterator[tuple[NDArray[np.generic], ...]]:
    """Arrays over the corpus, cut into shards."""
    start = 0
    for length in lengths:
        yield tuple(array[start : start + length] for array in arrays)
        start += length
