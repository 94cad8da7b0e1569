"""`cptron tokenizer analyze | extend | resize`: what a tokenizer costs, more tokens for a domain, rows for them.

Place in the flow: before `cptron preprocess` and `cptron convert`. Invariant: nothing that is there is changed: an
extended tokenizer and a resized model are new directories.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cptron.errors import ConfigError
from cptron.tokens.token_count import token_count

INITS = ("subtoken_mean", "mean", "mvn", "focus")
"""As `initial_rows.Init` has them; that file needs torch."""


def main(argv: Sequence[str]) -> int:
    """Run one of the three."""
    parser = argparse.ArgumentParser(
        prog="cptron tokenizer", description="Costs of a tokenizer; its extension for a domain or language."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    _add_analyze(verbs.add_parser("analyze", help="what a corpus costs in tokens, and which words"))
    _add_extend(verbs.add_parser("extend", help="append tokens for a domain; no old id moves"))
    _add_resize(verbs.add_parser("resize", help="a Hugging Face model with rows for an extended tokenizer"))
    args = parser.parse_args(argv)
    done = {"analyze": _analyze, "extend": _extend, "resize": _resize}[args.verb](args)
    if args.json:
        print(json.dumps(done, indent=2, ensure_ascii=False))
        return 0
    from cptron.inspect import text_lines
    from cptron.tokenizer.shown import analysis_for_people

    print("\n".join(text_lines(analysis_for_people(done) if args.verb == "analyze" else done)))
    return 0


def add_init(parser: argparse.ArgumentParser) -> None:
    """The options of new rows, which `cptron convert` has too."""
    parser.add_argument(
        "--init",
        choices=INITS,
        default="subtoken_mean",
        help="first values of the new rows, in each matrix from its own rows (default: subtoken_mean)",
    )
    parser.add_argument(
        "--vectors", type=Path, metavar="FILE", help="word vectors for --init focus, fastText's .vec"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is random in the new rows (default: 0)")


def _add_corpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", default="text", help="of a document's text (default: text)")
    parser.add_argument(
        "--sample", type=float, default=1.0, help="share of the documents to read (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def _add_analyze(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="directory with a tokenizer, or its file")
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="FILE", help="JSONL, text, Parquet, Arrow"
    )
    parser.add_argument("--compare", type=Path, metavar="MODEL", help="another tokenizer, side by side")
    parser.add_argument("--language-key", help="of a record's language (default: the script of its letters)")
    parser.add_argument("--source-key", help="of a record's source (default: the file)")
    parser.add_argument(
        "--context", nargs="+", type=int, default=[], metavar="TOKENS", help="lengths to judge"
    )
    parser.add_argument("--words", type=int, default=20, help="most fragmented words to show (default: 20)")
    _add_corpus(parser)


def _add_extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="directory with the tokenizer to extend")
    parser.add_argument("--input", nargs="+", required=True, metavar="FILE", help="text of the domain")
    parser.add_argument("--output", type=Path, required=True, help="new directory")
    parser.add_argument("--new-tokens", type=int, default=5000, help="at most (default: 5000)")
    parser.add_argument(
        "--min-frequency",
        type=int,
        default=10,
        help="occurrences in the text read that a merge needs (default: 10)",
    )
    parser.add_argument(
        "--held-out", nargs="+", metavar="FILE", help="domain text to measure on (default: 5 %% of the input)"
    )
    parser.add_argument("--general", nargs="+", metavar="FILE", help="other text to measure on")
    parser.add_argument(
        "--join-marks",
        action="store_true",
        help="also change where words end: combining marks, such as Hindi's vowel signs, stay with their letters",
    )
    parser.add_argument(
        "--recovery-tokens",
        default="100M",
        help="training tokens that new rows are taken to cost, for the break-even (default: 100M, an assumption)",
    )
    _add_corpus(parser)


def _add_resize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="Hugging Face directory with the old tokenizer")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the extended one")
    parser.add_argument("--output", type=Path, required=True, help="new directory")
    add_init(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def _analyze(args: argparse.Namespace) -> dict[str, Any]:
    from cptron.tokenizer.analyze import AnalyzeOptions, analyze
    from cptron.tokenizer.texts import Corpus

    _require(min(args.context, default=1) >= 1, f"--context {args.context}", "numbers of tokens from 1")
    _require(args.words >= 0, f"--words {args.words}", "0 or more")
    corpus = Corpus(
        inputs=tuple(args.input),
        key=args.key,
        language_key=args.language_key,
        source_key=args.source_key,
        part=_sample(args),
    )
    options = AnalyzeOptions(
        model=args.model,
        corpus=corpus,
        compare=args.compare,
        contexts=tuple(args.context),
        num_words=args.words,
    )
    return analyze(options)


def _extend(args: argparse.Namespace) -> dict[str, Any]:
    from cptron.tokenizer.extend import ExtendOptions, extend
    from cptron.tokenizer.texts import Corpus

    _require(args.new_tokens >= 1, f"--new-tokens {args.new_tokens}", "1 or more")
    _require(args.min_frequency >= 1, f"--min-frequency {args.min_frequency}", "1 or more")
    try:
        recovery_tokens = token_count(args.recovery_tokens)
    except ValueError as error:
        raise ConfigError(f"--recovery-tokens {error}") from None

    def corpus(inputs: Sequence[str] | None) -> Corpus | None:
        return Corpus(inputs=tuple(inputs), key=args.key, part=_sample(args)) if inputs else None

    domain = corpus(args.input)
    assert domain is not None, "argparse requires it"
    options = ExtendOptions(
        model=args.model,
        output=args.output,
        domain=domain,
        held_out=corpus(args.held_out),
        general=corpus(args.general),
        num_tokens=args.new_tokens,
        min_count=args.min_frequency,
        join_marks=args.join_marks,
        recovery_tokens=recovery_tokens,
    )
    return extend(options)


def _resize(args: argparse.Namespace) -> dict[str, Any]:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported
    from cptron.tokenizer.resize import resize

    _require(args.seed >= 0, f"--seed {args.seed}", "0 or more")
    return resize(args.model, args.tokenizer, args.output, args.init, args.vectors, args.seed)


def _sample(args: argparse.Namespace) -> tuple[float, float]:
    _require(0 < args.sample <= 1, f"--sample {args.sample}", "above 0 and at most 1")
    return (0.0, args.sample)


def _require(holds: bool, what: str, rule: str) -> None:
    if not holds:
        raise ConfigError(f"{what} must be {rule}; correct it")
