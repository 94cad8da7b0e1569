"""First values of the rows of new tokens, in the embedding and in the output matrix.

Place in the flow: `resized` asks for the rows of each matrix. Invariant: rows of a matrix are made from rows of that
same matrix, only from those of real tokens that are healthy; no row is near zero or wild.

| method | row of a new token |
|---|---|
| subtoken_mean | mean of the rows of the old tokens that it consists of (FVT; Gee et al. 2022) |
| mean | mean of all rows |
| mvn | that mean and noise of 1e-9 of the rows' covariance (Hewitt 2021; `mean_resizing` of transformers) |
| focus | sparse convex mix of the rows of similar old tokens (FOCUS; Dobler and de Melo 2023); see `focus` |

Shapes: K new tokens, V old tokens, H hidden size, B rows of a block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from cptron.errors import ConversionError
from cptron.tokenizer.base import Base
from cptron.tokenizer.focus import mix_of_similar, read_vectors
from cptron.weights.repair import NOISE
from cptron.weights.rounding import round_once
from cptron.weights.rows import NEAR_ZERO, Rows, read_rows
from cptron.weights.tensors import WeightStream, blocks_of

Init = Literal["subtoken_mean", "mean", "mvn", "focus"]
INITS: tuple[Init, ...] = get_args(Init)
MVN_VARIANCE = 1e-9
"""Of the covariance; that of transformers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowPlan:
    """Which rows are wanted, and how they are made."""

    base: Base
    extended: Base
    pieces: Mapping[int, Sequence[int]]
    """New id -> old ids."""
    init: Init = "subtoken_mean"
    vectors: Path | None = None
    """Of words, for `focus`."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class NewRows:
    """Rows of one matrix."""

    ids: list[int]
    """Rising."""
    values_KH: torch.Tensor
    """In the matrix's own type."""
    guarded: list[int]
    """Ids whose row would have been near zero: they have the mean row's direction and the median size."""
    old_median_rms: float

    def facts(self) -> dict[str, float | int]:
        """For the report."""
        rms_K = self.values_KH.double().square().mean(dim=1).sqrt()
        return {
            "rows": len(self.ids),
            "smallest_rms": float(rms_K.min()),
            "median_rms": float(rms_K.median()),
            "largest_rms": float(rms_K.max()),
            "median_rms_of_old_rows": self.old_median_rms,
            "guarded": len(self.guarded),
        }


def initial_rows(model: WeightStream, name: str, plan: RowPlan) -> NewRows:
    """Rows of the new tokens in the matrix `name`. Raises `ConversionError` where the matrix has no healthy row."""
    rows = read_rows(model, name)
    healthy_V = rows.healthy_V()
    real = np.zeros(len(healthy_V), np.bool_)
    real[[number for number in plan.base.tokens if number < len(real)]] = True
    trained_V = torch.from_numpy(healthy_V & real)
    if not trained_V.any():
        raise ConversionError(
            f"{model.directory} has no healthy row of a token in {name}, and new rows are made from such; take "
            "another checkpoint (cptron health says more)"
        )
    mean_H = _mean(model, name, trained_V)
    made_KH = _make(model, name, plan, trained_V, mean_H)
    guarded = _guard(made_KH, list(plan.pieces), rows, mean_H, plan.seed)
    stored_KH = torch.stack([round_once(row_H, model.infos[name].dtype) for row_H in made_KH])
    return NewRows(list(plan.pieces), stored_KH, guarded, rows.median_rms)


