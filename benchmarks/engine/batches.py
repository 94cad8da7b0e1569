"""The tokens that all peers train on.

Place in the flow: called by every peer before the clock starts. Invariant: the same numbers for the same case and
step, whoever asks; after `NUM_BATCHES` steps they come again, so that losses fall and show that weights change.

Shapes: B rows, S tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.engine.cases import Case
from cptron.model.flops import sum_of_squares

NUM_BATCHES = 2
SEED = 20260901


@dataclass(frozen=True)
class Batch:
    """Tokens, what follows each, and the document of each."""

    tokens_BS: npt.NDArray[np.int64]
    labels_BS: npt.NDArray[np.int64]
    documents_BS: npt.NDArray[np.int32]

    @property
    def positions_BS(self) -> npt.NDArray[np.int64]:
        """Place of each token in its document."""
        places = np.arange(self.tokens_BS.shape[1])
        begins_BS = np.diff(self.documents_BS, axis=1, prepend=-1) != 0
        positions: npt.NDArray[np.int64] = places - np.maximum.accumulate(places * begins_BS, axis=1)
        return positions


def batches_of(case: Case) -> list[Batch]:
    """The batches of a case, in the order in which they are trained on."""
    return [_batch(case, number) for number in range(NUM_BATCHES)]


def squares_of(case: Case) -> float:
    """Mean over the batches of the sum of the squared lengths of all documents of a step."""
    return float(np.mean([sum_of_squares(batch.documents_BS) for batch in batches_of(case)]))


def _batch(case: Case, number: int) -> Batch:
    rng = np.random.default_rng([SEED, number])
    shape = (case.micro_batch, case.seq_length)
    whole = rng.integers(0, case.arch.vocab_size, (shape[0], shape[1] + 1), dtype=np.int64)
    documents_BS = np.zeros(shape, np.int32)
    if case.mean_document:
        begins_BS = rng.random(shape) < 1 / case.mean_document
        begins_BS[:, 0] = False
        documents_BS = np.cumsum(begins_BS, axis=1, dtype=np.int32)
    return Batch(whole[:, :-1].copy(), whole[:, 1:].copy(), documents_BS)
