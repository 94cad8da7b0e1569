"""Rows of selection: what DSIR and a classifier find of a domain in a mix of real text; speed of measuring losses.

Usage: python -m benchmarks.curate.rows_select --domains DIRECTORY [--model DIRECTORY]

Place in the flow: beside the other rows of curation, in the same file of results. Invariant: targets and examples are
documents that are not in the mix; every domain is the target once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.curate.steps import documents_of
from benchmarks.data.measure import ROOT, BenchmarkError
from benchmarks.data.results import Row, merge, table
from cptron.corpus.document import Document
from cptron.corpus.registry import config_class, step_class
from cptron.corpus.step import CorpusStep, MapStep, ShardFeatures, Tally
from cptron.corpus.words import tokens_of

RESULTS = ROOT / "benchmarks" / "results" / "curate.json"
DOMAINS = ROOT / "examples" / "quickstart" / "data"
GOAL = 0.9
MOST_SHARED = 0.5
"""Share of a document's runs of five words that may be in another domain too."""
_SHARDS = 4
_MEASURED_DOCUMENTS = 40
Mix = dict[str, list[Document]]


def mix_of(directory: Path) -> Mix:
    """Documents by domain: of `NAME.train.jsonl.gz`, beside which lie the examples, `NAME.valid.jsonl.gz`; without
    those that another domain has too, such as the untranslated pages of two translations. Raises BenchmarkError."""
    files = sorted(directory.glob("*.train.jsonl.gz"))
    if len(files) < 2:
        raise BenchmarkError(
            f"{directory} has {len(files)} files NAME.train.jsonl.gz, must have two; name another"
        )
    mix: Mix = {}
    for path in files:
        name = path.name.removesuffix(".train.jsonl.gz")
        mix[name] = [Document(one.text, f"{name}/{one.id}", name) for one in documents_of([str(path)])]
    return _of_one_domain(mix)


def _of_one_domain(mix: Mix) -> Mix:
    """Without documents of which most runs of five words are in another domain: nobody could say whose they are."""
    runs = {name: [_runs(document.text) for document in documents] for name, documents in mix.items()}
    every = {name: set[int]().union(*found) for name, found in runs.items()}
    kept: Mix = {}
    for name, documents in mix.items():
        others = set[int]().union(*(found for other, found in every.items() if other != name))
        kept[name] = [
            document
            for document, own in zip(documents, runs[name], strict=True)
            if len(own & others) < MOST_SHARED * max(1, len(own))
        ]
    return kept


def _runs(text: str) -> set[int]:
    words = tokens_of(text)
    return {hash(tuple(words[start : start + 5])) for start in range(len(words) - 4)}


def dsir(directory: Path, mix: Mix) -> list[Row]:
    """Share of the target in what is taken: half as many bytes as the mix has of it."""
    return [_row("dsir", name, mix, directory, *_dsir(name, mix, directory)) for name in mix]


def classifier(directory: Path, mix: Mix) -> list[Row]:
    """Precision on the mix, at the threshold that training promises; examples: half of each domain's documents."""
    return [_row("classifier", name, mix, directory, *_classifier(name, mix, directory)) for name in mix]


