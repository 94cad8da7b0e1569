"""Four numbers with dots between them: addresses, and not the sections and versions that are written alike.

Place in the flow: under `spans`, which leaves out private addresses. Invariant: what has a number over 99 in it is
taken for a section or a version only behind a word that says so; without one in it, also by where it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_QUAD = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w-]|\.\d)")
_NAMED_OTHERWISE = re.compile(
    r"(?<!\w)(?:versions?|ver\.?|v\.?|releases?|sections?|sect?\.?|chapters?|appendix|clauses?|paragraphs?|articles?|"
    r"tables?|figures?|builds?|firmware|§+|phiên bản|mục|chương|phần|संस्करण|अनुभाग|abschnitt|kapitel|fassung|capítulo|"
    r"sección|versión|chapitre)(?: (?:numbers?|no\.?|of))?[\s:(]{0,9}\Z",
    re.IGNORECASE,
)
_NAMED_ADDRESS = re.compile(
    r"(?:ip|ips|ipv4|addr|address|addresses|inet|dns|hosts?|hostname|servers?|nameservers?|resolvers?|gateways?|routers?|"
    r"prox(?:y|ies)|clients?|peers?|nodes?|machines?|ping|listen|bind|connect|telnet|ssh|curl|from|to|at|is|by|via|on|and|"
    r"or|the|in|write|see)\Z",
    re.IGNORECASE,
)
_WORD = re.compile(r"([^\W\d_]+)([ /])\Z")
_HEADING = re.compile(r"[ \t\u00a0]+([^\W\d_])|\.[ \t\u00a0]+[^\W\d_]|\.[ \t\u00a0]*(?:\n|\Z)")
_LARGE = re.compile(r"\d{3}")
_BEFORE = 32
_NEXT = re.compile(r"[ ,/–-]{1,3}(?:(?:and|or|to|through|và|und|et|y|और) )?")
"""Between two of a list: `1.2.3.4, 1.2.3.5 and 1.2.3.6`."""
_NEXT_CHARACTERS = 11


def dotted_quads(text: str) -> Iterator[tuple[int, int]]:
    """[start, end) of those that are not the number of a section or a version, in order."""
    refused = -_NEXT_CHARACTERS - 1
    for match in _QUAD.finditer(text):
        start, end = match.span()
        if follows(text, start, "."):
            continue
        before = text[max(0, start - _BEFORE) : start]
        goes_on = start - refused <= _NEXT_CHARACTERS and _NEXT.fullmatch(text, refused, start)
        if goes_on or _NAMED_OTHERWISE.search(before) or _is_number_of_a_text(text, match, before):
            refused = end
        else:
            yield start, end


def _is_number_of_a_text(text: str, match: re.Match[str], before: str) -> bool:
    """A heading's number, or one right behind a name: `LibreOffice 7.0.4.2`, `Firefox/3.6.12.1`."""
    if _LARGE.search(match[0]):
        return False
    line = before.rpartition("\n")[2]
    if not line.strip(" \t\u00a0#*") and len(line) < _BEFORE:
        heading = _HEADING.match(text, match.end())
        return heading is not None and not (heading[1] or "A").islower()
    word = _WORD.search(before)
    return word is not None and (
        word[2] == "/" or (word[1][0].isupper() and _NAMED_ADDRESS.match(word[1]) is None)
    )


def follows(text: str, start: int, marks: str) -> bool:
    """Whether a word, or one of `marks`, ends right before `start`: then it is the middle of something. (A lookbehind
    at the beginning of a pattern would slow the search for it down.)"""
    before = text[start - 1 : start]
    return bool(before) and (before.isalnum() or before == "_" or before in marks)
