"""`cptron curate`: raw documents in, clean ones out, with counts of everything that was left out.

Place in the flow: the first command of all; `preprocess` takes its output.
Invariant: this file only parses, chooses an executor and prints; `run` has the work.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cptron.corpus.executor import LocalExecutor
from cptron.corpus.load import load_curation
from cptron.corpus.manifest import CorpusManifest
from cptron.corpus.run import curate, prepare
from cptron.report.console import table


def main(argv: Sequence[str]) -> int:
    """Run `cptron curate`."""
    args = _parser().parse_args(argv)
    workers = args.workers or len(os.sched_getaffinity(0))
    config = load_curation(args.config, args.overrides)
    work = prepare(config, restart=args.restart)
    try:
        with LocalExecutor(workers) as executor:
            manifest = curate(work, executor, workers)
    except KeyboardInterrupt:
        print("stopped: run the same command again to go on", file=sys.stderr)
        raise
    print(_shown(manifest, Path(config.corpus.output)))
    return 0


def _shown(manifest: CorpusManifest, output: Path) -> str:
    rows = [("(read)", f"{manifest.records_read:,}", f"{sum(manifest.records_rejected.values()):,}", "")]
    for step in manifest.steps:
        dropped = sum(step.dropped.values())
        rows.append((step.name, f"{step.documents_in:,}", f"{dropped:,}", f"{step.documents_changed:,}"))
    tokens = "" if manifest.tokens is None else f", {manifest.tokens:,} tokens"
    last = f"{manifest.documents:,} documents, {manifest.text_bytes / 1e6:,.2f} MB{tokens}: see {output}/report.md"
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
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from 1")
    return int(text)
