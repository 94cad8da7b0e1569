"""A validation set: every token predicted once, in file order.

Place in the flow: token files -> micro-batches for evaluation. Invariant: the predicted tokens, taken over
all ranks, are the stream from its second token on, each exactly once; neither padding nor what the loss mask
of the files or `eod_mask_loss` leaves out counts.

Shapes: B sequences of a micro-batch, S tokens predicted in a sequence.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cptron.data.batch import MicroBatch
from cptron.data.content import Content, open_content
from cptron.data.source import check_ids, named, open_learned
from cptron.data.windows import SetFacts, WindowSet
from cptron.errors import DataError

_TOKENS_AT_ONCE = 1 << 20


class _Stretch(NamedTuple):
    """Consecutive tokens of the concatenated stream."""

    tokens: npt.NDArray[np.int64]
    learned: npt.NDArray[np.bool_]
    documents: npt.NDArray[np.int32]
    """Document of each token, numbered from 0 in the stretch."""


class ValidSet(WindowSet):
    """Documents concatenated in file order and cut into windows of `seq_length` predictions, the last one
    padded.

    `max_tokens` limits the stream to so many tokens after its first; 0 means all. Where the files have a loss
    mask, the tokens outside it are read but not counted, as in training; with `eod_mask_loss` so is the first
    token of a document.
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
        *,
        eod_mask_loss: bool = False,
        seen: str = "",
    ) -> None:
        """Open the files, and read what will be evaluated once: every rank finds an id from `vocab_size` on
        (0 checks nothing) before any evaluates. `seen`: how attention reads windows, where not as usual; losses of
        other readings cannot be compared. Raises DataError."""
        super().__init__(micro_batch_size, dp_rank, dp_size)
        self.name = name
        where = f"validation set {name} ({prefix})"
        content = open_content(prefix)
        tokens = content.tokens
        available = tokens.num_tokens - 1
        if available < 1:
            raise DataError(f"{where} is empty: {tokens.num_tokens} tokens; at least 2 are needed")
        self._tokens = tokens
        self._learned = open_learned(prefix, content)
        self._eod_mask_loss = eod_mask_loss
        self._num_places = min(available, max_tokens) if max_tokens else available
        self._seq_length = seq_length
        self.num_windows = -(-self._num_places // seq_length)
        ends = np.cumsum(tokens.lengths_tokens, dtype=np.int64)
        self._starts = ends - tokens.lengths_tokens
        self.num_predicted_tokens = self._check_all(where, vocab_size)
        self.facts = _facts(
            content,
            f"{seq_length}|{self._num_places}|{eod_mask_loss}",
            seen,
            whole=self.num_predicted_tokens == available,
        )

    def _check_all(self, where: str, vocab_size: int) -> int:
        """How many labels count. Raises DataError when none does, or on an id that the model has not."""
        if not (vocab_size or len(self._learned) or self._eod_mask_loss):
            return self._num_places
        counted = 0
        for start in range(0, self._num_places, _TOKENS_AT_ONCE):
            stretch = self._read(start, min(_TOKENS_AT_ONCE, self._num_places - start) + 1)
            with named(where):
                check_ids(stretch.tokens, vocab_size)
            counted += int(stretch.learned[1:].sum(dtype=np.int64))
        if not counted:
            raise DataError(
                f"{where} is empty: {self._what_masks()} leaves out all of {self._num_places} tokens; add documents "
                "in which something is learned, or raise max_tokens"
            )
        return counted

    def _what_masks(self) -> str:
        if not self._eod_mask_loss:
            return "its loss mask"
        return "its loss mask with eod_mask_loss" if len(self._learned) else "eod_mask_loss"

    def bytes_by_window(self, token_bytes_V: npt.NDArray[np.int32]) -> npt.NDArray[np.int64] | None:
        """Bytes of text that the labels which count stand for, by window; windows without one are left out. None where
        some label's is not known (below 0, or beyond the array)."""
        lengths_V = np.append(token_bytes_V, np.int32(-1)).astype(np.int64)
        lengths_V[[token for token in self.facts.unwritten_ids if token < len(token_bytes_V)]] = 0
        found, at_once = [], max(1, _TOKENS_AT_ONCE // self._seq_length)
        for first in range(0, self.num_windows, at_once):
            start = first * self._seq_length
            count = min(at_once * self._seq_length, self._num_places - start)
            stretch = self._read(start, count + 1)
            labels, counts = stretch.tokens[1:], stretch.learned[1:]
            lengths = np.where(counts, lengths_V[np.minimum(labels, len(token_bytes_V))], 0)
            if lengths.min() < 0:
                return None
            borders = np.arange(0, count, self._seq_length)
            found.append(
                np.add.reduceat(lengths, borders)[np.add.reduceat(counts.astype(np.int64), borders) > 0]
            )
        return np.concatenate(found)

    def micro_batch(self, windows: range) -> MicroBatch:
        """These windows; what lies beyond the last one is masked."""
        shape = (len(windows), self._seq_length)
        batch = MicroBatch(
            np.zeros(shape, dtype=np.int64),
            np.zeros(shape, dtype=np.int64),
            np.zeros(shape, dtype=np.float32),
            np.array(windows, dtype=np.int64),
            np.zeros(shape, dtype=np.int32),
        )
        for row, window in enumerate(windows):
            start = window * self._seq_length
            count = min(self._seq_length, self._num_places - start)
            if count > 0:
                stretch = self._read(start, count + 1)
                batch.tokens_BS[row, :count] = stretch.tokens[:-1]
                batch.labels_BS[row, :count] = stretch.tokens[1:]
                batch.loss_mask_BS[row, :count] = stretch.learned[1:]
                batch.documents_BS[row, :count] = stretch.documents[:-1]
                batch.documents_BS[row, count:] = stretch.documents[count - 1] + 1
        return batch

    def _read(self, start: int, count: int) -> _Stretch:
        """`count` tokens of the concatenated stream from token `start` on."""
        document = int(np.searchsorted(self._starts, start, side="right")) - 1
        offset = start - int(self._starts[document])
        tokens, learned, lengths = [], [], list[int]()
        while count:
            length = min(count, int(self._tokens.lengths_tokens[document]) - offset)
            if length > 0:
                tokens.append(self._tokens.read(document, offset, length))
                learned.append(self._learned_of(document, offset, length))
                lengths.append(length)
                count -= length
            document, offset = document + 1, 0
        documents = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        return _Stretch(np.concatenate(tokens).astype(np.int64), np.concatenate(learned), documents)

    def _learned_of(self, document: int, offset: int, length: int) -> npt.NDArray[np.bool_]:
        learned = np.ones(length, np.bool_)
        if len(self._learned):
            first = int(self._tokens.start_bytes[document]) // self._tokens.dtype.itemsize + offset
            learned = self._learned[first : first + length].astype(np.bool_)
        if self._eod_mask_loss and offset == 0:
            learned[0] = False
        return learned


def _facts(content: Content, cut: str, seen: str, *, whole: bool) -> SetFacts:
    """`cut`: how the stream becomes windows. `whole`: every label counts."""
    mask = content.manifest.files.get("loss_mask") if content.manifest else None
    told = "|".join([content.identity, str(mask and mask.sha256), cut, *([seen] if seen else [])])
    windows = hashlib.sha256(told.encode()).hexdigest()
    manifest = content.manifest
    if manifest is None:
        return SetFacts(windows)
    made_with = manifest.tokenizer
    around = ((manifest.append_eod, made_with.eos_id), (manifest.prepend_bos, made_with.bos_id))
    text = ""
    if whole and manifest.sources and "chat_template" not in manifest.options:
        # the options that name the tokenizer do not change the text
        options = {name: text for name, text in manifest.options.items() if not name.startswith("tokenizer")}
        files = [source.sha256 for source in manifest.sources]
        same = [files, manifest.key, manifest.partition, manifest.documents, options]
        same += [seen] if seen else []
        text = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
    unwritten = tuple(number for added, number in around if added and number is not None)
    return SetFacts(windows, text, made_with.fingerprint, unwritten)
