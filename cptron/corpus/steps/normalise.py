"""Repairs broken encodings and puts Unicode into one form.

Place in the flow: a map step; first, since all others count characters and words.
Invariant: doing it twice changes nothing more in what ftfy leaves alone the second time; text that ftfy would not touch
is passed by it, to the same result.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

from cptron.corpus.document import Document, Dropped, Result
from cptron.corpus.optional import optional_module
from cptron.corpus.step import MapStep, Tally

_PERHAPS_BROKEN = re.compile(r"[^\t\n\f\r -%'-~]")
"""Of ASCII, what ftfy may touch: control characters, and `&`, with which HTML entities begin."""
_BLANKS = re.compile(r"[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_LINE_ENDS = re.compile(r"\r\n?|\u0085|\u2028|\u2029")
_MANY_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What is changed."""

    repair: bool = True
    """Let ftfy repair text that was decoded wrongly, HTML entities where there is no markup, and control characters;
    with the settings of datatrove, which keep curly quotes, ligatures and wide characters."""
    form: Literal["none", "NFC", "NFKC"] = "NFC"
    """Unicode normalisation form. NFKC also replaces ligatures, wide characters and the like."""
    spaces: bool = True
    """One blank for several of any kind, none at the ends of lines, line ends as `\\n`, one empty line at most, and
    none around the text. Indentation at the beginning of lines stays."""


class Step(MapStep[Config]):
    """See the module."""

    packages = ("ftfy",)

    def open(self) -> None:
        """See `Step`."""
        ftfy = optional_module("ftfy", "ftfy", self.name)
        self._fix: Any = ftfy.fix_text
        self._settings: Any = ftfy.TextFixerConfig(
            unescape_html="auto",
            fix_latin_ligatures=False,
            fix_character_width=False,
            uncurl_quotes=False,
            fix_line_breaks=False,
            normalization=None,
            explain=False,
        )

    def apply(self, document: Document, tally: Tally) -> Result:
        """See `MapStep`."""
        text = document.text
        if self.config.repair and _PERHAPS_BROKEN.search(text):
            fixed = self._repaired(text)
            if fixed != text:
                tally["repaired"] += 1
            text = fixed
        if self.config.form != "none" and not text.isascii():
            text = unicodedata.normalize(self.config.form, text)
        if self.config.spaces:
            text = tidy_spaces(text)
        return document.with_text(text) if text else Dropped("nothing_left")

    def _repaired(self, text: str) -> str:
        """What ftfy makes of the text, which looks at each line by itself, save that markup in one line ends its way
        with HTML entities for all that follow. Lines of which it would change nothing are not shown to it."""
        settings = self._settings
        *lines, last = text.split("\n")
        lines = [*(line + "\n" for line in lines), last]
        for number, line in enumerate(lines):
            if "<" in line:
                settings = settings._replace(unescape_html=False)
            if _PERHAPS_BROKEN.search(line):
                lines[number] = self._fix(line, settings)
        return "".join(lines)


def tidy_spaces(text: str) -> str:
    """`text` with blanks, line ends and empty lines as `Config.spaces` says."""
    lines = _LINE_ENDS.sub("\n", text).split("\n")
    tidied = "\n".join([_tidy_line(line) for line in lines])
    return _MANY_LINES.sub("\n\n", tidied).strip()


def _tidy_line(line: str) -> str:
    line = line.rstrip()
    begin = len(line) - len(line.lstrip())
    return line[:begin] + _BLANKS.sub(" ", line[begin:])
