"""A document cut into passages that a model can be asked about.

Place in the flow: before prompts. Invariant: passages are in order, do not overlap, none is longer than asked for, and
together they are the document but for white space between them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cptron.corpus.words import sentence_ends

_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")
Span = tuple[int, int]
"""First character, and the one after the last."""


def passages_of(text: str, most_characters: int) -> list[Span]:
    """As long as they can be: cut between paragraphs, else between sentences, else anywhere; never empty ones."""
    spans: list[Span] = []
    for start, stop in _pieces(text, 0, len(text), most_characters, 0):
        if spans and stop - spans[-1][0] <= most_characters:
            spans[-1] = (spans[-1][0], stop)
        else:
            spans.append((start, stop))
    return spans


def _pieces(text: str, start: int, stop: int, most: int, level: int) -> Iterator[Span]:
    while start < stop and text[start].isspace():
        start += 1
    while stop > start and text[stop - 1].isspace():
        stop -= 1
    if start == stop:
        return
    if stop - start <= most:
        yield start, stop
        return
    part = text[start:stop]
    if level == 0:
        edges = [match.end() for match in _PARAGRAPH_END.finditer(part)]
    elif level == 1:
        edges = sentence_ends(part)
    else:
        edges = list(range(most, len(part), most))
    before = 0
    for edge in [*edges, len(part)]:
        if edge > before:
            yield from _pieces(text, start + before, start + edge, most, level + 1)
            before = edge
