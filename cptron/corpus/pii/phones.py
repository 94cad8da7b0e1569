"""Phone numbers: what is written so that it can hardly be another number.

Place in the flow: under `spans`. Invariant: a number needs a country code, the form of North America, or a word before
it that says what it is; seven digits in a row are no phone number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

_GAP = r"[ \u00a0.\-/()]{0,2}"
_MANY_DIGITS = re.compile(r"\d(?:[^\w\n]{0,3}\d){6,}")
"""Without them there is no phone number; it is fast to find, and the patterns below need only look there."""
_BEFORE = 2
"""Characters in front of the first digit that a pattern may begin with."""
_INTERNATIONAL = re.compile(rf"(?<![\w+.])\+[1-9](?:{_GAP}\d){{6,14}}(?!\d)")
_WITH_ZEROS = re.compile(rf"(?<![\w+.,:/-])(?<!\d )00[1-9]\d{{0,2}}[ \-/.](?:\d{_GAP}){{5,11}}\d(?!\d)")
_AMERICAN = re.compile(
    r"(?<![\w.+/-])(?:1[ .-])?(?:\([2-9]\d{2}\) ?[2-9]\d{2}[-. ]\d{4}|[2-9]\d{2}([-.])[2-9]\d{2}\1\d{4})(?![\w-]|\.\d)"
)
_NAMED = re.compile(rf"\(?\d(?:{_GAP}\d){{6,14}}(?!\d)")
_NAME = re.compile(
    r"(?<!\w)(?:tele?(?:phone|fon|f)?|t[ée]l[ée]phone|phone|(?P<weak>ph|mobile?|cell|call|handy)|fax|whatsapp|tel[ée]fono|"
    r"điện thoại|đt|sđt|di động|फ़ोन|फोन|मोबाइल|दूरभाष|电话|電話|手机|тел|телефон)"
    r"(?: ?(?:no|number|nr|num|số|नंबर)\b)?[\s.:：(#№-]{1,6}\Z",
    re.IGNORECASE,
)
_NAME_CHARACTERS = 32
_MOST_DIGITS = 15
_LEAST_DIGITS = 7
_DECIMAL = re.compile(r"\+?(?:\d{1,3}\.\d{1,7}|\d+\.\d{1,2})|\d\.\d+")
"""A coordinate, an amount; the dotted form of registries (`+1.4155550123`) has more digits behind its dot."""
_DIGITS = re.compile(r"\d+")
_DATE = re.compile(r"\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{4}")


def phone_spans(text: str) -> Iterator[tuple[int, int]]:
    """[start, end) of each, in order, without overlaps."""
    last = 0
    for region in _MANY_DIGITS.finditer(text):
        start, stop = max(last, region.start() - _BEFORE), min(len(text), region.end() + 2)
        found = sorted(
            {span for pattern in _PATTERNS for span in pattern(text, start, stop)}, key=_longest_first
        )
        for begin, end in found:
            if begin >= last and _is_phone(text[begin:end]):
                yield begin, end
                last = end


def _longest_first(span: tuple[int, int]) -> tuple[int, int]:
    return span[0], -span[1]


def _matches(pattern: re.Pattern[str]) -> Callable[[str, int, int], list[tuple[int, int]]]:
    return lambda text, start, stop: [match.span() for match in pattern.finditer(text, start, stop)]


def _named(text: str, start: int, stop: int) -> list[tuple[int, int]]:
    """Digits behind a word that says what they are; behind one that says other things too, not a plain count."""
    match = _NAMED.search(text, start, stop)
    name = match and _NAME.search(text, max(0, match.start() - _NAME_CHARACTERS), match.start())
    if not (match and name):
        return []
    is_count = match[0].isdecimal() and match[0][0] != "0" and ":" not in name[0]
    return [] if name["weak"] and is_count else [match.span()]


_PATTERNS = (_matches(_INTERNATIONAL), _matches(_WITH_ZEROS), _matches(_AMERICAN), _named)


def _is_phone(written: str) -> bool:
    groups = _DIGITS.findall(written)
    single = sum(len(group) == 1 for group in groups)  # a list of small numbers has them
    return (
        _LEAST_DIGITS <= sum(map(len, groups)) <= _MOST_DIGITS
        and 2 * single <= len(groups)
        and not _DATE.fullmatch(written)
        and not _DECIMAL.fullmatch(written)
    )
