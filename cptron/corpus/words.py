"""Words and sentences of any language by one regular expression each, for rules that count them.

Place in the flow: under the quality rules and the blocklist. Invariant: linear in the length of the text; marks that
combine with a letter (vowel signs of Hindi) belong to its word.
"""

from __future__ import annotations

from typing import Any

import regex

WORD = regex.compile(r"\w+(?:['’]\w+)*")
_TOKEN = regex.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_PROSE = regex.compile(r"\w+(?:['’]\w+|(?<=\d)[.,:](?=\d)\w+)*|\.{2,}|-{2,}|[^\w\s]")
_SENTENCE_END = regex.compile(r"[.!?。！？।॥۔]+[\"'”’)\]]*(?=\s|$)|\n+")


def tokens_of(text: str) -> list[str]:
    """Words and single marks of punctuation, as the steps of selection count them."""
    found: list[str] = _TOKEN.findall(text)
    return found


def prose_of(text: str) -> list[str]:
    """The same as the rules for documents count them: `1,234.5`, `...` and `--` are one each, as in spaCy's English."""
    found: list[str] = _PROSE.findall(text)
    return found


def sentence_ends(text: str) -> list[int]:
    """Where sentences end; the last is the end of the text."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not ends or ends[-1] < len(text.rstrip()):
        ends.append(len(text))
    return ends


def datatrove_words() -> Any:
    """The same as a word tokenizer of datatrove, which its filters take in place of a language."""
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):  # type: ignore[misc]
        """See the module."""

        def word_tokenize(self, text: str) -> list[str]:
            return prose_of(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [
                text[start:end].strip() for start, end in self.span_tokenize(text) if text[start:end].strip()
            ]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            ends = sentence_ends(text)
            return list(zip([0, *ends[:-1]], ends, strict=True))

    return Words()
