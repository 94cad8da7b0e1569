"""A tokenizer with more tokens for a domain: learned, written, checked and reported.

Place in the flow: `cptron tokenizer extend`; afterwards `resize` gives a model rows for the new ids, and every corpus
is preprocessed anew. Invariant: what is published keeps every old id, and its report counts by real encoding.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cptron.durable import must_be_new, new_directory
from cptron.errors import DataError
from cptron.tokenizer.base import Base, open_base
from cptron.tokenizer.characters import byte_ids, learn_characters
from cptron.tokenizer.efficiency import Efficiency, measure
from cptron.tokenizer.extended import extended_content, write_extended
from cptron.tokenizer.marks import join_marks, name_class
from cptron.tokenizer.merge_loop import Learned, MergeLoop
from cptron.tokenizer.reach import unreachable
from cptron.tokenizer.texts import Corpus
from cptron.tokenizer.word_counts import WordCounts, count_words

RECORD = "extension.json"
HELD_OUT = 0.05
"""Share of the domain's documents that nothing is learned from, where no held-out files are named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtendOptions:
    """What is asked for."""

    model: Path
    """Directory with the base tokenizer."""
    output: Path
    domain: Corpus
    held_out: Corpus | None = None
    """Other text of the domain; None: a part of it is set aside."""
    general: Corpus | None = None
    num_tokens: int = 5000
    min_count: int = 10
    """Occurrences that a pair needs: a row of the embedding learns from nothing but its occurrences."""
    join_marks: bool = False
    """Whether combining marks stay in the words of their letters: see `marks`."""
    recovery_tokens: float = 100e6
    """Training tokens that the new rows are taken to cost; of the break-even."""


def extend(options: ExtendOptions) -> dict[str, Any]:
    """Write the extended tokenizer; the report, which also lies beside it. Raises DataError, with nothing written,
    where the base cannot be extended, no token is learned, or a check fails."""
    must_be_new(options.output)
    base = open_base(options.model)
    if options.join_marks:
        base = join_marks(base)
    domain = options.domain
    held_out = options.held_out
    if held_out is None:
        share = domain.part[1] * HELD_OUT
        held_out = replace(domain, part=(0.0, share), rejected=Counter())
        domain = replace(domain, part=(share, domain.part[1]))
    begun = time.perf_counter()
    counts = count_words(base, domain.blocks())
    counted = time.perf_counter()
    learned = learn(base, counts, options.num_tokens, options.min_count)
    done = time.perf_counter()
    with new_directory(options.output) as working:
        content = extended_content(base, learned.new_tokens, learned.merges)
        extended = write_extended(base, content, working)
        if options.join_marks:
            name_class(working)
        lost = unreachable(base, extended, learned.new_tokens, learned.witness)
        if lost:
            raise DataError(
                f"{len(lost)} new token(s) such as {extended.tokens[lost[0]]!r} are reached by no text; ask for fewer "
                "with --new-tokens, or for more frequent ones with --min-frequency"
            )
        report = {
            "base": str(options.model),
            "base_fingerprint": base.tokenizer.fingerprint,
            "fingerprint": extended.tokenizer.fingerprint,
            "vocab_size_before": base.tokenizer.vocab_size,
            "vocab_size_after": extended.tokenizer.vocab_size,
            "new_tokens": len(learned.new_tokens),
            "new_merges": len(learned.merges),
            "stopped": _why_stopped(learned, options),
            "marks_joined": options.join_marks,
            "unreachable": len(lost),
            "learned_from": {
                "documents": counts.num_documents,
                "bytes": counts.num_bytes,
                "distinct_words": len(counts.words),
                "words_too_long": counts.too_long,
                "records_rejected": domain.rejected.total(),
                "count_s_per_mb": (counted - begun) / (counts.num_bytes / 1e6),
                "learn_s": done - counted,
            },
            **_effects(base, extended, held_out, learned, options),
            "next": _next(options),
        }
        (working / RECORD).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def learn(base: Base, counts: WordCounts, num_tokens: int, min_count: int) -> Learned:
    """New tokens and merges from the words of a domain. Raises DataError where there are none."""
    next_id = base.tokenizer.vocab_size
    words = counts.words
    characters: dict[str, int] = {}
    closed = set(base.added.values())
    if base.kind == "byte-fallback":
        characters, words = learn_characters(base, words, num_tokens, min_count, next_id)
        closed |= byte_ids(base).keys()
        closed |= {base.vocab[token] for token in (base.content["model"].get("unk_token"),) if token}
    loop = MergeLoop(
        words,
        tokens={**base.tokens, **{number: token for token, number in characters.items()}},
        merges=base.merges,
        closed=closed,
        reserved=base.added,
        ignores_merges=base.ignores_merges,
        next_id=next_id + len(characters),
    )
    found = loop.learn(num_tokens - len(characters), min_count)
    learned = replace(found, new_tokens={**characters, **found.new_tokens})
    if not learned.new_tokens:
        raise DataError(
            f"no pair occurs {min_count} times in {counts.num_bytes} bytes of the domain, so there is nothing to add; "
            "give more text, or lower --min-frequency"
        )
    return learned


def _why_stopped(learned: Learned, options: ExtendOptions) -> str:
    if learned.exhausted:
        return (
            f"no pair is left that occurs {options.min_count} times: {len(learned.new_tokens)} of the "
            f"{options.num_tokens} tokens asked for"
        )
    return "all tokens asked for"


def _effects(
    base: Base, extended: Base, held_out: Corpus, learned: Learned, options: ExtendOptions
) -> dict[str, Any]:
    """Tokens per byte on domain and general text, new tokens that held-out text lacks, and when it pays."""
    domain = measure(base.tokenizer, extended.tokenizer, held_out.blocks(), "held-out text of the domain")
    found: dict[str, Any] = {"domain": domain.facts()}
    unused = set(learned.new_tokens.values()) - domain.used
    found["domain"]["new_tokens_unused"] = len(unused)
    if options.general is not None:
        general = measure(base.tokenizer, extended.tokenizer, options.general.blocks(), "general text")
        found["general"] = general.facts()
    return found | {"break_even": break_even(domain, options.recovery_tokens)}


def break_even(domain: Efficiency, recovery_tokens: float) -> dict[str, float | None]:
    """Domain text from which the extension saves tokens: bytes x (tokens per byte saved) > recovery tokens."""
    saved = domain.before - domain.after
    num_bytes = recovery_tokens / saved if saved > 0 else None
    return {
        "tokens_saved_per_byte": saved,
        "recovery_tokens_assumed": recovery_tokens,
        "domain_bytes": num_bytes,
        "domain_tokens_before": None if num_bytes is None else num_bytes * domain.before,
        "domain_tokens_after": None if num_bytes is None else num_bytes * domain.after,
    }


def _next(options: ExtendOptions) -> list[str]:
    return [
        f"cptron tokenizer resize {options.model} --tokenizer {options.output} --output NEW_MODEL",
        "preprocess all corpora anew, old and new: token files are bound to the tokenizer's fingerprint",
        "compare losses before and after in bits per byte; a loss per token is of another unit now",
    ]
