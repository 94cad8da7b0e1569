"""Encoding blocks of records on several threads, in order and with bounded memory.

Place in the flow: `read_blocks` -> here -> `outputs` writes the documents.
Invariant: what is yielded does not depend on the number of threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cptron.errors import DataError
from cptron.tokens.encode_chat import ChatBlocks, Ids, Rendered
from cptron.tokens.engine import Engine, verify
from cptron.tokens.index_layout import Int32Array, Int64Array
from cptron.tokens.records import Position, RawBlock, Reject
from cptron.tokens.tokenizer import Tokenizer

_NO_LENGTHS = np.empty(0, np.int32)
_NO_MASK = np.empty(0, np.uint8)
_AHEAD_BYTES = 96 << 20
"""Blocks wait for one another only up to this much, so that very long documents do not fill the memory."""


@dataclass(frozen=True, slots=True)
class Documents:
    """What one block gives one output."""

    tokens: Ids
    """All ids, in the dtype of the file."""
    lengths: Int32Array
    """Tokens of each document, all >= 1."""
    mask: npt.NDArray[np.uint8] | None
    """1 for each token that is learned, for chats."""
    num_empty: int
    """Records without tokens."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One block, encoded."""

    outputs: Sequence[Documents]
    rejects: Sequence[Reject]
    num_records: int
    text_bytes: int
    end: Position
    stored_bytes_read: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoder:
    """Turns a block into documents; any thread may call it."""

    keys: Sequence[str]
    engine: Engine
    reference: Tokenizer
    dtype: np.dtype[np.integer[Any]]
    bos_id: int | None
    """Put before every document, unless None."""
    eos_id: int | None
    """Put after every document, unless None."""
    check_all: bool = False
    """Compare every text with the reference tokenizer."""
    chats: ChatBlocks | None = None
    """The values are chats."""

    def __call__(self, block: RawBlock) -> Encoded:
        """Raises DataError when the engine gives what cannot be."""
        parsed = block.parse(self.keys, chat=self.chats is not None)
        records: Sequence[Sequence[Any]] = parsed.values
        rejects, text_bytes = parsed.rejects, parsed.text_bytes
        if self.chats:
            records, rejects = self.chats.render(block.path, parsed)
            text_bytes = block.num_bytes  # what of it is rendered is not held on to
        columns = [[record[number] for record in records] for number in range(len(self.keys))]
        outputs = [
            self._chat_documents(column) if self.chats else self._documents(column) for column in columns
        ]
        return Encoded(outputs, rejects, parsed.num_records, text_bytes, block.end, block.stored_bytes_read)

    def _chat_documents(self, chats: Sequence[Rendered]) -> Documents:
        assert self.chats is not None
        if not self.chats.with_mask:
            return self._documents(
                [chat.text for chat in chats], np.array([chat.is_text for chat in chats], np.bool_)
            )
        full = [chat for chat in chats if len(chat.ids)]
        if not full:
            return Documents(np.empty(0, self.dtype), _NO_LENGTHS, _NO_MASK, len(chats))
        lengths = np.array([len(chat.ids) for chat in full], np.int64)
        ids = np.concatenate([chat.ids for chat in full])
        self._require_sound(ids, lengths, len(full))
        is_text = np.array([chat.is_text for chat in full], np.bool_)
        tokens, full_lengths = with_special(ids, lengths, self.dtype, self.bos_id, self.eos_id, is_text)
        mask = np.concatenate([chat.mask for chat in full])
        bos_mask, eos_mask = (None if token is None else 1 for token in (self.bos_id, self.eos_id))
        learned, _ = with_special(mask, lengths, mask.dtype, bos_mask, eos_mask, is_text)
        if self.eos_id is not None:
            learned[np.cumsum(full_lengths, dtype=np.int64) - 1] = [chat.eod_mask for chat in full]
        return Documents(tokens, full_lengths, learned.astype(np.uint8), len(chats) - len(full))

    def _documents(self, texts: Sequence[bytes], with_bos: npt.NDArray[np.bool_] | None = None) -> Documents:
        """`with_bos` tells which texts get BOS, if any do; all of them where it is None."""
        if not texts:
            return Documents(np.empty(0, self.dtype), _NO_LENGTHS, None, 0)
        if self.check_all:
            verify(self.engine, self.reference, texts)
        ids, lengths = self.engine.encode(texts)
        self._require_sound(ids, lengths, len(texts))
        there = lengths > 0
        with_bos = None if with_bos is None else with_bos[there]
        tokens, full = with_special(ids, lengths[there], self.dtype, self.bos_id, self.eos_id, with_bos)
        return Documents(tokens, full, None, len(texts) - len(full))

    def _require_sound(self, ids: npt.NDArray[np.uint32], lengths: Int64Array, num_texts: int) -> None:
        largest = int(ids.max(initial=0))
        if largest >= self.reference.vocab_size:
            raise DataError(
                f"{self.engine.name} gave the id {largest}, must be below {self.reference.vocab_size}; "
                "use --engine reference"
            )
        if len(lengths) != num_texts or int(lengths.sum()) != len(ids):
            raise DataError(
                f"{self.engine.name} gave {len(ids)} ids and {len(lengths)} lengths for {num_texts} texts, must "
                "agree; use --engine reference"
            )


