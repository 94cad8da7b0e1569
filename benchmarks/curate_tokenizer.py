"""Rows of the tokenizer: a real English model extended for Vietnamese and for Hindi, and first rows for the new tokens.

Place in the flow: `--rows tokenizer` of `benchmarks.curate.run`. Invariant: nothing is learned from what is measured
on: no paragraph is in both parts of the texts; ours and the peer encode the same documents, and losses are over the
same bytes.

The peers: the base as it is; the recipe that pushes the domain's most frequent words through `add_tokens`; and other
first values of the rows.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend

from benchmarks.curate.language_texts import LANGUAGES, write
from benchmarks.curate.reached import not_reached
from benchmarks.curate_tokenizer_loss import bits_per_byte, toy_losses
from benchmarks.data.measure import ROOT, BenchmarkError
from benchmarks.data.results import Row
from cptron.tokenizer.extend import ExtendOptions, extend
from cptron.tokenizer.texts import Corpus

GENERAL = sorted((ROOT / "examples" / "quickstart" / "data").glob("*.valid.jsonl.gz"))
VARIANTS = (("vi", False), ("hi", False), ("hi", True))
"""Language, and whether marks are joined to their letters."""
NEW_TOKENS = 3000
MIN_FREQUENCY = 10
FUZZED = 20_000
SEED_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Settings:
    """What the rows need."""

    cache: Path
    """Of Debian's packages."""
    model: Path
    work_dir: Path
    command: str


@dataclass(frozen=True)
class Extended:
    """What was made for a language."""

    name: str
    directory: Path
    report: dict[str, Any]
    train: Path
    valid: Path


def rows(settings: Settings) -> list[Row]:
    """All rows; raises BenchmarkError where a text or the model is missing."""
    if not (settings.model / "tokenizer.json").is_file():
        raise BenchmarkError(f"{settings.model} holds no model; `make demo` fetches it")
    found: list[Row] = []
    for number, (language, join_marks) in enumerate(VARIANTS, start=1):
        made = extended_for(settings, language, join_marks)
        found += _encoding_rows(settings, made, number) + _loss_rows(settings, made, number)
    return [*found, _toy_row(settings, f"tokenizer {len(VARIANTS) + 1}")]


def extended_for(settings: Settings, language: str, join_marks: bool) -> Extended:
    """The model's tokenizer, extended for a language."""
    train, valid = write(language, settings.cache, settings.work_dir)
    name = LANGUAGES[language].name + (", marks joined" if join_marks else "")
    directory = settings.work_dir / f"tokenizer_{language}{'_joined' if join_marks else ''}"
    shutil.rmtree(directory, ignore_errors=True)
    options = ExtendOptions(
        model=settings.model,
        output=directory,
        domain=Corpus(inputs=(str(train),)),
        held_out=Corpus(inputs=(str(valid),)),
        general=Corpus(inputs=tuple(map(str, GENERAL))),
        num_tokens=NEW_TOKENS,
        min_count=MIN_FREQUENCY,
        join_marks=join_marks,
    )
    return Extended(name, directory, extend(options), train, valid)


def texts_of(path: Path) -> Iterator[str]:
    """Of a JSONL file."""
    raw = path.read_bytes()
    for line in (gzip.decompress(raw) if path.suffix == ".gz" else raw).splitlines():
        yield str(json.loads(line)["text"])


def _encoding_rows(settings: Settings, made: Extended, number: int) -> list[Row]:
    report, name = made.report, f"tokenizer {number}"
    learned = report["learned_from"]
    domain, general = report["domain"], report["general"]
    seed_domain, seed_general = _seed_recipe(settings, made)
    about = f"{made.name}: {domain['documents']} held-out documents, {domain['bytes']} bytes"
    general_about = f"English: {general['documents']} held-out documents, {general['bytes']} bytes"
    ours, base = domain["tokens_per_byte_after"], domain["tokens_per_byte_before"]
    general_ours, general_base = general["tokens_per_byte_after"], general["tokens_per_byte_before"]
    failed, lost_by_base = _round_trips(settings.model, made.directory)
    lost = not_reached(settings.model, made.directory, [*texts_of(made.train), *texts_of(made.valid)])
    common: dict[str, Any] = {"unit": "tokens/byte", "rounds": 1, "command": settings.command}
    seed = "add_tokens of frequent words"
    return [
        Row(
            row=f"{name}a",
            work=f"{report['new_tokens']} tokens for {made.name}: its text",
            peer="not extended",
            ours=ours,
            peer_value=base,
            ratio=base / ours,
            input=about,
            note=f"learned from {learned['documents']} documents, {learned['bytes']} bytes; {report['stopped']}; "
            f"{domain['new_tokens_unused']} new tokens not in the held-out text; its pre-tokenizer cuts "
            f"{_words_per_byte(made):.4f} words/byte, and no extension gets below",
            **common,
        ),
        Row(
            row=f"{name}b",
            work=f"{report['new_tokens']} tokens for {made.name}: English text",
            peer="not extended",
            ours=general_ours,
            peer_value=general_base,
            ratio=general_base / general_ours,
            goal="no document longer",
            met=general["documents_with_more_tokens"] == 0,
            input=general_about,
            note=f"{general['documents_cut_otherwise']} documents are cut otherwise",
            **common,
        ),
        Row(
            row=f"{name}c",
            work=f"{made.name}: its text",
            peer=seed,
            ours=ours,
            peer_value=seed_domain,
            ratio=seed_domain / ours,
            goal="> 1x",
            met=seed_domain > ours,
            input=about,
            **common,
        ),
        Row(
            row=f"{name}d",
            work=f"{made.name}: English text",
            peer=seed,
            ours=general_ours,
            peer_value=seed_general,
            ratio=seed_general / general_ours,
            goal="> 1x",
            met=seed_general > general_ours,
            input=general_about,
            **common,
        ),
        Row(
            row=f"{name}e",
            work=f"{made.name}: new tokens that no text reaches",
            goal="0",
            ours=len(lost),
            met=not lost,
            input=f"{report['new_tokens']} new tokens, each looked for in real encodings by a search of its own",
            **common | {"unit": "tokens"},
        ),
        Row(
            row=f"{name}f",
            work=f"{made.name}: texts that come back otherwise than from the base",
            goal="0",
            ours=failed,
            met=failed == 0,
            input=f"{FUZZED} texts of random Unicode",
            note=f"{lost_by_base} of them the base itself does not give back: it lacks bytes that text seldom has",
            **common | {"unit": "texts"},
        ),
        Row(
            row=f"{name}g",
            work=f"{made.name}: counting words",
            ours=1 / learned["count_s_per_mb"],
            input=f"{learned['bytes']} bytes, {learned['distinct_words']} distinct words",
            note=f"then {learned['learn_s']:.2f} s for {report['new_merges']} merges",
            **common | {"unit": "MB/s"},
        ),
    ]


