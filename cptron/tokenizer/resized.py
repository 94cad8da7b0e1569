"""A Hugging Face model as it is with rows for an extended tokenizer's new ids, without writing it.

Place in the flow: `resize` copies it into a directory, `import_resized` into a checkpoint. Invariant: the row of a
token is at the index of its id, in both matrices, also where a padded matrix had rows there before; all else is the
model's to the bit.

Shapes: K new tokens, H hidden size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cptron.convert.safetensors_io import ModelReader
from cptron.errors import ConversionError
from cptron.tokenizer.base import Base, open_base
from cptron.tokenizer.initial_rows import Init, NewRows, RowPlan, initial_rows
from cptron.tokenizer.subtokens import subtokens
from cptron.weights.tensors import EMBEDDING, OUTPUT, WeightStream


class ResizedModel(ModelReader):
    """The model with more rows. Safe for threads."""

    def __init__(self, model: WeightStream, extended: Base, rows: Mapping[str, NewRows]) -> None:
        super().__init__(model.directory)
        self.extended = extended
        self.new_rows = dict(rows)
        """Of the embedding, and of the output matrix where it is another one."""
        self._kept = set(model.infos)
        self._old_rows = model.infos[EMBEDDING].shape[0]
        self.vocab_size = max(self._old_rows, extended.tokenizer.vocab_size)
        """Rows of each matrix."""
        self.config["vocab_size"] = self.vocab_size

    @property
    def names(self) -> set[str]:
        """Names of all tensors; the copy of the embedding that some tied models store is left out."""
        return set(self._kept)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        shape = super().shape(name)
        return (self.vocab_size, *shape[1:]) if name in self.new_rows else shape

    def read(self, name: str) -> torch.Tensor:
        """One tensor; of the two matrices a copy of all of it."""
        if name in self.new_rows:
            return self.read_range(name, 0, 0, self.vocab_size)
        return super().read(name)

    def read_range(self, name: str, dim: int, start: int, end: int) -> torch.Tensor:
        """Entries `start` to `end` along `dim` of a tensor."""
        if name not in self.new_rows:
            return super().read_range(name, dim, start, end)
        if dim > 0:
            return self.read(name).narrow(dim, start, end - start)
        new = self.new_rows[name]
        old_BH = super().read_range(name, 0, min(start, self._old_rows), min(end, self._old_rows))
        values_BH = torch.nn.functional.pad(old_BH, (0, 0, 0, end - start - len(old_BH)))
        first, last = np.searchsorted(new.ids, [start, end])
        if first == last:
            return values_BH
        values_BH = values_BH.clone()
        values_BH[torch.tensor(new.ids[first:last]) - start] = new.values_KH[first:last]
        return values_BH

    def rows_sha256(self) -> str:
        """Hash of all new rows and of the tokenizer: what an interrupted conversion must have in common with this."""
        digest = hashlib.sha256(self.extended.tokenizer.fingerprint.encode())
        for name in sorted(self.new_rows):
            digest.update(self.new_rows[name].values_KH.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def facts(self) -> dict[str, Any]:
        """What was made, for people."""
        return {
            "rows_before": self._old_rows,
            "rows_after": self.vocab_size,
            "tied": OUTPUT not in self.new_rows,
            **{name: rows.facts() for name, rows in self.new_rows.items()},
        }


def resized_model(
    directory: Path, tokenizer: Path, init: Init = "subtoken_mean", vectors: Path | None = None, seed: int = 0
) -> ResizedModel:
    """The model in `directory` with rows for the tokens that `tokenizer` has beyond its own.

    Raises `ConversionError` where the model lacks a matrix of a known name, DataError where `tokenizer` does not extend
    the model's own.
    """
    if vectors is not None and init != "focus":
        raise ConversionError(f"--vectors belongs to --init focus, not to {init}; remove it")
    model = WeightStream(directory)
    if EMBEDDING not in model.infos:
        raise ConversionError(
            f"{directory} has no tensor {EMBEDDING}; give a model that names its embedding so"
        )
    base, extended = open_base(directory), open_base(tokenizer)
    rows = model.infos[EMBEDDING].shape[0]
    if base.tokenizer.vocab_size > rows:
        raise ConversionError(
            f"{directory} has {rows} rows and a tokenizer of {base.tokenizer.vocab_size} ids, so it is not the model's "
            "own; put that one back: the extended one goes to --tokenizer"
        )
    plan = RowPlan(
        base=base,
        extended=extended,
        pieces=subtokens(base, extended),
        init=init,
        vectors=vectors,
        seed=seed,
    )
    matrices = [EMBEDDING, *([OUTPUT] if OUTPUT in model.infos else [])]
    return ResizedModel(model, extended, {name: initial_rows(model, name, plan) for name in matrices})
