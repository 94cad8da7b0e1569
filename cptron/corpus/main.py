"""`cptron curate`: raw documents in, clean ones out, with counts of everything that was left out.

Place in the flow: the first command of all; `preprocess` takes its output.
Invariant: this file only parses, chooses an executor and prints; `run` has the work.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from cptron.corpus.datatrove_executor import ray_executor
from cptron.corpus.executor import LocalExecutor
from cptron.corpus.load import load_curation
from cptron.corpus.manifest import CorpusManifest
from cptron.corpus.quarantine import QUARANTINE
from cptron.corpus.run import curate, do_part, finish, prepare
from cptron.corpus.slurm import submit
from cptron.corpus.stages import build_step
from cptron.errors import ConfigError
from cptron.interrupts import terminated_like_interrupted
from cptron.report.console import table
from cptron.tokens.array_task import array_task


def main(argv: Sequence[str]) -> int:
    """Run `cptron curate`; returns the exit status, that of a shell where a signal ended it."""
    args = _parser().parse_intermixed_args(argv)
    part = _part(args.part)
    if (part is None) != (args.stage is None):
        raise ConfigError(
            f"--part {args.part} and --stage {args.stage} belong together; give both or neither"
        )
    try:
        with terminated_like_interrupted():
            return _run(args, part)
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        print("stopped: run the same command again to go on", file=sys.stderr)
        return 128 + int(number)


def _run(args: argparse.Namespace, part: tuple[int, int] | None) -> int:
    workers = args.workers or len(os.sched_getaffinity(0))
    config = load_curation(args.config, args.overrides)
    work = prepare(config, restart=args.restart, alone=part is None and args.finish is None)
    output = Path(config.corpus.output)
    if args.executor == "slurm":
        jobs = submit([str(args.config), *args.overrides], len(work.stages), args.parts, args.sbatch)
        print(
            f"submitted {len(jobs)} jobs, {jobs[0]} to {jobs[-1]}; the last one writes {output}/manifest.json"
        )
        return 0
    manifest: CorpusManifest | None = None
    if args.finish is not None:
        manifest = finish(work, _stage(args.finish, len(work.stages)), workers)
    else:
        local = LocalExecutor(workers) if args.executor == "local" else None
        with local or nullcontext():
            executor = local or ray_executor(workers)
            if part:
                do_part(work, _stage(args.stage, len(work.stages)), part, executor)
            else:
                manifest = curate(work, executor, workers)
    if manifest:
        print(_shown(manifest, output))
        for said in filter(None, (build_step(config, step).said() for step in config.steps)):
            print(said)
    return 0


def _part(text: str | None) -> tuple[int, int] | None:
    """(I, N) of `I/N`, or those of the SLURM array that this is a task of."""
    if text is None:
        return None
    if text == "slurm":
        index, count = array_task("--part slurm")
        if count is None:
            raise ConfigError(
                f"--part slurm is for a whole array 0-(N-1), this is task {index} of another; say --part I/N"
            )
        return index, count
    index_text, _, count_text = text.partition("/")
    if not (index_text.isdecimal() and count_text.isdecimal() and int(index_text) < int(count_text)):
        raise ConfigError(f"--part {text} must be I/N with I from 0 to N - 1, or slurm; correct it")
    return int(index_text), int(count_text)


def _stage(number: int, count: int) -> int:
    if number >= count:
        raise ConfigError(f"stage {number} does not exist, must be 0 to {count - 1}; correct it")
    return number


def _shown(manifest: CorpusManifest, output: Path) -> str:
    rows = [("(read)", f"{manifest.records_read:,}", f"{sum(manifest.records_rejected.values()):,}", "")]
    for step in manifest.steps:
        dropped = sum(step.dropped.values())
        rows.append((step.name, f"{step.documents_in:,}", f"{dropped:,}", f"{step.documents_changed:,}"))
    tokens = "" if manifest.tokens is None else f", {manifest.tokens:,} tokens"
    nothing = "" if manifest.documents else "nothing is left: "
    last = (
        f"{nothing}{manifest.documents:,} documents, {manifest.text_bytes / 1e6:,.2f} MB{tokens}: "
        f"see {output}/report.md"
    )
    if manifest.records_rejected:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.records_rejected.items())
        last = f"damaged records ({reasons}): see {output}/{QUARANTINE}\n{last}"
    return f"{table(('step', 'documents in', 'left out', 'changed'), rows)}\n{last}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cptron curate",
        description="Curate a corpus as a YAML file says; run again after a kill, it goes on where it was.",
    )
    parser.add_argument("config", type=Path, help="YAML file with output, inputs and steps")
    parser.add_argument(
        "overrides", nargs="*", help="key=value, such as shard_bytes=1000000 or steps.length.min_words=5"
    )
    parser.add_argument("--workers", type=_positive, default=0, help="processes (default: all cores)")
    parser.add_argument(
        "--restart", action="store_true", help="discard all that earlier runs made, and begin again"
    )
    parser.add_argument(
        "--executor", choices=("local", "slurm", "ray"), default="local",
        help="where the work is done: here, in SLURM jobs that are submitted, or on a Ray cluster (default: local)",
    )  # fmt: skip
    slurm = parser.add_argument_group("SLURM")
    slurm.add_argument("--parts", type=_positive, default=8, help="tasks of each job array (default: 8)")
    slurm.add_argument(
        "--sbatch", type=Path, default=Path("launch/curate.sbatch"), help="template of the jobs"
    )
    slurm.add_argument("--part", help="do part I/N of one stage, or `slurm` in a job array")
    slurm.add_argument("--stage", type=_number, help="the stage of --part, from 0")
    slurm.add_argument(
        "--finish", type=_number, help="finish a stage whose parts are all done; the last: publish"
    )
    return parser


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from 1")
    return int(text)
