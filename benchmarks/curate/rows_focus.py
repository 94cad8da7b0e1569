"""Rows of FOCUS: loss at step 0 with rows by vectors that fastText learns of the same texts, cut by the new tokenizer.

Place in the flow: `--rows focus` of `benchmarks.curate.run`, beside those of `curate_tokenizer`. Invariant: tokenizers,
texts and bytes are those of the rows h to j of the tokenizer; vectors are trained on the part that the tokenizer is
learned from, never on what is measured.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks.curate.token_vectors import EPOCHS, MIN_COUNT, train, write_tokens
from benchmarks.curate_tokenizer import VARIANTS, Extended, Settings, beginnings, extended_for, texts_of
from benchmarks.curate_tokenizer_loss import focus_bits_per_byte
from benchmarks.data.results import Row

WAYS = {"as published": (EPOCHS, MIN_COUNT), "30 epochs": (30, 1)}
"""Epochs, and occurrences that a token needs for a vector: those of FOCUS's package; and as suits a text this small."""
FASTTEXT = "fasttext"


def rows(settings: Settings) -> list[Row]:
    """A row a tokenizer. Raises BenchmarkError where the texts, the model or fastText are missing."""
    return [
        _row(settings, extended_for(settings, language, join_marks), number)
        for number, (language, join_marks) in enumerate(VARIANTS, start=1)
    ]


def _row(settings: Settings, made: Extended, number: int) -> Row:
    tokens = made.directory.with_suffix(".tokens")
    count = write_tokens(made.directory, texts_of(made.train), tokens)
    vectors = {
        name: train(tokens, made.directory.with_suffix(f".{epochs}"), FASTTEXT, "cbow", epochs, min_count)
        for name, (epochs, min_count) in WAYS.items()
    }
    chosen = beginnings(made)
    found = focus_bits_per_byte(settings.model, made.directory, vectors, chosen)
    best = min(found[name] for name in WAYS)
    losses = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    sizes = ", ".join(f"{name} {_count(path)}" for name, path in vectors.items())
    return Row(
        row=f"tokenizer {number}k",
        work=f"{made.name}: loss at step 0, new rows by subtoken_mean",
        peer="focus rows, the better of two",
        unit="bits/byte",
        ours=found["subtoken_mean"],
        peer_value=best,
        ratio=best / found["subtoken_mean"],
        goal="none",
        input=f"{len(chosen)} beginnings of held-out documents, {sum(len(t.encode()) for t in chosen)} bytes",
        rounds=1,
        note=f"{losses}; fastText's CBOW on {count} tokens; tokens with a vector: {sizes}",
        peer_versions={"fasttext": _version()},
        command=settings.command,
    )


def _count(vectors: Path) -> str:
    """Tokens of the file."""
    with vectors.open(encoding="utf-8") as lines:
        return lines.readline().split()[0]


def _version() -> str:
    """Of Debian's package."""
    words = ["dpkg-query", "-W", "-f", "${Version}", "fasttext"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
