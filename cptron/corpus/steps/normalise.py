"""Repairs broken encodings and puts Unicode into one form.

Place in the flow: a map step; first, since all others count characters and words.
Invariant: doing it twice changes nothing more in what ftfy leaves alone the second time; text that ftfy would not touch
is passed by it, to the same result.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from cptron.corpus.document import Document, Dropped, Result
from cptron.corpus.optional import optional_module
from cptron.corpus.step import MapStep, Tally

_OTHER_BLANKS = r"\t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
_OTHER_BLANK = re.compile(f"[{_OTHER_BLANKS}]")
_BLANKS = re.compile(f"[ {_OTHER_BLANKS}]+")
_LINE_ENDS = re.compile(r"[\r\u0085\u2028\u2029](?:(?<=\r)\n)?")
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
        self._perhaps_broken = perhaps_broken(ftfy.badness, ftfy.chardata)
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
        if self.config.repair and self._perhaps_broken.search(text):
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
            if self._perhaps_broken.search(line):
                lines[number] = self._fix(line, settings)
        return "".join(lines)


@cache
def perhaps_broken(badness: Any, chardata: Any) -> re.Pattern[str]:
    """Finds something in every text that ftfy changes, with the settings of this step: a control character, the
    beginning of an HTML entity, or two neighbours of those characters that ftfy knows wrong encodings by (one, where
    that is enough for ftfy). Read off ftfy's own modules, so text without them need not be shown to it."""
    known = "".join(badness.MOJIBAKE_CATEGORIES.values())
    known += "".join(sorted({char for char in badness.BADNESS_RE.pattern if not char.isascii()}))
    is_known = re.compile(f"[{known}]")
    enough = "".join(
        char
        for char in map(chr, range(0x80, 0x10000))
        if is_known.match(char) and any(map(badness.BADNESS_RE.search, _in_ascii(char)))
    )
    enough += "".join(map(chr, chardata.CONTROL_CHARS)) + "\x80-\x9f&"
    # one class at the beginning: what `re` looks for fastest
    return re.compile(f"[{enough}{known}](?:(?<=[{enough}])|[{known}])")


def _in_ascii(char: str) -> list[str]:
    """It beside each kind of ASCII character that ftfy tells apart."""
    return [
        before + char + after
        for before in ("", "a", "A", " ", ".")
        for after in ("", "a", "A", " ", ".", "\n")
    ]


def tidy_spaces(text: str) -> str:
    """`text` with blanks, line ends and empty lines as `Config.spaces` says."""
    lines = _LINE_ENDS.sub("\n", text).split("\n")
    has_others = _OTHER_BLANK.search(text) is not None
    tidied = "\n".join([_tidy_line(line, has_others) for line in lines])
    return _MANY_LINES.sub("\n\n", tidied).strip()


def _tidy_line(line: str, has_others: bool) -> str:
    line = line.rstrip()
    if not has_others and "  " not in line:
        return line
    begin = len(line) - len(line.lstrip())
    return line[:begin] + _BLANKS.sub(" ", line[begin:])
