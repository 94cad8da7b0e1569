"""Small corpora of every kind of file, and curations of them, for the tests of the corpus room."""

from __future__ import annotations

import gzip
import json
import random
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
import zstandard

from cptron.corpus.executor import LocalExecutor
from cptron.corpus.load import load_curation
from cptron.corpus.manifest import CorpusManifest
from cptron.corpus.run import curate, prepare
from cptron.corpus.schema import CurateConfig

UNORDERED = "timing.json"
"""What may differ between equal runs."""
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "that",
    "have",
    "with",
    "be",
    "cell",
    "water",
    "engine",
    "river",
    "stone",
    "small",
]


def text_of(number: int, num_words: int = 40) -> str:
    """Something like prose; the same for the same number."""
    draw = random.Random(number)
    words = [draw.choice(WORDS) for _ in range(num_words)]
    return " ".join(words).capitalize() + f" {number}."


def lines_of(texts: Sequence[str], **meta: Any) -> bytes:
    """JSONL."""
    records = [{"text": text, "number": number, **meta} for number, text in enumerate(texts)]
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def write_inputs(root: Path) -> dict[str, list[str]]:
    """Two sources: `web` in plain, gzip, zstd and ZIP files with damaged lines and repeated texts, `book` of texts.
    Returns the paths of each."""
    root.mkdir(parents=True, exist_ok=True)
    web = lines_of([text_of(number % 45) for number in range(60)], url="https://example.org/")
    damaged = web.replace(b'{"text"', b'{"txet"', 1) + b"{\n" + b'{"text": 3}\n' + b'{"text": "caf\xe9"}\n'
    (root / "a.jsonl").write_bytes(damaged)
    (root / "b.jsonl.gz").write_bytes(gzip.compress(lines_of([text_of(n) for n in range(40, 70)]), mtime=0))
    packed = zstandard.ZstdCompressor().compress(lines_of([text_of(n, 3) for n in range(100, 120)]))
    (root / "c.jsonl.zst").write_bytes(packed)
    with zipfile.ZipFile(root / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/x.jsonl", lines_of([text_of(n) for n in range(200, 210)]))
        archive.writestr("in/y.txt", text_of(300))
    book = root / "book"
    book.mkdir(exist_ok=True)
    for number in range(5):
        (book / f"{number}.txt").write_text(
            text_of(number + 400) + "\nWrite to ann@example.com or +49 30 901820."
        )
    web_files = ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.zip")
    return {"web": [str(root / name) for name in web_files], "book": [str(book)]}


def config_of(
    output: Path, inputs: Mapping[str, Sequence[str]], steps: Sequence[Mapping[str, Any]], **more: Any
) -> Any:
    """The values of a curation file."""
    sources = [{"name": name, "paths": list(paths)} for name, paths in inputs.items()]
    return {"output": str(output), "shard_bytes": 2048, "inputs": sources, "steps": list(steps), **more}


STEPS: list[dict[str, Any]] = [
    {"step": "length", "min_words": 5},
    {"step": "exact_dedup"},
    {"step": "pii", "sources": ["book"]},
    {"step": "exact_dedup", "name": "again", "same": "words"},
    {"step": "length", "name": "last", "max_words": 1000},
]
"""Two corpus steps, and map steps before, between and behind them."""


def loaded(config: Mapping[str, Any]) -> CurateConfig:
    """From a file, which lies beside the output."""
    path = Path(config["output"]).with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(config)))
    return load_curation(path)


def run(config: Mapping[str, Any], workers: int = 1, **options: Any) -> CorpusManifest:
    """Curate, as the command does."""
    with LocalExecutor(workers, progress=False) as executor:
        return curate(prepare(loaded(config), **options), executor, workers)


def files_of(output: Path) -> dict[str, bytes]:
    """Content of the published files that must be equal in equal runs."""
    return {
        path.name: path.read_bytes() for path in output.iterdir() if path.is_file() and path.name != UNORDERED
    }


def documents_of(output: Path) -> list[dict[str, Any]]:
    """Every document of the output, in order."""
    found = []
    for path in sorted(output.glob("*.jsonl.zst")):
        content = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())
        found += [json.loads(line) for line in content.splitlines()]
    return found
