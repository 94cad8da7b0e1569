"""`cptron eval`: loss of a checkpoint, or of a Hugging Face model, on validation data.

Place in the flow: any time. Invariant: the two forms measure the same thing by independent code, so they
can be compared.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from cptron.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """Run `cptron eval (--checkpoint C | --hugging-face H) --data D ...`; prints one JSON object a line."""
    parser = argparse.ArgumentParser(
        prog="cptron eval", description="Loss on validation data, in nats per token."
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", help="checkpoint or run directory; --data are token file prefixes")
    model.add_argument(
        "--hugging-face", type=Path, help="model directory; --data are JSONL files (transformers only)"
    )
    parser.add_argument("--data", nargs="+", required=True, help="token file prefixes, or JSONL files")
    parser.add_argument(
        "--seq-length", type=int, default=1024, help="predictions in one window (default: 1024)"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=0, help="at most so many predictions a set; 0 means all"
    )
    parser.add_argument(
        "--micro-batch-size", type=int, default=4, help="windows in one forward pass (default: 4)"
    )
    parser.add_argument(
        "--no-document-mask", action="store_true", help="let attention cross documents (default: it does not)"
    )
    parser.add_argument("--base", type=Path, help="where an adapter's base checkpoint is, if it has moved")
    parser.add_argument(
        "--reset-positions",
        action="store_true",
        help="positions start anew in every document (of a checkpoint)",
    )
    args = parser.parse_args(argv)
    if min(args.seq_length, args.micro_batch_size) < 1 or args.max_tokens < 0:
        raise ConfigError(
            f"--seq-length={args.seq_length} and --micro-batch-size={args.micro_batch_size} must be at least 1, "
            f"--max-tokens={args.max_tokens} at least 0; correct the command"
        )
    evaluate = _evaluate_checkpoint if args.checkpoint else _evaluate_hugging_face
    for name, loss, tokens in evaluate(args):
        record = {
            "data": name,
            "loss_nats_per_token": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "tokens": tokens,
        }
        print(json.dumps(record), flush=True)
    return 0


def _evaluate_checkpoint(args: argparse.Namespace) -> list[tuple[str, float, int]]:
    from cptron.checkpoint import layout
    from cptron.checkpoint.weights import open_model
    from cptron.config.schema import AttentionConfig
    from cptron.data.valid import ValidSet
    from cptron.evaluate.perplexity import evaluate_set
    from cptron.model.options import ModelOptions
    from cptron.runtime.session import open_session

    checkpoint = layout.resolve(args.checkpoint)
    manifest = layout.read_manifest(checkpoint)
    vocab_size = manifest.arch.vocab_size
    sets = [
        ValidSet(p, p, args.seq_length, args.max_tokens, args.micro_batch_size, 0, 1, vocab_size)
        for p in args.data
    ]
    results = []
    with open_session() as session:
        options = ModelOptions(
            precision="fp32" if session.device.kind == "cpu" else "bf16",
            attention=AttentionConfig(
                document_mask=not args.no_document_mask, reset_positions=args.reset_positions
            ),
        )
        model = open_model(checkpoint, options, args.base)
        for valid_set in sets:
            sums = evaluate_set([model], valid_set, session.device.torch_device)
            results.append((valid_set.name, sums.loss_nats_per_token, sums.tokens))
    return results


def _evaluate_hugging_face(args: argparse.Namespace) -> list[tuple[str, float, int]]:
    from cptron.evaluate.reference import evaluate_hugging_face

    options = (args.seq_length, args.max_tokens, args.micro_batch_size, not args.no_document_mask)
    return [(path, *evaluate_hugging_face(args.hugging_face, Path(path), *options)) for path in args.data]
