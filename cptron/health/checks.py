"""What is well and what is not, from what was measured: rules, each in one line.

Place in the flow: rank 0 judges for `cptron doctor --cluster`. Imports no torch. Invariant: pure: the same facts, the
same verdicts; what was not measured has no verdict.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cptron.health.disks import Disk

if TYPE_CHECKING:
    from cptron.health.clocks import Skew
    from cptron.health.facts import Facts
    from cptron.health.links import Links

Verdict = Literal["ok", "warn", "fail"]

MOST_NAMED = 4
OPEN_FILES = 4096
SHM_GIB = 1.0
FREE = 0.9
SLOW_RANK = {"cuda": 0.85, "cpu": 0.5}
SLOW_PAIR = {"cuda": 0.5, "cpu": 0.2}
OF_EXPECTED = (0.6, 0.25)
SKEW_S = (1.0, 300.0)
FIRST_S = 60.0
DISK_MB_PER_S = 100.0
FILES_PER_S = 50.0


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table."""

    name: str
    found: str
    verdict: Verdict
    rule: str
    remedy: str = ""
    """Empty where all is well."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Bus bandwidths that the cluster should reach; 0: nothing to compare with."""

    within_gb_per_s: float = 0.0
    between_gb_per_s: float = 0.0
    source: str = ""


def named(names: Iterable[str]) -> str:
    """The first few of many, and how many more."""
    names = list(dict.fromkeys(names))
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def check_machines(facts: Sequence[Facts]) -> list[Check]:
    """Versions, limits and memory of the machines."""
    return [
        _versions(facts),
        _limit(
            "open files",
            facts,
            lambda fact: fact.open_files,
            max(OPEN_FILES, 4 * len(facts)),
            "raise `ulimit -n`",
            "d",
        ),
        _limit(
            "/dev/shm GiB",
            [fact for fact in facts if fact.shm_gib is not None],
            lambda fact: fact.shm_gib or 0.0,
            SHM_GIB,
            "start containers with --shm-size=16g or --ipc=host",
            ".1f",
        ),
    ]


def _versions(facts: Sequence[Facts]) -> Check:
    rule = "the same on all ranks"
    for package in dict.fromkeys(name for fact in facts for name in fact.versions):
        values: dict[str, list[str]] = {}
        for fact in facts:
            values.setdefault(fact.versions.get(package, "none"), []).append(fact.name)
        if len(values) > 1:
            usual = max(values, key=lambda value: len(values[value]))
            odd = "; ".join(f"{value} on {named(who)}" for value, who in values.items() if value != usual)
            found = f"{package} {usual}, but {odd}"
            return Check(
                "versions", found, "fail", rule, f"install {package} {usual} there, or one image everywhere"
            )
    shown = ", ".join(f"{name} {value}" for name, value in facts[0].versions.items())
    return Check("versions", shown, "ok", rule)


def _limit(
    name: str, facts: Sequence[Facts], value: Callable[[Facts], float], least: float, remedy: str, form: str
) -> Check:
    rule = f"at least {least:g}"
    low = [fact for fact in facts if value(fact) < least]
    if not facts:
        return Check(name, "none here", "ok", rule)
    found = f"least {min(map(value, facts)):{form}}"
    if low:
        return Check(name, f"{found} on {named(fact.host for fact in low)}", "warn", rule, remedy)
    return Check(name, found, "ok", rule)


def check_gpus(facts: Sequence[Facts]) -> list[Check]:
    """GPUs: each rank its own, empty, without faults; nothing on CPUs."""
    on_gpu = [fact for fact in facts if fact.gpu]
    if not on_gpu:
        return []
    kinds = list(dict.fromkeys(fact.device for fact in on_gpu))
    checks = [
        Check("GPUs", named(kinds), "warn", "of one kind", "the slowest sets the pace: use nodes of one kind")
        if len(kinds) > 1
        else Check("GPUs", f"{len(on_gpu)} x {kinds[0]}", "ok", "of one kind")
    ]
    taken: dict[tuple[str, str], list[str]] = {}
    for fact in on_gpu:
        taken.setdefault((fact.host, str(fact.gpu.get("uuid"))), []).append(fact.name)
    if shared := [named(who) for who in taken.values() if len(who) > 1]:
        remedy = "start one rank a GPU, and let each see its own"
        checks.append(Check("GPU of a rank", named(shared), "fail", "one rank a GPU", remedy))
    full = [fact for fact in on_gpu if fact.gpu["free_gib"] < FREE * fact.gpu["total_gib"]]
    least = min(fact.gpu["free_gib"] / fact.gpu["total_gib"] for fact in on_gpu)
    found = f"least {least:.0%} free" + (f" on {named(fact.name for fact in full)}" if full else "")
    remedy = "end the other programs on it (`nvidia-smi`)" if full else ""
    checks.append(Check("GPU memory", found, "warn" if full else "ok", f"at least {FREE:.0%} free", remedy))
    told = [fact for fact in on_gpu if "ecc" in fact.gpu or "hot" in fact.gpu]
    ill = [fact.name for fact in told if fact.gpu.get("ecc", "0") not in ("0", "")]
    ill += [fact.name for fact in told if "Active" in (fact.gpu.get("hot"), fact.gpu.get("braked"))]
    rule = "no uncorrected memory errors, not slowed down by heat or power"
    if ill:
        checks.append(
            Check("GPU health", named(ill), "warn", rule, "drain that node and see `nvidia-smi -q`")
        )
    elif told:
        checks.append(Check("GPU health", f"well on {len(told)} of {len(facts)}", "ok", rule))
    return checks


