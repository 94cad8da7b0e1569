"""A validation set: every token predicted once, in file order.

Place in the flow: token files -> micro-batches for evaluation. Invariant: the predicted tokens, taken over
all ranks, are the stream from its second token on, each exactly once; padding never counts.

Shapes: B sequences of a micro-batch, S tokens predicted in a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cptron.data.batch import MicroBatch
from cptron.data.content import open_content
from cptron.errors import DataError


class ValidSet:
    """Documents concatenated in file order and cut into windows of `seq_length` predictions, the last one
    padded.

    `max_tokens` limits the predictions, counted from the start; 0 means all. Every rank iterates over the
    same number of micro-batches, as pipeline schedules need it; where windows run out, wholly masked ones
    fill up.
    """

    def __init__(
        self,
        name: str,
        prefix: str,
        seq_length: int,
        max_tokens: int,
        micro_batch_size: int,
        dp_rank: int,
        dp_size: int,
    ) -> None:
        self.name = name
        tokens = open_content(prefix).tokens
        available = tokens.num_tokens - 1
        if available < 1:
            raise DataError(
                f"validation set {name} ({prefix}) is empty: {tokens.num_tokens} tokens; at least 2 are needed"
            )
        self.num_predicted_tokens = min(available, max_tokens) if max_tokens else available
        self._tokens = tokens
        self._seq_length = seq_length
        self._micro_batch_size = micro_batch_size
        self._dp_rank = dp_rank
        self._dp_size = dp_size
        ends = np.cumsum(tokens.lengths_tokens, dtype=np.int64)
        self._starts = ends - tokens.lengths_tokens

    @property
    def num_windows(self) -> int:
        """Windows with at least one prediction."""
        return -(-self.num_predicted_tokens // self._seq_length)

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of each rank."""
        return -(-self.num_windows // (self._micro_batch_size * self._dp_size))

    def __iter__(self) -> Iterator[MicroBatch]:
        for number in range(self.num_micro_batches):
            first = (number * self._dp_size + self._dp_rank) * self._micro_batch_size
            yield self._micro_batch(range(first, first + self._micro_batch_size))

    def _micro_batch(self, windows: range) -> MicroBatch:
        shape = (len(windows), self._seq_length)
        batch = MicroBatch(
            np.zeros(shape, dtype=np.int64),
            np.zeros(shape, dtype=np.int64),
            np.zeros(shape, dtype=np.float32),
            np.zeros(len(windows), dtype=np.int64),
        )
        for row, window in enumerate(windows):
            start = window * self._seq_length
            count = min(self._seq_length, self.num_predicted_tokens - start)
            if count > 0:
                tokens = self._read(start, count + 1)
                batch.tokens_BS[row, :count] = tokens[:-1]
                batch.labels_BS[row, :count] = tokens[1:]
                batch.loss_mask_BS[row, :count] = 1
        return batch

    def _read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """`count` tokens of the concatenated stream from token `start` on."""
        document = int(np.searchsorted(self._starts, start, side="right")) - 1
        offset = start - int(self._starts[document])
        parts = []
        while count:
            length = min(count, int(self._tokens.lengths_tokens[document]) - offset)
            if length > 0:
                parts.append(self._tokens.read(document, offset, length))
                count -= length
            document, offset = document + 1, 0
        return np.concatenate(parts).astype(np.int64)
