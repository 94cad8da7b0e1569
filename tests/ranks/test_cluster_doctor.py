"""`cptron doctor --cluster` on real ranks: each of them may believe to be a machine of its own, and one be broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import health_calls
import pytest
from commands import TORCHRUN, call, cptron, error_lines

from cptron.doctor import main as doctor
from cptron.errors import EXIT_CODE, ConfigError
from cptron.testing import RankFailure, run_ranks


def checks_of(report: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The lines of the table, by name."""
    return {check["name"]: check for check in report["checks"]}


def wrong(report: dict[str, Any]) -> dict[str, str]:
    """Name and verdict of what is not well, but for the speed of this machine's own disk."""
    speeds = ("write", "read", "small files")
    return {
        name: check["verdict"]
        for name, check in checks_of(report).items()
        if check["verdict"] != "ok" and not name.endswith(speeds)
    }


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory that all see, with data."""
    (tmp_path / "a.bin").write_bytes(b"1" * 100_000)
    return tmp_path


def test_two_machines_of_two_ranks_are_well(shared: Path) -> None:
    hosts = ["n1", "n1", "n2", "n2"]
    reports = run_ranks(health_calls.examine, 4, hosts, [str(shared)] * 4, str(shared), broken_rank=-1)
    assert all(report == reports[0] for report in reports)
    report = reports[0]
    names = set(checks_of(report))
    assert {
        "versions",
        "open files",
        "clocks",
        "all-reduce, between machines",
        "pairs of neighbours",
    } <= names
    assert report["hosts"] == {"n1": 2, "n2": 2}
    assert not {"versions", "clocks", "run directory", "data directory"} & set(wrong(report))
    assert [pair[:2] for pair in report["links"]["pairs"]] == [(0, 1), (1, 2), (2, 3)]
    assert set(report["links"]["within_gb_per_s"]) == set(report["links"]["between_gb_per_s"])
    (skew,) = report["clocks"]
    assert abs(skew["ahead_s"]) <= skew["uncertainty_s"] + 0.01
    assert sorted(path.name for path in shared.iterdir()) == ["a.bin"]


@pytest.mark.parametrize(
    ("broken", "name", "verdict", "words"),
    [
        ("versions", "versions", "fail", "but 1.0 on rank 1 (n2)"),
        ("slow", "matrix product", "warn", "slow: rank 1 (n2)"),
        ("clock", "clocks", "warn", "n2 +"),
    ],
)
def test_what_is_broken_is_named(broken: str, name: str, verdict: str, words: str) -> None:
    report = run_ranks(health_calls.examine, 2, ["n1", "n2"], [], broken=broken)[0]
    check = checks_of(report)[name]
    assert check["verdict"] == verdict and words in check["found"] and check["remedy"]
    if broken == "clock":
        (skew,) = report["clocks"]
        assert abs(skew["ahead_s"] - 40) <= skew["uncertainty_s"] + 0.01


def test_directories_that_are_missing_or_not_shared_are_named(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    hosts, dirs = ["n1", "n2"], [str(tmp_path / "one"), str(tmp_path / "two")]
    report = run_ranks(health_calls.examine, 2, hosts, dirs)[0]
    assert wrong(report)["run directory"] == "fail"
    assert "not shared: n1, n2" in checks_of(report)["run directory"]["found"]
    report = run_ranks(health_calls.examine, 2, hosts, [dirs[0], str(tmp_path / "none")])[0]
    assert checks_of(report)["run directory"]["verdict"] == "fail"
    assert "n2: " in checks_of(report)["run directory"]["found"]
    assert not list(tmp_path.glob("*/*"))


def test_links_are_compared_with_the_cluster_that_is_named() -> None:
    report = run_ranks(health_calls.examine, 2, ["n1", "n2"], [], gpu="h100", interconnect="ndr400")[0]
    check = checks_of(report)["all-reduce, between machines"]
    assert (
        check["verdict"] == "fail" and "60% of 40 GB/s (h100 450 GB/s, ndr400 50 GB/s a GPU" in check["rule"]
    )


def test_a_rank_that_fails_ends_the_others() -> None:
    with pytest.raises(RankFailure, match=r"GPU lost|rank 1 failed|died"):
        run_ranks(health_calls.examine, 2, ["n1", "n1"], [], broken="raises")


def test_a_rank_that_never_comes_is_an_error_of_one_line() -> None:
    alone = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    done = call(cptron("doctor", "--cluster", "--device", "cpu", "--timeout-s", "2"), timeout_s=240, **alone)
    (line,) = error_lines(done.stderr)
    assert (
        done.returncode == EXIT_CODE
        and "rank 0 of 2 did not meet the others at 127.0.0.1:0 within 2 s" in line
    )


def test_the_command_under_torchrun(tmp_path: Path) -> None:
    words = ["doctor", "--cluster", "--device", "cpu", "--file-mib", "1", "--json"]
    done = call([*TORCHRUN, "-m", "cptron.cli", *words, "--run-dir", tmp_path], timeout_s=240)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["world_size"] == 2 and len(report["ranks"]) == 2
    assert checks_of(report)["run directory"]["verdict"] == "ok"


def test_one_machine_alone_has_an_exit_code_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    words = ["--cluster", "--device", "cpu", "--file-mib", "1", "--run-dir"]
    assert doctor([*words, str(tmp_path)]) == 0
    assert doctor([*words, str(tmp_path / "none")]) == EXIT_CODE
    printed = capsys.readouterr().out
    assert "seen alike by 1 machine(s)" in printed and "is no directory here" in printed
    assert "fail: run directory: make it, or let the job's user write there" in printed
    with pytest.raises(ConfigError, match="--interconnect nothing is not known"):
        doctor([*words, str(tmp_path), "--interconnect", "nothing"])
