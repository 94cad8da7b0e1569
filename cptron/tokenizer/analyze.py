"""What a corpus costs under one tokenizer, or under two side by side.

Place in the flow: `cptron tokenizer analyze`, before `extend` and to judge it. Invariant: a document is encoded alone,
without special tokens, by the engine that `preprocess` would use; memory does not grow with the corpus.

A word is what stands between white space; languages written without spaces have long ones, and there characters and
bytes per token say more than tokens per word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cptron.errors import DataError
from cptron.json_text import parse_json
from cptron.tokenizer.fragmented import WordCounter
from cptron.tokenizer.texts import Corpus, Text
from cptron.tokens.engine import Engine, choose_engine
from cptron.tokens.lengths import LengthCounts, quantile

CONTEXTS = (2048, 4096, 8192, 32768)
"""Tokens; where the model states its own, that one as well."""
QUANTILES = {"median": 0.5, "q90": 0.9, "q99": 0.99, "max": 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalyzeOptions:
    """What is asked for."""

    model: Path
    corpus: Corpus
    compare: Path | None = None
    """Another tokenizer, side by side."""
    contexts: tuple[int, ...] = ()
    num_words: int = 20
    """Fragmented words to show."""


@dataclass(slots=True)
class _Group:
    """Counts of a language, a source or of everything."""

    documents: int = 0
    num_bytes: int = 0
    characters: int = 0
    words: int = 0
    tokens: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, text: Text, words: int, tokens: Sequence[int]) -> None:
        self.documents += 1
        self.num_bytes += text.num_bytes
        self.characters += len(text.text)
        self.words += words
        for number, count in enumerate(tokens):
            self.tokens[number] += count


def analyze(options: AnalyzeOptions) -> dict[str, Any]:
    """All that is counted, ready for JSON. Raises DataError where an input cannot be read."""
    from cptron.tokens.tokenizer import load_tokenizer

    paths = [options.model, *([options.compare] if options.compare else [])]
    tokenizers = [load_tokenizer(path) for path in paths]
    engines: list[Engine] = []
    total, languages, sources = _Group(), dict[str, _Group](), dict[str, _Group]()
    lengths = [LengthCounts() for _ in tokenizers]
    counter = WordCounter()
    for texts in options.corpus.blocks():
        batch = [text.text.encode() for text in texts]
        if not engines:
            engines = [choose_engine(tokenizer, batch)[0] for tokenizer in tokenizers]
        counts = np.stack([engine.encode(batch)[1] for engine in engines])
        for number, length_counts in enumerate(lengths):
            length_counts.add(counts[number])
        for text, tokens in zip(texts, counts.T.tolist(), strict=True):
            words = text.text.split()
            counter.add(words)
            for group in (
                total,
                languages.setdefault(text.language, _Group()),
                sources.setdefault(text.source, _Group()),
            ):
                group.add(text, len(words), tokens)
    if not total.tokens[0]:
        raise DataError(
            f"{', '.join(options.corpus.inputs)} gives 0 tokens in what was taken of it, at least 1 is needed; take a "
            "larger --sample, or other files"
        )
    contexts = sorted({*(options.contexts or CONTEXTS), *_own_context(options.model)})
    names = ("", *(["_compared"] if options.compare else []))
    facts: dict[str, Any] = {
        "corpus": {
            "documents": total.documents,
            "bytes": total.num_bytes,
            "characters": total.characters,
            "words": total.words,
            "records_rejected": options.corpus.rejected.total(),
            "sample": options.corpus.part[1],
        }
    }
    for name, path, tokenizer, engine, length_counts in zip(
        names, paths, tokenizers, engines, lengths, strict=True
    ):
        number = names.index(name)
        facts[f"tokenizer{name}"] = {
            "path": str(path),
            "vocab_size": tokenizer.vocab_size,
            "fingerprint": tokenizer.fingerprint,
            "engine": engine.name,
            **_rates(total, number),
            "document_tokens": _quantiles(length_counts),
            "contexts": [_context(length_counts, limit) for limit in contexts],
        }
    if options.compare:
        facts["tokens_compared_to_first"] = total.tokens[1] / total.tokens[0]
    facts["by_language"] = [_row("language", key, languages[key], names) for key in sorted(languages)]
    facts["by_source"] = [_row("source", key, sources[key], names) for key in sorted(sources)]
    facts["most_fragmented_words"] = counter.most_fragmented(tokenizers, names, options.num_words)
    facts["words_forgotten"] = counter.forgotten
    return facts


def _rates(group: _Group, number: int) -> dict[str, float | int]:
    tokens = group.tokens[number]
    return {
        "tokens": tokens,
        "characters_per_token": group.characters / max(tokens, 1),
        "bytes_per_token": group.num_bytes / max(tokens, 1),
        "tokens_per_byte": tokens / max(group.num_bytes, 1),
        "tokens_per_word": tokens / max(group.words, 1),
    }


def _row(kind: str, name: str, group: _Group, names: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {kind: name, "documents": group.documents, "bytes": group.num_bytes}
    for number, suffix in enumerate(names):
        row |= {f"{key}{suffix}": value for key, value in _rates(group, number).items()}
    return row


def _quantiles(counts: LengthCounts) -> dict[str, float]:
    found, times = counts.distinct()
    return {name: quantile(found, times, share) for name, share in QUANTILES.items()}


def _context(counts: LengthCounts, limit: int) -> dict[str, float | int]:
    """What of the corpus does not fit a context."""
    found, times = counts.distinct()
    longer = found > limit
    beyond = int(((found - limit) * times)[longer].sum())
    return {
        "context_tokens": limit,
        "documents_longer": int(times[longer].sum()),
        "share_of_documents": float(times[longer].sum() / times.sum()),
        "share_of_tokens_beyond": beyond / int((found * times).sum()),
    }


def _own_context(model: Path) -> list[int]:
    """The context that the model beside a tokenizer states, if there is one."""
    path = (model if model.is_dir() else model.parent) / "config.json"
    try:
        stated = parse_json(path.read_bytes()).get("max_position_embeddings") if path.is_file() else None
    except (ValueError, AttributeError):
        stated = None  # the tokenizer is what is looked at; `cptron convert` refuses such a config
    return [stated] if isinstance(stated, int) and stated > 0 else []
