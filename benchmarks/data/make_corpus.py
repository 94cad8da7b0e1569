"""Make a JSONL corpus of any size out of a few megabytes of real text, the same on every machine.

Usage: python -m benchmarks.data.make_corpus OUT.jsonl --mb 100 [--corpus DIR]

Place in the flow: the input of the preprocessing benchmarks. Invariant: the bytes are a pure function of the
seed texts, the size and `--seed`.

Repeated text would flatter tokenizers that remember words. So the sentences of all seed documents are drawn
anew for each document, every number is another one, and in a quarter of the sentences one word is replaced by
an invented one (the head of one word and the tail of another), so that the number of different words goes on
growing with the size, as in real text: 36,000 in the 4 MB of the seed, about 433,000 in 100 MB.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEED_TEXTS = ROOT / "examples" / "quickstart" / "data"
MEGABYTE = 1_000_000
SENTENCE_END = re.compile(r"(?<=[.!?।])(?=\s)|(?<=\n)(?=\n)")
NUMBER = re.compile(r"\d+")
WORD = re.compile(r"[^\W\d_]{4,}")
INVENTED_SHARE = 0.25
"""Sentences in which one word is invented."""
DOCUMENT_BYTES = (400, 2_000, 8_000, 30_000)
"""Sizes of documents, equally often: short articles to long manuals."""


def seed_documents(directory: Path) -> list[str]:
    """Texts of all `*.jsonl.gz` of a directory, validation files left out."""
    paths = sorted(path for path in directory.glob("*.jsonl.gz") if ".valid." not in path.name)
    documents: list[str] = []
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            documents += [json.loads(line)["text"] for line in lines]
    if not documents:
        raise SystemExit(f"error: {directory} has no *.jsonl.gz with texts; name another with --corpus")
    return documents


class Varier:
    """Draws sentences of the seed texts and changes their numbers and some of their words."""

    def __init__(self, documents: Sequence[str], seed: int) -> None:
        self._random = random.Random(seed)
        sentences = [piece for text in documents for piece in SENTENCE_END.split(text) if piece.strip()]
        self._sentences = sentences
        words: list[str] = sorted({word for text in documents for word in WORD.findall(text)})
        self._heads = [word[: len(word) // 2 + 1] for word in words]
        self._tails = [word[len(word) // 2 :] for word in words]

    def document(self) -> str:
        """One document of sentences in a new order, drawn from neighbouring parts of the seed."""
        draw = self._random
        wanted = draw.choice(DOCUMENT_BYTES) * draw.uniform(0.5, 1.5)
        size, pieces = 0.0, []
        # A document stays in one language: it is drawn from a window of the seed, which is sorted by file.
        middle = draw.randrange(len(self._sentences))
        low, high = max(0, middle - 2_000), min(len(self._sentences), middle + 2_000)
        while size < wanted:
            piece = self._sentences[draw.randrange(low, high)]
            size += len(piece)
            pieces.append(self._vary(piece))
        return "".join(pieces).strip()

    def _vary(self, sentence: str) -> str:
        sentence = NUMBER.sub(self._number, sentence)
        if self._random.random() < INVENTED_SHARE:
            words = list(WORD.finditer(sentence))
            if words:
                at = self._random.choice(words)
                sentence = f"{sentence[: at.start()]}{self._invented()}{sentence[at.end() :]}"
        return sentence

    def _number(self, found: re.Match[str]) -> str:
        """Another number of as many digits, without leading zeros."""
        digits = found.group()
        return "".join(
            [self._random.choice("123456789"), *self._random.choices("0123456789", k=len(digits) - 1)]
        )

    def _invented(self) -> str:
        return self._random.choice(self._heads) + self._random.choice(self._tails)


def lines(directory: Path, num_bytes: int, seed: int) -> Iterator[bytes]:
    """JSONL lines of `num_bytes` or a little more."""
    varier = Varier(seed_documents(directory), seed)
    written = number = 0
    while written < num_bytes:
        record = {"text": varier.document(), "id": f"{seed}-{number}"}
        line = json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n"
        written, number = written + len(line), number + 1
        yield line


def make_corpus(path: Path, num_megabytes: float, directory: Path = SEED_TEXTS, seed: int = 1) -> Path:
    """Write the corpus unless it is there; its bytes are those of `num_megabytes` of JSONL, a little more."""
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.writelines(lines(directory, int(num_megabytes * MEGABYTE), seed))
    partial.replace(path)
    return path


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make a JSONL corpus of a given size from real text.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--mb", type=float, default=100.0, help="megabytes (10^6 bytes) of JSONL")
    parser.add_argument(
        "--corpus", type=Path, default=SEED_TEXTS, help="directory of *.jsonl.gz to draw from"
    )
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    make_corpus(arguments.out, arguments.mb, arguments.corpus, arguments.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
