"""The progress bar of preprocessing: stored bytes read, text rate, token rate, time left.

Place in the flow: `preprocess` reports to it after every batch.
Invariant: it only watches; the output does not depend on it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from tqdm import tqdm


class Progress:
    """A bar over the stored bytes of all inputs. MB/s counts uncompressed text (1 MB = 10^6 bytes)."""

    def __init__(self, inputs: Iterable[Path], interval_documents: int, *, enabled: bool) -> None:
        total = sum(path.stat().st_size for path in inputs)
        self._bar = tqdm(
            total=total, unit="B", unit_scale=True, desc="preprocess", disable=not enabled, file=sys.stderr
        )
        self._interval_documents = interval_documents
        self._started_s = time.perf_counter()
        self._bytes_before_file = 0
        self._text_bytes = self._documents = self._tokens = self._shown_documents = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def update(self, stored_bytes_read: int, text_bytes: int, documents: int, tokens: int) -> None:
        """Count one batch; `stored_bytes_read` is the position in the present file."""
        self._text_bytes += text_bytes
        self._documents += documents
        self._tokens += tokens
        if self._documents - self._shown_documents >= self._interval_documents:
            self._show(self._bytes_before_file + stored_bytes_read)

    def file_done(self, path: Path) -> None:
        """The whole of `path` has been encoded."""
        self._bytes_before_file += path.stat().st_size
        self._show(self._bytes_before_file)

    def _show(self, position_bytes: int) -> None:
        self._shown_documents = self._documents
        elapsed_s = max(time.perf_counter() - self._started_s, 1e-9)
        self._bar.set_postfix_str(
            f"{self._documents:,} documents, {self._text_bytes / 1e6 / elapsed_s:.1f} MB/s text, "
            f"{self._tokens / elapsed_s:,.0f} tokens/s",
            refresh=False,
        )
        self._bar.update(position_bytes - self._bar.n)
