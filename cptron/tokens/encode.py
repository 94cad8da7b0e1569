"""Encoding one JSONL file on several threads, in order and with bounded memory.

Place in the flow: `jsonl` -> here -> `preprocess` writes the documents.
Invariant: what is yielded does not depend on the number of threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cptron.tokens.indexed import TokenArray
from cptron.tokens.jsonl import Record, read_records
from cptron.tokens.preprocess_options import PreprocessOptions
from cptron.tokens.tokenizer import Tokenizer

_BATCH_BYTES = 1 << 20
_BATCH_RECORDS = 1024


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a batch: `documents[k]` holds one array per record for key number k."""

    documents: tuple[list[TokenArray], ...]
    num_bytes: int
    stored_bytes_read: int


def encode_file(path: Path, tokenizer: Tokenizer, options: PreprocessOptions) -> Iterator[Encoded]:
    """Encoded batches of one file, in order."""
    workers = options.workers or len(os.sched_getaffinity(0))

    def encode(batch: list[Record]) -> Encoded:
        return _encode(batch, tokenizer, options)

    with _one_thread_per_call():
        yield from _map_in_order(encode, _batches(read_records(path, options.json_keys)), workers)


def _map_in_order(
    function: Callable[[list[Record]], Encoded], batches: Iterable[list[Record]], workers: int
) -> Iterator[Encoded]:
    """Results in the order of `batches`, with at most two batches per worker in memory."""
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[Encoded]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(function, batch))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    num_bytes = 0
    for record in records:
        batch.append(record)
        num_bytes += record.num_bytes
        if num_bytes >= _BATCH_BYTES or len(batch) >= _BATCH_RECORDS:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _encode(batch: list[Record], tokenizer: Tokenizer, options: PreprocessOptions) -> Encoded:
    before = [tokenizer.bos_id] if options.prepend_bos else []
    after = [tokenizer.eos_id] if options.append_eod else []
    documents: list[list[TokenArray]] = []
    for number in range(len(options.json_keys)):
        encoded = tokenizer.encode_batch([record.texts[number] for record in batch])
        documents.append(
            [np.array([*before, *ids, *after] if ids else [], dtype=np.int64) for ids in encoded]
        )
    return Encoded(tuple(documents), sum(record.num_bytes for record in batch), batch[-1].stored_bytes_read)


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
