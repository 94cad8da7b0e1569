"""Statistics of the rows of an embedding or output matrix, one row a token.

Place in the flow: `health` judges by them, `repair` rewrites by them. Invariant: memory is a few numbers a row,
whatever the width.

Shapes: V rows, B rows of a block, H hidden size.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from cptron.errors import ConversionError
from cptron.weights.tensors import WeightStream, blocks_of

NEAR_ZERO = 1e-3
"""A row with less than this part of the median row's RMS is near zero.

Trained rows are far above: in SmolLM2-135M all 49 152 lie between 0.57 and 2.4 medians. A row at 1e-3
leaves the first RMSNorm a thousand times larger than it came, relative to a healthy one, and so does its gradient,
unless the norm's epsilon is reached first.
"""

Kind = Literal["not finite", "zero", "near zero"]


@dataclass(frozen=True, slots=True)
class Rows:
    """What is known of each row of one matrix."""

    rms_V: npt.NDArray[np.float64]
    """Root of the mean square; nan for a row with NaN or infinity."""
    hash_V: npt.NDArray[np.uint64]
    """Of the bytes of the row: 64 bits of BLAKE2b."""
    median_rms: float
    """Of the rows that are finite and not zero; 0 where there is none."""

    @property
    def threshold(self) -> float:
        """RMS below which a row is near zero."""
        return NEAR_ZERO * self.median_rms

    def kind(self, row: int) -> Kind | None:
        """What is wrong with a row."""
        rms = self.rms_V[row]
        if np.isnan(rms):
            return "not finite"
        if rms == 0:
            return "zero"
        return "near zero" if rms < self.threshold else None

    def bad(self) -> list[int]:
        """Rows with which something is wrong."""
        found = np.isnan(self.rms_V) | (self.rms_V == 0) | (self.rms_V < self.threshold)
        return [int(row) for row in np.flatnonzero(found)]

    def healthy_V(self) -> npt.NDArray[np.bool_]:
        """Which rows are like trained ones."""
        healthy = np.ones(len(self.rms_V), dtype=np.bool_)
        healthy[self.bad()] = False
        return healthy

    def duplicates(self) -> list[list[int]]:
        """Groups of rows that are the same to the last bit, the largest group first; zero rows are not counted."""
        rows = np.flatnonzero(self.rms_V > 0)
        order = rows[np.argsort(self.hash_V[rows], kind="stable")]
        groups = np.split(order, np.flatnonzero(np.diff(self.hash_V[order])) + 1) if len(order) else []
        return sorted(
            ([int(row) for row in group] for group in groups if len(group) > 1), key=len, reverse=True
        )


def read_rows(model: WeightStream, name: str) -> Rows:
    """Statistics of the matrix `name`. Raises `ConversionError` where it is absent or no matrix."""
    info = model.infos.get(name)
    if info is None or len(info.shape) != 2 or not all(info.shape):
        what = "no tensor" if info is None else f"the shape {list(info.shape)} of"
        raise ConversionError(
            f"{model.directory} has {what} {name}, and a matrix of one row a token is needed; give a model that names "
            "its embedding so"
        )
    rms_V = np.empty(info.shape[0], dtype=np.float64)
    hash_V = np.empty(info.shape[0], dtype=np.uint64)
    for block in blocks_of(info.shape):
        rows = block[0]
        values_BH = model.block(name, block)
        rms_B = values_BH.double().square_().mean(dim=1).sqrt()
        rms_B[~rms_B.isfinite()] = torch.nan
        rms_V[rows] = rms_B.numpy()
        bytes_B = values_BH.contiguous().view(torch.uint8).numpy()
        hash_V[rows] = [
            int.from_bytes(hashlib.blake2b(row.data, digest_size=8).digest(), "little") for row in bytes_B
        ]
    healthy = rms_V[rms_V > 0]
    return Rows(rms_V, hash_V, float(np.median(healthy)) if len(healthy) else 0.0)
