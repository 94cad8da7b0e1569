"""Phone numbers: what is written so that it can hardly be another number.

Place in the flow: under `spans`. Invariant: a number needs a country code, the form of North America, or a word before
it that says what it is; seven digits in a row are no phone number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_GAP = r"[ \u00a0.\-/()]{0,2}"
_INTERNATIONAL = re.compile(rf"(?<![\w+.])\+[1-9](?:{_GAP}\d){{6,14}}(?!\d)")
_WITH_ZEROS = re.compile(rf"(?<![\w+.,:/-])(?<!\d )00[1-9]\d{{0,2}}[ \-/.](?:\d{_GAP}){{5,11}}\d(?!\d)")
_AMERICAN = re.compile(
    r"(?<![\w.+/-])(?:1[ .-])?(?:\([2-9]\d{2}\) ?[2-9]\d{2}[-. ]\d{4}|[2-9]\d{2}([-.])[2-9]\d{2}\1\d{4})(?![\w-]|\.\d)"
)
_NAMED = re.compile(
    r"(?<!\w)(?:tele?(?:phone|fon|f)?|t[ée]l[ée]phone|phone|ph|mobile?|cell|call|fax|whatsapp|handy|tel[ée]fono|"
    r"điện thoại|đt|sđt|di động|फ़ोन|फोन|मोबाइल|दूरभाष|电话|電話|手机|тел|телефон)"
    r"(?: ?(?:no|number|nr|num|số|नंबर)\b)?[\s.:：(#№-]{1,6}"
    rf"(?P<number>\(?\d(?:{_GAP}\d){{6,14}})(?!\d)",
    re.IGNORECASE,
)
_MOST_DIGITS = 15
_LEAST_DIGITS = 7
_DATE = re.compile(r"\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{4}")


def _international(text: str) -> Iterator[tuple[int, int]]:
    return _spans(_INTERNATIONAL, 0, text)


def _with_zeros(text: str) -> Iterator[tuple[int, int]]:
    return _spans(_WITH_ZEROS, 0, text)


def _american(text: str) -> Iterator[tuple[int, int]]:
    return _spans(_AMERICAN, 0, text)


def _named(text: str) -> Iterator[tuple[int, int]]:
    return _spans(_NAMED, "number", text)


PHONE_FINDERS = (_international, _with_zeros, _american, _named)
"""Each gives [start, end) of what it finds, in order; they may find the same."""


def _spans(pattern: re.Pattern[str], group: str | int, text: str) -> Iterator[tuple[int, int]]:
    for match in pattern.finditer(text):
        written = match[group]
        num_digits = sum(char.isdigit() for char in written)
        if _LEAST_DIGITS <= num_digits <= _MOST_DIGITS and not _DATE.fullmatch(written):
            yield match.span(group)
