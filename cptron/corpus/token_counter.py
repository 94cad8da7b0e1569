"""Tokens of documents, counted in batches.

Place in the flow: `work` counts what the last stage writes, where the configuration names a tokenizer; selections under
a budget of tokens count what comes to them.
Invariant: the count is that of the tokenizer's own library, without special tokens; `preprocess` adds those.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cptron.tokens.engine import Engine, choose_engine
from cptron.tokens.manifest import TokenizerRecord
from cptron.tokens.tokenizer import load_tokenizer

_BATCH_BYTES = 1 << 20


class TokenCounter:
    """Counts the documents that pass by. Raises DataError where the tokenizer cannot be used."""

    def __init__(self, tokenizer: str) -> None:
        self._tokenizer = load_tokenizer(tokenizer)
        self._engine: Engine | None = None
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._counts: list[NDArray[np.int64]] = []

    def add(self, text: str) -> None:
        """Count a document."""
        self._waiting.append(text.encode())
        self._waiting_bytes += len(self._waiting[-1])
        if self._waiting_bytes >= _BATCH_BYTES:
            self._encode()

    def counts(self) -> NDArray[np.int64]:
        """Tokens of each document since the last call, in order."""
        self._encode()
        found = np.concatenate([np.zeros(0, np.int64), *self._counts])
        self._counts = []
        return found

    def _encode(self) -> None:
        if not self._waiting:
            return
        if self._engine is None:  # tried on the first documents, so it is known to give the library's ids
            self._engine, _ = choose_engine(self._tokenizer, self._waiting)
        self._counts.append(np.asarray(self._engine.encode(self._waiting)[1], np.int64))
        self._waiting, self._waiting_bytes = [], 0


def tokenizer_record(path: str) -> TokenizerRecord:
    """What a manifest says of the tokenizer at `path`."""
    tokenizer = load_tokenizer(path)
    return TokenizerRecord(
        name=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        bos_id=tokenizer.bos_id,
    )
