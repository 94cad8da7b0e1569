"""Which pairs are worth training on, and why the others are not.

Place in the flow: after `parse`, in the step. Invariant: a pair is judged by itself, its passage and the prompt, but
for `repeated`, which looks at the pairs before it; every refusal has a reason and what was found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cptron.corpus.document import Dropped
from cptron.corpus.language_engines import UNKNOWN
from cptron.corpus.synthesis.grounding import UNSPACED, grounded_share, numbers_of, units_of
from cptron.corpus.synthesis.parse import Pair
from cptron.corpus.synthesis.prompt import Prompt
from cptron.corpus.synthesis.repetition import copied_share, repeated_share, runs_of
from cptron.corpus.words import WORD

REFUSALS = Path(__file__).parent / "refusals.txt"
MENTIONS = Path(__file__).parent / "mentions.txt"
_MOST_REPEATED = 0.3
"""Of a text's runs of words; above it the text turns in a circle."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of the checks."""

    min_question_characters: int
    max_question_characters: int
    min_answer_characters: int
    max_answer_characters: int
    max_copied: float
    refusals: tuple[str, ...]
    """Beginnings of answers, casefolded."""
    mentions: tuple[str, ...]
    """Words in questions that speak of the text, casefolded."""


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
            self._length, self._refusal, self._mentions_text, self._repeats_prompt, self._gives_answer, self._loops,
            self._language_kept, self._copied, self._numbers_kept, self._grounded, self._repeated,
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

    def _mentions_text(self, pair: Pair) -> Dropped | None:
        question = _folded(pair.question)
        for words in self.bounds.mentions:
            # Where the passage has them too, they may be about something else.
            if words in question and _has(question, words) and words not in _folded(self.passage):
                return Dropped("mentions_text", words)
        return None

    def _repeats_prompt(self, pair: Pair) -> Dropped | None:
        runs = runs_of(self.prompt.instructions)
        for name, text in (("question", pair.question), ("answer", pair.answer)):
            if not runs.isdisjoint(runs_of(text) - runs_of(self.passage)):
                return Dropped("repeats_prompt", f"its {name} has words in a row of the instructions")
        return None

    def _gives_answer(self, pair: Pair) -> Dropped | None:
        if _folded(pair.question) == _folded(pair.answer):
            return Dropped("repeats_question", "question and answer are the same")
        if units_of(pair.answer) <= units_of(pair.question):
            return Dropped("answer_in_question", "all words of the answer are in the question")
        return None

    def _loops(self, pair: Pair) -> Dropped | None:
        for name, text in (("question", pair.question), ("answer", pair.answer)):
            if (share := repeated_share(text)) > _MOST_REPEATED:
                return Dropped("loops", f"{share:.2f} of its {name} was in it before")
        return None

    def _language_kept(self, pair: Pair) -> Dropped | None:
        if self.label is None or self._language == UNKNOWN[0]:
            return None
        found, _ = self.label(f"{pair.question}\n{pair.answer}")
        if found in (self._language, UNKNOWN[0]):
            return None
        return Dropped("other_language", f"{found}, of a text in {self._language}")

    def _copied(self, pair: Pair) -> Dropped | None:
        passage = _folded(self.passage)
        for name, text in (("question", pair.question), ("answer", pair.answer)):
            share = copied_share(text, self.passage)
            if (folded := _folded(text)) in passage:  # of few words, too
                share = max(share, len(folded) / max(1, len(passage)))
            if share > self.bounds.max_copied:
                return Dropped("copies_document", f"its {name} has {share:.2f} of the passage, word for word")
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


def read_list(path: Path) -> tuple[str, ...]:
    """Lines of a list, as `Bounds` wants them."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return tuple(_folded(line) for line in lines if line and not line.startswith("#"))


def _folded(text: str) -> str:
    return " ".join(text.casefold().replace("’", "'").split())


def _has(text: str, words: str) -> bool:
    """Whether they are words of it, and not parts of words, where words are set apart."""
    if UNSPACED.search(words):
        return True
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None