def with_special(
    ids: npt.NDArray[np.integer[Any]],
    lengths: Int64Array,
    dtype: np.dtype[np.integer[Any]],
    bos_id: int | None,
    eos_id: int | None,
    with_bos: npt.NDArray[np.bool_] | None = None,
) -> tuple[Ids, Int32Array]:
    """`ids` of documents of `lengths` (all >= 1) in `dtype`, each between BOS and EOS; and their new lengths. Only
    documents `with_bos` begin with BOS, if that is given."""
    if bos_id is None:
        with_bos = np.zeros(len(lengths), np.bool_)
    elif with_bos is None:
        with_bos = np.ones(len(lengths), np.bool_)
    full = (lengths + with_bos + int(eos_id is not None)).astype(np.int32)
    ends = np.cumsum(full, dtype=np.int64)
    tokens = np.empty(int(full.sum(dtype=np.int64)), dtype)
    if len(tokens) == len(ids):
        return ids.astype(dtype), full
    is_text = np.ones(len(tokens), np.bool_)
    if bos_id is not None:
        starts = (ends - full)[with_bos]
        is_text[starts] = False
        tokens[starts] = bos_id
    if eos_id is not None:
        is_text[ends - 1] = False
        tokens[ends - 1] = eos_id
    tokens[is_text] = ids
    return tokens, full


def encode_blocks(
    blocks: Iterable[RawBlock], encode: Callable[[RawBlock], Encoded], workers: int
) -> Iterator[Encoded]:
    """Encoded blocks in the order of `blocks`, with at most two blocks per worker in memory."""
    with _one_thread_per_call():
        yield from _map_in_order(encode, blocks, workers)


def _map_in_order(
    function: Callable[[RawBlock], Encoded], blocks: Iterable[RawBlock], workers: int
) -> Iterator[Encoded]:
    pool = ThreadPoolExecutor(workers, "encode")
    waiting: deque[tuple[Future[Encoded], int]] = deque()
    ahead_bytes = 0
    try:
        for block in blocks:
            num_bytes = block.num_bytes
            waiting.append((pool.submit(function, block), num_bytes))
            ahead_bytes += num_bytes
            del block
            while len(waiting) >= 2 * workers or (ahead_bytes > _AHEAD_BYTES and waiting):
                future, num_bytes = waiting.popleft()
                ahead_bytes -= num_bytes
                yield future.result()
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_per_call() -> Iterator[None]:
    """Keep the tokenizers library off its own threads, which would multiply with ours."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
