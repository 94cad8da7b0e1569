"""The doctor: bounds as in pyproject.toml, remedies for what is missing, nothing heavy imported to find
it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.version import Version

from cptron import doctor
from cptron.errors import EXIT_CODE

ROOT = Path(__file__).parents[2]


def test_bounds_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    wanted["python"] = Requirement("python" + project["requires-python"]).specifier
    assert doctor.BOUNDS.keys() == wanted.keys()
    for name, (low, high) in doctor.BOUNDS.items():
        assert {str(s) for s in wanted[name]} == {f">={low}"} | ({f"<{high}"} if high else set())


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=4), st.lists(st.integers(0, 30), min_size=1, max_size=4)
)
def test_versions_are_ordered_as_packaging_orders_them(first: list[int], second: list[int]) -> None:
    a, b = ".".join(map(str, first)), ".".join(map(str, second))
    assert (doctor._release(a) < doctor._release(b)) == (Version(a) < Version(b))
    assert doctor._release(a + "+cpu") == doctor._release(a) == doctor._release(a + ".0")


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ("0.16.1", ""),
        ("0.20.9", ""),
        ("0.16.0", "0.16.0 is outside >=0.16.1,<0.21; run `pip install 'megatron-core>=0.16.1,<0.21'`"),
        ("0.21.0", "0.21.0 is outside >=0.16.1,<0.21; run `pip install 'megatron-core>=0.16.1,<0.21'`"),
        ("", "is not installed; run `pip install 'megatron-core>=0.16.1,<0.21'`"),
    ],
)
def test_a_package_outside_its_bounds_has_a_remedy(found: str, problem: str) -> None:
    assert doctor._bounded("megatron-core", found).problem == problem


def test_exit_code_says_whether_something_required_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_kernels", lambda: doctor.Finding("cptron._kernels", "built", "built"))
    assert doctor.main([]) == 0
    whole = capsys.readouterr()
    assert whole.err == ""
    for word in (
        "machine",
        "CPU",
        "torch",
        "megatron-core",
        "cptron._kernels",
        "attention",
        "optimizer",
        "torch_dist",
    ):
        assert word in whole.out
    monkeypatch.setitem(doctor.BOUNDS, "numpy", ("99.0", ""))
    assert doctor.main([]) == EXIT_CODE
    broken = capsys.readouterr()
    assert "NOT OK" in broken.out
    assert broken.err.startswith("cptron doctor: numpy ") and "pip install 'numpy>=99.0'" in broken.err
    assert broken.err.count("\n") == 1


def test_json_holds_the_same_findings(capsys: pytest.CaptureFixture[str]) -> None:
    code = doctor.main(["--json"])
    report = json.loads(capsys.readouterr().out)
    assert {finding["name"] for finding in report["required"]} == {*doctor.BOUNDS, "cptron._kernels"}
    assert {finding["name"] for finding in report["optional"]} == set(doctor.ACCELERATORS)
    assert (code == 0) == (not any(finding["problem"] for finding in report["required"]))
    assert report["device"]["cores"] >= 1 and report["device"]["memory_gib"] > 0.1
    for part in (
        "device and backend",
        "layers",
        "attention",
        "FP8 products",
        "optimizer",
        "checkpoints",
        "logging",
    ):
        assert report["uses"][part]


@pytest.mark.parametrize(("folder", "nvidia"), [("optimizers", True), ("lib", False)])
def test_the_other_apex_is_not_taken_for_nvidias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, nvidia: bool
) -> None:
    (tmp_path / "apex" / folder).mkdir(parents=True)
    (tmp_path / "apex" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = next(f for f in doctor.optional_findings() if f.name == "apex")
    assert (finding.found != "no") == nvidia
    assert ("not NVIDIA's" in finding.problem) == (not nvidia)
    uses = doctor.uses_of(doctor.device_facts(), {f.name: f for f in doctor.optional_findings()})
    assert ("Apex's AdamW" in uses["optimizer"]) == nvidia


def test_looking_for_accelerators_imports_none_of_them() -> None:
    code = (
        "import sys; from cptron import doctor; doctor.optional_findings(); "
        "heavy = {'torch', 'megatron', 'wandb', 'tensorboard', 'triton', 'transformers'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "\n")  # an empty list of names


def test_torch_that_cannot_be_loaded_is_a_finding(tmp_path: Path) -> None:
    """As where a library of CUDA is missing: the other findings are wanted most then."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.12: cannot open\\nit')")
    words = [sys.executable, "-m", "cptron.doctor", "--json"]
    paths = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(words, cwd=ROOT, env=paths, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_CODE and "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    (finding,) = [finding for finding in report["required"] if finding["name"] == "torch"]
    assert finding["found"] == "broken" and "libcudart.so.12: cannot open it" in finding["problem"]
    assert report["device"]["gpus"] == [] and "cptron doctor: torch " in done.stderr
