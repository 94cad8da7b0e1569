"""CPU seconds and MB/s of each step of a curation, each by itself on the same documents.

`python -m benchmarks.curate.steps --input FILES`: one process, its own CPU time, the best of some rounds.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cptron.corpus.document import Document
from cptron.corpus.registry import config_class, step_class
from cptron.corpus.shard_file import ShardWriter, read_shard
from cptron.corpus.step import CorpusStep, Tally
from cptron.tokens.inputs import expand_inputs
from cptron.tokens.read_blocks import read_blocks
from cptron.tokens.records import Position


def documents_of(patterns: Sequence[str]) -> list[Document]:
    """Texts at `text` of JSONL files."""
    blocks = read_blocks(expand_inputs(patterns), Position(0, 0, 0), max_record_bytes=64 << 20)
    texts = (value[0] for block in blocks for value in block.parse(("text",), chat=False).values)
    return [
        Document(text.decode(), f"x#{number}", "x")
        for number, text in enumerate(texts)
        if isinstance(text, bytes)
    ]


def cases(model: str, words: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Label, step, settings."""
    rules = {"words": words}
    found: list[tuple[str, str, dict[str, Any]]] = [
        ("normalise", "normalise", {}),
        ("length", "length", {"min_words": 20}),
        ("language, script", "language", {"engine": "script", "threshold": 0.0}),
        ("language, py3langid", "language", {"engine": "py3langid", "threshold": 0.0}),
        ("language, lingua (first 1,000 characters)", "language",
         {"engine": "lingua", "threshold": 0.0, "max_characters": 1000}),
        ("gopher_quality", "gopher_quality", {"min_stop_words": 0, **rules}),
        ("gopher_repetition", "gopher_repetition", rules),
        ("c4_quality", "c4_quality", rules),
        ("fineweb_quality", "fineweb_quality", rules),
        ("exact_dedup, features", "exact_dedup", {}),
        ("pii", "pii", {}),
    ]  # fmt: skip
    if model:
        found.append(
            ("language, fastText", "language", {"engine": "fasttext", "model": model, "threshold": 0.0})
        )
    if words == "datatrove":
        found = [case for case in found if "words" in case[2]]
    return found


def cpu_s(work: Callable[[], object], rounds: int) -> float:
    """Least CPU seconds of some calls."""
    spent = []
    for _ in range(rounds):
        started_s = time.process_time()
        work()
        spent.append(time.process_time() - started_s)
    return min(spent)


def main() -> None:
    """Measure and print; with `--output` also as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", nargs="+", required=True, help="JSONL files with texts at `text`")
    parser.add_argument("--model", default="", help="fastText language model")
    parser.add_argument("--words", choices=("fast", "datatrove"), default="fast")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    documents = documents_of(args.input)
    num_bytes = sum(document.num_bytes for document in documents)
    rows: list[dict[str, Any]] = []

    def measure(label: str, work: Callable[[], object]) -> None:
        spent_s = cpu_s(work, args.rounds)
        rows.append(
            {"what": label, "cpu_s": round(spent_s, 3), "mb_per_cpu_s": round(num_bytes / 1e6 / spent_s, 2)}
        )
        print(f"{label:<45}{spent_s:8.2f} s {num_bytes / 1e6 / spent_s:9.2f} MB/s", flush=True)

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.jsonl.zst"

        def write() -> None:
            with ShardWriter(path, 3) as writer:
                for document in documents:
                    writer.write(document)
                writer.publish()

        if args.words == "fast":
            measure("writing a shard (zstd 3)", write)
            measure("reading a shard", lambda: list(read_shard(path)))
        for label, name, settings in cases(args.model, args.words):
            if name == "language" and not _is_there(settings["engine"]):
                continue
            step = step_class(name)(label, config_class(name)(**settings), 0)
            step.open()
            if isinstance(step, CorpusStep):
                measure(
                    label, lambda step=step: step.features(iter(documents), Path(directory) / "f", Tally())
                )  # type: ignore[misc]
            else:
                size = step.batch_documents

                def apply(step: Any = step, size: int = size) -> None:
                    rest = iter(documents)
                    while batch := list(itertools.islice(rest, size)):
                        step.apply_batch(batch, Tally())

                measure(label, apply)
    if args.output:
        content = {
            "documents": len(documents),
            "mb": round(num_bytes / 1e6, 2),
            "words": args.words,
            "rows": rows,
        }
        args.output.write_text(json.dumps(content, indent=2) + "\n")


def _is_there(engine: str) -> bool:
    return engine == "script" or importlib.util.find_spec(engine) is not None


if __name__ == "__main__":
    main()
