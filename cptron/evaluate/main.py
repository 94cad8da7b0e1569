"""`cptron eval`: loss of a checkpoint or of a Hugging Face model on validation data, or its scores on tasks.

Place in the flow: any time. Invariant: the two kinds of model are measured the same way by independent code, so
they can be compared; an option that has no effect on what is asked for is refused.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cptron.errors import ConfigError
from cptron.evaluate.data_sets import DataSet, data_sets
from cptron.evaluate.measure import loss_keys

DATA_ONLY = ("seq_length", "max_tokens", "no_document_mask", "reset_positions", "key", "by")
HARNESS_ONLY = ("tasks_dir", "limit", "num_fewshot", "output", "online")
DEFAULTS = {"seq_length": 1024, "max_tokens": 0, "key": "text"}
AT_LEAST = {"seq_length": 1, "micro_batch_size": 1, "max_tokens": 0, "limit": 1, "num_fewshot": 0}


def main(argv: Sequence[str]) -> int:
    """Run `cptron eval (--checkpoint C | --hugging-face H) (--data D ... | --harness TASKS)`; prints JSON."""
    args = _parser().parse_args(argv)
    _check(args)
    if args.harness:
        from cptron.evaluate.harness import run_harness

        run_harness(args)
        return 0
    sets = data_sets(args.data, hugging_face=args.hugging_face is not None)
    _check_texts(args, sets)
    for key, value in DEFAULTS.items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    evaluate = _evaluate_checkpoint if args.checkpoint else _evaluate_hugging_face
    for record in evaluate(args, sets):
        print(json.dumps(record, ensure_ascii=False), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cptron eval",
        description="Loss on validation data in nats per token (a JSON object a line), or scores on the tasks of "
        "lm-evaluation-harness (one JSON object).",
    )
    add = parser.add_argument
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", help="checkpoint or run directory; computed by the engine")
    model.add_argument("--hugging-face", type=Path, help="model directory; computed by transformers alone")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--data",
        nargs="+",
        metavar="[NAME=]PATH",
        help="JSONL files (also .gz, .zst), or token file prefixes (of a checkpoint)",
    )
    what.add_argument(
        "--harness", metavar="TASKS", help="tasks of lm-evaluation-harness, with commas between"
    )
    add("--micro-batch-size", type=int, default=4, help="rows in one forward pass (default: 4)")
    add("--base", type=Path, help="where an adapter's base checkpoint is, if it has moved")

    data = parser.add_argument_group("with --data").add_argument
    data("--seq-length", type=int, help="predictions in one window (default: 1024)")
    data("--max-tokens", type=int, help="at most so many predictions a set; 0 means all (default: 0)")
    data("--key", help="JSONL: key of the text (default: text)")
    data(
        "--by", metavar="FIELD", help="JSONL: a record also for each value of this key, which holds a string"
    )
    cross = "let attention cross documents (default: it does not)"
    data("--no-document-mask", action="store_true", default=None, help=cross)
    anew = "positions start anew in every document (of a checkpoint)"
    data("--reset-positions", action="store_true", default=None, help=anew)

    tasks = parser.add_argument_group("with --harness").add_argument
    tasks("--tasks-dir", type=Path, help="your task definitions (YAML); paths in them are relative to it")
    tasks("--limit", type=int, help="only the first so many documents of a task")
    tasks("--num-fewshot", type=int, help="examples in the context, where a task does not fix it to 0")
    tasks("--output", type=Path, help="write the JSON there, and the table on stdout")
    tasks(
        "--online", action="store_true", default=None, help="let tasks fetch their data (default: no network)"
    )
    return parser


def _check(args: argparse.Namespace) -> None:
    """Raise ConfigError for a number out of range or an option of the other kind."""
    for key, least in AT_LEAST.items():
        value = getattr(args, key)
        if value is not None and value < least:
            raise ConfigError(f"{_flag(key)}={value} must be at least {least}; correct the command")
    if args.output is not None and (args.output.is_dir() or not args.output.parent.is_dir()):
        raise ConfigError(
            f"--output={args.output} must be a file in a directory that exists; correct the command"
        )
    asked, others = ("--harness", DATA_ONLY) if args.harness is not None else ("--data", HARNESS_ONLY)
    for key in others:
        if getattr(args, key) is not None:
            raise ConfigError(f"{_flag(key)} has no effect on {asked}; leave it out")


def _check_texts(args: argparse.Namespace, sets: Sequence[DataSet]) -> None:
    """Raise ConfigError where token files are asked for what only text has."""
    for data in sets:
        for key in ("key", "by"):
            if data.kind == "tokens" and getattr(args, key) is not None:
                raise ConfigError(
                    f"{_flag(key)}={getattr(args, key)} needs JSONL, {data.path} is the prefix of token files; "
                    "give the text itself"
                )


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _evaluate_checkpoint(args: argparse.Namespace, sets: Sequence[DataSet]) -> Iterator[dict[str, Any]]:
    from cptron.checkpoint import layout
    from cptron.checkpoint.weights import open_model
    from cptron.config.schema import AttentionConfig
    from cptron.evaluate.perplexity import evaluate_set, evaluate_texts
    from cptron.evaluate.texts import TextSet
    from cptron.model.options import ModelOptions
    from cptron.runtime.session import open_session

    checkpoint = layout.resolve(args.checkpoint)
    opened = _open_sets(args, sets, checkpoint, layout.read_manifest(checkpoint).arch.vocab_size)
    with open_session() as session:
        options = ModelOptions(
            precision="fp32" if session.device.kind == "cpu" else "bf16",
            attention=AttentionConfig(
                document_mask=not args.no_document_mask, reset_positions=bool(args.reset_positions)
            ),
        )
        model = open_model(checkpoint, options, args.base)
        for data, one in zip(sets, opened, strict=True):
            if isinstance(one, TextSet):
                yield from evaluate_texts(model, one, session.device.torch_device).records(data.name, args.by)
            else:
                sums = evaluate_set([model], one, session.device.torch_device)
                yield {"data": data.name, **loss_keys(sums.loss_nats_per_token, sums.tokens)}


def _open_sets(
    args: argparse.Namespace, sets: Sequence[DataSet], checkpoint: Path, vocab_size: int
) -> list[Any]:
    """A `ValidSet` or a `TextSet` for each, before the model is built."""
    from cptron.checkpoint.layout import HUGGING_FACE
    from cptron.data.valid import ValidSet
    from cptron.evaluate.texts import Windows, open_texts
    from cptron.tokens.tokenizer import load_tokenizer

    shape = args.seq_length, args.max_tokens, args.micro_batch_size
    texts = any(data.kind == "jsonl" for data in sets)
    tokenizer = load_tokenizer(checkpoint / HUGGING_FACE) if texts else None
    opened: list[Any] = []
    for data in sets:
        if data.kind == "jsonl":
            assert tokenizer is not None, "loaded where there are texts"
            opened.append(open_texts(data.path, args.key, args.by, Windows(*shape), tokenizer, vocab_size))
            continue
        opened.append(ValidSet(data.name, data.path, *shape, 0, 1, vocab_size))
    return opened


def _evaluate_hugging_face(args: argparse.Namespace, sets: Sequence[DataSet]) -> Iterator[dict[str, Any]]:
    from cptron.evaluate.reference import Reference

    reference = Reference(args.hugging_face)
    options = (args.seq_length, args.max_tokens, args.micro_batch_size, not args.no_document_mask)
    for data in sets:
        measure = reference.evaluate(Path(data.path), *options, key=args.key, by=args.by)
        yield from measure.records(data.name, args.by)
