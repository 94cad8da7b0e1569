"""What to preprocess, and the command line that says so with Megatron's flag names.

Place in the flow: `preprocess.main` parses its arguments here; `preprocess.preprocess` takes the options.
Invariant: no flag of Megatron's tool is ignored in silence: it acts, is named in a note, or is refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, get_args

from cptron.errors import ConfigError
from cptron.tokens.array_task import array_task
from cptron.tokens.chat_formats import LossMask
from cptron.tokens.rejects import OnError
from cptron.tokens.tiktoken_tokenizer import TiktokenConfig, megatron_config
from cptron.tokens.tokenizer import TokenizerKind

EngineChoice = Literal["auto", "gigatoken", "snaptokens", "reference"]

_KIND_OF_TYPE: dict[str, TokenizerKind] = {
    "auto": "auto",
    "HuggingFaceTokenizer": "hf",
    "SentencePieceTokenizer": "sentencepiece",
    "GPTSentencePieceTokenizer": "sentencepiece",
    "TikTokenizer": "tiktoken",
}
_TYPE_REMEDIES = {
    "Llama2Tokenizer": "whose BOS depends on the version of Megatron; use SentencePieceTokenizer, with --prepend-bos "
    "for versions that add it",
    "GPT2BPETokenizer": "whose vocab.json and merges.txt must be one tokenizer.json; convert them with transformers "
    "(GPT2TokenizerFast(vocab_file=..., merges_file=...).save_pretrained(DIR)) and give --tokenizer-model DIR",
}
_NO_EFFECT = {
    "keep_sequential_samples": "order is always kept",
    "keep_newlines": "it belongs to --split-sentences",
    "lang": "it belongs to --split-sentences",
    "dataset_impl": "files are always memory-mapped",
    "make_vocab_size_divisible_by": "token files do not depend on vocabulary padding",
    "vocab_size": "it is taken from the tokenizer",
    "chat_template": "Megatron's tool renders no chats either; see --chat, which takes the tokenizer's own template",
    "padded_vocab_size": "token files do not depend on vocabulary padding",
    "pad_vocab_size": "token files do not depend on vocabulary padding",
    "no_pad_vocab_size": "token files do not depend on vocabulary padding",
    "vocab_extra_ids": "it is taken from the tokenizer",
    "chunk_size": "blocks are sized by bytes",
    "find_optimal_num_workers": "all cores are used unless --workers says less, and more threads are no faster",
    "workers_to_check": "it belongs to --find-optimal-num-workers",
    "max_documents": "it belongs to --find-optimal-num-workers",
    "tokenizer_hf_use_fast": "tokenizer.json is always read by the fast library",
    "tokenizer_hf_no_use_fast": "tokenizer.json is always read by the fast library",
    "trust_remote_code": "no code of a tokenizer is ever run",
    "use_gigatoken": "the fastest engine that gives the reference's ids is taken, see --engine",
    "tiktoken_pattern": "it belongs to TikTokenizer",
    "tiktoken_num_special_tokens": "it belongs to TikTokenizer",
    "null_tokenizer_eod_id": "it belongs to NullTokenizer",
    "null_tokenizer_pad_id": "it belongs to NullTokenizer",
    "tokenizer_sentencepiece_ignore_extra_whitespaces": "it is Megatron's default and what the model does",
}
_OF_TIKTOKEN = {"tiktoken_pattern", "tiktoken_num_special_tokens", "vocab_size"}
_SWITCHES = {
    "keep_sequential_samples",
    "keep_newlines",
    "find_optimal_num_workers",
    "tokenizer_hf_use_fast",
    "tokenizer_hf_no_use_fast",
    "trust_remote_code",
    "use_gigatoken",
    "pad_vocab_size",
    "no_pad_vocab_size",
    "tokenizer_sentencepiece_ignore_extra_whitespaces",
}
_REFUSED = {
    "vocab_file": "give a tokenizer.json with --tokenizer-model",
    "merge_file": "give a tokenizer.json with --tokenizer-model",
    "special_tokens": "add them to tokenizer.json",
    "tokenizer_metadata": "give a tokenizer.json with --tokenizer-model",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessOptions:
    """Everything that decides the output, and how fast it is made."""

    inputs: tuple[str, ...]
    """Files (JSONL, text, Parquet, Arrow; `.gz` and `.zst` allowed), directories or globs, read in this order."""
    output_prefix: str
    """Files are named `{output_prefix}_{key}_document.bin|.idx|.manifest.json`."""
    tokenizer: str
    """Tokenizer directory or file, as `load_tokenizer` takes it."""
    tokenizer_kind: TokenizerKind = "auto"
    """What `tokenizer` is."""
    tiktoken: TiktokenConfig | None = None
    """What Megatron's flags say of tiktoken ranks; None to read it from the file beside them."""
    json_keys: tuple[str, ...] = ("text",)
    """Keys or columns whose texts are encoded; one output each."""
    append_eod: bool = False
    """End every document with the tokenizer's EOS."""
    chat: bool = False
    """The values are chats: lists of messages, rendered with the tokenizer's chat template."""
    chat_and_text: bool = False
    """With `chat`: a value may also be a text, which is a plain document, all of it learned."""
    chat_date: date | None = None
    """What a chat template takes for today."""
    loss_mask: LossMask = "none"
    """Tokens of a chat that are learned: `assistant` writes a mask of what the assistant says, `no_system` one of all
    but what the system says."""
    prepend_bos: bool = False
    """Begin every document with the tokenizer's BOS."""
    hf_special_tokens: bool = False
    """Begin every document with BOS if tokenizer.json does so by itself, as Megatron's HuggingFaceTokenizer."""
    workers: int = 0
    """Encoding threads; 0 means all cores this process may use. The output does not depend on it."""
    engine: EngineChoice = "auto"
    """Library that encodes; `auto` is the fastest one that gives the reference tokenizer's ids."""
    verify: bool = False
    """Compare every document with the reference tokenizer."""
    on_error: OnError = "stop"
    """What a damaged record does."""
    max_document_bytes: int = 64 << 20
    """A longer record is a damaged one."""
    partitions: int = 1
    """Number of contiguous parts that the corpus is cut into, if `partition` names one."""
    partition: int | None = None
    """The part that this process encodes, from 0; None for the whole corpus."""
    overwrite: bool = False
    """Replace files that are there already."""
    restart: bool = False
    """Discard what an unfinished run left, and begin again."""
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
        if getattr(args, name) and not (args.tokenizer_type == "TikTokenizer" and name in _OF_TIKTOKEN)
    ]
    if args.loss_mask != "none" and args.engine not in ("auto", "reference"):
        notes.append(
            f"--engine {args.engine} has no effect: only the reference tells where tokens lie in a chat"
        )
    partition, partitions = _partition(args.partition, args.partitions)
    if (args.partitions or 1) > 1 and partition is None:
        notes.append(
            f"--partitions {args.partitions} without --partition has no effect: one process encodes everything in order"
        )
    include = args.tokenizer_hf_include_special_tokens or args.tokenizer_type == "HuggingFaceTokenizer"
    chat = args.chat or args.chat_and_text
    options = PreprocessOptions(
        inputs=tuple(args.input),
        output_prefix=args.output_prefix,
        tokenizer=args.tokenizer_model,
        tokenizer_kind=_KIND_OF_TYPE[args.tokenizer_type],
        tiktoken=_tiktoken(args) if args.tokenizer_type == "TikTokenizer" else None,
        json_keys=tuple(args.json_keys or (["messages"] if chat else ["text"])),
        chat=chat,
        chat_and_text=args.chat_and_text,
        chat_date=args.chat_date,
        loss_mask=args.loss_mask,
        append_eod=args.append_eod,
        prepend_bos=args.prepend_bos,
        hf_special_tokens=include and not args.tokenizer_hf_no_include_special_tokens,
        workers=args.workers,
        engine=args.engine,
        verify=args.verify,
        on_error=args.on_error,
        max_document_bytes=args.max_document_bytes,
        partitions=partitions,
        partition=partition,
        overwrite=args.overwrite,
        restart=args.restart,
        log_interval=args.log_interval,
    )
    return options, notes


