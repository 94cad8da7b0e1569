"""Rules of the cluster check: what was measured, and the verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cptron.health.checks import (
    Check,
    Expected,
    check_clocks,
    check_data_disk,
    check_gpus,
    check_links,
    check_machines,
    check_run_disk,
    named,
)
from cptron.health.clocks import Skew
from cptron.health.disks import Disk, measure_disk, read_data
from cptron.health.facts import Facts, read_smi
from cptron.health.links import Links


def facts(count: int = 4, per_host: int = 2, **more: object) -> list[Facts]:
    usual = {
        "versions": {"torch": "2.8", "nccl": "2.27"},
        "open_files": 65536,
        "shm_gib": 64.0,
        "memory_gib": 512.0,
        "device": "NVIDIA H200",
    }
    found = []
    for rank in range(count):
        gpu = {"free_gib": 139.0, "total_gib": 140.0, "uuid": str(rank), "ecc": "0", "hot": "Not Active"}
        place = {"rank": rank, "host": f"n{rank // per_host}", "local_rank": rank % per_host, "gpu": gpu}
        found.append(Facts(**{**usual, **place, **more}))  # type: ignore[arg-type]
    return found


def bad(checks: list[Check]) -> dict[str, str]:
    assert all(bool(check.remedy) == (check.verdict != "ok") for check in checks), (
        "a finding without a remedy"
    )
    return {check.name: check.verdict for check in checks if check.verdict != "ok"}


LINKS = Links(
    first_collective_s=3.0,
    all_gb_per_s={2**20: 10.0, 2**28: 300.0},
    within_gb_per_s={2**20: 20.0, 2**28: 350.0},
    within_slowest="n1",
    between_gb_per_s={2**20: 4.0, 2**28: 38.0},
    pairs=[(0, 1, 150.0, 1e-5), (1, 2, 40.0, 2e-5), (2, 3, 150.0, 1e-5)],
    tflop_per_s=[700.0, 690.0, 710.0, 700.0],
)
EXPECTED = Expected(337.5, 40.0, "h200, ndr400")


def test_a_cluster_that_is_well() -> None:
    ranks = facts()
    checks = [*check_machines(ranks), *check_gpus(ranks), *check_links(LINKS, ranks, "cuda", EXPECTED)]
    assert bad(checks) == {} and len(checks) >= 10


@pytest.mark.parametrize(
    ("change", "name", "verdict"),
    [
        ({"versions": {"torch": "2.8", "nccl": "2.26"}}, "versions", "fail"),
        ({"versions": {"torch": "2.8"}}, "versions", "fail"),
        ({"open_files": 1024}, "open files", "warn"),
        ({"shm_gib": 0.06}, "/dev/shm GiB", "warn"),
        ({"device": "NVIDIA A100"}, "GPUs", "warn"),
        ({"gpu": {"free_gib": 100.0, "total_gib": 140.0, "uuid": "3"}}, "GPU memory", "warn"),
        ({"gpu": {"free_gib": 139.0, "total_gib": 140.0, "uuid": "2"}}, "GPU of a rank", "fail"),
        ({"gpu": {"free_gib": 139.0, "total_gib": 140.0, "uuid": "3", "ecc": "2"}}, "GPU health", "warn"),
        (
            {"gpu": {"free_gib": 139.0, "total_gib": 140.0, "uuid": "3", "hot": "Active"}},
            "GPU health",
            "warn",
        ),
    ],
)
def test_one_rank_that_is_not(change: dict[str, object], name: str, verdict: str) -> None:
    ranks = facts()
    ranks[3] = replace(ranks[3], **change)  # type: ignore[arg-type]
    checks = [*check_machines(ranks), *check_gpus(ranks)]
    assert bad(checks) == {name: verdict}
    (check,) = [check for check in checks if check.name == name]
    assert "n1" in check.found or name == "GPUs"


@pytest.mark.parametrize(
    ("change", "name", "verdict"),
    [
        ({"first_collective_s": 61.0}, "first collective", "warn"),
        ({"within_gb_per_s": {2**28: 150.0}}, "all-reduce, within a machine, slowest n1", "warn"),
        ({"between_gb_per_s": {2**28: 9.0}}, "all-reduce, between machines", "fail"),
        (
            {"pairs": [(0, 1, 150.0, 1e-5), (1, 2, 40.0, 2e-5), (2, 3, 37.0, 1e-5)]},
            "pairs of neighbours",
            "warn",
        ),
        ({"tflop_per_s": [700.0, 590.0, 710.0, 700.0]}, "matrix product", "warn"),
    ],
)
def test_links_and_gpus_that_are_slow(change: dict[str, object], name: str, verdict: str) -> None:
    links = replace(LINKS, **change)  # type: ignore[arg-type]
    assert bad(check_links(links, facts(), "cuda", EXPECTED)) == {name: verdict}


def test_without_a_cluster_to_compare_with_nothing_is_judged() -> None:
    slow = replace(LINKS, between_gb_per_s={2**28: 0.1})
    assert bad(check_links(slow, facts(), "cuda", Expected())) == {}


@pytest.mark.parametrize(
    ("ahead_s", "uncertainty_s", "verdicts"),
    [(0.5, 0.0, []), (-1.5, 0.1, ["warn"]), (1.5, 0.6, []), (400.0, 1.0, ["fail"])],
)
def test_clocks_are_judged_by_what_is_certain(
    ahead_s: float, uncertainty_s: float, verdicts: list[str]
) -> None:
    checks = check_clocks([Skew("n1", 0.0, 0.0001), Skew("n2", ahead_s, uncertainty_s)])
    assert list(bad(checks).values()) == verdicts and check_clocks([]) == []


def test_directories() -> None:
    def disk(host: str, **more: object) -> Disk:
        usual = {"write_mb_per_s": 500.0, "read_mb_per_s": 500.0, "files_per_s": 500.0, "seen": ("n0", "n1")}
        return Disk(host, **{**usual, **more})  # type: ignore[arg-type]

    assert bad(check_run_disk([disk("n0"), disk("n1")])) == {}
    assert bad(check_run_disk([disk("n0"), disk("n1", seen=("n1",))])) == {"run directory": "fail"}
    assert bad(check_run_disk([disk("n0"), disk("n1", problem="read-only")])) == {"run directory": "fail"}
    assert bad(check_run_disk([disk("n0"), disk("n1", write_mb_per_s=3.0)])) == {
        "run directory, write": "warn"
    }
    assert bad(check_data_disk([disk("n0"), disk("n1")])) == {}
    assert bad(check_data_disk([disk("n0"), disk("n1", seen=("other",))])) == {"data directory": "fail"}
    assert bad(check_data_disk([disk("n0"), disk("n1", seen=())])) == {"data directory": "fail"}
    assert bad(check_data_disk([disk("n0", seen=()), disk("n1", seen=())])) == {"data directory": "fail"}


def test_a_directory_is_left_as_it_was(tmp_path: Path) -> None:
    met: list[int] = []
    found = measure_disk(tmp_path, "n0", 0, 1, "t", 1, lambda: met.append(1))
    assert (
        found.seen == ("n0",)
        and found.write_mb_per_s > 0
        and found.read_mb_per_s > 0
        and found.files_per_s > 0
    )
    missing = measure_disk(tmp_path / "none", "n0", 0, 1, "t", 1, lambda: met.append(1))
    assert "none is no directory here" in missing.problem and len(met) == 4
    assert list(tmp_path.iterdir()) == []
    assert read_data(tmp_path, "n0", 1) == Disk("n0"), "nothing is there to be read"
    (tmp_path / "below").mkdir()
    (tmp_path / "below/b.bin").write_bytes(b"1" * 5)
    below = read_data(tmp_path, "n0", 1)
    assert below.seen[0].startswith("1 files, ") and below.read_mb_per_s > 0
    (tmp_path / "a.bin").write_bytes(b"1" * 10)
    first = read_data(tmp_path, "n0", 1)
    (tmp_path / "a.bin").write_bytes(b"1" * 11)
    assert first.seen != read_data(tmp_path, "n0", 1).seen and read_data(tmp_path / "none", "n0", 1).problem


def test_what_nvidia_smi_tells() -> None:
    line = "GPU-1, 550.54, 0, Not Active, Active, 71\n"
    assert read_smi(line)["braked"] == "Active" and read_smi(line)["driver"] == "550.54"
    assert "ecc" not in read_smi("GPU-1, 550.54, [N/A], Not Active, Active, 71")
    assert read_smi("No devices were found") == {}
    assert named(["a", "b", "a", "c", "d", "e"]) == "a, b, c, d and 1 more"
