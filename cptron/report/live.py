"""The live view of a run on rank 0's terminal: status, block and screen put together.

Place in the flow: `hooks` makes one where standard output is a terminal, `console` writes through it. Invariant: where
there is none, nothing of this costs anything.
"""

from __future__ import annotations

import sys
import time

from cptron.report.block import block
from cptron.report.screen import Screen, is_screen
from cptron.report.status import Record, Status

REDRAW_S = 0.1
"""A step that comes sooner after the last drawing is drawn with the next."""


class Live:
    """Draws a run on the terminal, and what is printed beside it above."""

    def __init__(self, status: Status, screen: Screen) -> None:
        self.status, self._screen = status, screen
        self._drawn_s = float("-inf")

    def take(self, record: Record) -> None:
        """Show what a record changes."""
        self.status.take(record, time.monotonic())
        if time.monotonic() - self._drawn_s >= REDRAW_S or record["kind"] != "step":
            self.draw()

    def note(self, text: str) -> None:
        """Print lines that stay, above the block."""
        self.draw(above=text)

    def draw(self, above: str = "") -> None:
        """Draw the block as things stand, in the terminal's size of now."""
        self._drawn_s = time.monotonic()
        width, height = self._screen.size
        lines = block(self.status, self._drawn_s, width, height) if self.status.last else []
        self._screen.draw(lines, above)

    def close(self) -> None:
        """Leave the last state on the screen."""
        self.draw()
        self._screen.leave()


def open_live(status: Status) -> Live | None:
    """A live view, where standard output is a terminal that can be drawn on."""
    return Live(status, Screen()) if is_screen(sys.stdout) else None