def _flag(name: str) -> str:
    return "--tokenizer-special-tokens" if name == "special_tokens" else f"--{name.replace('_', '-')}"


def _tiktoken(args: argparse.Namespace) -> TiktokenConfig:
    """Megatron's own defaults where a flag is left out."""
    given = {
        "pattern": args.tiktoken_pattern,
        "num_special_tokens": args.tiktoken_num_special_tokens,
        "vocab_size": args.vocab_size,
    }
    stated: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name in stated.keys() - {"pattern"}:
        stated[name] = _whole_number(name, stated[name])
    return megatron_config(**stated, special_tokens=args.special_tokens)


def _whole_number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"{name} {text!r} must be a whole number; correct it")
    return int(text)


def _partition(text: str | None, count: int | None) -> tuple[int | None, int]:
    """Number of the part that this process encodes, and how many parts there are."""
    if text is None:
        return None, 1
    if text == "slurm":
        index, in_array = array_task("--partition slurm")
        count = count or in_array
        if count is None:
            raise ConfigError(
                "--partition slurm in an array of other tasks than 0-(N-1) must have --partitions N; add the N of the "
                "first submission"
            )
    elif text.isdecimal():
        index, count = int(text), count or 1
    else:
        raise ConfigError(f"--partition {text} must be a number from 0 or slurm; correct it")
    if index >= count:
        raise ConfigError(f"--partition {index} must be below --partitions {count}; correct one of them")
    return index, count