def check_links(links: Links, facts: Sequence[Facts], kind: str, expected: Expected) -> list[Check]:
    """What the ranks reach together, and who is slower than the others."""
    first = links.first_collective_s
    slow_start = first > FIRST_S
    checks = [
        Check(
            "first collective",
            f"{first:.2f} s",
            "warn" if slow_start else "ok",
            f"within {FIRST_S:g} s",
            "see NCCL_DEBUG=INFO for the network it tries" if slow_start else "",
        )
    ]
    checks += _bandwidth("all ranks", links.all_gb_per_s, 0.0, "")
    where = f", slowest {links.within_slowest}"
    checks += _bandwidth(
        f"within a machine{where}", links.within_gb_per_s, expected.within_gb_per_s, expected.source
    )
    checks += _bandwidth(
        "between machines", links.between_gb_per_s, expected.between_gb_per_s, expected.source
    )
    return [*checks, *_slow_pairs(links, facts, kind), *_slow_ranks(links, facts, kind)]


def _bandwidth(name: str, measured: dict[int, float], expected: float, source: str) -> list[Check]:
    if not measured:
        return []
    found = ", ".join(f"{gb:.3g} at {size / 2**20:g} MiB" for size, gb in measured.items())
    name, best = f"all-reduce, {name}", measured[max(measured)]
    if not expected:
        return [Check(name, f"{found} (GB/s)", "ok", "no --gpu or --interconnect to compare with")]
    part, (warn, fail) = best / expected, OF_EXPECTED
    verdict: Verdict = "ok" if part >= warn else "warn" if part >= fail else "fail"
    rule = f"at least {warn:.0%} of {expected:.3g} GB/s ({source})"
    remedy = (
        ""
        if verdict == "ok"
        else "see NCCL_DEBUG=INFO: which links and adapters it uses, and which are missing"
    )
    return [Check(name, f"{found} (GB/s), {part:.0%}", verdict, rule, remedy)]


def _slow_pairs(links: Links, facts: Sequence[Facts], kind: str) -> list[Check]:
    if not links.pairs:
        return []
    rule = f"no pair under {SLOW_PAIR[kind]:.0%} of the median of its like"
    slow, shown = [], []
    for what, apart in (("in a machine", False), ("across", True)):
        like = [pair for pair in links.pairs if (facts[pair[0]].host != facts[pair[1]].host) is apart]
        if not like:
            continue
        middle = statistics.median(pair[2] for pair in like)
        latency_us = statistics.median(pair[3] for pair in like) * 1e6
        shown.append(f"{what} {middle:.3g} GB/s, {latency_us:.0f} us")
        slow += [
            f"{facts[a].name} - {facts[b].name} {gb:.3g} GB/s"
            for a, b, gb, _ in like
            if gb < SLOW_PAIR[kind] * middle
        ]
    found = "; ".join(shown)
    if slow:
        remedy = "look at the cable, the adapter or the switch port of the machine that they have in common"
        return [Check("pairs of neighbours", f"{found}; slow: {named(slow)}", "warn", rule, remedy)]
    return [Check("pairs of neighbours", found, "ok", rule)]


