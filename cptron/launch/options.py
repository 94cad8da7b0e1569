"""What a job asks of sbatch.

Place in the flow: `job` puts these into the template's head. Invariant: the command line wins over the site's file,
that over the template; nothing that was asked for is dropped without a word.
"""

from __future__ import annotations

import argparse
import re

from cptron.errors import ConfigError
from cptron.launch.arguments import ON_GPUS
from cptron.launch.site import Site
from cptron.launch.template import Template
from cptron.launch.time_limit import slurm_seconds, slurm_time

_WORD = re.compile(r"[A-Za-z0-9_.:,@+-]+")
_NAME = re.compile(r"[a-z][a-z-]*")
_SIGNAL = re.compile(r"(?:[BR]+:)?\w+@(\d+)")
OWN = {
    "nodes": "--nodes",
    "gpus-per-node": "--gpus-per-node and --gpu-type",
    "cpus-per-task": "--cpus-per-task",
    "partition": "--partition",
    "account": "--account",
    "qos": "--qos",
    "time": "--time",
    "array": "--array",
    "job-name": "--name",
}
"""Option of sbatch -> the one of `cptron submit`, by which the rest of the job is made."""
OF_RANKS = {"ntasks": "--nodes and --ranks-per-node", "ntasks-per-node": "--ranks-per-node"}
"""The same, of training."""


def asked_options(args: argparse.Namespace, verb: str, site: Site, chain: str) -> dict[str, str | None]:
    """Those that were asked for, but for the size of training. Raises `ConfigError`."""
    on_gpus = verb in ON_GPUS
    options = _others(args, verb, site, chain)
    words = {
        "partition": args.partition or (site.partition if on_gpus else site.cpu_partition or site.partition),
        "account": args.account or site.account,
        "qos": args.qos or site.qos,
    }
    for name, word in words.items():
        if word and not _WORD.fullmatch(word):
            raise ConfigError(f"--{name} {word!r} must be a name of letters, digits and _.:,@+-; correct it")
        if word:
            options[name] = word
    if args.nodes and verb != "train":
        options["nodes"] = str(args.nodes)
    if limit := args.time or (site.time if on_gpus else site.cpu_time):
        options["time"] = slurm_time(limit, "--time")
    of_site = (
        site.cpus_per_task if on_gpus else site.cpu_cores if verb != "merge" else 0
    )  # which copies, no more
    if cores := args.cpus_per_task or of_site:
        options["cpus-per-task"] = str(cores)
    if args.save_before:
        options["signal"] = f"B:USR1@{args.save_before}"
    return options


def _others(args: argparse.Namespace, verb: str, site: Site, chain: str) -> dict[str, str | None]:
    """Of `--sbatch` and of the site's section of that name."""
    own = OWN | (OF_RANKS if verb == "train" else {})
    options: dict[str, str | None] = {}
    given = [(f"{name}={value}", "site.yaml: sbatch: ") for name, value in site.sbatch.items()]
    for text, where in [*given, *((text, "--sbatch ") for text in args.sbatch)]:
        name, _, value = text.removeprefix("--").partition("=")
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{where}{text} must be a long option of sbatch, as constraint=h100; correct it"
            )
        if name in own:
            raise ConfigError(f"{where}{text} is set by cptron submit itself; use {own[name]}")
        if name in ("output", "error"):
            raise ConfigError(f"{where}{text}: logs are kept where `cptron logs` finds them; leave it out")
        if name == "comment" and (chain or verb == "curate"):
            raise ConfigError(f"{where}{text}: jobs of a chain are known by their comment; leave it out")
        if name == "dependency" and (chain or args.after):
            raise ConfigError(f"{where}{text}: --chain and --after are dependencies; leave it out")
        options[name] = value
    return options


def gpus_asked(args: argparse.Namespace, site: Site, count: int) -> str | None:
    """So many GPUs a node, of the kind that is named; None for none. Raises `ConfigError`."""
    kind = args.gpu_type or site.gpu_type
    if kind and not _WORD.fullmatch(kind):
        raise ConfigError(f"--gpu-type {kind!r} must be a name of letters, digits and _.:,@+-; correct it")
    if not count:
        return None
    return f"{kind}:{count}" if kind else str(count)


def require_time_to_train(template: Template, options: dict[str, str | None]) -> None:
    """Raise `ConfigError` where the signal to save would come as soon as the job begins: it would start again and
    again, a step at a time."""
    limit = options.get("time") or template.option("time")
    found = _SIGNAL.fullmatch(options.get("signal") or template.option("signal"))
    left_s = slurm_seconds(limit) if limit else 0
    if left_s and found and left_s <= int(found[1]):
        raise ConfigError(
            f"--time {limit} is over before the signal to save can come, {found[1]} s before the end; use more --time, "
            "or a shorter --save-before"
        )