def _refuse(args: argparse.Namespace) -> None:
    if args.split_sentences:
        raise ConfigError("--split-sentences must be left out, only whole documents are supported; remove it")
    if args.tokenizer_type not in _KIND_OF_TYPE:
        default = f"must be one of {', '.join(_KIND_OF_TYPE)}; convert the tokenizer to tokenizer.json"
        raise ConfigError(
            f"--tokenizer-type {args.tokenizer_type}, {_TYPE_REMEDIES[args.tokenizer_type]}"
            if args.tokenizer_type in _TYPE_REMEDIES
            else f"--tokenizer-type {args.tokenizer_type} {default}"
        )
    if args.chat and args.prepend_bos and not args.chat_and_text:
        raise ConfigError(
            f"--prepend-bos must be left out for chats of {args.input}, the template writes BOS; remove it"
        )
    if not (args.chat or args.chat_and_text) and (args.loss_mask != "none" or args.chat_date):
        raise ConfigError(
            f"--loss-mask {args.loss_mask} and --chat-date are for chats, --chat must be given; add it"
        )
    for name, remedy in _REFUSED.items():
        if getattr(args, name) and not (name == "special_tokens" and args.tokenizer_type == "TikTokenizer"):
            raise ConfigError(f"{_flag(name)} {getattr(args, name)} must be left out; {remedy}")
    if args.tokenizer_sentencepiece_legacy:
        raise ConfigError(
            f"--tokenizer-sentencepiece-legacy must be left out for {args.tokenizer_model}, tokens cannot be added "
            "to a model; remove it"
        )
    if args.tokenizer_model is None:
        raise ConfigError(
            f"--tokenizer-model is {args.tokenizer_model}, must name a tokenizer; give its directory"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cptron preprocess", description="Encode text corpora into Megatron .bin/.idx token files."
    )
    corpus = parser.add_argument_group("corpus")
    corpus.add_argument(
        "--input", nargs="+", required=True,
        help="JSONL, text, Parquet or Arrow files (.gz, .zst), directories or globs",
    )  # fmt: skip
    corpus.add_argument(
        "--json-keys",
        nargs="+",
        help="keys to encode, one output each (default: text; with --chat: messages)",
    )
    corpus.add_argument(
        "--chat", action="store_true", help="values are chats, for the tokenizer's chat template"
    )
    corpus.add_argument(
        "--chat-and-text",
        action="store_true",
        help="values are chats or texts, in one order; a text is a plain document",
    )
    corpus.add_argument("--chat-date", type=date.fromisoformat, help="what a chat template takes for today")
    corpus.add_argument(
        "--loss-mask",
        choices=get_args(LossMask),
        default="none",
        help="what is learned of a chat (default: all)",
    )
    corpus.add_argument("--split-sentences", action="store_true", help="refused: not supported")
    corpus.add_argument(
        "--on-error",
        choices=get_args(OnError),
        default="stop",
        help="what a damaged record does (default: stop)",
    )
    corpus.add_argument(
        "--max-document-bytes",
        type=_positive,
        default=64 << 20,
        help="longer records are damaged (default: 64 MiB)",
    )
    _add_tokenizer_flags(parser.add_argument_group("tokenizer"))
    output = parser.add_argument_group("output")
    output.add_argument("--output-prefix", required=True, help="files are PREFIX_KEY_document.bin and .idx")
    output.add_argument("--overwrite", action="store_true", help="replace existing files")
    output.add_argument("--restart", action="store_true", help="discard what an unfinished run left")
    runtime = parser.add_argument_group("runtime")
    runtime.add_argument("--workers", type=_positive, default=0, help="encoding threads (default: all cores)")
    runtime.add_argument("--partitions", type=_positive, help="parts of the corpus, see --partition")
    runtime.add_argument("--partition", help="the part to encode, from 0, or `slurm` in a job array")
    runtime.add_argument("--log-interval", type=_positive, default=1000, help="documents between updates")
    unused = parser.add_argument_group("accepted for Megatron command lines, without effect")
    for name, reason in _NO_EFFECT.items():
        flag = f"--{name.replace('_', '-')}"
        if name in _SWITCHES:
            unused.add_argument(flag, action="store_true", help=reason)
        else:
            unused.add_argument(flag, nargs="+" if name == "workers_to_check" else None, help=reason)
    return parser