def _slow_ranks(links: Links, facts: Sequence[Facts], kind: str) -> list[Check]:
    speeds = links.tflop_per_s
    middle = statistics.median(speeds)
    slow = [
        f"{fact.name} {speed:.3g}"
        for fact, speed in zip(facts, speeds, strict=True)
        if speed < SLOW_RANK[kind] * (middle if len(speeds) > 2 else max(speeds))
    ]
    rule = f"no rank under {SLOW_RANK[kind]:.0%} of the others"
    found = f"{min(speeds):.3g} to {max(speeds):.3g} TFLOP/s"
    if slow:
        remedy = "leave that machine out, and see what else runs there or what slows the GPU down (`nvidia-smi -q`)"
        return [Check("matrix product", f"{found}; slow: {named(slow)}", "warn", rule, remedy)]
    return [Check("matrix product", found, "ok", rule)]


def check_clocks(skews: Sequence[Skew]) -> list[Check]:
    """Nothing with one machine."""
    if not skews:
        return []
    worst = max(skews, key=lambda skew: abs(skew.ahead_s) - skew.uncertainty_s)
    off_s = abs(worst.ahead_s) - worst.uncertainty_s
    warn_s, fail_s = SKEW_S
    verdict: Verdict = "fail" if off_s > fail_s else "warn" if off_s > warn_s else "ok"
    found = f"{worst.host} {worst.ahead_s:+.4f} s (+- {worst.uncertainty_s:.4f})"
    rule = f"within {warn_s:g} s; beyond {fail_s:g} s munge refuses"
    return [
        Check(
            "clocks", found, verdict, rule, "" if verdict == "ok" else f"start chrony or ntpd on {worst.host}"
        )
    ]


def check_run_disk(disks: Sequence[Disk]) -> list[Check]:
    """Where a run is written: by every machine, and the same for all."""
    broken = [f"{disk.host}: {disk.problem}" for disk in disks if disk.problem]
    if broken:
        remedy = "make it, or let the job's user write there"
        return [Check("run directory", named(broken), "fail", "written and read by every machine", remedy)]
    checks = [_shared(disks)]
    for name, speeds, least, unit in (
        ("write", [(disk.write_mb_per_s, disk.host) for disk in disks], DISK_MB_PER_S, "MB/s"),
        ("read", [(disk.read_mb_per_s, disk.host) for disk in disks], DISK_MB_PER_S, "MB/s"),
        ("small files", [(disk.files_per_s, disk.host) for disk in disks], FILES_PER_S, "a second"),
    ):
        checks.append(_speed(f"run directory, {name}", speeds, least, unit))
    return checks


def _shared(disks: Sequence[Disk]) -> Check:
    rule = "every machine sees the files of all"
    hosts = {disk.host for disk in disks}
    blind = [disk.host for disk in disks if set(disk.seen) != hosts]
    if blind:
        found = f"not shared: {named(blind)} see only their own or a part"
        return Check(
            "run directory", found, "fail", rule, "use a directory on the cluster's shared file system"
        )
    return Check("run directory", f"seen alike by {len(disks)} machine(s)", "ok", rule)


def _speed(name: str, speeds: Sequence[tuple[float, str]], least: float, unit: str) -> Check:
    low, host = min(speeds)
    found = f"least {low:,.0f} {unit} ({host})"
    rule = f"at least {least:g} {unit} a machine"
    if low < least:
        return Check(name, found, "warn", rule, "use a faster file system, or expect long saves and starts")
    return Check(name, found, "ok", rule)


def check_data_disk(disks: Sequence[Disk]) -> list[Check]:
    """Where token files are read: by every machine, with the same content."""
    if broken := [f"{disk.host}: {disk.problem}" for disk in disks if disk.problem]:
        remedy = "give a directory that every machine can read"
        return [Check("data directory", named(broken), "fail", "read by every machine", remedy)]
    rule = "the same files everywhere"
    views = {disk.seen for disk in disks}
    if len(views) > 1:
        usual = max(views, key=lambda view: sum(disk.seen == view for disk in disks))
        odd = named(
            f"{disk.host} ({', '.join(disk.seen) or 'no file'})" for disk in disks if disk.seen != usual
        )
        found = f"{', '.join(usual) or 'no file'}; other on {odd}"
        return [
            Check("data directory", found, "fail", rule, "copy the files again, or use a shared file system")
        ]
    if not disks[0].seen:
        remedy = "name the folder with the token files; a file system that is not mounted is empty, too"
        return [Check("data directory", "holds no file", "fail", rule, remedy)]
    checks = [Check("data directory", ", ".join(disks[0].seen), "ok", rule)]
    if speeds := [(disk.read_mb_per_s, disk.host) for disk in disks if disk.read_mb_per_s]:
        checks.append(_speed("data directory, read", speeds, DISK_MB_PER_S, "MB/s"))
    return checks
