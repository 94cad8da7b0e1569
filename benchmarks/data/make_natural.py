"""A corpus that nobody made up: sources and texts of the environment's packages, a file a document, among the seed
texts of `make_corpus`.

Place in the flow: rows 1c and 2c of `run`, beside the recombined text of `make_corpus`. Invariant: the same
environment gives the same bytes; another one gives other files, so both sides always get the same file. Documents
are in the order of hashes, so that its first megabytes are the same mixture as all of it.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from benchmarks.data.make_corpus import SEED_TEXTS, seed_documents

SUFFIXES = (".py", ".pyi", ".md", ".rst", ".txt")
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
    root = Path(sysconfig.get_paths()["purelib"])
    files = [path for path in root.rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    named: dict[str, Path | str] = {path.relative_to(root).as_posix(): path for path in files}
    named |= {f"seed text {number}": text for number, text in enumerate(seed_documents(SEED_TEXTS))}
    for name in sorted(named, key=lambda name: hashlib.sha256(name.encode()).digest()):
        text = _read(named[name])
        if len(text) >= _LEAST_CHARS and "\0" not in text:
            yield text


def _read(source: Path | str) -> str:
    """The text itself, or that of a file; empty where the file is not UTF-8."""
    if isinstance(source, str):
        return source
    try:
        return source.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""
