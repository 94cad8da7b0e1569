"""What is wrong with the weights of a model, before it is trained.

Place in the flow: `cptron health`, before `cptron convert`; `repair` acts on it. A row of the embedding that is almost
zero is divided by its own size in the first norm, and so is its gradient: one such token in a batch can make the first
steps explode. Invariant: every value of the model is looked at; a model is called healthy only where nothing found can
harm training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cptron.convert.small_files import find_tokenizer
from cptron.tokens.tokenizer import Tokenizer
from cptron.weights.rows import NEAR_ZERO, Rows, read_rows
from cptron.weights.tensors import EMBEDDING, OUTPUT, WeightStream, blocks_of

WILD_NORM = 1e3
"""A norm's weight above it is wild; those of SmolLM2-135M stay below 4."""
ZERO_IS_ONE = ("gemma",)
"""Beginnings of the `model_type` of families whose norms store their distance from one: zeros are as good as ones."""


@dataclass(frozen=True, slots=True)
class Health:
    """What was found."""

    rows: Rows
    """Of the embedding."""
    output_rows: Rows | None
    """Of the output matrix, where it is not the embedding."""
    tokenizer: Tokenizer | None
    nonfinite: dict[str, int]
    """Tensor -> how many of its values are NaN or infinite."""
    wild_norms: dict[str, float]
    """Norm -> its largest weight, if that is above WILD_NORM or zero."""

    @property
    def num_tokens(self) -> int:
        """Rows that some text can ask for; those from here on pad the matrix."""
        rows = len(self.rows.rms_V)
        return rows if self.tokenizer is None else min(rows, self.tokenizer.vocab_size)

    @property
    def harmful(self) -> list[int]:
        """Bad rows of the embedding that a batch can contain, and those of any place that are not finite."""
        return [
            row for row in self.rows.bad() if row < self.num_tokens or self.rows.kind(row) == "not finite"
        ]

    @property
    def healthy(self) -> bool:
        """Whether training can start from these weights."""
        return not (self.harmful or self.nonfinite or self.wild_norms)

    def token(self, row: int) -> str | None:
        """Text of a token; None for a padding row, or without a tokenizer."""
        if self.tokenizer is None or row >= self.tokenizer.vocab_size:
            return None
        return self.tokenizer.decode([row])


def examine(model: WeightStream) -> Health:
    """Read the whole model, block by block. Raises `ConversionError` where it has no embedding of a known name."""
    rows = read_rows(model, EMBEDDING)
    output = read_rows(model, OUTPUT) if OUTPUT in model.infos else None
    nonfinite: dict[str, int] = {}
    wild_norms: dict[str, float] = {}
    zero_is_one = str(model.config.get("model_type", "")).startswith(ZERO_IS_ONE)
    for name, info in model.infos.items():
        count, largest = 0, 0.0
        for block in blocks_of(info.shape):
            values = model.block(name, block).float()
            finite = values.isfinite()
            count += values.numel() - int(finite.sum())
            if len(info.shape) == 1 and values.numel():
                largest = max(largest, float(torch.where(finite, values, 0.0).abs().max()))
        if count:
            nonfinite[name] = count
        if _is_norm(name) and (largest > WILD_NORM or (largest == 0 and not zero_is_one)):
            wild_norms[name] = largest
    return Health(rows, output, find_tokenizer(model.directory), nonfinite, wild_norms)


def _is_norm(name: str) -> bool:
    return name.endswith("norm.weight")


def facts(model: WeightStream, health: Health) -> dict[str, Any]:
    """All that was found, ready for JSON."""
    rows = health.rows
    found: dict[str, Any] = {
        "model": str(model.directory),
        "healthy": health.healthy,
        "embedding": _row_facts(rows, health) | {"harmful": len(health.harmful)},
        "output": "the embedding" if model.tied else "absent",
    }
    if health.output_rows is not None:
        found["output"] = _row_facts(health.output_rows, health)
    return found | {"nonfinite": health.nonfinite, "wild_norms": health.wild_norms}


def _row_facts(rows: Rows, health: Health) -> dict[str, Any]:
    groups = rows.duplicates()
    bad = [
        {
            "id": row,
            "kind": rows.kind(row),
            "rms": None if np.isnan(rows.rms_V[row]) else float(rows.rms_V[row]),
            "token": health.token(row),
            "padding": row >= health.num_tokens,
        }
        for row in rows.bad()
    ]
    finite = rows.rms_V[~np.isnan(rows.rms_V)]
    return {
        "rows": len(rows.rms_V),
        "padding_rows": len(rows.rms_V) - health.num_tokens,
        "median_rms": rows.median_rms,
        "smallest_rms": float(finite.min()) if len(finite) else None,
        "largest_rms": float(finite.max()) if len(finite) else None,
        "near_zero_below": rows.threshold,
        "near_zero_part_of_median": NEAR_ZERO,
        "bad": bad,
        "duplicates": [{"rows": len(group), "ids": group} for group in groups],
    }
