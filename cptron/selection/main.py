"""`cptron select RUN ...`: which checkpoint to keep, why, and what its interpolations with the base would give.

Place in the flow: while a run goes on or after it, before an export. Imports no torch without `--wise-ft`. Invariant:
exit code 0 means that something was chosen; NONE_WITHIN that no candidate is within epsilon; nothing is deleted, and a
mark is only set where the record says why.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from cptron.checkpoint.marks import mark_only
from cptron.config.load import load_config
from cptron.errors import CheckpointError, ConfigError
from cptron.selection.candidates import Candidate, Survey, survey
from cptron.selection.record import Record, Shown, record_of, rows_of, write_selection
from cptron.selection.rules import Choice, Rule, choose
from cptron.selection.shown import grid_text, kept_text, record_text

NONE_WITHIN = 3
"""Exit code. Not 1, which is a traceback's, nor 2, which is an error's."""
MARK = "selected"


def main(argv: Sequence[str]) -> int:
    """Run `cptron select`."""
    args = _parser().parse_args(list(argv))
    alphas = _alphas(args.wise_ft) if args.wise_ft is not None else []
    _check(args)
    found = survey(args.runs)
    if not found.candidates:
        why = "; ".join(f"{name}: {why}" for name, why in found.refused.items())
        raise CheckpointError(f"no checkpoint can be compared: {why}")
    rule = _rule(args)
    choice = choose(rule, [item.point for item in found.candidates])
    shown = [Shown(item.point, item.evaluation, _facts(item)) for item in found.candidates]
    record = record_of(rule, choice, rows_of(rule, choice, shown, found), found, ["cptron", "select", *argv])
    record["grid"] = None
    if not args.json:
        print(record_text(record), flush=True)
    final = choice
    if alphas:
        final, record["grid"] = _grid(args, alphas, rule, choice, found)
        if not args.json:
            print("\n".join(grid_text(record["grid"])), flush=True)
    paths = {
        row["name"]: row["path"] for part in (record, record["grid"] or record) for row in part["candidates"]
    }
    record["result"] = [paths[point.name] for point in final.chosen]
    _keep(args, record, choice, final, found)
    print(json.dumps(record, indent=1, ensure_ascii=False) if args.json else "\n".join(kept_text(record)))
    return 0 if final.chosen else NONE_WITHIN


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cptron select",
        description="Choose among the evaluated checkpoints of runs, mark the chosen one so that retention keeps it, "
        "and write why to RUN/selection.json.",
        epilog=f"exit code: 0 chosen, {NONE_WITHIN} none within epsilon (the nearest is named), 2 could not choose",
    )
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run directory; several are compared with the first one's base",
    )
    add(
        "--mode",
        choices=("constrained", "pareto", "weighted"),
        default="constrained",
        help="default: constrained",
    )
    add(
        "--epsilon",
        type=float,
        metavar="NATS",
        help="of constrained (default: the run's forgetting.epsilon_nats)",
    )
    add(
        "--weight",
        action="append",
        metavar="NAME=W",
        help="of weighted: old, new, valid/SET or probe/NAME; several times",
    )
    add(
        "--wise-ft", metavar="A,A,...", help="also evaluate base + A (checkpoint - base), such as 0.5,0.7,0.9"
    )
    add("--output", type=Path, metavar="DIR", help="of --wise-ft: new directory for the models")
    add(
        "--wise-ft-base",
        type=Path,
        metavar="DIR",
        help="of --wise-ft: the base's weights, if they have moved",
    )
    add(
        "--wise-ft-of",
        metavar="NAME",
        help="of --wise-ft: another candidate than the winner (or the nearest)",
    )
    add("--mark", metavar="NAME", help=f"mark of what is kept (default: {MARK})")
    add("--no-mark", action="store_true", help="mark nothing")
    add("--dry-run", action="store_true", help="write nothing and mark nothing")
    add("--json", action="store_true", help="print the record instead of tables")
    return parser


def _check(args: argparse.Namespace) -> None:
    """Raise `ConfigError` for options that have no effect, or contradict each other."""
    for flag, needed, has in (
        ("epsilon", "--mode constrained", args.mode == "constrained"),
        ("weight", "--mode weighted", args.mode == "weighted"),
        ("output", "--wise-ft", args.wise_ft is not None),
        ("wise_ft_base", "--wise-ft", args.wise_ft is not None),
        ("wise_ft_of", "--wise-ft", args.wise_ft is not None),
        ("mark", "marks, and this command sets none", not (args.no_mark or args.dry_run)),
    ):
        if getattr(args, flag) is not None and not has:
            raise ConfigError(f"--{flag.replace('_', '-')} is for {needed}; leave it out")
    if args.epsilon is not None and not (math.isfinite(args.epsilon) and args.epsilon >= 0):
        raise ConfigError(f"--epsilon={args.epsilon} must be a number from 0; correct it")
    if len({run.resolve() for run in args.runs}) < len(args.runs):
        raise ConfigError("a run is given twice; name each once")
    if args.wise_ft is not None:
        if args.mode == "pareto":
            raise ConfigError(
                "--wise-ft interpolates one checkpoint, --mode pareto gives a list; choose by another mode"
            )
        if args.output is None or args.dry_run:
            raise ConfigError("--wise-ft writes models: give --output DIR, and leave --dry-run out")


def _rule(args: argparse.Namespace) -> Rule:
    weights: dict[str, float] = {}
    for word in args.weight or ():
        name, _, number = word.rpartition("=")
        if not name or name in weights:
            raise ConfigError(f"--weight {word} must be NAME=W, each name once; correct it")
        weights[name] = _number(number, f"--weight {word}")
    epsilon = args.epsilon
    if epsilon is None:
        epsilon = load_config(args.runs[0] / "config.yaml").config.forgetting.epsilon_nats
    return Rule(mode=args.mode, epsilon_nats=epsilon, weights=weights)


def _alphas(words: str) -> list[float]:
    found = [_number(word, f"--wise-ft {words}") for word in words.split(",")]
    if not all(0 <= alpha <= 1 for alpha in found) or len(set(found)) < len(found):
        raise ConfigError(f"--wise-ft {words} must be numbers from 0 to 1, each once; correct it")
    return found


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{text!r} in {where} must be a number; correct it") from None


def _facts(item: Candidate) -> Record:
    return {
        "path": str(item.path),
        "step": item.step,
        "attempt": item.attempt,
        "tokens_total": item.point.tokens_total,
    }


def _grid(
    args: argparse.Namespace, alphas: Sequence[float], rule: Rule, choice: Choice, found: Survey
) -> tuple[Choice, Record]:
    """The rule over the interpolations, the checkpoint that they are of, and the chosen one."""
    from cptron.selection.grid import make_grid

    by_name = {item.name: item for item in found.candidates}
    of = _interpolated(args, choice, by_name)
    grid = make_grid(of, alphas, args.output, args.wise_ft_base, found)
    beside = {of.name: of} | {point.name: by_name[point.name] for point in choice.chosen}
    models = [Shown(item.point, item.evaluation, _facts(item)) for item in beside.values()]
    for made in grid.points:
        facts = {"path": str(made.path), "alpha": made.alpha, "tokens_total": of.point.tokens_total}
        models.append(Shown(made.point, made.evaluation, facts))
    final = choose(rule, [model.point for model in models])
    return final, {
        "of": of.name,
        "base": str(grid.base),
        "base_differs_nats": grid.base_differs_nats,
        "chosen": [point.name for point in final.chosen],
        "nearest": final.nearest.name if final.nearest else None,
        "reason": final.reason,
        "candidates": rows_of(rule, final, models, found),
        "notes": grid.notes,
    }


def _interpolated(args: argparse.Namespace, choice: Choice, by_name: Mapping[str, Candidate]) -> Candidate:
    winner = choice.chosen[0] if choice.chosen else choice.nearest
    assert winner is not None, "one of several is chosen or nearest"
    name = args.wise_ft_of or winner.name
    if name not in by_name:
        raise ConfigError(f"--wise-ft-of {name} is no candidate; use one of {', '.join(by_name)}")
    return by_name[name]


def _keep(args: argparse.Namespace, record: Record, choice: Choice, final: Choice, found: Survey) -> None:
    """Set the marks and write the record, in this order: what is recorded as marked is."""
    kept = _to_keep(record, choice, final, found)
    marks, name = not (args.no_mark or args.dry_run) and bool(kept), args.mark or MARK
    record |= {
        "marked": [],
        "unmarked": [],
        "kept_in_left": [str(item.path) for item in kept if item.is_left],
    }
    for run in args.runs if marks else ():
        steps = {item.step for item in kept if item.run == run and not item.is_left}
        gone = mark_only(run / "checkpoints", steps, name)
        for key, which in (("marked", sorted(steps)), ("unmarked", gone)):
            record[key] += [{"run": str(run), "step": step, "mark": name} for step in which]
    for run in () if args.dry_run else args.runs:
        write_selection(run, record)
        _renew_report(run)


def _to_keep(record: Record, choice: Choice, final: Choice, found: Survey) -> list[Candidate]:
    """The chosen checkpoints; of an interpolation, also the one that it was made of."""
    names = {point.name for point in (*choice.chosen, *final.chosen)}
    made = {row["name"] for row in (record["grid"] or {"candidates": []})["candidates"] if "alpha" in row}
    if names & made:
        names.add(record["grid"]["of"])
    return [item for item in found.candidates if item.name in names]


def _renew_report(run: Path) -> None:
    """Where there is one, it shows the choice."""
    from cptron.report.html import REPORT_FILE, write_report

    if (run / REPORT_FILE).exists():
        write_report(run)
