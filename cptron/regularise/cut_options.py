"""How a command's model is cut over ranks: options that `cptron fisher` and `cptron teach` have in common.

Place in the flow: parsers of those commands -> here -> `runtime.session`. Imports no torch. Invariant: a cut that rows
of the asked length do not fit is refused before any rank is started.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cptron.errors import ConfigError
from cptron.runtime.topology import Layout

CUT = ("tp", "cp", "pp", "virtual_stages")


def add_cut_options(parser: argparse.ArgumentParser) -> None:
    """Precision, device and layout."""
    add = parser.add_argument
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the model (default: fp32)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    for name in CUT:
        add(f"--{name.replace('_', '-')}", type=int, default=1, help="as parallel of a run (default: 1)")
    add("--no-sequence-parallel", action="store_true", help="with tp: do not cut sequences over tensor ranks")


def layout_of(args: argparse.Namespace, at_least_one: Sequence[str]) -> Layout:
    """The layout asked for; `at_least_one` are other counts. Raises `ConfigError`, also where `--seq-length` does not
    fit."""
    for key in (*at_least_one, *CUT):
        if getattr(args, key) < 1:
            raise ConfigError(
                f"--{key.replace('_', '-')}={getattr(args, key)} must be at least 1; correct the command"
            )
    unit = (2 * args.cp if args.cp > 1 else 1) * (1 if args.no_sequence_parallel else args.tp)
    if args.seq_length % unit:
        raise ConfigError(
            f"--seq-length={args.seq_length} must be a multiple of {unit} under this cut; correct the command"
        )
    return Layout(
        tp=args.tp,
        cp=args.cp,
        pp=args.pp,
        virtual_stages=args.virtual_stages,
        sequence_parallel=not args.no_sequence_parallel,
    )