def _make(
    model: WeightStream, name: str, plan: RowPlan, trained_V: torch.Tensor, mean_H: torch.Tensor
) -> torch.Tensor:
    if plan.init == "subtoken_mean":
        return _subtoken_mean(model.read(name), plan.pieces, trained_V)
    same_KH = mean_H.repeat(len(plan.pieces), 1)
    if plan.init == "mean":
        return same_KH
    if plan.init == "mvn":
        variance = MVN_VARIANCE / int(trained_V.sum())
        noise_KH = _noise_like_rows(model, name, plan, trained_V, mean_H)
        return same_KH + noise_KH * math.sqrt(variance)
    if plan.vectors is None:
        raise ConversionError(
            "--init focus needs vectors of words or tokens; give --vectors FILE (fastText's text form, .vec)"
        )
    vectors = read_vectors(plan.vectors, plan.base, plan.extended)
    ids = list(plan.pieces)
    mixed, made_KH = mix_of_similar(model.read(name), vectors, ids, trained_V)
    # FOCUS's own rule for tokens without a vector: each value from the normal distribution of its column.
    std_H = (_sum_of_squares(model, name, trained_V, mean_H) / int(trained_V.sum())).sqrt()
    for place in np.flatnonzero(~mixed):
        generator = np.random.default_rng([plan.seed, ids[place]])
        made_KH[place] = mean_H + std_H * torch.from_numpy(generator.standard_normal(len(mean_H)))
    return made_KH


def _subtoken_mean(
    matrix_VH: torch.Tensor, pieces: Mapping[int, Sequence[int]], trained_V: torch.Tensor
) -> torch.Tensor:
    made_KH = torch.zeros(len(pieces), matrix_VH.size(1), dtype=torch.float64)
    for place, old in enumerate(pieces.values()):
        usable = [number for number in old if trained_V[number]]
        if usable:  # else the guard makes the row
            made_KH[place] = matrix_VH[usable].double().mean(dim=0)
    return made_KH


def _mean(model: WeightStream, name: str, trained_V: torch.Tensor) -> torch.Tensor:
    sum_H = torch.zeros(model.infos[name].shape[1], dtype=torch.float64)
    for block in blocks_of(model.infos[name].shape):
        sum_H += model.block(name, block)[trained_V[block[0]]].double().sum(dim=0)
    return sum_H / int(trained_V.sum())


def _sum_of_squares(
    model: WeightStream, name: str, trained_V: torch.Tensor, mean_H: torch.Tensor
) -> torch.Tensor:
    sum_H = torch.zeros_like(mean_H)
    for block in blocks_of(model.infos[name].shape):
        sum_H += (model.block(name, block)[trained_V[block[0]]].double() - mean_H).square().sum(dim=0)
    return sum_H


def _noise_like_rows(
    model: WeightStream, name: str, plan: RowPlan, trained_V: torch.Tensor, mean_H: torch.Tensor
) -> torch.Tensor:
    """Normal noise whose covariance is the sum of the rows' outer products, without that matrix: random sums of the
    centred rows themselves."""
    noise_KH = torch.zeros(len(plan.pieces), len(mean_H), dtype=torch.float64)
    for block in blocks_of(model.infos[name].shape):
        centred_BH = model.block(name, block)[trained_V[block[0]]].double() - mean_H
        generator = np.random.default_rng([plan.seed, block[0].start])
        draw_KB = generator.standard_normal((len(plan.pieces), len(centred_BH)))
        noise_KH += torch.from_numpy(draw_KB) @ centred_BH
    return noise_KH


def _guard(
    made_KH: torch.Tensor, ids: Sequence[int], rows: Rows, mean_H: torch.Tensor, seed: int
) -> list[int]:
    """Give rows that are near zero, or not finite, the median size; their ids."""
    rms_K = made_KH.square().mean(dim=1).sqrt()
    # not >=: that is false of nan as well
    places = [place for place, rms in enumerate(rms_K.tolist()) if not rms >= NEAR_ZERO * rows.median_rms]
    for place in places:
        generator = np.random.default_rng([seed, ids[place]])
        noise_H = torch.from_numpy(generator.standard_normal(len(mean_H)))
        rms = mean_H.square().mean().sqrt()
        row_H = mean_H + NOISE * (rms if rms > 0 else 1.0) * noise_H
        made_KH[place] = row_H * (rows.median_rms / row_H.square().mean().sqrt())
    return [ids[place] for place in places]
