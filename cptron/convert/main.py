"""`cptron convert`: a Hugging Face model, or megatron-core's shards, become a checkpoint. See `hf_import`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cptron.errors import ConversionError
from cptron.tokenizer.main import add_init


def main(argv: Sequence[str]) -> int:
    """Run `cptron convert HF_MODEL CHECKPOINT [--verify]`, or with `--megatron SHARDS` their model."""
    parser = argparse.ArgumentParser(
        prog="cptron convert",
        description="Hugging Face model -> checkpoint, on the CPU, in little memory. "
        "Interrupted, the same command goes on.",
    )
    parser.add_argument(
        "hugging_face", type=Path, help="local model directory with config.json and safetensors"
    )
    parser.add_argument("checkpoint", type=Path, help="new directory")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="then compare every bit with the source, and logits with transformers",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="read headers only, and print what would be written"
    )
    parser.add_argument(
        "--megatron",
        type=Path,
        metavar="DIRECTORY",
        help="take the weights from this torch_dist checkpoint of Megatron-LM or Megatron-Bridge; of HF_MODEL only "
        "config.json and the tokenizer are used",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIRECTORY",
        help="add rows for this extended tokenizer (cptron tokenizer extend), and take it in place of HF_MODEL's",
    )
    add_init(parser)
    args = parser.parse_args(argv)
    os.environ["CUDA_VISIBLE_DEVICES"] = (
        ""  # whole models fit the host, not always a GPU; before torch is imported
    )

    from cptron.convert.hf_import import import_hugging_face, plan_import
    from cptron.convert.megatron import import_megatron
    from cptron.convert.verify import require_equal

    if args.megatron and (args.verify or args.dry_run):
        flag = "--verify" if args.verify else "--dry-run"
        raise ConversionError(
            f"{flag} is about the weights in HF_MODEL, but --megatron takes others; remove one of the two"
        )
    _check_tokenizer(args)
    if args.dry_run:
        print(json.dumps(plan_import(args.hugging_face, args.checkpoint)))
        return 0
    if args.megatron:
        manifest = import_megatron(args.megatron, args.hugging_face, args.checkpoint)
    elif args.tokenizer:
        from cptron.tokenizer.resize import import_resized

        manifest = import_resized(
            args.hugging_face, args.tokenizer, args.checkpoint, args.init, args.vectors, args.seed
        )
    else:
        manifest = import_hugging_face(args.hugging_face, args.checkpoint)
    print(
        f"{args.checkpoint}: {manifest.hugging_face_model}, {manifest.precision}, "
        f"probe loss {manifest.probe.loss_nats_per_token:.4f} nats per token"
    )
    if args.verify:
        print(json.dumps(asdict(require_equal(args.checkpoint, args.hugging_face))))
    return 0


def _check_tokenizer(args: argparse.Namespace) -> None:
    """Raise `ConversionError` for options that do not go together."""
    other = {"--megatron": args.megatron, "--verify": args.verify, "--dry-run": args.dry_run}
    with_it = [flag for flag, value in other.items() if value]
    if args.tokenizer and with_it:
        raise ConversionError(
            f"--tokenizer makes rows that {args.hugging_face} does not have, and {with_it[0]} is about its own; write "
            "the model first (cptron tokenizer resize), and convert that"
        )
    if not args.tokenizer and (args.init != "subtoken_mean" or args.vectors):
        raise ConversionError("--init and --vectors are of new rows, and there are none; add --tokenizer")