def _add_tokenizer_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--tokenizer-model", help="directory, tokenizer.json or .model file")
    group.add_argument("--tokenizer-type", default="auto", help=", ".join(_KIND_OF_TYPE))
    group.add_argument("--append-eod", action="store_true", help="end every document with EOS")
    group.add_argument("--prepend-bos", action="store_true", help="begin every document with BOS")
    group.add_argument(
        "--tokenizer-hf-include-special-tokens", action="store_true",
        help="begin with BOS if tokenizer.json does; what --tokenizer-type HuggingFaceTokenizer means",
    )  # fmt: skip
    group.add_argument(
        "--tokenizer-hf-no-include-special-tokens", action="store_true", help="no BOS unless --prepend-bos"
    )
    group.add_argument(
        "--engine", choices=get_args(EngineChoice), default="auto",
        help="library that encodes (default: the fastest one that gives the reference's ids)",
    )  # fmt: skip
    group.add_argument("--verify", action="store_true", help="compare every document with the reference")
    group.add_argument("--tokenizer-sentencepiece-legacy", action="store_true", help="refused")
    group.add_argument(
        "--tokenizer-special-tokens", "--tiktoken-special-tokens", nargs="+", dest="special_tokens",
        help="of TikTokenizer; refused for others",
    )  # fmt: skip
    for name, remedy in _REFUSED.items():
        if name != "special_tokens":
            group.add_argument(f"--{name.replace('_', '-')}", help=f"refused: {remedy}")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from 1")
    return int(text)
