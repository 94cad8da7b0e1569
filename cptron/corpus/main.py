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
from pathlib import Path

from cptron.corpus.arguments import parsed
from cptron.corpus.executor import LocalExecutor
from cptron.corpus.load import load_curation
from cptron.corpus.manifest import CorpusManifest
from cptron.corpus.quarantine import QUARANTINE
from cptron.corpus.ray_executor import RayExecutor
from cptron.corpus.report import cut_short
from cptron.corpus.run import curate, do_part, finish, prepare
from cptron.corpus.slurm import require_no_jobs, submit
from cptron.corpus.stages import build_step
from cptron.errors import ConfigError
from cptron.interrupts import terminated_like_interrupted
from cptron.report.console import table
from cptron.tokens.array_task import array_task


def main(argv: Sequence[str]) -> int:
    """Run `cptron curate`; returns the exit status, that of a shell where a signal ended it."""
    args = parsed(argv)
    part = _part(args.part)
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
    output = Path(config.corpus.output)
    is_slurm = args.executor == "slurm"
    if is_slurm and not args.dry_run:
        require_no_jobs(output)
    work = prepare(config, restart=args.restart and not args.dry_run, alone=not part and args.finish is None)
    if is_slurm:
        submit(args, work)
        return 0
    manifest: CorpusManifest | None = None
    if args.finish is not None:
        manifest = finish(work, _stage(args.finish, len(work.stages)), workers)
    else:
        with LocalExecutor(workers) if args.executor == "local" else RayExecutor(args.workers) as executor:
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
        cut = manifest.records_rejected.get("truncated", 0)
        more = f"{cut_short(cut)}\n" if cut else ""
        last = f"damaged records ({reasons}): see {output}/{QUARANTINE}\n{more}{last}"
    return f"{table(('step', 'documents in', 'left out', 'changed'), rows)}\n{last}"
