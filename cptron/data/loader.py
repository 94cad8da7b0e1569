"""The training batches of one rank.

Place in the flow: stream of samples -> micro-batches for the step. Invariant: which samples make up a global
batch depends on neither the number of ranks nor the micro-batch size, and every rank advances the same
ledger by the whole global batch, when the batch is handed out and not before.

Shapes: B sequences of a micro-batch, S tokens predicted in a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from cptron.data.batch import MicroBatch
from cptron.data.ledger import Ledger
from cptron.data.prefetch import Prefetcher
from cptron.data.stages import Stage
from cptron.data.stream import Draw, Stream

Allocate = Callable[[tuple[int, ...], Any], np.ndarray]


@dataclass(frozen=True, slots=True)
class Cut:
    """Which part of a global batch a rank gets, and whether it reads it itself."""

    global_batch_size: int
    micro_batch_size: int
    dp_rank: int = 0
    dp_size: int = 1
    reads: bool = True
    """False for ranks that are handed the tokens by tensor parallel rank 0, or that need none."""
    hands_on: bool = False
    """Tensor parallel rank 0 reads, and the pipeline broadcasts to the others."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One global batch: this rank's part, and the account after it."""

    batches: list[MicroBatch]
    ledger: Ledger
    notes: list[str]
    stage: Stage
    stage_number: int


class TrainLoader:
    """Hands out this rank's share of one global batch after another.

    `workers` threads read micro-batches side by side; `prefetch_steps` global batches are made ahead.
    `allocate` gives the arrays that are filled (page-locked memory on a GPU machine).
    """

    def __init__(
        self,
        stream: Stream,
        ledger: Ledger,
        cut: Cut,
        *,
        workers: int = 1,
        prefetch_steps: int = 0,
        allocate: Allocate = np.zeros,
    ) -> None:
        assert cut.global_batch_size % (cut.micro_batch_size * cut.dp_size) == 0, (
            "checked with the configuration"
        )
        self.notes: list[str] = []
        """What people should know of the batch handed out last, or why there was none."""
        self.ledger = ledger
        """The account of all batches handed out; not of those made ahead, which is the stream's own."""
        ledger.assign(stream.ledger)
        self.stage = stream.stage
        """The one that the batch handed out last belongs to; before any, the next one."""
        self.stage_number = stream.stage_number
        self.stream = stream
        """Ahead of the ledger by what is read ahead."""
        self._cut = cut
        self._allocate = allocate
        self._pool = ThreadPoolExecutor(workers, "data read")
        self._prefetcher = Prefetcher(self._make_step, prefetch_steps)

    def next_step(self) -> list[MicroBatch]:
        """This rank's micro-batches of the next global batch; the ledger moves on by all of it. Empty when the
        limits of the sources leave no further one.

        Sample j of the global batch is row j % B of micro-batch j // (B * dp_size) on rank j // B % dp_size.
        """
        step = self._prefetcher.next()
        if step.batches:  # where nothing was drawn, the ledger stays that of the last batch
            self.ledger.assign(step.ledger)
        self.notes = step.notes
        self.stage, self.stage_number = step.stage, step.stage_number
        return step.batches

    def close(self) -> None:
        """Stop reading ahead."""
        self._prefetcher.close()
        self._pool.shutdown(cancel_futures=True)

    def _make_step(self) -> _Step:
        drawn = self.stream.draw(self.stream.batch_size(self._cut.global_batch_size))
        after = Ledger()
        after.assign(self.stream.ledger)
        notes, self.stream.notes = self.stream.notes, []
        rows = self._cut.micro_batch_size
        first, per_round = self._cut.dp_rank * rows, rows * self._cut.dp_size
        mine = [drawn[start : start + rows] for start in range(first, len(drawn), per_round)]
        batches = list(self._pool.map(self._micro_batch, mine))
        return _Step(batches, after, notes, self.stream.stage, self.stream.stage_number)

    def _micro_batch(self, drawn: Sequence[Draw]) -> MicroBatch:
        shape = (len(drawn), self.stream.sources[drawn[0].source].seq_length)
        allocate = self._allocate if self._cut.reads else np.zeros
        batch = MicroBatch(
            tokens_BS=allocate(shape, np.int64),
            labels_BS=allocate(shape, np.int64),
            loss_mask_BS=allocate(shape, np.float32),
            source_B=np.array([draw.source for draw in drawn], dtype=np.int64),
            documents_BS=np.zeros(shape, np.int32),
            on_first_tensor_rank=self._cut.hands_on,
            sample_B=np.array([draw.cursor for draw in drawn], dtype=np.int64),
        )
        if self._cut.reads:
            for row, draw in enumerate(drawn):
                self.stream.sources[draw.source].read(np.array([draw.cursor]), batch.rows(row, row + 1))
        else:
            for row, draw in enumerate(drawn):
                batch.documents_BS[row] = self.stream.sources[draw.source].documents(draw.cursor)
        return batch
