"""`cptron export`: a checkpoint becomes a Hugging Face model. See `hf_export`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from cptron.errors import ConversionError


def main(argv: Sequence[str]) -> int:
    """Run `cptron export CHECKPOINT HF_MODEL [--dtype D] [--merge [--base B]]`."""
    parser = argparse.ArgumentParser(
        prog="cptron export", description="Checkpoint -> Hugging Face model, on the CPU."
    )
    parser.add_argument("checkpoint", help="checkpoint, or a run directory for its newest checkpoint")
    parser.add_argument("hugging_face", type=Path, help="new directory")
    parser.add_argument(
        "--dtype", choices=("stored", "bf16", "fp32"), default="stored", help="default: as stored"
    )
    parser.add_argument(
        "--merge", action="store_true", help="of an adapter: a whole model; without it, PEFT's form"
    )
    parser.add_argument("--base", type=Path, help="where an adapter's base checkpoint is, if it has moved")
    parser.add_argument(
        "--megatron",
        action="store_true",
        help="write a torch_dist checkpoint for Megatron-LM, not Hugging Face's form",
    )
    args = parser.parse_args(argv)
    os.environ["CUDA_VISIBLE_DEVICES"] = (
        ""  # whole models fit the host, not always a GPU; before torch is imported
    )

    from cptron.checkpoint.in_use import reading
    from cptron.checkpoint.layout import resolve

    checkpoint = resolve(args.checkpoint)
    with reading(checkpoint):
        return _export(args, checkpoint)


def _export(args: argparse.Namespace, checkpoint: Path) -> int:
    """In the form asked for. Raises `ConversionError` for options that do not go with what the checkpoint holds."""
    from cptron.checkpoint.layout import read_manifest
    from cptron.convert.hf_export import export_adapter, export_hugging_face

    adapter = read_manifest(checkpoint).adapter is not None
    if adapter and not args.merge and args.megatron:
        raise ConversionError(
            f"{checkpoint} holds an adapter, and Megatron-LM's form is of whole weights; add --merge"
        )
    if adapter and not args.merge and (args.dtype != "stored" or args.base):
        raise ConversionError(
            f"--dtype={args.dtype} and --base={args.base} belong to --merge; PEFT's form keeps the stored precision "
            "and needs no base: remove them, or merge"
        )
    if not adapter and (args.merge or args.base):
        raise ConversionError(
            f"{checkpoint} holds whole weights, no adapter, so there is nothing to merge; remove --merge and --base"
        )
    if adapter and not args.merge:
        manifest = export_adapter(checkpoint, args.hugging_face)
        print(
            f"{args.hugging_face}: PEFT adapter of {manifest.hugging_face_model} after step {manifest.step}"
        )
        return 0
    if args.megatron:
        from cptron.convert.megatron import export_megatron

        if args.dtype != "stored":
            raise ConversionError(
                f"--dtype={args.dtype} does not go with --megatron, which keeps the stored precision"
            )
        manifest = export_megatron(checkpoint, args.hugging_face, args.base)
    else:
        manifest = export_hugging_face(checkpoint, args.hugging_face, args.dtype, args.base)
    print(f"{args.hugging_face}: {manifest.hugging_face_model or 'model'} after step {manifest.step}")
    return 0
