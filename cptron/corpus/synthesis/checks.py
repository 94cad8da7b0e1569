"""Which pairs are worth training on, and why the others are not.

Place in the flow: after `parse`, in the step. Invariant: a pair is judged by itself, its passage and the prompt, but
for `repeated`, which looks at the pairs before it; every refusal has a reason and what was found.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cptron.corpus.document import Dropped
from cptron.corpus.language_engines import UNKNOWN
from cptron.corpus.synthesis.grounding import grounded_share, numbers_of, units_of
from cptron.corpus.synthesis.parse import Pair
from cptron.corpus.synthesis.prompt import Prompt
from cptron.corpus.words import WORD

REFUSALS = Path(__file__).parent / "refusals.txt"
_RUN_WORDS = 8
"""Words in a row that an answer shares with the instructions only where it repeats them."""
_LOOP_WORDS = 30
_LOOP_SHARE = 0.25
"""Different words among all, below which a text of `_LOOP_WORDS` turns in a circle."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of the checks."""

    min_question_characters: int
    max_question_characters: int
    min_answer_characters: int
    max_answer_characters: int
    max_copied: float
    refusals: tuple[str, ...]
    """Beginnings, casefolded."""


@dataclass(slots=True)
class PassageChecks:
    """Judges the pairs of one passage, in order; `seen` are the questions of the document so far."""

    passage: str
    prompt: Prompt
    grounded: float
    bounds: Bounds
    label: Callable[[str], tuple[str, float]] | None
    """Tells languages; None to leave that out."""
    seen: set[str]
    _units: set[str] = field(init=False)
    _numbers: set[str] = field(init=False)
    _language: str = field(init=False)

    def __post_init__(self) -> None:
        self._units = units_of(self.passage)
        self._numbers = numbers_of(self.passage)
        self._language = self.label(self.passage)[0] if self.label else UNKNOWN[0]

    def grounding(self, pair: Pair) -> float:
        """Share of the answer's words that are in the passage."""
        return round(grounded_share(pair.answer, self._units), 4)

    def problem(self, pair: Pair) -> Dropped | None:
        """Why the pair is not to be kept; None if it is."""
        checks: Sequence[Callable[[Pair], Dropped | None]] = (
            self._length, self._refusal, self._repeats_prompt, self._loops, self._language_kept, self._copied,
            self._numbers_kept, self._grounded, self._repeated,
        )  # fmt: skip
        for check in checks:
            if found := check(pair):
                return found
        return None

    def _length(self, pair: Pair) -> Dropped | None:
        bounds = self.bounds
        for name, text, least, most in (
            ("question", pair.question, bounds.min_question_characters, bounds.max_question_characters),
            ("answer", pair.answer, bounds.min_answer_characters, bounds.max_answer_characters),
        ):
            if len(text) < max(1, least) or not WORD.search(text):
                return Dropped(f"{name}_too_short", f"{len(text)} characters")
            if most and len(text) > most:
                return Dropped(f"{name}_too_long", f"{len(text)} characters")
        return None

    def _refusal(self, pair: Pair) -> Dropped | None:
        begins = _folded(pair.answer)[:120]
        found = next((words for words in self.bounds.refusals if begins.startswith(words)), None)
        return Dropped("refusal", found) if found else None

    def _repeats_prompt(self, pair: Pair) -> Dropped | None:
        runs = _runs(self.prompt.instructions)
        for name, text in (("question", pair.question), ("answer", pair.answer)):
            if not runs.isdisjoint(_runs(text) - _runs(self.passage)):
                return Dropped(
                    "repeats_prompt", f"its {name} has {_RUN_WORDS} words in a row of the instructions"
                )
        if _folded(pair.question) == _folded(pair.answer):
            return Dropped("repeats_question", "question and answer are the same")
        return None

    def _loops(self, pair: Pair) -> Dropped | None:
        words = WORD.findall(pair.answer.casefold())
        share = len(Counter(words)) / len(words) if words else 1.0
        if len(words) >= _LOOP_WORDS and share < _LOOP_SHARE:
            return Dropped("loops", f"{share:.2f} of its words are different ones")
        return None

    def _language_kept(self, pair: Pair) -> Dropped | None:
        if self.label is None or self._language == UNKNOWN[0]:
            return None
        found, _ = self.label(f"{pair.question}\n{pair.answer}")
        if found in (self._language, UNKNOWN[0]):
            return None
        return Dropped("other_language", f"{found}, of a text in {self._language}")

    def _copied(self, pair: Pair) -> Dropped | None:
        share = len(pair.answer) / max(1, len(self.passage))
        if share > self.bounds.max_copied and _folded(pair.answer) in _folded(self.passage):
            return Dropped("copies_document", f"{share:.2f} of the passage, word for word")
        return None

    def _numbers_kept(self, pair: Pair) -> Dropped | None:
        if self.prompt.numbers and (unknown := numbers_of(pair.answer) - self._numbers):
            return Dropped("unknown_number", f"{min(unknown)} is not in the passage")
        return None

    def _grounded(self, pair: Pair) -> Dropped | None:
        share = self.grounding(pair)
        if share < self.grounded:
            return Dropped("not_grounded", f"{share:.2f} of its words are in the passage")
        return None

    def _repeated(self, pair: Pair) -> Dropped | None:
        question = _folded(pair.question)
        if question in self.seen:
            return Dropped("repeated", "a question of this document before it is the same")
        self.seen.add(question)
        return None


def read_refusals(path: Path = REFUSALS) -> tuple[str, ...]:
    """Lines of a list, as `Bounds` wants them."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return tuple(_folded(line) for line in lines if line and not line.startswith("#"))


def _folded(text: str) -> str:
    return " ".join(text.casefold().replace("’", "'").split())


@functools.lru_cache(maxsize=64)
def _runs(text: str) -> frozenset[tuple[str, ...]]:
    words = WORD.findall(text.casefold())
    return frozenset(tuple(words[place : place + _RUN_WORDS]) for place in range(len(words) - _RUN_WORDS + 1))
