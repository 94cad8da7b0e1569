"""SIGTERM as Ctrl-C, for commands that are long, keep what they did, and go on when they are called again.

Place in the flow: around the work of `curate` and `preprocess`. Invariant: the handler of before is back afterwards.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, which batch systems send before they kill, ends the run as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt(number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: the program around this one decides
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
