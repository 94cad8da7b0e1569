"""Rewrites the embedding rows that would make training explode; copies everything else bit for bit.

Place in the flow: `cptron health MODEL --repair OUT`. Invariant: a new row depends on the model, the seed and its own
id, not on which other rows are bad; nothing but these rows changes.

Shapes: H hidden size, B rows of a block.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cptron.durable import must_be_new, new_directory, require_space
from cptron.errors import ConversionError
from cptron.versions import installed_versions
from cptron.weights.combine import carry_files
from cptron.weights.health import Health
from cptron.weights.rounding import round_once
from cptron.weights.tensors import EMBEDDING, OUTPUT, WeightStream, WeightWriter, blocks_of

RECORD = "repair.json"
NOISE = 0.1
"""Of the mean row's RMS: rows that are made from it must differ, or they would stay the same token."""


def repair(model: WeightStream, health: Health, target: Path, seed: int = 0) -> list[dict[str, Any]]:
    """Write the repaired model to the new directory `target`; returns what was done, row by row.

    A row gets the median RMS of the healthy ones. Its direction is that of its row in the output matrix, where that is
    another matrix and the row healthy there; else that of the mean of the healthy rows, with some noise. Raises
    `ConversionError` where there is nothing to repair, or something else is wrong.
    """
    must_be_new(target)
    _require_repairable(model, health)
    require_space(target, sum(info.nbytes for info in model.infos.values()))
    make = _RowMaker(model, health, seed)
    with new_directory(target) as working:
        rows = _copy(model, working, make)
        carry_files(model.directory, working, model.infos)
        record = {
            "source": str(model.directory),
            "source_headers_sha256": model.headers_sha256(),
            "seed": seed,
            "tied": model.tied,
            "median_rms": health.rows.median_rms,
            "rows": rows,
            "versions": installed_versions(),
        }
        (working / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return rows


def _require_repairable(model: WeightStream, health: Health) -> None:
    if not health.harmful:
        raise ConversionError(
            f"{model.directory} has no embedding row to repair; leave out --repair and use it as it is"
        )
    beyond = sorted((health.nonfinite.keys() - {EMBEDDING}) | health.wild_norms.keys())
    if beyond:
        raise ConversionError(
            f"{model.directory} has bad values in {beyond[0]} ({len(beyond)} such tensor(s)), and only embedding rows "
            "can be repaired; take another checkpoint"
        )
    if not health.rows.healthy_V().any():
        raise ConversionError(
            f"{model.directory} has no healthy row in {EMBEDDING} to learn a scale from; take another checkpoint"
        )


class _RowMaker:
    """Makes the new row of an id, and says what it did."""

    def __init__(self, model: WeightStream, health: Health, seed: int) -> None:
        self._model, self._health, self._seed = model, health, seed
        self.ids = health.harmful
        self._mean_H = _mean_of_healthy(model, health)
        output = health.output_rows
        shared = {row for group in output.duplicates() for row in group} if output else set()
        self._has_direction = {
            row for row in self.ids if output is not None and output.kind(row) is None and row not in shared
        }

    def __call__(self, row: int) -> tuple[torch.Tensor, dict[str, Any]]:
        rows = self._health.rows
        direction_H = self._direction(row)
        new_H = direction_H * (rows.median_rms / direction_H.square().mean().sqrt())
        stored_H = round_once(new_H, self._model.infos[EMBEDDING].dtype)
        before = float(rows.rms_V[row])
        return stored_H, {
            "id": row,
            "token": self._health.token(row),
            "kind": rows.kind(row),
            "rms_before": None if math.isnan(before) else before,
            "rms_after": float(stored_H.double().square().mean().sqrt()),
            "direction": "output row" if row in self._has_direction else "mean of healthy rows",
        }

    def _direction(self, row: int) -> torch.Tensor:
        if row in self._has_direction:
            return self._model.block(OUTPUT, (slice(row, row + 1),))[0].double()
        generator = np.random.default_rng([self._seed, row])
        noise_H = torch.from_numpy(generator.standard_normal(len(self._mean_H)))
        rms = self._mean_H.square().mean().sqrt()
        return self._mean_H + NOISE * (rms if rms > 0 else 1.0) * noise_H


def _mean_of_healthy(model: WeightStream, health: Health) -> torch.Tensor:
    healthy_V = health.rows.healthy_V()
    sum_H = torch.zeros(model.infos[EMBEDDING].shape[1], dtype=torch.float64)
    for block in blocks_of(model.infos[EMBEDDING].shape):
        values_BH = model.block(EMBEDDING, block)
        sum_H += values_BH[torch.from_numpy(healthy_V[block[0]])].double().sum(dim=0)
    return sum_H / int(np.count_nonzero(healthy_V))


def _copy(model: WeightStream, working: Path, make: _RowMaker) -> list[dict[str, Any]]:
    """Write the whole model with new rows; what was done to each."""
    done = []
    with closing(WeightWriter(working, model.infos)) as writer:
        for name in writer.order:
            for block in blocks_of(model.infos[name].shape):
                values = model.block(name, block)
                if name == EMBEDDING:
                    start, end = block[0].start, block[0].stop
                    values = values.clone()
                    for row in make.ids[bisect_left(make.ids, start) : bisect_left(make.ids, end)]:
                        values[row - start], what = make(row)
                        done.append(what)
                writer.write(values)
        writer.finish()
    return done