def _words_per_byte(made: Extended) -> float:
    """Of the held-out text."""
    cut = Backend.from_file(str(made.directory / "tokenizer.json")).pre_tokenizer.pre_tokenize_str
    texts = list(texts_of(made.valid))
    return sum(len(cut(text)) for text in texts) / sum(len(text.encode()) for text in texts)


def _seed_recipe(settings: Settings, made: Extended) -> tuple[float, float]:
    """Tokens per byte of domain and general text after as many frequent words were added as tokens."""
    backend = Backend.from_file(str(settings.model / "tokenizer.json"))
    words = Counter(word for text in texts_of(made.train) for word in SEED_WORD.findall(text))
    vocab = backend.get_vocab()
    ranked = sorted(words, key=lambda word: (-words[word], word))
    backend.add_tokens([word for word in ranked if word not in vocab][: made.report["new_tokens"]])
    found = []
    for paths in ([made.valid], GENERAL):
        texts = [text for path in paths for text in texts_of(path)]
        tokens = sum(len(e.ids) for e in backend.encode_batch_fast(texts, add_special_tokens=False))
        found.append(tokens / sum(len(text.encode()) for text in texts))
    return found[0], found[1]


def _round_trips(base: Path, extended: Path) -> tuple[int, int]:
    """Texts of random Unicode that the extended tokenizer gives back otherwise than the base does, and those that the
    base does not give back: its vocabulary lacks bytes that text seldom has."""
    backends = [Backend.from_file(str(path / "tokenizer.json")) for path in (base, extended)]
    generator = random.Random(0)
    blocks = [
        (0x20, 0x7F),
        (0xA0, 0x250),
        (0x900, 0x980),
        (0x1EA0, 0x1F00),
        (0x4E00, 0x9FFF),
        (0x1F300, 0x1F700),
    ]
    failed = lost_by_base = 0
    for _ in range(FUZZED):
        low, high = generator.choice(blocks)
        text = "".join(
            chr(generator.randrange(low, high)) if generator.random() < 0.8 else generator.choice(" \n\t'.")
            for _ in range(generator.randrange(1, 40))
        )
        old, new = (
            backend.decode(backend.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
            for backend in backends
        )
        failed += new != old
        lost_by_base += old != text
    return failed, lost_by_base


def beginnings(made: Extended) -> list[str]:
    """Of some held-out documents."""
    texts = [text[:600] for text in texts_of(made.valid)]
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:12]]


def _loss_rows(settings: Settings, made: Extended, number: int) -> list[Row]:
    chosen = beginnings(made)
    begun = time.perf_counter()
    found = bits_per_byte(settings.model, made.directory, chosen)
    about = f"{len(chosen)} beginnings of held-out documents, {sum(len(t.encode()) for t in chosen)} bytes"
    note = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    print(f"{made.name}: {note} ({time.perf_counter() - begun:.0f} s)", file=sys.stderr, flush=True)
    return [
        Row(
            row=f"tokenizer {number}{letter}",
            work=f"{made.name}: loss at step 0, new rows by subtoken_mean",
            peer=f"{peer} rows",
            unit="bits/byte",
            ours=found["subtoken_mean"],
            peer_value=found[peer],
            ratio=found[peer] / found["subtoken_mean"],
            goal="lower" if peer != "mvn" else "none",
            met=found["subtoken_mean"] < found[peer] if peer != "mvn" else None,
            input=about,
            rounds=1,
            note=note,
            command=settings.command,
        )
        for letter, peer in (("h", "mean"), ("i", "random"), ("j", "mvn"))
    ]


def _toy_row(settings: Settings, name: str) -> Row:
    general = [text for path in GENERAL for text in texts_of(path)]
    domain = list(texts_of(settings.work_dir / "vi.train.jsonl"))
    held_out = list(texts_of(settings.work_dir / "vi.valid.jsonl"))
    found = toy_losses(general, domain, held_out, settings.work_dir)
    return Row(
        row=name,
        work="untied toy model: loss at step 0, output rows from the output matrix",
        peer="output rows copied from the input matrix",
        unit="bits/byte",
        ours=found["subtoken_mean"],
        peer_value=found["output rows from the input"],
        ratio=found["output rows from the input"] / found["subtoken_mean"],
        goal="lower",
        met=found["subtoken_mean"] < found["output rows from the input"],
        input=f"Vietnamese, {len(held_out)} held-out documents; trained here on English and Vietnamese",
        rounds=1,
        note=", ".join(f"{key} {value:.3f}" for key, value in found.items()),
        command=settings.command,
    )
