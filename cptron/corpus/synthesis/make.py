"""Documents of what a model answered, each with its messages and where it came from.

Place in the flow: the end of the step `synthesise`. Invariant: whatever was asked comes out, as documents or as
rejected ones with a reason; what is written of a pair holds no time and no place, so equal answers make equal
documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cptron.corpus.document import Document, Dropped, Rejected
from cptron.corpus.step import Tally
from cptron.corpus.synthesis.answer import Answer
from cptron.corpus.synthesis.checks import Bounds, PassageChecks
from cptron.corpus.synthesis.parse import Pair, Problem, parse_answer
from cptron.corpus.synthesis.passages import Span
from cptron.corpus.synthesis.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Part:
    """One prompt about one passage."""

    document: int
    """Its number among those that are asked about together."""
    prompt: Prompt
    passage: int
    span: Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Maker:
    """Makes documents; everything here is of the step's settings."""

    bounds: Bounds
    label: Callable[[str], tuple[str, float]] | None
    grounded: Mapping[str, float]
    text: str
    meta_keys: Sequence[str]
    id_key: str
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]

    def make(
        self, document: Document, answers: Sequence[tuple[Part, Answer | None]], tally: Tally
    ) -> list[Document | Rejected]:
        """Of all that was asked about a document, in order."""
        made: list[Document | Rejected] = []
        seen: set[str] = set()
        sha256 = hashlib.sha256(document.text.encode()).hexdigest() if answers else ""
        for part, answer in answers:
            name = f"{document.id}/{part.prompt.name}.{part.passage}"
            if answer is None or answer.end in ("refused", "failed"):
                why = Dropped("not_asked") if answer is None else Dropped(f"model_{answer.end}", answer.text)
                passage = document.text[part.span[0] : part.span[1]]
                made.append(Rejected(Document(passage, name, document.source), why))
                continue
            tally["answers"] += 1
            tally["tokens in"] += answer.tokens_in
            tally["tokens out"] += answer.tokens_out
            pairs = self._of_answer(document, part, answer, name, sha256, seen)
            kept = sum(isinstance(one, Document) for one in pairs)
            tally[f"pairs of {part.prompt.name}, version {part.prompt.version}"] += kept
            made += pairs
        return made

    def _of_answer(
        self, document: Document, part: Part, answer: Answer, name: str, sha256: str, seen: set[str]
    ) -> list[Document | Rejected]:
        prompt = part.prompt
        passage = document.text[part.span[0] : part.span[1]]
        least = self.grounded.get(prompt.name, prompt.grounded)
        checks = PassageChecks(passage, prompt, least, self.bounds, self.label, seen)
        made: list[Document | Rejected] = []
        for number, found in enumerate(parse_answer(answer.text, answer.end == "length")):
            place = f"{name}.{number}"
            if isinstance(found, Problem):
                made.append(Rejected(Document(found.text, place, document.source), found.why))
                continue
            why = checks.problem(found)
            one = self._document(document, part, found, place, sha256, checks.grounding(found))
            made.append(Rejected(one, why) if why else one)
        return made

    def _document(
        self, document: Document, part: Part, pair: Pair, name: str, sha256: str, grounded: float
    ) -> Document:
        every = "*" in self.meta_keys
        kept = {key: value for key, value in document.meta.items() if every or key in self.meta_keys}
        given = document.meta.get(self.id_key) if self.id_key else None
        meta = {
            **kept,
            "messages": [
                {"role": "user", "content": pair.question},
                {"role": "assistant", "content": pair.answer},
            ],
            "document_id": document.id if given is None else str(given),
            "synthesis": {
                "document": document.id,
                "document_sha256": sha256,
                "characters": list(part.span),
                "prompt": part.prompt.name,
                "prompt_version": part.prompt.version,
                "prompt_sha256": part.prompt.sha256,
                "model": dict(self.model),
                "parameters": dict(self.parameters),
                "grounded": grounded,
            },
        }
        return Document(_filled(self.text, pair), name, document.source, meta)


def _filled(text: str, pair: Pair) -> str:
    """`text` with the pair in its places; what the pair holds is not looked at again."""
    before, _, after = text.partition("{question}")
    if "{answer}" in before:
        before, _, between = before.partition("{answer}")
        return before + pair.answer + between + pair.question + after
    between, _, after = after.partition("{answer}")
    return before + pair.question + between + pair.answer + after
