"""Gopher's rules on `words: fast`: datatrove's filters, with their words and n-grams counted by the kernels.

Place in the flow: `steps/gopher_quality` and `steps/gopher_repetition` make their filter of these classes.
Invariant: verdict and reason are those of datatrove's own filter on the words of `words.tokens_of`; tests compare them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from cptron.corpus import kernels
from cptron.corpus.words import datatrove_words

_WORD, _SPACE, _PUNCTUATION, _LETTER = 1, 2, 4, 8
_BEFORE_SURROGATES, _AFTER_SURROGATES, _ALL = 0xD800, 0xE000, 0x110000


def quality_by_kernel(base: Any) -> type:
    """`GopherQualityFilter` of datatrove, `base`, on counts instead of lists of words."""

    class Filter(base):  # type: ignore[misc]
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self._count = kernels.ProseCounter(_kinds(), sorted(self.stop_words))

        def filter(self, doc: Any) -> bool | tuple[bool, str]:
            text: str = doc.text
            words, plain, characters, lettered, stop_words = self._count(_points(text))
            if self.min_doc_words and plain < self.min_doc_words:
                return False, "gopher_short_doc"
            if self.max_doc_words and plain > self.max_doc_words:
                return False, "gopher_long_doc"
            if self.min_avg_word_length and characters / plain < self.min_avg_word_length:
                return False, "gopher_below_avg_threshold"
            if self.max_avg_word_length and characters / plain > self.max_avg_word_length:
                return False, "gopher_above_avg_threshold"
            if most := self.max_symbol_word_ratio:
                if text.count("#") / words > most:
                    return False, "gopher_too_many_hashes"
                if (text.count("...") + text.count("…")) / words > most:
                    return False, "gopher_too_many_ellipsis"
            if reason := self._of_lines(text.splitlines()):
                return False, reason
            if self.max_non_alpha_words_ratio and lettered / words < self.max_non_alpha_words_ratio:
                return False, "gopher_below_alpha_threshold"
            if self.min_stop_words and stop_words < self.min_stop_words:
                return False, "gopher_enough_stop_words"
            return True

        def _of_lines(self, lines: list[str]) -> str:
            if most := self.max_bullet_lines_ratio:
                bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines)
                if bullets / len(lines) > most:
                    return "gopher_too_many_bullets"
            if most := self.max_ellipsis_lines_ratio:
                ellipses = sum(line.rstrip().endswith(("...", "…")) for line in lines)
                if ellipses / len(lines) > most:
                    return "gopher_too_many_end_ellipsis"
            return ""

    return Filter


def repetition_by_kernel(base: Any) -> type:
    """`GopherRepetitionFilter` of datatrove, `base`, which looks at lines and paragraphs; n-grams are the kernel's."""

    class Filter(base):  # type: ignore[misc]
        def __init__(self, *, top_n_grams: Any, dup_n_grams: Any, **arguments: Any) -> None:
            super().__init__(top_n_grams=(), dup_n_grams=(), **arguments | {"language": _no_words()})
            self._rules = list(top_n_grams), list(dup_n_grams)
            self._reasons = [f"top_{n}_gram" for n, _ in top_n_grams]
            self._reasons += [f"duplicated_{n}_n_grams" for n, _ in dup_n_grams]

        def filter(self, doc: Any) -> bool | tuple[bool, str]:
            found: bool | tuple[bool, str] = super().filter(doc)
            if found is not True:
                return found
            broken = kernels.broken_rule(_points(doc.text), _kinds(), *self._rules)
            return True if broken < 0 else (False, self._reasons[broken])

    return Filter


def _points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _no_words() -> Any:
    """A word tokenizer of datatrove that finds none: what rules of lines alone need."""
    words = datatrove_words()
    words.word_tokenize = lambda text: []
    return words


@cache
def _kinds() -> NDArray[np.uint8]:
    """What each code point is to the kernels; the classes of `words._TOKEN` and of datatrove. Made in about 0.5 s."""
    from datatrove.utils.text import PUNCTUATION_SET

    kinds = np.zeros(_ALL, np.uint8)
    for first, stop in ((0, _BEFORE_SURROGATES), (_AFTER_SURROGATES, _ALL)):
        characters = "".join(map(chr, range(first, stop)))
        for kind, pattern in ((_WORD, r"\w+"), (_SPACE, r"\s+")):
            for match in regex.finditer(pattern, characters):
                kinds[first + match.start() : first + match.end()] |= kind
        letters = np.fromiter(map(str.isalpha, characters), np.bool_, len(characters))
        kinds[first:stop][letters] |= _LETTER
    kinds[[ord(character) for character in PUNCTUATION_SET]] |= _PUNCTUATION
    kinds.flags.writeable = False
    return kinds
