"""One corpus as an endless stream of samples that can be entered anywhere.

Place in the flow: token files -> samples; below `stream`. Invariant: sample number `cursor` is always the
same tokens, and each epoch holds every sample exactly once, which together predict every token once.

Shapes: B samples, S tokens predicted in a sample.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from cptron.data.batch import MicroBatch
from cptron.data.cache import IndexCache
from cptron.data.content import Content, open_content
from cptron.data.ledger import account_of
from cptron.data.order import Arrangement, Packing, SourceOrder, Span
from cptron.errors import DataError
from cptron.tokens.index_layout import loss_mask_path

Int64Array = npt.NDArray[np.int64]


@contextmanager
def named(where: str) -> Iterator[None]:
    """Give the IndexError of a read, by the kernels or by `check_ids`, the name of the files: a DataError."""
    try:
        yield
    except IndexError as error:
        raise DataError(
            f"{where} is damaged or not of this model: {error}; copy the files "
            "again or preprocess with the model's tokenizer"
        ) from None


def check_ids(ids: Int64Array, vocab_size: int) -> None:
    """What the kernels check of their own reads. Raises IndexError when an id has no embedding; 0 checks
    nothing."""
    if not vocab_size or not ids.size:
        return
    largest = int(ids.flat[ids.astype(np.uint64).argmax()])  # a negative id becomes a huge one
    if not 0 <= largest < vocab_size:
        raise IndexError(f"token id {largest} is outside the vocabulary of {vocab_size}")


def open_learned(prefix: str, content: Content) -> npt.NDArray[np.uint8]:
    """The loss mask, a number for each token of `.bin`; empty where the files have none. Raises DataError."""
    mask = content.manifest and content.manifest.files.get("loss_mask")
    if not mask:
        return np.zeros(0, np.uint8)
    if mask.bytes != content.tokens.num_tokens:
        raise DataError(
            f"{loss_mask_path(prefix)} has {mask.bytes} bytes, must have one for each of "
            f"{content.tokens.num_tokens} tokens; run preprocess again"
        )
    return np.memmap(loss_mask_path(prefix), np.uint8, "r").view(np.ndarray)


class TokenSource:
    """Samples of `seq_length` predictions from the files `PREFIX.bin` and `PREFIX.idx`.

    A sample with fewer predictions than places (the last one of an epoch, or any one of a packed source) is
    filled up with zeros that the loss mask leaves out. Where the files have a loss mask, it holds too.
    """

    def __init__(
        self,
        name: str,
        prefix: str,
        seq_length: int,
        seed: int,
        *,
        packing: Packing = "joined",
        vocab_size: int = 0,
        cache: IndexCache | None = None,
        eod_mask_loss: bool = False,
        arrangement: Arrangement = "shuffled",
    ) -> None:
        """Open the files. With `eod_mask_loss` the first token of a document does not count where the end of
        another predicts it. Raises DataError when the files are damaged or have nothing to predict."""
        self.name = name
        self.prefix = prefix
        self.account = name
        """Name of its account in the ledger."""
        self.seq_length = seq_length
        self._seed = seed
        self._packing, self._arrangement = packing, arrangement
        self._cache = cache
        self._eod_mask_loss = eod_mask_loss
        self._open(open_content(prefix))
        self._vocab_size = vocab_size

    def _open(self, content: Content) -> None:
        files, packed = content.tokens, self._packing == "best_fit"
        where = f"source {self.name} ({self.prefix})"
        nothing = DataError(
            f"{where} has {files.num_tokens} tokens in {files.num_documents} documents, "
            "nothing to predict; add text"
        )
        if files.num_tokens < 2:
            raise nothing
        self.identity = content.identity
        self._content = content
        self._order = SourceOrder(
            content,
            open_learned(self.prefix, content),
            self.seq_length,
            self._seed,
            self._packing,
            self._cache,
            eod_mask_loss=self._eod_mask_loss,
            arrangement=self._arrangement,
        )
        self.predictions_per_epoch = files.num_tokens - (files.num_documents if packed else 1)
        if self.predictions_per_epoch == 0:
            raise nothing
        if packed:
            self.samples_per_epoch = int(self._order.epoch(0).num_samples)
        else:
            self.samples_per_epoch = -(-self.predictions_per_epoch // self.seq_length)

    def at_length(self, seq_length: int) -> TokenSource:
        """The same tokens in samples of another length, with an account of its own; itself where it has that length."""
        if seq_length == self.seq_length:
            return self
        other = copy.copy(self)
        other.account, other.seq_length = account_of(self.name, seq_length), seq_length
        other._open(self._content)
        return other

    @property
    def predictions_per_sample(self) -> float:
        """Mean number of tokens that a sample predicts, at most `seq_length`."""
        return self.predictions_per_epoch / self.samples_per_epoch

    def empty_batch(self, rows: int) -> MicroBatch:
        """Arrays for `rows` samples."""
        shape = (rows, self.seq_length)
        return MicroBatch(
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.float32),
            np.zeros(rows, np.int64),
            np.zeros(shape, np.int32),
        )

    def read(self, cursors: Int64Array, batch: MicroBatch) -> None:
        """Write the samples `cursors` [B] to the arrays of `batch`. Raises DataError on damaged files."""
        for epoch, samples, rows in self._by_epoch(cursors):
            part = batch.rows(rows.start, rows.stop)
            outputs = part.tokens_BS, part.labels_BS, part.loss_mask_BS, part.documents_BS
            with named(f"source {self.name} ({self.prefix})"):
                self._order.epoch(epoch).read(samples, *outputs, self._vocab_size)

    def documents(self, cursor: int) -> npt.NDArray[np.int32]:
        """Document of each input token of a sample `[seq_length]`, without reading tokens."""
        counts = np.array([span.length for span in self.spans(cursor)])
        counts[slice(None) if self._packing == "best_fit" else slice(-1, None)] -= (
            1  # the last tokens are labels only
        )
        counts = counts[counts > 0]
        documents_S = np.full(self.seq_length, len(counts), np.int32)
        documents_S[: counts.sum()] = np.repeat(np.arange(len(counts)), counts)
        return documents_S

    def sample(self, cursor: int) -> tuple[Int64Array, Int64Array, npt.NDArray[np.float32]]:
        """Inputs, labels and loss mask `[seq_length]` of the `cursor`-th sample since the start of the run."""
        batch = self.empty_batch(1)
        self.read(np.array([cursor]), batch)
        return batch.tokens_BS[0], batch.labels_BS[0], batch.loss_mask_BS[0]

    def count(self, cursors: Int64Array) -> tuple[int, int]:
        """Documents that begin in the samples `cursors`, and tokens that they predict: the position in the
        stream, so those that a loss mask leaves out are counted too."""
        documents = predictions = 0
        for epoch, samples, _ in self._by_epoch(cursors):
            found = self._order.epoch(epoch).count(samples)
            documents += found[0]
            predictions += found[1]
        return documents, predictions

    def spans(self, cursor: int) -> list[Span]:
        """Where the tokens of a sample are; the last of each piece may be a label only."""
        epoch, sample = divmod(cursor, self.samples_per_epoch)
        return [Span(*span) for span in self._order.epoch(epoch).spans(sample)]

    def prepare(self, epochs: int) -> None:
        """Make (or find in the cache) the index of the first `epochs` epochs."""
        for epoch in range(epochs):
            self._order.epoch(epoch)

    def _by_epoch(self, cursors: Int64Array) -> Iterator[tuple[int, Int64Array, slice]]:
        """Runs of `cursors` that lie in one epoch: the epoch, the sample numbers in it, and the rows."""
        epochs, samples = np.divmod(cursors, self.samples_per_epoch)
        borders = [0, *(np.flatnonzero(np.diff(epochs)) + 1).tolist(), len(epochs)]
        for start, stop in itertools.pairwise(borders):
            if stop > start:
                yield int(epochs[start]), samples[start:stop], slice(start, stop)
