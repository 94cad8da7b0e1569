"""Makes the next few items on a thread of its own while the present one is used.

Place in the flow: between `loader` and the files. Invariant: items come in the order they were made, each
once; an error while making one is raised where that one is asked for.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Calls `produce` ahead of `next`, at most `depth` items; with depth 0 only when asked."""

    def __init__(self, produce: Callable[[], T], depth: int) -> None:
        self._produce = produce
        self._ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(max(1, depth))
        self._stopped = threading.Event()
        self._depth = depth
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def next(self) -> T:
        """The next item; raises what `produce` raised, and again when asked again."""
        if self._error is not None:
            raise self._error
        assert not self._stopped.is_set(), "closed: nobody makes a further item"
        if self._depth == 0:
            return self._produce()
        if self._thread is None:  # only now: who never asks leaves no thread behind
            self._thread = threading.Thread(target=self._run, name="data prefetch", daemon=True)
            self._thread.start()
        item, error = self._ready.get()
        if error is not None:
            self.close()
            self._error = error
            raise error
        return item  # type: ignore[return-value]  # None only beside an error

    def close(self) -> None:
        """Stop making items; those that are ready are dropped."""
        self._stopped.set()
        while self._thread is not None and self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                item: tuple[T | None, BaseException | None] = (self._produce(), None)
            except BaseException as error:
                item = (None, error)
            self._ready.put(item)
            if item[1] is not None:
                return
