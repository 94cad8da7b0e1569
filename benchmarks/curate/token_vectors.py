"""Vectors of an extended tokenizer's tokens, for `--init focus`: texts cut by it, and fastText trained on the tokens.

Usage: python -m benchmarks.curate.token_vectors TOKENIZER TEXTS.jsonl... --output TOKENS.vec

Place in the flow: between `cptron tokenizer extend` and `resize --init focus`; `curate_tokenizer` measures such rows.
Invariant: a word of the vectors is a token as the vocabulary writes it, and equal texts give equal vectors: fastText
runs on one thread.

fastText's program is in Debian's package `fasttext`; its settings here are those of FOCUS (Dobler and de Melo 2023).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend

from benchmarks.data.measure import BenchmarkError
from cptron.errors import CptronError
from cptron.tokenizer.texts import Corpus

DIMENSIONS, EPOCHS, MIN_COUNT = 100, 3, 10
"""Of FOCUS."""
BUCKETS = 100_000
"""Of the tokens' n-grams of letters, in place of fastText's two million: tokens have fewer, and its files would be of
0.8 GB."""


def write_tokens(tokenizer: Path, texts: Iterable[str], output: Path) -> int:
    """One document a line, its tokens with spaces between; the number of tokens. Tokens of a byte-level vocabulary hold
    no white space, nor do those of SentencePiece; what holds some is left out."""
    backend = Backend.from_file(str(tokenizer / "tokenizer.json"))
    count = 0
    with output.open("w", encoding="utf-8", newline="\n") as stream:
        for text in texts:
            tokens = [
                token for token in backend.encode(text, add_special_tokens=False).tokens if _is_word(token)
            ]
            count += len(tokens)
            stream.write(" ".join(tokens) + "\n")
    return count


def _is_word(token: str) -> bool:
    """Whether fastText reads it as one word."""
    return bool(token) and not any(character in " \t\n\v\f\r\0" for character in token)


def train(
    tokens: Path, output: Path, fasttext: str, method: str, epochs: int = EPOCHS, min_count: int = MIN_COUNT
) -> Path:
    """`output`.vec. Raises BenchmarkError where fastText is not there or fails."""
    words = [fasttext, method, "-input", str(tokens), "-output", str(output), "-thread", "1", "-verbose", "0"]
    words += ["-dim", str(DIMENSIONS), "-neg", "10", "-epoch", str(epochs), "-minCount", str(min_count)]
    words += ["-bucket", str(BUCKETS)]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except OSError as error:
        raise BenchmarkError(
            f"{fasttext} cannot be run ({error.strerror}); apt-get install fasttext"
        ) from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"]
        raise BenchmarkError(
            f"{fasttext} failed ({said[-1]}); give more text, or a lower --min-count"
        ) from None
    output.with_name(output.name + ".bin").unlink(missing_ok=True)
    return output.with_name(output.name + ".vec")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train vectors of a tokenizer's tokens with fastText.")
    parser.add_argument("tokenizer", type=Path, help="directory of the extended tokenizer")
    parser.add_argument("texts", nargs="+", help="text of the domain, as cptron tokenizer extend takes it")
    parser.add_argument("--output", type=Path, required=True, help="file of the vectors, NAME.vec")
    parser.add_argument("--key", default="text", help="of a document's text (default: text)")
    parser.add_argument("--fasttext", default="fasttext", help="its program (default: of the path)")
    parser.add_argument("--method", choices=("cbow", "skipgram"), default="cbow")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--min-count", type=int, default=MIN_COUNT, help="occurrences that a token needs")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    args = parse(argv)
    try:
        if args.output.suffix != ".vec":
            raise BenchmarkError(f"--output {args.output} must end in .vec; correct it")
        texts = (
            one.text for block in Corpus(inputs=tuple(args.texts), key=args.key).blocks() for one in block
        )
        with tempfile.TemporaryDirectory() as work:
            tokens = Path(work) / "tokens.txt"
            count = write_tokens(args.tokenizer, texts, tokens)
            made = train(
                tokens, args.output.with_suffix(""), args.fasttext, args.method, args.epochs, args.min_count
            )
        with made.open(encoding="utf-8") as lines:
            print(f"{made}: vectors of {lines.readline().split()[0]} tokens, from {count} tokens of text")
    except (BenchmarkError, CptronError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
