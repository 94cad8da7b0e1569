"""A corpus that nobody made up: the Python sources and texts of the environment's packages, a file a document.

Place in the flow: rows 1c and 2c of `run`, beside the recombined text of `make_corpus`. Invariant: the same
environment gives the same bytes; another one gives other files, so both sides always get the same file.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from benchmarks.data.measure import ROOT

SUFFIXES = (".py", ".pyi", ".md", ".rst", ".txt")
SEED_TEXTS = ROOT / "examples" / "quickstart" / "data"
_LEAST_CHARS = 200


def make_natural(path: Path, megabytes: float) -> Path:
    """Write `megabytes` (10^6 bytes) of JSONL, or less where the environment has less, unless `path` exists."""
    if path.is_file():
        return path
    partial = path.with_suffix(".partial")
    num_bytes = 0
    with partial.open("w", encoding="utf-8") as stream:
        for text in _texts():
            line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
            stream.write(line)
            num_bytes += len(line.encode())
            if num_bytes >= megabytes * 1e6:
                break
    return partial.rename(path)


def _texts() -> Iterator[str]:
    for archive in sorted(SEED_TEXTS.glob("*.jsonl.gz")):
        with gzip.open(archive, "rt", encoding="utf-8") as lines:
            yield from (json.loads(line)["text"] for line in lines)
    root = Path(sysconfig.get_paths()["purelib"])
    files = [path for path in root.rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    names = {path: path.relative_to(root).as_posix() for path in files}
    for path in sorted(files, key=lambda path: hashlib.sha256(names[path].encode()).digest()):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if len(text) >= _LEAST_CHARS and "\0" not in text:
            yield text
