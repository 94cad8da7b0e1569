"""From what was asked and the site's defaults to a job: script, folder, log.

Place in the flow: between `arguments` and `submit`. Invariant: the command line wins over the site's file, that over
the template; nothing is written here.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cptron.config.load import load_config
from cptron.corpus.arguments import parsed
from cptron.corpus.load import load_curation
from cptron.errors import ConfigError
from cptron.launch.arguments import ON_GPUS, TEMPLATES, Asked
from cptron.launch.options import asked_options, gpus_asked, require_time_to_train
from cptron.launch.recipe import check_recipe
from cptron.launch.record import JOBS
from cptron.launch.site import Site
from cptron.launch.surroundings import require_there, variables_of
from cptron.launch.template import Template, read_template
from cptron.tokens.preprocess_options import parse_options

_ARRAY = re.compile(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?")


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
    nodes = args.nodes or _nodes_of(template)
    run_dir, ranks, notes = None, 1, list[str]()
    gpus = args.gpus_per_node
    if verb == "train":
        gpus = site.gpus_per_node if gpus is None else gpus
        run_dir, each, notes = _training(request, site, nodes, gpus)
        ranks = nodes * each
    elif verb == "preprocess":
        parse_options(request.command[1:])
    elif verb == "curate":
        check_curation(request.command[1:])
    name = args.name or f"cptron-{run_dir.name if run_dir else verb}"
    jobs = (run_dir or Path.cwd()) / JOBS
    array = array_of(args.array) if args.array else ""
    log = f"{str(jobs / name).replace('%', '%%')}-{'%A_%a' if array else '%j'}.out"
    options = asked_options(args, verb, site, chain)
    options |= {"job-name": name, "output": log, "array": array or None}
    if verb == "train":
        require_time_to_train(template, options)
        options |= {"nodes": str(nodes), "ntasks-per-node": str(ranks // nodes)}
        options |= {"gpus-per-node": gpus_asked(args, site, gpus or 0)}
    elif gpus is not None or (verb in ON_GPUS and not site.gpus_per_node):
        options |= {"gpus-per-node": gpus_asked(args, site, gpus or 0)}
    elif verb in ON_GPUS and (count := template.option("gpus-per-node")).isdecimal():
        options |= {"gpus-per-node": gpus_asked(args, site, int(count))}
    variables = variables_of(request, site, jobs, chain)
    notes += require_there(variables, only_shown=args.dry_run)
    script = template.rendered(options, variables)
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


def _training(request: Asked, site: Site, nodes: int, gpus: int) -> tuple[Path, int, list[str]]:
    """The run's folder, the ranks of a node, and notes. Raises a `CptronError` where the trainer would."""
    args = request.args
    each = args.ranks_per_node or gpus
    if not each:
        raise ConfigError("--gpus-per-node 0 leaves the ranks of a node open; give --ranks-per-node N")
    if len(request.command) < 2:
        raise ConfigError("-- train names no recipe; use cptron submit RECIPE")
    config = load_config(Path(request.command[1]), request.command[2:]).config
    if gpus and each > gpus and config.runtime.device != "cpu":
        raise ConfigError(
            f"--ranks-per-node {each} need a GPU each, a node has {gpus}; use {gpus} or fewer, or --gpus-per-node"
        )
    notes = check_recipe(
        config,
        nodes=nodes,
        ranks_per_node=each,
        model=args.model,
        gpu=args.gpu or site.gpu,
        waits=bool(args.after) or args.dry_run,
    )
    if gpus > each:
        notes.append(
            f"{gpus - each} of a node's {gpus} GPUs have no rank: --gpus-per-node {each} asks for fewer"
        )
    return Path(config.run.dir).absolute(), each, notes


def _nodes_of(template: Template) -> int:
    text = template.option("nodes") or "1"
    if not text.isdecimal():
        raise ConfigError(f"{template.path} asks for --nodes={text}, which is not one number; give --nodes")
    return int(text)


def array_of(text: str) -> str:
    """As sbatch takes it; a number alone is how many tasks there are. Raises `ConfigError`."""
    if text.isdecimal() and int(text):
        return f"0-{int(text) - 1}"
    if not _ARRAY.fullmatch(text) or text.isdecimal():
        raise ConfigError(f"--array {text} must be a number of tasks, or tasks as 3,5 or 0-7%4; correct it")
    return text


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
