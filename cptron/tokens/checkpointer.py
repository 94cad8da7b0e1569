"""Saves how far a run has come, every few seconds, while encoding goes on.

Place in the flow: `preprocess` tells it of every block. Invariant: the journal is written only after the bytes that
it tells of have been forced to disk.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from cptron.tokens.journal import Checkpoint, Entry, Journal
from cptron.tokens.outputs import Outputs

_INTERVAL_S = 5.0
_INTERVAL_BYTES = 256_000_000
"""Text encoded since the last checkpoint."""


class Checkpointer:
    """Saves the checkpoints of one run; `saved` says whether there is one to go on from."""

    def __init__(
        self, journal: Journal, identity: Mapping[str, Any], outputs: Outputs, *, saved: bool
    ) -> None:
        self._journal = journal
        self._identity = identity
        self._outputs = outputs
        self.saved = saved
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._running: Future[None] | None = None
        self._last_s = time.monotonic()
        self._text_bytes = 0

    def block_done(self, text_bytes: int) -> None:
        """Begin to save when it is time to. Raises OSError when the last attempt failed."""
        self._text_bytes += text_bytes
        if time.monotonic() - self._last_s < _INTERVAL_S and self._text_bytes < _INTERVAL_BYTES:
            return
        if self._running and not self._running.done():
            return
        self._wait()
        self._running = self._thread.submit(self._save, self._outputs.checkpoint)
        self._last_s, self._text_bytes = time.monotonic(), 0

    def save_now(self) -> None:
        """Save where the run stands."""
        self._wait()
        self._save(self._outputs.checkpoint)

    def close(self) -> None:
        """Wait for a save that has begun."""
        self._thread.shutdown()

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running:
            running.result()

    def _save(self, checkpoint: Checkpoint) -> None:
        self._outputs.sync()
        self._journal.save(Entry(self._identity, checkpoint, ()))
        self.saved = True
