"""`cptron plan RECIPE --gpus N --gpu TYPE`: before renting, whether a run fits, how long it takes, what it costs.

Place in the flow: on a laptop, before any job. Imports no torch. Invariant: it only reads, but for the file of a
calibration; what it proposes the trainer accepts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cptron.config.load import load_config
from cptron.config.schema import Config
from cptron.errors import ConfigError
from cptron.model.architecture import Architecture
from cptron.plan.calibrate import fit
from cptron.plan.cluster import INTERCONNECTS, Cluster, network_of
from cptron.plan.corpus import corpus_of
from cptron.plan.dry_run import Wanted, dry_run
from cptron.plan.dry_run_shown import dry_run_lines
from cptron.plan.efficiency import Efficiency, assumed
from cptron.plan.fit_file import FILE, read_fit, write_fit
from cptron.plan.gpus import GPUS, gpu_named
from cptron.plan.layouts import require_accepted, require_sound
from cptron.plan.record import Plan, plan_record, too_large_reason
from cptron.plan.search import Estimate, Found, estimated, search, with_tokens
from cptron.plan.shape import model_of
from cptron.plan.shown import plan_lines
from cptron.plan.smallest import leanest, options, smallest_cluster
from cptron.plan.totals import totals


def main(argv: Sequence[str]) -> int:
    """Run `cptron plan`."""
    args = _parser().parse_intermixed_args(argv)
    config = load_config(args.recipe, args.overrides).config
    arch = model_of(config, args.model)
    if args.dry_run:
        return _dry_run(args, config, arch)
    if args.gpu is None:
        raise ConfigError(f"--gpu must say which GPUs; use one of {', '.join(GPUS)}")
    for name, given in (("--rank", args.rank is not None), ("--all-stages", args.all_stages)):
        if given:
            raise ConfigError(f"{name} is for --dry-run; add it, or leave {name} out")
    gpu = gpu_named(args.gpu, args.gpu_file)
    if args.price is not None:
        gpu = replace(gpu, usd_per_hour=_prices(args.price))
    cluster = Cluster(
        gpu=gpu,
        num_gpus=args.gpus,
        gpus_per_node=args.gpus_per_node,
        network_gb_per_s=network_of(args.interconnect, args.gpus_per_node),
    )
    if args.tokens is not None:
        config = with_tokens(config, _tokens(args.tokens))
    require_sound(config, arch)
    efficiency, notes = _efficiency(args, cluster, config)
    found = search(config, arch, cluster, efficiency)
    if not found.fitting:
        raise _too_small(config, arch, cluster, efficiency, found)
    plan = _planned(config, arch, cluster, efficiency, found, args.top)
    if config.adapter.kind != "none" or config.optim.frozen:
        notes = (
            *notes,
            "frozen weights have no gradients: MFU counts these all the same, time and HFU do not",
        )
    record = plan_record(plan) | {"notes": list(notes)}
    print(json.dumps(record, indent=2) if args.json else "\n".join(plan_lines(record)))
    return 0


def _dry_run(args: argparse.Namespace, config: Config, arch: Architecture) -> int:
    for name in ("tokens", "price", "calibrate", "calibrate_gpus", "write_fit", "fit"):
        if getattr(args, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{option} is of the plan, and --dry-run looks at memory alone; leave one of them out"
            )
    gpu = gpu_named(args.gpu, args.gpu_file) if args.gpu else None
    wanted = Wanted(world_size=args.gpus, rank=args.rank, all_stages=args.all_stages, gpu=gpu)
    record = dry_run(config, arch, wanted)
    print(json.dumps(record, indent=2) if args.json else "\n".join(dry_run_lines(record)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cptron plan", description="Memory, time and cost of a run on a cluster, before renting it."
    )
    add = parser.add_argument
    add("recipe", type=Path, metavar="RECIPE", help="YAML file of the run")
    add("overrides", nargs="*", metavar="section.key=value", help="as for cptron train")
    add("--gpus", "--world-size", type=int, required=True, metavar="N", help="how many")
    add("--gpu", metavar="TYPE", help=f"one of {', '.join(GPUS)}, or one of --gpu-file")
    add("--gpu-file", type=Path, metavar="YAML", help="GPUs of your own: sections of a name and its numbers")
    add("--gpus-per-node", type=int, default=8, metavar="N", help="default 8")
    add(
        "--interconnect",
        default="ndr400",
        metavar="NAME",
        help=f"between nodes: one of {', '.join(INTERCONNECTS)}, or Gbit/s a GPU; default ndr400",
    )
    add("--tokens", metavar="N", help="tokens to train on, as 50e9; default: the recipe's steps")
    add(
        "--model",
        type=Path,
        metavar="PATH",
        help="config.json or checkpoint, where the recipe's is elsewhere",
    )
    add("--price", metavar="USD", help="of a GPU-hour, as 2.5 or 2-4; default: a wide range")
    add("--calibrate", type=Path, nargs="+", metavar="LOG", help="fit to metrics.jsonl of runs on such GPUs")
    add("--calibrate-gpus", type=int, metavar="N", help="GPUs of those runs, where the log does not tell it")
    add("--write-fit", type=Path, metavar="FILE", help=f"where the fit goes; default {FILE} beside the log")
    add("--fit", type=Path, metavar="FILE", help="use an earlier fit")
    add("--top", type=int, default=5, metavar="N", help="layouts to show; default 5")
    add("--dry-run", action="store_true", help="trace a step of the real engine, and compare its memory")
    add("--rank", type=int, metavar="R", help="with --dry-run: this rank; default: of the stages that matter")
    add("--all-stages", action="store_true", help="with --dry-run: a rank of every pipeline stage")
    add("--json", action="store_true", help="one JSON object with everything")
    return parser


def _efficiency(
    args: argparse.Namespace, cluster: Cluster, config: Config
) -> tuple[Efficiency, tuple[str, ...]]:
    if args.fit is not None and args.calibrate:
        raise ConfigError(f"--fit {args.fit} and --calibrate exclude each other; use one of them")
    if args.fit is not None:
        return read_fit(args.fit, cluster.gpu.name), ()
    if args.calibrate:
        found = fit(args.calibrate, cluster, args.model, args.calibrate_gpus)
        write_fit(args.write_fit or args.calibrate[0].parent / FILE, found)
        return found.efficiency, found.notes
    return assumed(fp8=config.fp8.recipe != "none"), ()


def _planned(
    config: Config,
    arch: Architecture,
    cluster: Cluster,
    efficiency: Efficiency,
    found: Found,
    top: int,
) -> Plan:
    as_written: Estimate | None = None
    refusal = ""
    try:
        require_accepted(config, arch, cluster.num_gpus)
        as_written = estimated(config, arch, cluster, efficiency)
    except ConfigError as error:
        refusal = str(error)
    return Plan(
        config=config,
        arch=arch,
        cluster=cluster,
        efficiency=efficiency,
        found=found,
        as_written=as_written,
        refusal=refusal,
        ranked=[
            (estimate, totals(estimate, arch, cluster, efficiency))
            for estimate in found.fitting[: max(1, top)]
        ],
        corpus=corpus_of(config),
    )


def _too_small(
    config: Config, arch: Architecture, cluster: Cluster, efficiency: Efficiency, found: Found
) -> ConfigError:
    """What is missing, the smallest cluster that fits, and which single change would do."""
    factor = efficiency.memory_factor
    lean = leanest(config, arch, cluster, factor)
    asked = f"--gpus {cluster.num_gpus} --gpu {cluster.gpu.name}"
    if lean is None:
        rules = "; ".join(f"{count} x {rule}" for rule, count in found.refused.most_common(2))
        why = f"no layout that the trainer accepts ({rules})"
    else:
        why = f"no layout that fits: the leanest {too_large_reason(lean[1], cluster)}"
    smallest = smallest_cluster(config, arch, cluster, factor)
    more = (
        f"the smallest that fits is {smallest.change}"
        if smallest
        else "no number of these GPUs up to 1024 nodes fits"
    )
    changes = [remedy.change for remedy in options(config, arch, cluster, factor)]
    fewer = f"; or on {cluster.num_gpus} GPUs: {', or '.join(changes)}" if changes else ""
    return ConfigError(f"{asked}: {why}; {more}{fewer}")


def _tokens(text: str) -> float:
    try:
        found = float(text.replace("_", ""))
    except ValueError:
        found = -1.0
    if not 1 <= found < 1e18:
        raise ConfigError(f"--tokens {text} must be a number of tokens from 1; use e.g. 50e9")
    return found


def _prices(text: str) -> tuple[float, float]:
    try:
        prices = [float(part) for part in text.split("-")]
    except ValueError:
        prices = []
    if len(prices) not in (1, 2) or not 0 <= prices[0] <= prices[-1] < 1e6:
        raise ConfigError(f"--price {text} must be dollars of a GPU-hour; use e.g. 2.5, or 2-4")
    return prices[0], prices[-1]
