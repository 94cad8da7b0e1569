"""The command line of `cptron submit`.

Place in the flow: `submit` parses with it, and `cptron curate --executor slurm` takes the options that any job has. Two
forms: a recipe with its overrides, which is trained; or, behind `--`, any other cptron command. Invariant: what is
behind `--` reaches the job word by word.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cptron.errors import ConfigError, either
from cptron.plan.gpus import GPUS

TEMPLATES = {
    "train": "train",
    "preprocess": "preprocess",
    "curate": "curate",
    "merge": "merge",
    "convert": "convert",
    "export": "convert",
    "verify": "convert",
    "eval": "evaluate",
}
"""Verb -> template of its jobs."""
ON_GPUS = ("train", "eval")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to run, and with what."""

    command: tuple[str, ...]
    """Words of a cptron command, the verb first."""
    args: argparse.Namespace

    @property
    def verb(self) -> str:
        """What the job does."""
        return self.command[0]


def asked(argv: Sequence[str]) -> Asked:
    """The command line, understood. Raises `ConfigError` where it names nothing to run, or two things."""
    words = list(argv)
    behind = words[words.index("--") + 1 :] if "--" in words else []
    args = _parser().parse_intermixed_args(words[: words.index("--")] if "--" in words else words)
    if args.recipe is not None and behind:
        raise ConfigError(f"{args.recipe} and `-- {behind[0]}` are two jobs; submit them one by one")
    if args.recipe is None and not behind:
        raise ConfigError(
            f"there is nothing to run in {words}; give a recipe, or a command: cptron submit -- preprocess ..."
        )
    command = tuple(behind) if behind else ("train", str(args.recipe), *args.overrides)
    if command[0] not in TEMPLATES and args.template is None:
        raise ConfigError(
            f"cptron {command[0]} has no template; use one of {', '.join(TEMPLATES)}, or give a --template of your own"
        )
    _check(args, command[0])
    return Asked(command, args)


def _check(args: argparse.Namespace, verb: str) -> None:
    at_least_one = {
        "--nodes": args.nodes,
        "--cpus-per-task": args.cpus_per_task,
        "--ranks-per-node": args.ranks_per_node,
        "--chain": args.chain,
        "--save-before": args.save_before,
    }
    for flag, value in at_least_one.items():
        if value is not None and value < 1:
            raise ConfigError(f"{flag} {value} must be at least 1; use 1 or more")
    for flag, value in {"--gpus-per-node": args.gpus_per_node, "--retries": args.retries}.items():
        if value is not None and value < 0:
            raise ConfigError(f"{flag} {value} must not be negative; use 0 or more")
    of_training = {
        "--chain": args.chain,
        "--retries": args.retries,
        "--save-before": args.save_before,
        "--ranks-per-node": args.ranks_per_node,
        "--model": args.model,
        "--gpu": args.gpu,
    }
    for flag, value in of_training.items():
        if value is not None and verb != "train":
            raise ConfigError(f"{flag} {value} is for training, this is cptron {verb}; leave it out")
    if args.nodes not in (None, 1) and verb in TEMPLATES and verb != "train":
        raise ConfigError(f"--nodes {args.nodes}: cptron {verb} runs on one node; use --array for preprocess")
    if args.array and verb != "preprocess" and args.template is None:
        remedy = "use cptron curate --executor slurm --parts N" if verb == "curate" else "leave it out"
        raise ConfigError(f"--array {args.array} is for preprocess, cptron {verb} is one job; {remedy}")
    if args.merge and (verb != "preprocess" or not args.array):
        raise ConfigError(
            f"--merge joins the parts of --array N -- preprocess, not of cptron {verb}; leave it out"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cptron submit",
        usage="cptron submit RECIPE [section.key=value ...] [options]\n"
        "       cptron submit [options] -- VERB ARGUMENTS",
        description="Submit a job to SLURM: a training run, or another cptron command "
        f"({either(list(TEMPLATES)[1:])}). Defaults of a site go into a file, see docs/clusters.md.",
    )
    parser.add_argument("recipe", nargs="?", type=Path, metavar="RECIPE", help="YAML file of a run")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="as for cptron train")
    where, when, command = add_job_options(parser)
    where.add_argument("--nodes", type=int, metavar="N", help="default: the template's")
    where.add_argument("--ranks-per-node", type=int, metavar="N", help="default: one for each GPU")
    add = when.add_argument
    add(
        "--chain",
        type=int,
        metavar="N",
        help="N jobs, each of which goes on where the one before had to stop",
    )
    add("--retries", type=int, metavar="N", help="start again after a lost rank or a hang; default 0")
    add("--save-before", type=int, metavar="SECONDS", help="save so long before the limit; default 300")
    add("--array", metavar="TASKS", help="8, or 3,5 or 0-7%%4: a job array, each task makes a part")
    add("--merge", action="store_true", help="and a job that joins the parts")
    add = command.add_argument
    add(
        "--model",
        type=Path,
        metavar="PATH",
        help="config.json or checkpoint, where the recipe's is elsewhere",
    )
    add("--gpu", metavar="TYPE", help=f"check the memory for it: {', '.join(GPUS)}")
    return parser


Group = argparse._ArgumentGroup
"""Options that the help shows together."""


def add_job_options(parser: argparse.ArgumentParser) -> tuple[Group, Group, Group]:
    """Give `parser` the options that any job has; returns the groups of where, when, and of the command itself."""
    where = parser.add_argument_group("where a job runs")
    add = where.add_argument
    add("--gpus-per-node", type=int, metavar="N", help="0 for none; default: the site's, or 8 for training")
    add(
        "--gpu-type",
        metavar="NAME",
        help="of the GPUs, as SLURM calls them (sinfo -o %%G), where it has several",
    )
    add("--cpus-per-task", type=int, metavar="N", help="cores of a task, or of a rank")
    add("--partition", metavar="NAME")
    add("--account", metavar="NAME")
    add("--qos", metavar="NAME")
    add("--sbatch", action="append", default=[], metavar="NAME[=VALUE]", help="another option of sbatch")
    when = parser.add_argument_group("when and how long")
    add = when.add_argument
    add("--time", metavar="LIMIT", help="24:00:00, 2-12 (days-hours), 36h, 90m")
    add("--after", metavar="JOBID", help="start when this job has ended well")
    add = parser.add_argument_group("in what environment").add_argument
    add("--venv", metavar="FOLDER", help="default: the site's, or the one this command runs in")
    add("--container", metavar="IMAGE", help="X.sif for apptainer; X.sqsh, a name or a URI for pyxis")
    add("--mount", action="append", default=[], metavar="SOURCE:TARGET", help="folder seen in the container")
    add(
        "--site",
        type=Path,
        metavar="FILE",
        help="site's defaults, default $CPTRON_SITE or ~/.config/cptron/site.yaml",
    )
    add("--template", type=Path, metavar="FILE", help="a batch script of your own, made from one of launch/")
    command = parser.add_argument_group("submitting")
    add = command.add_argument
    add("--name", metavar="NAME", help="of the job; default: of the run or the verb")
    add("--dry-run", action="store_true", help="show the job, submit nothing")
    return where, when, command
