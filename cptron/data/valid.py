"""A validation set: every token predicted once, in file order.

Place in the flow: token files -> micro-batches for evaluation. Invariant: the predicted tokens, taken over
all ranks, are the stream from its second token on, each exactly once; neither padding nor what the loss mask
of the files leaves out counts.

Shapes: B sequences of a micro-batch, S tokens predicted in a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cptron.data.batch import MicroBatch
from cptron.data.content import open_content
from cptron.data.source import check_ids, named, open_learned
from cptron.errors import DataError

_TOKENS_AT_ONCE = 1 << 20


class ValidSet:
    """Documents concatenated in file order and cut into windows of `seq_length` predictions, the last one
    padded.

    `max_tokens` limits the stream to so many tokens after its first; 0 means all. Where the files have a loss
    mask, the tokens outside it are read but not counted, as in training. Every rank iterates over the same
    number of micro-batches, as pipeline schedules need it; where windows run out, wholly masked ones fill up.
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
        vocab_size: int = 0,
    ) -> None:
        """Open the files, and read what will be evaluated once: every rank finds an id from `vocab_size` on
        (0 checks nothing) before any evaluates. Raises DataError."""
        self.name = name
        where = f"validation set {name} ({prefix})"
        content = open_content(prefix)
        tokens = content.tokens
        available = tokens.num_tokens - 1
        if available < 1:
            raise DataError(f"{where} is empty: {tokens.num_tokens} tokens; at least 2 are needed")
        self._tokens = tokens
        self._learned = open_learned(prefix, content)
        self._num_places = min(available, max_tokens) if max_tokens else available
        self._seq_length = seq_length
        self._micro_batch_size = micro_batch_size
        self._dp_rank = dp_rank
        self._dp_size = dp_size
        ends = np.cumsum(tokens.lengths_tokens, dtype=np.int64)
        self._starts = ends - tokens.lengths_tokens
        self.num_predicted_tokens = self._check_all(where, vocab_size)
        """Labels that count, over all ranks."""

    def _check_all(self, where: str, vocab_size: int) -> int:
        """How many labels count. Raises DataError when none does, or on an id that the model has not."""
        if not vocab_size and not len(self._learned):
            return self._num_places
        counted = 0
        for start in range(0, self._num_places, _TOKENS_AT_ONCE):
            tokens, learned = self._read(start, min(_TOKENS_AT_ONCE, self._num_places - start) + 1)
            with named(where):
                check_ids(tokens, vocab_size)
            counted += int(learned[1:].sum(dtype=np.int64))
        if not counted:
            raise DataError(
                f"{where} is empty: its loss mask leaves out all of {self._num_places} tokens; add documents in which "
                "something is learned, or raise max_tokens"
            )
        return counted

    @property
    def num_windows(self) -> int:
        """Windows with at least one place."""
        return -(-self._num_places // self._seq_length)

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
            count = min(self._seq_length, self._num_places - start)
            if count > 0:
                tokens, learned = self._read(start, count + 1)
                batch.tokens_BS[row, :count] = tokens[:-1]
                batch.labels_BS[row, :count] = tokens[1:]
                batch.loss_mask_BS[row, :count] = learned[1:]
        return batch

    def _read(self, start: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """`count` tokens of the concatenated stream from token `start` on, and which of them are learned."""
        document = int(np.searchsorted(self._starts, start, side="right")) - 1
        offset = start - int(self._starts[document])
        tokens, learned = [], []
        while count:
            length = min(count, int(self._tokens.lengths_tokens[document]) - offset)
            if length > 0:
                tokens.append(self._tokens.read(document, offset, length))
                learned.append(self._learned_of(document, offset, length))
                count -= length
            document, offset = document + 1, 0
        return np.concatenate(tokens).astype(np.int64), np.concatenate(learned)

    def _learned_of(self, document: int, offset: int, length: int) -> npt.NDArray[np.bool_]:
        if not len(self._learned):
            return np.ones(length, np.bool_)
        first = int(self._tokens.start_bytes[document]) // self._tokens.dtype.itemsize + offset
        return self._learned[first : first + length].astype(np.bool_)
