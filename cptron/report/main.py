"""`cptron report RUN...`: one HTML file about a run, or about several beside each other.

Place in the flow: any time, also while a run goes on; imports no torch. Invariant: no file of a run is changed but its
`report.html`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cptron.errors import ConfigError
from cptron.plan.gpus import GPUS, gpu_named
from cptron.report.html import REPORT_FILE, write_comparison, write_report


def main(argv: Sequence[str]) -> int:
    """Run `cptron report RUN [RUN ...] [--output FILE] [--gpu TYPE]`."""
    parser = argparse.ArgumentParser(
        prog="cptron report", description="One HTML file about a run, or about several beside each other."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"default: {REPORT_FILE} in the run; of several runs, {REPORT_FILE} here",
    )
    parser.add_argument("--gpu", metavar="TYPE", help=f"show MFU against its peak; one of {', '.join(GPUS)}")
    parser.add_argument("--gpu-file", type=Path, metavar="YAML", help="GPUs of your own, as for cptron plan")
    args = parser.parse_args(argv)
    if args.gpu_file is not None and args.gpu is None:
        raise ConfigError(f"--gpu-file {args.gpu_file} describes GPUs and --gpu names none; give --gpu too")
    gpu = gpu_named(args.gpu, args.gpu_file) if args.gpu else None
    if args.output is not None and args.output.is_dir():
        raise ConfigError(f"--output {args.output} is a directory; name a file in it")
    if len(args.runs) == 1:
        path = write_report(args.runs[0], args.output, gpu)
    else:
        path = write_comparison(args.runs, args.output or Path(REPORT_FILE), gpu)
    print(path)
    return 0
