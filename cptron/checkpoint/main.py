"""`cptron checkpoint list | show | verify | prune | promote`: what a run keeps, proven, deleted and kept for ever.

Place in the flow: any time, on any machine; imports no torch. Invariant: only `prune --yes` deletes, and only what no
rule keeps, after the newest checkpoint was proven file by file; only `promote` marks.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cptron.checkpoint import layout
from cptron.checkpoint.in_use import reading
from cptron.checkpoint.listing import DAMAGED, FOREIGN, Facts, list_run, require_run, rules_of
from cptron.checkpoint.marks import mark, unmark
from cptron.checkpoint.prune import prune, survey, to_remove
from cptron.checkpoint.retention import Rules
from cptron.checkpoint.run_lock import sole_writer
from cptron.checkpoint.verify import damage
from cptron.config.check_retention import METRICS
from cptron.errors import EXIT_CODE, CheckpointError, either
from cptron.report.console import table


def main(argv: Sequence[str]) -> int:
    """Run one action."""
    args = _parser().parse_args(list(argv))
    actions = {"list": _list, "show": _show, "verify": _verify, "prune": _prune, "promote": _promote}
    return actions[args.action](args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cptron checkpoint", description="The checkpoints of a run.")
    actions = parser.add_subparsers(dest="action", required=True)
    listed = actions.add_parser("list", help="every checkpoint of a run: state, metrics, and why it is kept")
    listed.add_argument("run", type=Path, help="run directory")
    shown = actions.add_parser(
        "show", help="all that one checkpoint says of itself, as `cptron inspect` does"
    )
    shown.add_argument("path", help="checkpoint directory, or a run: its newest complete one")
    proven = actions.add_parser(
        "verify", help="read every file and compare its sha256; exit code 2 on damage"
    )
    proven.add_argument("path", type=Path, help="checkpoint directory, or a run: all of its checkpoints")
    proven.add_argument("--threads", type=int, default=0, help="files read side by side; 0: as many as cores")
    for action in (listed, shown, proven):
        action.add_argument("--json", action="store_true", help="print JSON instead of text")
    pruned = actions.add_parser(
        "prune", help="delete what no rule keeps: by the flags, or by the run's configuration"
    )
    pruned.add_argument("run", type=Path, help="run directory")
    how = pruned.add_mutually_exclusive_group(required=True)
    how.add_argument("--dry-run", action="store_true", help="only say what would go")
    how.add_argument("--yes", action="store_true", help="delete it")
    pruned.add_argument("--keep-last", type=int, metavar="N", help="keep the newest N")
    pruned.add_argument(
        "--keep-every-tokens", type=int, metavar="M", help="keep the first past each M tokens"
    )
    pruned.add_argument("--keep-best", type=int, metavar="K", help="keep the K lowest by --best-metric")
    pruned.add_argument("--best-metric", metavar="NAME", help="as checkpoint.best_metric")
    pruned.add_argument(
        "--damaged", action="store_true", help="also delete damaged ones before the newest good one"
    )
    promoted = actions.add_parser("promote", help="keep a checkpoint for ever, whatever the rules say")
    promoted.add_argument("run", type=Path, help="run directory")
    promoted.add_argument("step", type=int, help="step of the checkpoint")
    promoted.add_argument("--name", required=True, help="the mark: why it is kept")
    promoted.add_argument("--remove", action="store_true", help="take this mark off again")
    return parser


def _list(args: argparse.Namespace) -> int:
    found = list_run(require_run(args.run))
    if args.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    names = [name for facts in found for name in facts["metrics"]]
    metrics = list(dict.fromkeys(names))
    losses = [f"{name.split('/')[1]} nats/token" for name in metrics]
    headers = ["step", "tokens", "size", "layout", "kind", *losses, "state", "kept because"]
    print(table(headers, [_row(facts, metrics) for facts in found]) if found else "no checkpoints")
    for text in dict.fromkeys(text for facts in found for text in (facts["state"], facts["kept"])):
        if more := _cut(text)[1]:
            print(more)
    return 0


def _cut(text: str) -> tuple[str, str]:
    """What of a state or a reason stands in the table, and what of it below."""
    if text.startswith("? "):
        return "?", f"why they are kept is not known: {text[2:]}"
    short, _, more = text.partition(": ")
    return (short, more) if short in (DAMAGED, FOREIGN) else (text, "")


def _row(facts: Facts, metrics: Sequence[str]) -> list[str]:
    tokens, size = facts["tokens"], facts["bytes"]
    return [
        str(facts["step"]),
        f"{tokens:,}" if isinstance(tokens, int) else tokens,
        f"{size / 1e6:,.1f} MB" if isinstance(size, int) else size,
        facts["layout"],
        facts["kind"],
        *(f"{facts['metrics'][name]:.4f}" if name in facts["metrics"] else "-" for name in metrics),
        _cut(facts["state"])[0],
        _cut(facts["kept"])[0],
    ]


def _show(args: argparse.Namespace) -> int:
    from cptron.inspect import main as inspect

    return inspect([str(layout.resolve(args.path)), *(["--json"] if args.json else [])])


def _verify(args: argparse.Namespace) -> int:
    if args.threads < 0:
        raise CheckpointError(f"--threads={args.threads} must not be negative; use 0 for as many as cores")
    is_one = (args.path / layout.MANIFEST).is_file() or not (args.path / "checkpoints").is_dir()
    directories = (
        [args.path] if is_one else [path for _, path in layout.list_checkpoints(args.path / "checkpoints")]
    )
    found = []
    for directory in directories:
        started_s = time.perf_counter()
        with reading(directory):
            problems = damage(directory, threads=args.threads)
        elapsed_s = time.perf_counter() - started_s
        if problems and not is_one and not directory.exists():
            continue  # the run has deleted it since we looked
        found.append({"checkpoint": str(directory), "damage": problems, "elapsed_s": round(elapsed_s, 3)})
        if not args.json:
            print("\n".join(problems) or _good(directory, elapsed_s), flush=True)
    if args.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    elif not directories:
        print("no checkpoints")
    return EXIT_CODE if any(item["damage"] for item in found) else 0


def _good(directory: Path, elapsed_s: float) -> str:
    sizes = [file.size for file in layout.read_manifest(directory).files.values()]
    return f"{directory}: good; {len(sizes)} files, {sum(sizes) / 1e6:,.1f} MB in {elapsed_s:.1f} s"


def _prune(args: argparse.Namespace) -> int:
    run = require_run(args.run)
    rules, checkpoints = _rules(args), run / "checkpoints"
    nothing = "nothing to remove"
    if not (rules.delete or args.damaged):
        nothing += ": the run has no rule that deletes; give --keep-last N or another"
    if args.dry_run:
        doomed = to_remove(checkpoints, rules, damaged=args.damaged)
        print("\n".join(f"would remove {path}" for path in doomed) or nothing)
        return 0
    with sole_writer(run) as notes:
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        if to_remove(checkpoints, rules, damaged=args.damaged):
            _require_proof(checkpoints)
        pruned = prune(checkpoints, rules, damaged=args.damaged)
    lines = [f"removed {path}" for path in pruned.removed] + [
        f"in use, kept {path}" for path in pruned.in_use
    ]
    print("\n".join(lines) or nothing)
    return 0


def _rules(args: argparse.Namespace) -> Rules:
    """Those of the flags; without any, those of the run. Milestones are always the run's."""
    own = rules_of(args.run)
    flags = (args.keep_last, args.keep_every_tokens, args.keep_best)
    if all(flag is None for flag in flags) and args.best_metric is None:
        return own
    last, every, best = (flag or 0 for flag in flags)
    if min(last, every, best) < 0 or (best > 0) != bool(args.best_metric):
        raise CheckpointError(
            f"--keep-last {last} --keep-every-tokens {every} --keep-best {best} --best-metric {args.best_metric} must "
            "be from 0, and the metric goes with --keep-best; give both or neither"
        )
    if best:
        _require_measured(args.run / "checkpoints", args.best_metric)
    return Rules(
        keep_last=last,
        keep_every_tokens=every,
        keep_best=best,
        best_metric=args.best_metric or "",
        milestones=own.milestones,
    )


