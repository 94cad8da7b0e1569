"""`cptron data prepare | ledger`: what can be done with a run's data without training.

Place in the flow: before a job (`prepare`) and after or during it (`ledger`). Invariant: needs no GPU, no
torch and no rank but this process.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from cptron.config.load import load_config
from cptron.data.audit import Audit, audit
from cptron.data.ledger import source_of
from cptron.data.prepare import prepare
from cptron.durable import replacing
from cptron.errors import DataError
from cptron.report.console import table


def main(argv: Sequence[str]) -> int:
    """Run `cptron data prepare CONFIG [a.b=c ...]` or `cptron data ledger RUN`."""
    words = list(argv)
    if words[:1] == ["prepare"]:  # argparse takes no further overrides once an option came between them
        words = ["prepare", *sorted(words[1:], key=lambda word: not word.startswith("-"))]
    args = _parser().parse_args(words)
    return _prepare(args) if args.action == "prepare" else _ledger(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cptron data", description="A run's data, without training.")
    actions = parser.add_subparsers(dest="action", required=True)
    ahead = actions.add_parser(
        "prepare", help="check the sources and make their index files in data.cache_dir"
    )
    ahead.add_argument("config", help="the run's YAML")
    ahead.add_argument("overrides", nargs="*", help="a.b=c, as for cptron train")
    ahead.add_argument(
        "--verify", action="store_true", help="also read the token files and compare their hashes"
    )
    ledger = actions.add_parser("ledger", help="prove from a run's log which tokens it has seen")
    ledger.add_argument("run", help="run directory")
    ledger.add_argument("--json", action="store_true", help="print JSON instead of a table")
    ledger.add_argument("--documents", metavar="FILE", help="write every document range seen, as JSONL")
    ledger.add_argument("--source", default="", help="only this source in --documents")
    return parser


def _prepare(args: argparse.Namespace) -> int:
    config = load_config(Path(args.config), args.overrides).config
    rows = [
        [
            p.name,
            f"{p.documents:,}",
            f"{p.tokens:,}",
            f"{p.samples_per_epoch:,}",
            f"{p.epochs:,}",
            f"{p.elapsed_s:.1f}",
        ]
        for p in prepare(config, check_hashes=args.verify)
    ]
    print(table(["source", "documents", "tokens", "samples/epoch", "epochs", "seconds"], rows))
    return 0


def _ledger(args: argparse.Namespace) -> int:
    found = audit(Path(args.run))
    if args.documents:
        _write_ranges(found, Path(args.documents), args.source)
    if args.json:
        accounts = [asdict(account) for account in found.accounts]
        print(
            json.dumps(
                {
                    "step": found.step,
                    "skipped_batches": found.skipped_batches,
                    "accounts": accounts,
                    "lowest_replay_share": found.lowest_replay_share,
                    "corpora": found.corpora,
                    "checkpoints": found.compared_with,
                },
                indent=2,
            )
        )
        return 0
    rows = [
        [
            a.name,
            f"{a.samples:,}",
            f"{a.tokens:,}",
            f"{a.documents:,}",
            f"{a.epochs:.4f}",
            f"{a.tokens_skipped:,}",
            f"{a.largest_deviation_samples:.3f}",
        ]
        for a in found.accounts
    ]
    print(f"step {found.step}, recomputed from the log and the token files")
    head = ["source", "samples", "tokens", "documents", "epochs", "tokens skipped", "furthest from share"]
    print(table(head, rows))
    for source in sorted({source_of(a.name) for a in found.accounts if source_of(a.name) != a.name}):
        epochs = [a.epochs for a in found.accounts if source_of(a.name) == source]
        print(f"{source}: {math.fsum(epochs):.4f} epochs in {len(epochs)} lengths of samples")
    for name, corpora in found.corpora.items():
        print(f"{name} was made of curated corpus {', '.join(corpus[:12] for corpus in corpora)}")
    if found.lowest_replay_share is not None:
        print(f"sources of role replay never had less than {found.lowest_replay_share:.4f} of the tokens")
    if found.skipped_batches:
        print(f"drawn and not trained on: batch {', '.join(map(str, found.skipped_batches))}")
    print("\n".join(f"equal to the ledger of {path}" for path in found.compared_with))
    return 0


def _write_ranges(found: Audit, path: Path, only: str) -> None:
    """A file under its final name is whole, and on disk."""
    if only and only not in found.sources:
        raise DataError(f"--source {only} must be one of {', '.join(found.sources)}; choose one of these")
    special = path.is_symlink() or (path.exists() and not path.is_file())  # as /dev/stdout: never replaced
    try:
        with (
            nullcontext(path) if special else replacing(path) as written,
            written.open("w", encoding="utf-8", errors="backslashreplace") as stream,
        ):
            for name in [only] if only else found.sources:
                for seen in found.seen(name):
                    stream.write(json.dumps(asdict(seen), ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"--documents {path} cannot be written ({error}); choose another file") from None
