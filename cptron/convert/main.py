"""`cptron convert`: a Hugging Face model becomes a checkpoint. See `hf_import`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Run `cptron convert HF_MODEL CHECKPOINT`."""
    parser = argparse.ArgumentParser(
        prog="cptron convert", description="Hugging Face model -> checkpoint, on the CPU."
    )
    parser.add_argument(
        "hugging_face", type=Path, help="local model directory with config.json and safetensors"
    )
    parser.add_argument("checkpoint", type=Path, help="new directory")
    args = parser.parse_args(argv)
    os.environ["CUDA_VISIBLE_DEVICES"] = (
        ""  # whole models fit the host, not always a GPU; before torch is imported
    )

    from cptron.convert.hf_import import import_hugging_face

    manifest = import_hugging_face(args.hugging_face, args.checkpoint)
    print(
        f"{args.checkpoint}: {manifest.hugging_face_model}, {manifest.precision}, "
        f"probe loss {manifest.probe.loss_nats_per_token:.4f} nats per token"
    )
    return 0
