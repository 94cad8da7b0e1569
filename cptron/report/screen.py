"""A block of lines at the bottom of a terminal, drawn again in place, with other lines scrolling by above it.

Place in the flow: `console` and `watch` hand in lines. Plain ANSI: up, clear to the end, and two colours unless
NO_COLOR is set. Invariant: what was printed above the block stays, also after the terminal became narrower, whose
rows the old block is then spread over.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

UP, CLEAR = "\x1b[{}A", "\x1b[J"
RED, PLAIN = "\x1b[31m", "\x1b[0m"


def is_screen(stream: TextIO) -> bool:
    """A terminal that can be drawn on: one that has a size (some job consoles claim to be terminals of 0 lines), and
    understands more than text."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    size = os.get_terminal_size(stream.fileno())
    return size.lines > 0 and size.columns > 0


class Screen:
    """The block on one terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._colours = not os.environ.get("NO_COLOR")
        self._drawn: list[int] = []
        """Lengths of the lines that are on the screen as the block."""

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines that a block may have now: one less than the terminal, lest it scrolls."""
        size = os.get_terminal_size(self._stream.fileno())
        return max(1, size.columns - 1), max(1, size.lines - 1)

    def draw(self, lines: Sequence[tuple[str, bool]], above: str = "") -> None:
        """Put `lines`, each with whether it is an alarm, in the place of the block; `above` is a text that stays."""
        text = self._to_the_top()
        if above:
            text += above + "\n"
        for line, alarm in lines:
            text += (f"{RED}{line}{PLAIN}" if alarm and self._colours else line) + "\n"
        self._drawn = [len(line) for line, _ in lines]
        self._stream.write(text)
        self._stream.flush()

    def leave(self) -> None:
        """The block stays as it is, and is nobody's any more."""
        self._drawn = []

    def _to_the_top(self) -> str:
        if not self._drawn:
            return ""
        columns = os.get_terminal_size(self._stream.fileno()).columns or 80
        rows = sum(max(1, -(-length // columns)) for length in self._drawn)
        return "\r" + UP.format(rows) + CLEAR