def _require_measured(checkpoints: Path, metric: str) -> None:
    """Raise `CheckpointError` where no checkpoint has the metric: by a name with a typing error none is among the best,
    and all would go."""
    measured = {
        name
        for item in survey(checkpoints)
        if item.manifest is not None
        for name, value in item.manifest.metrics.items()
        if math.isfinite(value) and name.rsplit("/", 1)[-1] in METRICS
    }
    if metric not in measured:
        known = either(sorted(measured)) if measured else "another rule, since none was evaluated"
        raise CheckpointError(
            f"--best-metric={metric} was measured at no checkpoint of {checkpoints}; use {known}"
        )


def _require_proof(checkpoints: Path) -> None:
    """Raise `CheckpointError` unless the newest good checkpoint, which always stays, is what was written."""
    newest = [item.path for item in survey(checkpoints) if item.manifest is not None][-1]
    problems = damage(newest)
    if problems:
        raise CheckpointError(f"{problems[0]}; nothing was removed: remove {newest} first, or restore it")


def _promote(args: argparse.Namespace) -> int:
    checkpoints = require_run(args.run) / "checkpoints"
    change, word = (unmark, "no longer marked") if args.remove else (mark, "kept for ever as")
    change(checkpoints, args.step, args.name)
    print(f"{layout.step_directory(checkpoints, args.step)}: {word} {args.name}")
    return 0
