"""Places in a text that name a person's mail, machine, phone, card or account.

Place in the flow: `steps/pii` replaces what is found here. Invariant: time is linear in the text whatever it holds
(every pattern is bounded and begins at a border); spans do not overlap, and come in order.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Literal

from cptron.corpus.pii.checks import iban_at, is_card
from cptron.corpus.pii.phones import phone_spans
from cptron.corpus.pii.quads import dotted_quads, follows

Kind = Literal["email", "ip_address", "phone", "card", "iban"]
Span = tuple[int, int, Kind]
"""[start, end) in characters, and what it is."""

_LOCAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._%+'-]{0,63}\Z")
_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)
_LOCAL_CHARACTERS = 64
_FILES = ("png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "html", "json", "pdf")
"""Ends of file names such as `logo@2x.png`, which are no domains."""
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IPV6 = re.compile(r"[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
_HEX = re.compile(r"[0-9A-Fa-f]{0,4}\Z")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_CARD = re.compile(
    r"(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|3\d{3}([ -])\d{6}\2\d{4,5})(?!\d|[.,]\d)"
)
_CARD_DIGITS = re.compile(r"\d(?:[ -]?\d){12,}")
_IBAN_START = re.compile(r"[A-Z]{2}\d{2}(?= ?[A-Z0-9])")
_DIGIT = re.compile(r"\d")


def find_pii(text: str, kinds: Sequence[Kind], *, public_addresses_only: bool) -> list[Span]:
    """Spans of `kinds`; where two overlap, the kind that is checked more strictly stays."""
    finders: list[tuple[Kind, Callable[[str], Iterator[tuple[int, int]]]]] = [
        ("email", _emails),
        ("iban", _ibans),
        ("card", _cards),
        ("ip_address", lambda text: _addresses(text, public_addresses_only)),
        ("phone", phone_spans),
    ]
    has_digit = _DIGIT.search(text) is not None
    found: list[Span] = []
    for kind, finder in finders:
        if kind in kinds and (has_digit or kind in ("email", "ip_address")):
            starts = [start for start, _, _ in found]
            new: list[Span] = [
                (start, end, kind) for start, end in finder(text) if _is_free(found, starts, start, end)
            ]
            found = sorted(found + new)
    return found


def _is_free(found: Sequence[Span], starts: Sequence[int], start: int, end: int) -> bool:
    """Whether [start, end) overlaps none of `found`, which is in order."""
    after = bisect_right(starts, start)
    if after and found[after - 1][1] > start:
        return False
    return after == len(found) or found[after][0] >= end


def _emails(text: str) -> Iterator[tuple[int, int]]:
    at = text.find("@")
    last = 0
    while at >= 0:
        local = _LOCAL.search(text, max(last, at - _LOCAL_CHARACTERS), at)
        domain = _DOMAIN.match(text, at + 1) if local else None
        if local and domain and not (local[0].endswith(".") or _is_file(domain[0])):
            last = domain.end()
            yield local.start(), last
        at = text.find("@", at + 1)


def _is_file(domain: str) -> bool:
    return domain.rpartition(".")[2].lower() in _FILES


def _addresses(text: str, public_only: bool) -> Iterator[tuple[int, int]]:
    for start, end in dotted_quads(text):
        if _is_address(text[start:end], public_only):
            yield start, end
    last = 0
    for colons in _COLONS.finditer(text):
        if colons.start() < last:
            continue
        first = _HEX.search(text, max(0, colons.start() - 4), colons.start())
        match = _IPV6.match(text, first.start() if first else colons.start())
        last = match.end() if match else colons.end() - 1
        if match and not follows(text, match.start(), ":.") and _is_address(match[0], public_only):
            yield match.span()


def _is_address(text: str, public_only: bool) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 6 and public_only and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global or not public_only


def _cards(text: str) -> Iterator[tuple[int, int]]:
    matches = (
        _CARD.finditer(text, region.start(), region.end() + 2) for region in _CARD_DIGITS.finditer(text)
    )
    for match in chain.from_iterable(matches):
        written = match[0]
        if follows(text, match.start(), ".,+-"):
            continue
        for candidate in (written, written[:19]):  # a group of three behind it may be its check value
            if is_card(candidate):
                yield match.start(), match.start() + len(candidate)
                break


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN_START.finditer(text):
        end = 0 if follows(text, match.start(), "") else iban_at(text, match.start())
        if end:
            yield match.start(), end
