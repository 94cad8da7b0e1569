"""What counts as a word, in every script: the folding table that the kernels read text with.

Place in the flow: below shingles and contamination. Invariant: the table is a function of Python's Unicode version,
which goes into every fingerprint.

A word is a run of letters, marks and digits in lower case; everything else separates words, except format characters
(joiners, soft hyphens), which are as if they were not there. In scripts written without spaces between words (Chinese,
Japanese, Thai, Lao, Khmer, Burmese and others) each character, with the marks on it, is a word of its own. Text is
first brought to NFC, so that a letter with a mark is the same however it was typed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

UNICODE_VERSION = unicodedata.unidata_version
SKIPPED = 0xFFFFFFFF
ALONE = 1 << 31
EXTENDS = 1 << 30
LAST_CODE_POINT = 0x323AF
"""The last ideograph; nothing beyond it is a letter."""

NO_SPACES = (
    (0x0E00, 0x0E4F), (0x0E80, 0x0ECF), (0x1000, 0x103F), (0x1050, 0x108F), (0x1780, 0x17D3), (0x1950, 0x19DF),
    (0x1A20, 0x1A7C), (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3041, 0x312F), (0x31A0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA000, 0xA48F), (0xA980, 0xA9DF), (0xAA60, 0xAADF), (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F), (0x1B000, 0x1B16F), (0x20000, LAST_CODE_POINT),
)  # fmt: skip
"""Code points, first and last: Thai, Lao, Burmese (twice), Khmer, Tai Le to New Tai Lue, Tai Tham, Han radicals and
signs, kana with Bopomofo, Han, Yi, Javanese, Burmese with Tai Viet, compatibility Han, halfwidth and old kana, Han."""


@cache
def folding_table() -> NDArray[np.uint32]:
    """For each code point: 0 if it separates words, `SKIPPED`, or its lower case with the flags `ALONE` (a word of its
    own) and `EXTENDS` (a mark). Made once a process, in about 0.1 s."""
    table = np.zeros(LAST_CODE_POINT + 1, np.uint32)
    for code_point in range(len(table)):
        char = chr(code_point)
        category = unicodedata.category(char)
        if category[0] in "LN":
            lower = char.lower()
            table[code_point] = ord(lower) if len(lower) == 1 else code_point
        elif category[0] == "M":
            table[code_point] = code_point | EXTENDS
        elif category == "Cf":
            table[code_point] = SKIPPED
    for first, last in NO_SPACES:
        letters = (table[first : last + 1] != 0) & (table[first : last + 1] & EXTENDS == 0)
        table[first : last + 1][letters] |= ALONE
    table.flags.writeable = False
    return table


def composed(text: str) -> str:
    """`text` in NFC; itself where it is so already, as most text is."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def packed(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All texts in UTF-8, one after the other, and where each begins; the end too."""
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    starts = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=starts[1:])
    return np.frombuffer(b"".join(parts), np.uint8), starts
