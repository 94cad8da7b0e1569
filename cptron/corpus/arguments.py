"""The command line of `cptron curate`.

Place in the flow: `main` parses with it, and so does a job that is submitted, before it waits in a queue. Invariant: an
option that would have no effect is refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cptron.errors import ConfigError
from cptron.launch.arguments import add_job_options

PARTS = 8


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, understood. Raises `ConfigError` where options do not fit together."""
    parser, of_jobs = _parser()
    args = parser.parse_intermixed_args(argv)
    if (args.part is None) != (args.stage is None):
        if args.part is None:
            raise ConfigError(f"--stage {args.stage} is of one part of it; give --part I/N with it")
        raise ConfigError(f"--part {args.part} is of a stage; give --stage S with it")
    if args.finish is not None and args.part is not None:
        raise ConfigError(f"--finish {args.finish} and --part {args.part} are two jobs; run them one by one")
    one = f"--part {args.part}" if args.part else f"--finish {args.finish}" if args.finish is not None else ""
    if one and args.restart:
        raise ConfigError(f"--restart would discard what the jobs before {one} made; leave it out")
    if args.executor == "slurm" and one:
        raise ConfigError(f"{one} is what a job does, --executor slurm submits jobs; give one of them")
    if args.executor != "slurm":
        _refuse_given(parser, args, of_jobs)
    return args


def _refuse_given(
    parser: argparse.ArgumentParser, args: argparse.Namespace, of_jobs: Sequence[argparse.Action]
) -> None:
    for action in of_jobs:
        value = getattr(args, action.dest)
        if value != parser.get_default(action.dest):
            raise ConfigError(
                f"{action.option_strings[0]} {value} is of jobs that are submitted; give --executor slurm with it, or "
                "leave it out"
            )


def _parser() -> tuple[argparse.ArgumentParser, Sequence[argparse.Action]]:
    """The parser, and those of its options that only `--executor slurm` has."""
    parser = argparse.ArgumentParser(
        prog="cptron curate",
        description="Curate a corpus as a YAML file says; run again after a kill, it goes on where it was.",
    )
    parser.add_argument("config", type=Path, help="YAML file with output, inputs and steps")
    parser.add_argument(
        "overrides", nargs="*", help="key=value, such as shard_bytes=1000000 or steps.length.min_words=5"
    )
    parser.add_argument(
        "--workers", type=_positive, default=0, help="processes (default: all cores, of the cluster with Ray)"
    )
    parser.add_argument(
        "--restart", action="store_true", help="discard all that earlier runs made, and begin again"
    )
    parser.add_argument(
        "--executor", choices=("local", "slurm", "ray"), default="local",
        help="where the work is done: here, in SLURM jobs that are submitted, or on a Ray cluster (default: local)",
    )  # fmt: skip
    add = parser.add_argument_group("one job of many, as --executor slurm submits them").add_argument
    add("--part", help="do part I/N of one stage, or `slurm` in a job array")
    add("--stage", type=_number, help="the stage of --part, from 0")
    add("--finish", type=_number, help="finish a stage whose parts are all done; the last: publish")
    before = set(parser._actions)
    add_job_options(parser)[2].add_argument(
        "--parts", type=_positive, default=PARTS, help=f"tasks of each job array (default: {PARTS})"
    )
    return parser, [action for action in parser._actions if action not in before]


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from 1")
    return int(text)
