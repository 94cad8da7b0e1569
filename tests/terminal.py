"""A small terminal for tests: what a program that draws on it leaves on the screen.

Knows what `cptron` writes (text that wraps at the last column, CR, LF, cursor up, clear to the end, colours) and
refuses anything else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

_PIECES = re.compile(r"\x1b\[(\d*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)|(\x1b.?)", re.DOTALL)


class Terminal:
    """Lines of text, of which the last `height` are on the screen."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.rows = [""]
        self.row = self.column = 0
        self.colours: list[str] = []

    def write(self, text: str) -> None:
        """Do what the text says."""
        for number, command, control, plain, unknown in _PIECES.findall(text):
            assert not unknown, f"unknown escape {unknown!r}"
            if plain:
                self._put(plain)
            elif control == "\r":
                self.column = 0
            elif control == "\n":
                self._down()
            elif command == "A":
                first = max(0, len(self.rows) - self.height)
                assert self.row - int(number) >= first, "the cursor would leave the screen"
                self.row -= int(number)
            elif command == "J":
                self.rows = [*self.rows[: self.row], self.rows[self.row][: self.column]]
            else:
                assert command == "m", f"unknown escape {command!r}"
                self.colours.append(number)

    def _put(self, plain: str) -> None:
        for char in plain:
            if self.column == self.width:
                self._down()
                self.column = 0
            row = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = row[: self.column] + char + row[self.column + 1 :]
            self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append("")


def on_a_terminal(
    words: Sequence[str | Path], width: int, height: int, env: dict[str, str], timeout_s: float = 120
) -> tuple[int, str]:
    """Exit code of a command whose standard output is a terminal of this size, and all it wrote there."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    pieces: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # a closed terminal ends in EIO
            while piece := os.read(reader, 65536):
                pieces.append(piece)

    thread = threading.Thread(target=read)
    root = Path(__file__).parents[1]
    try:
        process = subprocess.Popen([str(word) for word in words], stdout=writer, cwd=root, env=env)
        os.close(writer)
        thread.start()
        try:
            code = process.wait(timeout=timeout_s)
        finally:
            process.kill()
        thread.join(timeout=240)
    finally:
        os.close(reader)
    return code, b"".join(pieces).decode()


def shown(text: str, width: int, height: int, look: Callable[[Terminal], None] | None = None) -> Terminal:
    """The terminal after a text, or, with `look`, after each of its drawings."""
    terminal = Terminal(width, height)
    for piece in re.split(r"(?=\x1b\[\d+A)", text):
        terminal.write(piece)
        if look is not None:
            look(terminal)
    return terminal
