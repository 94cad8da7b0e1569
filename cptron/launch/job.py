"""From what was asked and the site's defaults to a job: script, folder, log.

Place in the flow: between `arguments` and `submit`. Invariant: the command line wins over the site's file, that over
the template; nothing is written here.
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cptron.config.load import load_config
from cptron.corpus.arguments import parsed
from cptron.corpus.load import load_curation
from cptron.errors import ConfigError
from cptron.launch.arguments import ON_GPUS, TEMPLATES, Asked
from cptron.launch.recipe import check_recipe
from cptron.launch.record import JOBS
from cptron.launch.site import Site
from cptron.launch.template import Value, read_template
from cptron.launch.time_limit import slurm_time
from cptron.tokens.preprocess_options import parse_options

_ARRAY = re.compile(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?")
_WORD = re.compile(r"[A-Za-z0-9_.:,@+-]+")
_OPTION_NAME = re.compile(r"[a-z][a-z-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job that can be submitted."""

    verb: str
    name: str
    script: str
    options: tuple[str, ...]
    """Names of the options of sbatch that the script sets as asked."""
    jobs: Path
    """Folder of script, log and record."""
    log: str
    """With sbatch's signs for ids."""
    run_dir: Path | None
    nodes: int
    ranks: int
    array: str
    notes: tuple[str, ...]
    summary: tuple[str, ...]
    """What the script asks of sbatch, and the variables that were filled in."""


def made_job(request: Asked, site: Site, chain: str = "") -> Job:
    """Check and render. `chain` is the name of the chain that the job is a link of. Raises a `CptronError`."""
    args, verb = request.args, request.verb
    template = read_template(TEMPLATES.get(verb, ""), args.template)
    nodes = args.nodes or int(template.option("nodes") or 1)
    run_dir, ranks, notes = None, 1, list[str]()
    gpus = args.gpus_per_node
    if verb == "train":
        gpus = site.gpus_per_node if gpus is None else gpus
        each = args.ranks_per_node or gpus
        if not each:
            raise ConfigError("--gpus-per-node 0 leaves the ranks of a node open; give --ranks-per-node N")
        config = load_config(Path(request.command[1]), request.command[2:]).config
        run_dir, ranks = Path(config.run.dir).absolute(), nodes * each
        notes = check_recipe(
            config,
            nodes=nodes,
            ranks_per_node=each,
            model=args.model,
            gpu=args.gpu or site.gpu,
            waits=bool(args.after) or args.dry_run,
        )
    elif verb == "preprocess":
        parse_options(request.command[1:])
    elif verb == "curate":
        check_curation(request.command[1:])
    name = args.name or f"cptron-{run_dir.name if run_dir else verb}"
    jobs = (run_dir or Path.cwd()) / JOBS
    array = array_of(args.array) if args.array else ""
    log = f"{str(jobs / name).replace('%', '%%')}-{'%A_%a' if array else '%j'}.out"
    options = _options(args, verb, site) | {"job-name": name, "output": log, "array": array or None}
    if verb == "train":
        options |= {"nodes": str(nodes), "ntasks-per-node": str(ranks // nodes)}
        options |= {"gpus-per-node": str(gpus) if gpus else None}
    elif gpus is not None or (verb in ON_GPUS and not site.gpus_per_node):
        options |= {"gpus-per-node": str(gpus) if gpus else None}
    script = template.rendered(options, _variables(request, site, jobs, chain))
    lines = script.splitlines()
    return Job(
        verb=verb,
        name=name,
        script=script,
        summary=tuple(line for line in lines if line.startswith("#SBATCH") or line not in template.lines),
        options=tuple(options),
        jobs=jobs,
        log=log,
        run_dir=run_dir,
        nodes=nodes,
        ranks=ranks,
        array=array,
        notes=tuple(notes),
    )


def array_of(text: str) -> str:
    """As sbatch takes it; a number alone is how many tasks there are. Raises `ConfigError`."""
    if text.isdecimal() and int(text):
        return f"0-{int(text) - 1}"
    if not _ARRAY.fullmatch(text) or text.isdecimal():
        raise ConfigError(f"--array {text} must be a number of tasks, or tasks as 3,5 or 0-7%4; correct it")
    return text


def _options(args: argparse.Namespace, verb: str, site: Site) -> dict[str, str | None]:
    """Those of sbatch that were asked for."""
    on_gpus = verb in ON_GPUS
    options: dict[str, str | None] = {}
    for text in (*(f"{name}={value}" for name, value in site.sbatch.items()), *args.sbatch):
        name, _, value = text.removeprefix("--").partition("=")
        if not _OPTION_NAME.fullmatch(name):
            raise ConfigError(
                f"--sbatch {text} must be a long option of sbatch, as constraint=h100; correct it"
            )
        options[name] = value
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


def _variables(request: Asked, site: Site, jobs: Path, chain: str) -> dict[str, Value]:
    """Those of the template; what nobody asked for stays as the template has it."""
    args = request.args
    found: dict[str, Value] = {"command": request.command, "job_dir": str(jobs)}
    container = args.container or site.container
    if container:
        found["container"] = container
    else:
        here = sys.prefix if sys.prefix != sys.base_prefix else ""
        venv = args.venv or site.venv or os.environ.get("CPTRON_VENV", here)
        found["venv"] = str(Path(venv).absolute()) if venv else ""
    if mounts := (*site.container_mounts, *args.mount):
        found["container_mounts"] = mounts
    if site.setup:
        found["setup"] = site.setup
    if site.environment:
        found["environment"] = tuple(f"{name}={value}" for name, value in site.environment.items())
    if chain:
        found["chain"] = chain
    if args.retries:
        found["retries"] = str(args.retries)
    return found


def check_curation(words: Sequence[str]) -> None:
    """Raise a `CptronError` where a curation would refuse the file that the command names."""
    args = parsed(words)
    load_curation(args.config, args.overrides)


def merge_commands(command: Sequence[str]) -> list[tuple[str, ...]]:
    """Of a preprocess command that runs as an array, those that join its parts: one for each key."""
    options, _ = parse_options(command[1:])
    return [
        (
            "merge",
            "--inputs",
            f"{glob.escape(options.output_prefix)}_part-*_{glob.escape(key)}_document",
            "--output-prefix",
            f"{options.output_prefix}_{key}_document",
        )
        for key in options.json_keys
    ]
