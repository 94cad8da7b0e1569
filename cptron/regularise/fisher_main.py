"""`cptron fisher CHECKPOINT`: from the command line to `fisher`, on one rank or many.

Place in the flow: before a run with `regularise.ewc`, on the data that the model is not to forget. Invariant: what is
approximate is called so in the command, in what is printed and in what is stored.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from cptron.errors import ConfigError
from cptron.regularise.cut_options import add_cut_options, layout_of
from cptron.runtime.topology import Layout

APPROXIMATIONS = {
    "batches": "approximation: squares of sums over batches, right only where the gradient is zero on average",
    "adam": "approximation: second moments of clipped gradients of batches along the end of the run's way",
}


def main(argv: Sequence[str]) -> int:
    """Run `cptron fisher CHECKPOINT --output DIR (--data PREFIX [...] | --from-adam)`; prints JSON."""
    args = _parser().parse_args(argv)
    cut = _checked(args)

    from cptron.checkpoint import layout
    from cptron.regularise.fisher import Sample, estimate_and_store
    from cptron.runtime.launcher import launched_ranks
    from cptron.runtime.session import SINGLE, open_session

    checkpoint = layout.resolve(args.checkpoint)
    sample = None
    if args.data:
        sample = Sample(
            prefix=args.data,
            sequences=args.sequences,
            seq_length=args.seq_length,
            batch_size=args.batch_size,
            seed=args.seed,
        )
    ranks = launched_ranks() or SINGLE
    with open_session(ranks, cut, seed=args.seed, device=args.device) as session:
        record = estimate_and_store(checkpoint, args.output, sample, session, precision=args.precision)
    if ranks.is_main:
        said = {key: getattr(record, key) for key in ("estimator", "sequences", "tokens", "mean", "clipped")}
        said |= {"output": str(args.output), "weights": record.weights_fingerprint[:12]}
        if record.estimator in APPROXIMATIONS:
            said["note"] = APPROXIMATIONS[record.estimator]
        print(json.dumps(said), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cptron fisher",
        description="Estimate how much each weight of a checkpoint matters to data that are not to be forgotten.",
        epilog="on many ranks: start it with torchrun or srun; data parallel ranks divide the sequences",
    )
    add = parser.add_argument
    add("checkpoint", help="checkpoint or run directory that the next run starts from")
    add("--output", type=Path, required=True, help="new directory, for regularise.fisher")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", metavar="PREFIX", help="token files of the old kind of data")
    what.add_argument(
        "--from-adam",
        action="store_true",
        help=f"no data: AdamW's state of the run's checkpoint ({APPROXIMATIONS['adam']})",
    )
    add("--sequences", type=int, default=2048, help="how many are drawn (default: 2048)")
    add("--seq-length", type=int, default=1024, help="tokens predicted in one (default: 1024)")
    add(
        "--batch-size",
        type=int,
        default=1,
        help=f"more than 1: {APPROXIMATIONS['batches']} (default: 1, exact)",
    )
    add("--seed", type=int, default=1234, help="which sequences are drawn (default: 1234)")
    add_cut_options(parser)
    return parser


def _checked(args: argparse.Namespace) -> Layout:
    cut = layout_of(args, ("sequences", "seq_length", "batch_size"))
    if args.sequences % args.batch_size:
        raise ConfigError(
            f"--sequences={args.sequences} must be a multiple of --batch-size={args.batch_size}; correct the command"
        )
    if args.output.exists():
        raise ConfigError(f"--output={args.output} exists already; choose a new directory")
    return cut
