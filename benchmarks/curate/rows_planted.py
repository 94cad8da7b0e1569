"""Rows of what is planted: personal data, runs of words of evaluation sets, pairs of sets of a known likeness.

Place in the flow: beside the other rows of curation. Invariant: what is to be found is known from how it was made, or
by Python's own sets, and never from the code that is measured.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.curate.planted import KINDS, texts_with_personal_data
from benchmarks.curate.rows_dedup import Settings
from benchmarks.curate.steps import documents_of
from benchmarks.data.measure import ROOT
from benchmarks.data.results import Row
from cptron.corpus.dedup.s_curve import candidate_probability
from cptron.corpus.dedup.scheme import Scheme, keys_of
from cptron.corpus.document import Document, Dropped
from cptron.corpus.pii.spans import find_pii
from cptron.corpus.step import Tally
from cptron.corpus.steps import decontaminate

DATA = ROOT / "examples" / "quickstart" / "data"
MADE_TEXTS = 5000
ITEMS = 400
PLANTED_EVERY = 10
PAIRS = 20_000
RUN_WORDS = 12
LEAST = 0.98
MOST_STANDARD_ERRORS = 4.0


def personal_data(settings: Settings) -> list[Row]:
    """Precision and recall by exact place and kind, on made texts."""
    right, found, known = Counter[str](), Counter[str](), Counter[str]()
    texts = texts_with_personal_data(1, MADE_TEXTS)
    started_s = time.process_time()
    answers = [find_pii(text, KINDS, public_addresses_only=True) for text, _ in texts]
    cpu_s = time.process_time() - started_s
    for (_, spans), mine in zip(texts, answers, strict=True):
        found.update(kind for _, _, kind in mine)
        known.update(kind for _, _, kind in spans)
        right.update(kind for _, _, kind in set(mine) & set(spans))
    shares = {kind: (right[kind] / found[kind], right[kind] / known[kind]) for kind in KINDS}
    worst = min(min(pair) for pair in shares.values())
    megabytes = sum(len(text.encode()) for text, _ in texts) / 1e6
    return [
        Row(
            row="planted pii",
            work="personal data in made texts, the worst of precision and recall of all kinds",
            unit="share",
            ours=round(worst, 4),
            goal=f">= {LEAST}",
            met=worst >= LEAST,
            input=f"{MADE_TEXTS} texts, {known.total()} places, harmless numbers among them",
            rounds=1,
            note="; ".join(
                f"{kind} precision {precision:.4f}, recall {recall:.4f}"
                for kind, (precision, recall) in shares.items()
            )
            + f"; {megabytes / cpu_s:.1f} MB for each CPU second",
            command=settings.command,
        )
    ]


def evaluation_words(settings: Settings) -> list[Row]:
    """Real documents, a tenth of them with a run of words of an item put in; what else shares one is known by sets."""
    items = [one.text for one in documents_of([str(DATA / "postgresql_docs_en.valid.jsonl.gz")])]
    items = [item for text in items for item in _passages(text)][:ITEMS]
    runs = {run for item in items for run in _runs(item)}
    draw, documents = random.Random(2), []
    for number, one in enumerate(documents_of([str(DATA / "wikipedia_vital_en.train.jsonl.gz")])):
        text = one.text
        if number % PLANTED_EVERY == 0:
            words = draw.choice(items).split()
            start = draw.randrange(len(words) - 2 * RUN_WORDS)
            text = f"{text[:200]} {' '.join(words[start : start + 2 * RUN_WORDS])} {text[200:]}"
        documents.append(Document(text, f"wikipedia/{number}", "wikipedia"))
    wanted = {document.id for document in documents if not runs.isdisjoint(_runs(document.text))}
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "evaluation.jsonl"
        path.write_text("".join(json.dumps({"text": item}) + "\n" for item in items))
        config = decontaminate.Config(
            evaluation=(str(path),), run_words=RUN_WORDS, shortest_item_words=RUN_WORDS
        )
        step = decontaminate.Step("decontaminate", config, 0)
        step.open()
        started_s = time.process_time()
        results = step.apply_batch(documents, Tally())
        cpu_s = time.process_time() - started_s
    found = {one.id for one, result in zip(documents, results, strict=True) if isinstance(result, Dropped)}
    agreed = len(found & wanted) / len(found | wanted)
    megabytes = sum(document.num_bytes for document in documents) / 1e6
    return [
        Row(
            row="planted evaluation words",
            work="documents with words of an evaluation set: found and wanted, of found or wanted",
            unit="share",
            ours=agreed,
            goal="1",
            met=agreed == 1,
            input=f"{len(documents)} documents, {len(items)} items, runs of {RUN_WORDS} words",
            rounds=1,
            note=(
                f"{len(documents[::PLANTED_EVERY])} planted, {len(wanted)} wanted by Python's sets, "
                f"{len(found)} found, "
                f"{len(found - wanted)} without reason, {len(wanted - found)} missed; "
                f"{megabytes / cpu_s:.1f} MB for each CPU second"
            ),
            command=settings.command,
        )
    ]


def _passages(text: str) -> list[str]:
    """Of 60 words each: longer than what is planted."""
    words = text.split()
    return [" ".join(words[start : start + 60]) for start in range(0, len(words) - 59, 60)]


def _runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[^\W_]+", text.casefold())
    return {tuple(words[start : start + RUN_WORDS]) for start in range(len(words) - RUN_WORDS + 1)}


def s_curve(settings: Settings) -> list[Row]:
    """Share of pairs that meet in a band, against 1 - (1 - j^r)^b, in standard errors."""
    scheme = Scheme.of(0.8)
    said, worst = [], 0.0
    for shared in (50, 60, 70, 80, 90):
        each = (100 - shared) // 2
        jaccard = shared / (shared + 2 * each)
        keys = keys_of(*_pairs(shared, each), scheme)
        met = float((keys[:, ::2] == keys[:, 1::2]).any(axis=0).mean())
        wanted = float(candidate_probability(jaccard, scheme.bands, scheme.rows))
        error = float(np.sqrt(max(wanted * (1 - wanted), 1 / PAIRS) / PAIRS))
        worst = max(worst, abs(met - wanted) / error)
        said.append(f"{jaccard:.1f}: {met:.4f} of {wanted:.4f}")
    return [
        Row(
            row="planted s-curve",
            work="pairs of made sets that meet in a band, farthest from the S-curve",
            unit="standard errors",
            ours=round(worst, 2),
            goal=f"<= {MOST_STANDARD_ERRORS}",
            met=worst <= MOST_STANDARD_ERRORS,
            input=f"{PAIRS} pairs at each of five Jaccard indexes, {scheme.bands} bands x {scheme.rows} rows",
            rounds=1,
            note="; ".join(said),
            command=settings.command,
        )
    ]


def _pairs(shared: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of random sets, as documents 2 i and 2 i + 1, and their starts."""
    generator = np.random.default_rng(shared)
    values = generator.integers(0, 2**32, (PAIRS, shared + 2 * each), dtype=np.uint32)
    left, right = values[:, : shared + each], np.delete(values, np.s_[shared : shared + each], axis=1)
    both = np.sort(np.stack([left, right], axis=1).reshape(2 * PAIRS, -1), axis=1)
    return both.ravel(), np.arange(2 * PAIRS + 1, dtype=np.int64) * (shared + each)


def planted(settings: Settings) -> list[Row]:
    """All three."""
    return personal_data(settings) + evaluation_words(settings) + s_curve(settings)
