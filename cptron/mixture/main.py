"""`cptron mixlaw fit | predict`: laws of the loss by mixture, fitted to measured runs.

Place in the flow: before a long run, after several short ones. Invariant: needs no torch and no GPU; scipy only where
exponents are fitted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cptron.mixture import fit_main, predict_main


def main(argv: Sequence[str]) -> int:
    """Run `cptron mixlaw fit DATA ...` or `cptron mixlaw predict FIT`."""
    parser = argparse.ArgumentParser(
        prog="cptron mixlaw", description="Laws of the loss by mixture: fitted to measured runs, and used."
    )
    actions = parser.add_subparsers(dest="action", required=True)
    fit_main.add_arguments(
        actions.add_parser("fit", help="fit a law to run directories, or to a table of runs")
    )
    predict_main.add_arguments(
        actions.add_parser("predict", help="losses and the mixture for a bound, from a fit")
    )
    args = parser.parse_args(argv)
    return fit_main.run(args) if args.action == "fit" else predict_main.run(args)
