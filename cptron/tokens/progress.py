"""The progress bar of preprocessing: stored bytes read, text rate, token rate, time left.

Place in the flow: `preprocess` reports to it after every block.
Invariant: it only watches; the output does not depend on it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import accumulate
from types import TracebackType
from typing import Self

from tqdm import tqdm

from cptron.tokens.inputs import Input

_LOG_INTERVAL_S = 10.0
"""Between two lines where the output is no terminal."""


class Progress:
    """A bar over the stored bytes of all inputs. MB/s counts uncompressed text (1 MB = 10^6 bytes)."""

    def __init__(self, inputs: Sequence[Input], interval_documents: int, *, enabled: bool) -> None:
        self._bytes_before = list(accumulate((source.stored_bytes for source in inputs), initial=0))
        self._bar = tqdm(
            total=self._bytes_before[-1],
            unit="B",
            unit_scale=True,
            desc="preprocess",
            disable=not enabled,
            file=sys.stderr,
            mininterval=0.2 if sys.stderr.isatty() else _LOG_INTERVAL_S,
        )
        self._interval_documents = interval_documents
        self._started_s = time.perf_counter()
        self._text_bytes = self._documents = self._tokens = self._shown_documents = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def resume(self, file: int, stored_bytes_read: int) -> None:
        """Begin in the middle, so that the time left is told from what this process does."""
        self._bar.initial = self._bar.n = self._bytes_before[file] + stored_bytes_read

    def update(self, file: int, stored_bytes_read: int, text_bytes: int, documents: int, tokens: int) -> None:
        """Count one block; reading has come to `stored_bytes_read` of input number `file`."""
        self._text_bytes += text_bytes
        self._documents += documents
        self._tokens += tokens
        if self._documents - self._shown_documents >= self._interval_documents:
            self._show(self._bytes_before[file] + stored_bytes_read)

    def done(self) -> None:
        """Everything has been encoded."""
        self._show(self._bytes_before[-1])

    def _show(self, position_bytes: int) -> None:
        self._shown_documents = self._documents
        elapsed_s = max(time.perf_counter() - self._started_s, 1e-9)
        self._bar.set_postfix_str(
            f"{self._documents:,} documents, {self._text_bytes / 1e6 / elapsed_s:.1f} MB/s text, "
            f"{self._tokens / elapsed_s:,.0f} tokens/s",
            refresh=False,
        )
        self._bar.update(position_bytes - self._bar.n)
