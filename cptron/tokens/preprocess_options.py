"""What to preprocess, and the command line that says so with Megatron's flag names.

Place in the flow: `preprocess.main` parses its arguments here; `preprocess.preprocess` takes the options.
Invariant: no flag of Megatron's tool is ignored in silence: it acts, is named in a note, or is refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from cptron.errors import ConfigError
from cptron.tokens.tokenizer import TokenizerKind

_KIND_OF_TYPE: dict[str, TokenizerKind] = {
    "auto": "auto",
    "HuggingFaceTokenizer": "hf",
    "SentencePieceTokenizer": "sentencepiece",
    "GPTSentencePieceTokenizer": "sentencepiece",
}
_NO_EFFECT = {
    "keep_sequential_samples": "order is always kept",
    "keep_newlines": "it belongs to --split-sentences",
    "dataset_impl": "files are always memory-mapped",
    "make_vocab_size_divisible_by": "token files do not depend on vocabulary padding",
    "vocab_size": "it is taken from the tokenizer",
    "chunk_size": "batches are sized by bytes",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessOptions:
    """Everything that decides the output, and how fast it is made."""

    inputs: tuple[str, ...]
    """JSONL files (`.gz` allowed) or globs, read in this order."""
    output_prefix: str
    """Files are named `{output_prefix}_{key}_document.bin|.idx|.manifest.json`."""
    tokenizer: str
    """Tokenizer directory or file, as `load_tokenizer` takes it."""
    tokenizer_kind: TokenizerKind = "auto"
    """What `tokenizer` is."""
    json_keys: tuple[str, ...] = ("text",)
    """Keys of a line whose texts are encoded; one output each."""
    append_eod: bool = False
    """End every document with the tokenizer's EOS."""
    prepend_bos: bool = False
    """Begin every document with the tokenizer's BOS."""
    workers: int = 0
    """Encoding threads; 0 means all cores this process may use. The output does not depend on it."""
    overwrite: bool = False
    """Replace files that are there already."""
    log_interval: int = 1000
    """Documents between updates of the progress bar."""


def parse_options(argv: Sequence[str] | None = None) -> tuple[PreprocessOptions, list[str]]:
    """Options of a command line, and a note for every flag without effect. Raises ConfigError on a refused
    one."""
    args = _parser().parse_args(argv)
    _refuse(args)
    notes = [
        f"--{name.replace('_', '-')} has no effect: {reason}"
        for name, reason in _NO_EFFECT.items()
        if getattr(args, name)
    ]
    options = PreprocessOptions(
        inputs=tuple(args.input),
        output_prefix=args.output_prefix,
        tokenizer=args.tokenizer_model,
        tokenizer_kind=_KIND_OF_TYPE[args.tokenizer_type],
        json_keys=tuple(args.json_keys),
        append_eod=args.append_eod,
        prepend_bos=args.prepend_bos,
        workers=args.workers,
        overwrite=args.overwrite,
        log_interval=args.log_interval,
    )
    return options, notes


def _refuse(args: argparse.Namespace) -> None:
    if args.tokenizer_type == "Llama2Tokenizer":
        raise ConfigError(
            "--tokenizer-type Llama2Tokenizer adds BOS unasked, which must be said; "
            "use SentencePieceTokenizer --prepend-bos"
        )
    if args.tokenizer_type not in _KIND_OF_TYPE:
        raise ConfigError(
            f"--tokenizer-type {args.tokenizer_type} must be one of {', '.join(_KIND_OF_TYPE)}; "
            "convert the tokenizer to tokenizer.json"
        )
    if args.partitions != 1:
        raise ConfigError(
            f"--partitions {args.partitions} must be 1, more are not supported yet; use --workers"
        )
    if args.split_sentences:
        raise ConfigError("--split-sentences must be left out, only whole documents are supported; remove it")
    if args.vocab_file or args.merge_file:
        raise ConfigError(
            f"--vocab-file {args.vocab_file} and --merge-file {args.merge_file} must be left out; "
            "give a tokenizer.json with --tokenizer-model"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preprocess_data", description="Encode JSONL corpora into Megatron .bin/.idx token files."
    )
    corpus = parser.add_argument_group("corpus")
    corpus.add_argument("--input", nargs="+", required=True, help="JSONL or JSONL.gz files or globs")
    corpus.add_argument("--json-keys", nargs="+", default=["text"], help="keys to encode, one output each")
    corpus.add_argument("--split-sentences", action="store_true", help="refused: not supported")
    tokenizer = parser.add_argument_group("tokenizer")
    tokenizer.add_argument(
        "--tokenizer-model", required=True, help="directory, tokenizer.json or .model file"
    )
    tokenizer.add_argument("--tokenizer-type", default="auto", help=", ".join(_KIND_OF_TYPE))
    tokenizer.add_argument("--append-eod", action="store_true", help="end every document with EOS")
    tokenizer.add_argument("--prepend-bos", action="store_true", help="begin every document with BOS")
    tokenizer.add_argument("--vocab-file", help="refused: use tokenizer.json")
    tokenizer.add_argument("--merge-file", help="refused: use tokenizer.json")
    output = parser.add_argument_group("output")
    output.add_argument("--output-prefix", required=True, help="files are PREFIX_KEY_document.bin and .idx")
    output.add_argument("--overwrite", action="store_true", help="replace existing files")
    runtime = parser.add_argument_group("runtime")
    runtime.add_argument("--workers", type=_positive, default=0, help="encoding threads (default: all cores)")
    runtime.add_argument("--partitions", type=_positive, default=1, help="only 1 is supported")
    runtime.add_argument("--log-interval", type=_positive, default=1000, help="documents between updates")
    unused = parser.add_argument_group("accepted for Megatron command lines, without effect")
    for name, reason in _NO_EFFECT.items():
        flag = f"--{name.replace('_', '-')}"
        if name.startswith("keep_"):
            unused.add_argument(flag, action="store_true", help=reason)
        else:
            unused.add_argument(flag, help=reason)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value
