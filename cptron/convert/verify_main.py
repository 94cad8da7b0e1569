"""`cptron verify`: a checkpoint and a Hugging Face model are the same model. See `verify`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Run `cptron verify CHECKPOINT HF_MODEL [--tolerance T] [--base B]`; prints the comparison as one JSON object."""
    parser = argparse.ArgumentParser(
        prog="cptron verify", description="Compare logits with transformers, in fp32."
    )
    parser.add_argument("checkpoint", help="checkpoint, or a run directory for its newest checkpoint")
    parser.add_argument("hugging_face", type=Path, help="model directory")
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="largest logit difference (default: 1e-3)"
    )
    parser.add_argument("--base", type=Path, help="where an adapter's base checkpoint is, if it has moved")
    args = parser.parse_args(argv)
    os.environ["CUDA_VISIBLE_DEVICES"] = (
        ""  # whole models fit the host, not always a GPU; before torch is imported
    )

    from cptron.checkpoint.layout import resolve
    from cptron.convert.verify import require_equal

    found = require_equal(resolve(args.checkpoint), args.hugging_face, args.tolerance, args.base)
    print(json.dumps(asdict(found)))
    return 0
