"""`cptron mixlaw fit DATA ...`: a law fitted to measured runs, with its errors.

Place in the flow: `main` hands over here. Invariant: what is printed is what is in the JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cptron.durable import replace_text
from cptron.errors import ConfigError, DataError
from cptron.mixture.bound import Bound, baseline_of, parse_bound
from cptron.mixture.fit import FitOptions, fit_table
from cptron.mixture.fit_file import MixtureFit, write_fit
from cptron.mixture.laws.registry import LAWS
from cptron.mixture.picture import fit_page
from cptron.mixture.points import SCALARS, Inputs, Table
from cptron.mixture.predict import DISAGREEMENT, scalars_for
from cptron.mixture.read_points import read_points
from cptron.mixture.read_runs import read_runs
from cptron.mixture.recommend import Recommendation, recommend
from cptron.mixture.shown import fit_lines, recommendation_lines

DRAWS = 300
FEWEST_DRAWS = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fit`."""
    laws = "\n".join(f"  {name:<11}{purpose}" for name, purpose in LAWS.items())
    parser.description = "Fit a law to run directories of cptron train, or to one CSV or JSONL file."
    parser.epilog = f"laws:\n{laws}\n\ndocs/mixture_laws.md says what each can and cannot do"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("data", nargs="+", type=Path, metavar="DATA", help="run directories, or one table of runs")
    add("--law", choices=tuple(LAWS), required=True, help="see below")
    role = "NAME[=DOMAIN[+DOMAIN]]"
    add(
        "--old",
        metavar=role,
        help="loss that may be forgotten, and the domains it measures (default: its name)",
    )
    add("--new", metavar=role, help="loss that training is for")
    add("--loss", action="append", default=[], metavar=role, help="another loss to fit; several times")
    add(
        "--every-evaluation",
        action="store_true",
        help="run directories: every evaluation is a point, not the last",
    )
    add("--output", type=Path, required=True, metavar="FIT.json", help="written there, for predict")
    add("--plot", type=Path, metavar="FILE.html", help="a page with fit, intervals and points")
    add("--draws", type=int, default=DRAWS, help=f"of the bootstrap (default: {DRAWS})")
    add("--seed", type=int, default=0, help="of starts and draws (default: 0)")
    add_bound(parser)


def add_bound(parser: argparse.ArgumentParser) -> None:
    """The options that say what is recommended; `predict` has them too."""
    add = parser.add_argument
    add(
        "--max-old-increase-nats",
        metavar="X",
        help="recommend: the old loss may rise by this (default: 0.05)",
    )
    add("--max-old-increase-percent", metavar="P", help="recommend: or by this part of what it was")
    add(
        "--old-baseline-nats",
        type=float,
        metavar="L",
        help="old loss before training (default: that of step 0)",
    )


def run(args: argparse.Namespace) -> int:
    """Fit, print, write."""
    if args.draws < FEWEST_DRAWS or args.seed < 0:
        raise ConfigError(
            f"--draws {args.draws} must be at least {FEWEST_DRAWS}, --seed {args.seed} at least 0; correct the command"
        )
    bound = parse_bound(args.max_old_increase_nats, args.max_old_increase_percent)
    table = _read(args.data, every_evaluation=args.every_evaluation)
    fit = fit_table(table, _options(args, table))
    for note in table.notes:
        print(f"note: {note}")
    for one in fit.fits:
        print("\n".join(fit_lines(fit, one)))
    at = _largest(fit)
    found = None
    if fit.law != "cmr-tokens" and fit.old and fit.new:
        found = _recommended(fit, at, bound, args.old_baseline_nats)
    print(DISAGREEMENT)
    write_fit(args.output, fit)
    if args.plot:
        write_page(args.plot, fit_page(fit, at, found))
    return 0


def write_page(path: Path, text: str) -> None:
    """Write a page. Raises `DataError`."""
    try:
        replace_text(path, text)
    except OSError as error:
        raise DataError(f"--plot {path} cannot be written ({error}); choose another file") from None


def _recommended(fit: MixtureFit, at: Inputs, bound: Bound, given: float | None) -> Recommendation | None:
    """Print the recommendation, or why there is none."""
    try:
        baseline = baseline_of(fit, float(at.params[0]), given)
    except DataError as error:
        print(f"recommended: none, {error}")
        return None
    found = recommend(fit, at, bound, baseline, extrapolate=False)
    print("\n".join(recommendation_lines(fit, found)))
    return found


def _read(paths: Sequence[Path], *, every_evaluation: bool) -> Table:
    files = [path for path in paths if not path.is_dir()]
    if files and len(paths) > 1:
        raise DataError(
            f"{files[0]} is no directory, must be the only argument if it is a table; give runs or a table"
        )
    if files:
        if every_evaluation:
            raise ConfigError(f"--every-evaluation has no effect on the table {files[0]}; leave it out")
        return read_points(files[0])
    return read_runs(paths, every_evaluation=every_evaluation)


def _options(args: argparse.Namespace, table: Table) -> FitOptions:
    roles = [_role(text) for text in (args.old, args.new) if text] + [_role(text) for text in args.loss]
    names = [name for name, _ in roles]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"--old, --new and --loss name {repeated[0]} more than once, must each name another; correct it"
        )
    if args.law == "cmr-tokens" and not args.old:
        raise ConfigError(
            "--law cmr-tokens fits one form to the old loss and another to the rest; name --old"
        )
    if not roles:
        roles = [
            (name, ())
            for name in sorted({n for p in table.points for n in p.losses})
            if name in table.domains
        ]
    if not roles:
        raise ConfigError(
            f"no loss has the name of a domain, {', '.join(table.domains)}; name --old LOSS=DOMAIN --new LOSS=DOMAIN"
        )
    old = _role(args.old)[0] if args.old else None
    new = _role(args.new)[0] if args.new else None
    return FitOptions(args.law, dict(roles), old, new, args.draws, args.seed)


def _role(text: str) -> tuple[str, tuple[str, ...]]:
    """`NAME` or `NAME=DOMAIN+DOMAIN`."""
    name, equals, domains = text.partition("=")
    parts = tuple(domains.split("+")) if equals else ()
    if not name or not all(parts):
        raise ConfigError(f"{text!r} must be NAME or NAME=DOMAIN, several domains joined by +; correct it")
    return name, parts


def _largest(fit: MixtureFit) -> Inputs:
    """The largest measured scalars: what a recommendation is for unless something else is asked of `predict`."""
    contained = {name for one in fit.fits for name in one.law(fit.domains).scalars}
    given = {
        name: fit.ranges.scalars[name][1]
        for name in SCALARS
        if name in fit.ranges.scalars and name in contained
    }
    if given and fit.law != "cmr-tokens":
        print("recommended for " + ", ".join(f"{name} {value:.4g}" for name, value in given.items()))
    return scalars_for(fit, given, extrapolate=False)