def _dsir(name: str, mix: Mix, directory: Path) -> tuple[float, float, str]:
    own = sum(document.num_bytes for document in mix[name])
    settings = {"target": (str(directory / f"{name}.valid.jsonl.gz"),), "budget": own // 2}
    kept, cpu_s = _kept("dsir", settings, [document for documents in mix.values() for document in documents])
    num_bytes = Counter[str]()
    for document in kept:
        num_bytes[document.source] += document.num_bytes
    return num_bytes[name] / max(1, num_bytes.total()), cpu_s, f"{len(kept)} documents taken, soft"


def _classifier(name: str, mix: Mix, directory: Path) -> tuple[float, float, str]:
    with tempfile.TemporaryDirectory() as work:
        paths: dict[str, list[str]] = {"positive": [], "negative": []}
        for other, documents in mix.items():
            path = Path(work) / other
            path.mkdir()
            for number, document in enumerate(documents[::2]):
                (path / f"{number}.txt").write_text(document.text)
            paths["positive" if other == name else "negative"].append(str(path))
        settings = {kind: tuple(files) for kind, files in paths.items()}
        unseen = [document for documents in mix.values() for document in documents[1::2]]
        kept, cpu_s = _kept("classifier", settings, unseen)
    right = sum(document.source == name for document in kept)
    recall = right / sum(document.source == name for document in unseen)
    asked = config_class("classifier")().min_precision
    note = f"{asked} promised by training; recall {recall:.4f} on {len(unseen)} unseen documents"
    return right / max(1, len(kept)), cpu_s, note


def _kept(name: str, settings: dict[str, Any], documents: Sequence[Document]) -> tuple[list[Document], float]:
    """What a corpus step lets through, over some shards, and its CPU seconds."""
    step = step_class(name)(name, config_class(name)(**settings), 0)
    assert isinstance(step, CorpusStep)
    step.open()
    kept: list[Document] = []
    started_s = time.process_time()
    with tempfile.TemporaryDirectory() as work:
        decided, shards = Path(work) / "decided", []
        decided.mkdir()
        parts = [documents[number::_SHARDS] for number in range(_SHARDS)]
        for number, part in enumerate(parts):
            path = Path(work) / f"{number}.features"
            step.features(iter(part), path, Tally())
            shards.append(ShardFeatures(number, path, len(part), lambda: iter(())))
        step.decide(shards, decided, 1)
        for number, part in enumerate(parts):
            call = step.applied(decided, number)
            kept += [made for one in part if isinstance(made := call(one, Tally()), Document)]
    return kept, time.process_time() - started_s


def _row(kind: str, name: str, mix: Mix, directory: Path, share: float, cpu_s: float, note: str) -> Row:
    documents = [document for documents in mix.values() for document in documents]
    megabytes = sum(document.num_bytes for document in documents) / 1e6
    return Row(
        row=f"select {kind} {name}",
        work="share of the domain in what DSIR takes"
        if kind == "dsir"
        else "precision of a trained classifier",
        unit="share",
        ours=round(share, 4),
        goal=f">= {GOAL}",
        met=share >= GOAL,
        input=f"{len(documents)} documents, {megabytes:.0f} MB, of {len(mix)} domains: {', '.join(mix)}",
        rounds=1,
        note=f"{note}; {megabytes / cpu_s:.2f} MB for each CPU second, training and all passes included",
        command=_command(directory),
    )


def perplexity(model: Path, mix: Mix, directory: Path, rounds: int) -> list[Row]:
    """Tokens a second of wall time, on one thread, of some documents of each domain."""
    documents = [
        document for documents in mix.values() for document in documents[: _MEASURED_DOCUMENTS // len(mix)]
    ]
    settings = {"model": str(model), "window": 512, "stride": 256, "max_windows": 2}
    step = step_class("perplexity")("perplexity", config_class("perplexity")(**settings), 0)
    assert isinstance(step, MapStep)
    step.open()
    rates = []
    for _ in range(rounds):
        tally, started_s = Tally(), time.perf_counter()
        step.apply_batch(documents, tally)
        rates.append(tally["tokens_measured"] / (time.perf_counter() - started_s))
    return [
        Row(
            row="select perplexity",
            work="loss of documents under a causal model, one thread",
            unit="tokens/s",
            ours=float(np.median(rates)),
            input=f"{len(documents)} documents, 2 windows of 512 tokens each at most",
            rounds=rounds,
            spread={"ours": [min(rates), max(rates)]},
            note=f"model {model.name}",
            command=_command(directory),
        )
    ]


def _command(directory: Path) -> str:
    return f"python -m benchmarks.curate.rows_select --domains [...]/{directory.name}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the steps that select.")
    parser.add_argument(
        "--domains", type=Path, default=DOMAINS, help="NAME.train.jsonl.gz and NAME.valid.jsonl.gz"
    )
    parser.add_argument(
        "--model", type=Path, help="a Hugging Face causal model; without it no loss is measured"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of the loss")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file to merge into")
    args = parser.parse_args(argv)
    try:
        mix = mix_of(args.domains)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows: list[Callable[[], list[Row]]] = [
        lambda: dsir(args.domains, mix),
        lambda: classifier(args.domains, mix),
    ]
    if args.model:
        rows.append(lambda: perplexity(args.model, mix, args.domains, args.rounds))
    for measure in rows:
        found = merge(measure(), args.results)
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
