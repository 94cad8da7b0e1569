"""`cptron doctor --cluster`: whether the machines of a job are fit for a long run, measured by all its ranks.

Place in the flow: before a long run, with the launcher and the ranks it will have; alone it looks at one machine.
Invariant: ends on every rank alike, with `EXIT_CODE` exactly when a check failed; a rank that dies ends the others
within seconds (`runtime.failure`), a wait that is too long ends all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cptron.config.schema import RuntimeConfig
from cptron.errors import EXIT_CODE, ConfigError
from cptron.plan.cluster import INTERCONNECTS, LINK_REACHED, NETWORK_REACHED, network_of
from cptron.plan.device_names import gpu_of_device
from cptron.plan.gpus import GPUS, gpu_named
from cptron.report.console import table
from cptron.runtime.launcher import Ranks, launched_ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What to look at."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    run_dir: Path | None = None
    data_dir: Path | None = None
    gpu: str = ""
    interconnect: str = ""
    file_mib: int = 64
    timeout_s: int = 120


def main(argv: Sequence[str]) -> int:
    """Run `cptron doctor --cluster [--run-dir D] [--data-dir D] [--gpu G] [--interconnect I] [--json]`."""
    parser = argparse.ArgumentParser(
        prog="cptron doctor --cluster", description="Whether these machines are fit for a long run."
    )
    parser.add_argument("--cluster", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--run-dir", type=Path, help="where runs are written, or will be; must exist")
    parser.add_argument("--data-dir", type=Path, help="where token files are; only read")
    parser.add_argument("--gpu", default="", help=f"compare with {', '.join(GPUS)}; default: as found")
    parser.add_argument("--interconnect", default="", help=f"{', '.join(INTERCONNECTS)}, or Gbit/s a GPU")
    parser.add_argument("--file-mib", type=int, default=64, help="size of the file that is written and read")
    parser.add_argument("--timeout-s", type=int, default=120, help="longest wait for another rank")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    values = vars(parser.parse_args(argv))
    as_json, _ = values.pop("json"), values.pop("cluster")
    options = Options(**values)
    ranks = launched_ranks() or Ranks(0, 1, 0, 1, "single")
    report = examine(ranks, options)
    if ranks.is_main:
        print(json.dumps(report, indent=2) if as_json else shown(report), flush=True)
    return EXIT_CODE if any(check["verdict"] == "fail" for check in report["checks"]) else 0


def examine(ranks: Ranks, options: Options) -> dict[str, Any]:
    """Measure and judge, on all ranks together; the same report on each. Raises `CptronError` alike on all."""
    for name in ("file_mib", "timeout_s"):
        if not 1 <= getattr(options, name) <= 10**6:
            flag, value = name.replace("_", "-"), getattr(options, name)
            raise ConfigError(
                f"--{flag} {value} must be from 1 to a million; use e.g. {getattr(Options(), name)}"
            )
    if options.gpu:
        gpu_named(options.gpu)
    if options.interconnect:
        network_of(options.interconnect, 1)
    from cptron.runtime import dist
    from cptron.runtime.device import select_device
    from cptron.runtime.failure import CommonEnd
    from cptron.runtime.pace import Pace

    device = select_device(options.device, ranks.local_rank)
    began_s = time.perf_counter()
    dist.init_process_group(device.backend, ranks, options.timeout_s)
    runtime = RuntimeConfig(timeout_s=options.timeout_s, hang_phase_s=5 * options.timeout_s)
    nowhere = Path(tempfile.gettempdir()) / f"cptron-{uuid.uuid4().hex}"  # no run, so no stacks are kept
    try:
        with closing(CommonEnd(ranks, Pace(), runtime, nowhere)) as end, end.shared():
            return _examine(ranks, options, device, began_s)
    finally:
        dist.shutdown()


def _examine(ranks: Ranks, options: Options, device: Any, began_s: float) -> dict[str, Any]:
    import torch
    import torch.distributed

    from cptron.health import checks
    from cptron.health.clocks import measure_clocks
    from cptron.health.facts import Facts, facts_of
    from cptron.health.links import measure_links
    from cptron.runtime.dist import agree, from_main

    torch.distributed.all_reduce(torch.ones(1, device=device.torch_device))
    first_s = time.perf_counter() - began_s
    everyone: list[Any] = [None] * ranks.world_size
    torch.distributed.all_gather_object(everyone, agree(lambda: facts_of(ranks, device)))
    facts: list[Facts] = everyone
    hosts = [fact.host for fact in facts]
    links = measure_links(hosts, device.torch_device, first_s)
    skews = measure_clocks(hosts, device.torch_device)
    run_disks, data_disks = _disks(ranks.rank, hosts, options)

    def judge() -> dict[str, Any]:
        expected = _expected(facts, hosts, options)
        found = [
            *checks.check_machines(facts),
            *checks.check_gpus(facts),
            *checks.check_links(links, facts, device.kind, expected),
            *checks.check_clocks(skews),
            *(checks.check_run_disk(run_disks) if options.run_dir else []),
            *(checks.check_data_disk(data_disks) if options.data_dir else []),
        ]
        return {
            "world_size": ranks.world_size,
            "hosts": {host: hosts.count(host) for host in hosts},
            "device": f"{device.kind}/{device.backend}",
            "checks": [asdict(check) for check in found],
            "ranks": [asdict(fact) for fact in facts],
            "links": asdict(links),
            "clocks": [skew._asdict() for skew in skews],
            "run_dir": [asdict(disk) for disk in run_disks],
            "data_dir": [asdict(disk) for disk in data_disks],
        }

    return from_main(judge)


def _disks(rank: int, hosts: Sequence[str], options: Options) -> tuple[list[Any], list[Any]]:
    """The directories as each machine sees them, by machine; collective."""
    import torch.distributed as dist

    from cptron.health.disks import measure_disk, read_data

    names = list(dict.fromkeys(hosts))
    mine, number = hosts[rank], names.index(hosts[rank])
    is_first = hosts.index(mine) == rank
    token: list[Any] = [uuid.uuid4().hex]
    dist.broadcast_object_list(token, src=0)
    written = read = None
    if options.run_dir is not None and is_first:
        written = measure_disk(
            options.run_dir, mine, number, len(names), token[0], options.file_mib, dist.barrier
        )
    elif options.run_dir is not None:
        dist.barrier()
        dist.barrier()
    if options.data_dir is not None and is_first:
        read = read_data(options.data_dir, mine, options.file_mib)
    everyone: list[Any] = [None] * len(hosts)
    dist.all_gather_object(everyone, (written, read))
    return [found[0] for found in everyone if found[0]], [found[1] for found in everyone if found[1]]


def _expected(facts: Sequence[Any], hosts: Sequence[str], options: Options) -> Any:
    """What the links should reach, as `cptron plan` reckons. Raises `ConfigError` on a name that is not known."""
    from cptron.health.checks import Expected

    gpu = gpu_named(options.gpu) if options.gpu else gpu_of_device(facts[0].device)
    per_node = max(hosts.count(host) for host in hosts)
    network = network_of(options.interconnect, per_node) if options.interconnect else 0.0
    words = [f"{gpu.name} {gpu.link_gb_per_s:g} GB/s"] if gpu else []
    words += [f"{options.interconnect} {network:g} GB/s a GPU"] if network else []
    within = gpu.link_gb_per_s * LINK_REACHED if gpu else 0.0
    return Expected(within, network * NETWORK_REACHED, ", ".join([*words, "as in cptron plan"]))


def shown(report: dict[str, Any]) -> str:
    """The report as one table, what is wrong first in words."""
    hosts = report["hosts"]
    names = ", ".join(f"{host} ({count})" for host, count in list(hosts.items())[:16])
    head = f"{report['world_size']} rank(s) on {len(hosts)} machine(s): {names}; {report['device']}"
    rows = [[check["verdict"], check["name"], check["found"], check["rule"]] for check in report["checks"]]
    bad = [check for check in report["checks"] if check["verdict"] != "ok"]
    advice = [f"{check['verdict']}: {check['name']}: {check['remedy']}" for check in bad]
    return "\n".join(
        [head, "", table(["", "check", "found", "rule"], rows), *([""] if advice else []), *advice]
    )
