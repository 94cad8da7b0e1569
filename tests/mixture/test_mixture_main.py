"""The command as users type it: what it prints, writes, draws and refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from mixture_world import inputs_of, jsonl_table, replay_table

from cptron.cli import main
from cptron.errors import EXIT_CODE
from cptron.mixture.laws import separable

ROLES = ["--old", "old", "--new", "new"]
DRAWS = ["--draws", "60"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The replay grid, with both seeds."""
    return replay_table(tmp_path_factory.mktemp("table") / "runs.csv")


@pytest.fixture(scope="module")
def fit(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fitted without the runs of no replay."""
    folder = tmp_path_factory.mktemp("fit")
    some = replay_table(folder / "runs.csv", replay=[0.01, 0.05, 0.1, 0.25, 0.5])
    output = folder / "fit.json"
    assert main(["mixlaw", "fit", str(some), "--law", "d-cpt", *ROLES, *DRAWS, "--output", str(output)]) == 0
    return output


def printed(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """What a command prints: on stdout, or as the one line of an error."""
    capsys.readouterr()
    assert main(["mixlaw", *map(str, arguments)]) == code
    shown = capsys.readouterr()
    if code:
        assert not shown.out or "points" in shown.out
        assert len(shown.err.splitlines()) == 1
    return shown.err if code else shown.out


def test_fit_prints_what_it_writes(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parameters, intervals, both kinds of left-out errors, the recommendation and the warning."""
    output = tmp_path / "fit.json"
    bound = ["--max-old-increase-nats", "0.3"]
    text = printed(capsys, "fit", table, "--law", "d-cpt", *ROLES, *DRAWS, *bound, "--output", output)
    stored = json.loads(output.read_text())
    assert f"rmse {stored['fits'][0]['rmse']:.4f} nats; left out: mean " in text
    assert "left out at an edge (extrapolated): largest " in text and "at old=0 new=1" in text
    for name, value in zip(("E", "C", "gamma", "epsilon"), stored["fits"][0]["parameters"], strict=True):
        assert re.search(rf"^  {name} +{re.escape(f'{value:.5g}')} ", text, re.MULTILINE)
    found = r"^recommended: new=0\.\d{4}  95 % interval 0\.\d{4} to 0\.\d{4}  \(old may rise by 0\.3 nats"
    assert re.search(found, text, re.MULTILINE)
    assert "Published laws disagree" in text and "second-hand" in text


def test_same_seed_same_file(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Byte for byte; another seed is another bootstrap."""
    texts = []
    for number, seed in enumerate(("0", "0", "1")):
        output = tmp_path / f"{number}.json"
        asked = ["--law", "d-cpt", *ROLES, "--draws", "40", "--seed", seed]
        printed(capsys, "fit", table, *asked, "--output", output)
        texts.append(output.read_text())
    assert texts[0] == texts[1] != texts[2]


def test_extrapolation_is_refused_or_said_on_every_line(
    fit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A share of 0 was not measured."""
    refused = printed(capsys, "predict", fit, "--shares", "old=0,new=1", code=EXIT_CODE)
    assert "share of old 0 is outside 0.01 to 0.5" in refused and "--extrapolate" in refused
    lines = printed(capsys, "predict", fit, "--shares", "old=0,new=1", "--extrapolate").splitlines()
    assert len(lines) == 3
    assert all("EXTRAPOLATED: share of old 0 is outside 0.01 to 0.5" in line for line in lines[:2])
    inside = printed(capsys, "predict", fit, "--shares", "old=0.1,new=0.9").splitlines()
    assert len(inside) == 3 and not any("EXTRAPOLATED" in line for line in inside)
    assert all(
        "Published laws disagree" in text.splitlines()[-1] for text in ("\n".join(lines), "\n".join(inside))
    )


def test_recommendation_beyond_the_range_says_so(fit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bound so tight that only more than half of replay could keep it."""
    bound = ("--max-old-increase-nats", "0.03")
    assert "no mixture within the range keeps that" in printed(capsys, "predict", fit, *bound)
    lines = printed(capsys, "predict", fit, *bound, "--extrapolate").splitlines()
    found = [line for line in lines if line.startswith("recommended")]
    assert found and all("EXTRAPOLATED" in line or "none" in line for line in found)


def test_json_has_what_the_text_has(fit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("predict", fit, "--shares", "old=0.2,new=0.8", "--max-old-increase-percent", "20%")
    text, found = printed(capsys, *arguments), json.loads(printed(capsys, *arguments, "--json"))
    for one in found["predictions"]:
        assert (
            f"{one['loss']} {one['value']:.4f} nats  95 % interval {one['low']:.4f} to {one['high']:.4f}"
            in text
        )
    share = dict(zip(("old", "new"), found["recommended"]["shares"], strict=True))
    assert f"recommended: new={share['new']:.4f}" in text
    assert "Published laws disagree" in found["note"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing is asked for"),
        (("--shares", "old=0.5"), "sum to 0.5, must sum to 1"),
        (("--shares", "old=0.5,new=x"), "'new=x' must be DOMAIN=SHARE"),
        (("--shares", "old=0.5,law=0.5"), "'law=0.5' must be DOMAIN=SHARE"),
        (("--shares", "old=0.5,old=0.5"), "'old=0.5' must be DOMAIN=SHARE"),
        (("--shares", "old=0.5,new=0.5", "--tokens", "1e12"), "knows nothing of other values"),
        (("--shares", "old=0.5,new=0.5", "--tokens", "nan"), "--tokens nan must be a number above 0"),
        (("--max-old-increase-nats", "lots"), "--max-old-increase-nats lots must be a number above 0"),
        (("--max-old-increase-nats", "0.1", "--old-baseline-nats", "-1"), "--old-baseline-nats -1.0 must be"),
    ],
)  # fmt: skip
def test_predict_refuses(
    fit: Path, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in printed(capsys, "predict", fit, *arguments, code=EXIT_CODE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--law", "d-cpt", "--old", "absent"), "no run has the loss 'absent', must be one of new, old"),
        (("--law", "d-cpt", "--old", "old=absent"), "'absent' is no domain of the runs"),
        (("--law", "d-cpt", "--old", "=old"), "'=old' must be NAME or NAME=DOMAIN"),
        (("--law", "d-cpt", "--old", "old", "--new", "old"), "name old more than once"),
        (("--law", "cmr-tokens", "--new", "new"), "name --old"),
        (("--law", "cmr", *ROLES), "measured at a share of 0"),
        (("--law", "d-cpt", *ROLES, "--draws", "3"), "--draws 3 must be at least 40"),
        (("--law", "d-cpt", *ROLES, "--every-evaluation"), "has no effect on the table"),
    ],
)
def test_fit_refuses(
    table: Path, arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And writes nothing."""
    output = tmp_path / "fit.json"
    assert said in printed(capsys, "fit", table, *arguments, "--output", output, code=EXIT_CODE)
    assert not output.exists()


def test_without_scipy_fitting_says_what_to_install(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(separable, "find_spec", lambda name: None)
    output = str(tmp_path / "fit.json")
    said = printed(capsys, "fit", table, "--law", "d-cpt", *ROLES, "--output", output, code=EXIT_CODE)
    assert "scipy" in said and "pip install 'cptron[mixlaw]'" in said


def test_predicting_loads_neither_scipy_nor_torch(fit: Path) -> None:
    """In a fresh interpreter."""
    program = (
        "import sys; from cptron.cli import main; "
        f"main(['mixlaw', 'predict', {str(fit)!r}, '--shares', 'old=0.1,new=0.9', '--max-old-increase-nats', '0.4']); "
        "sys.exit(str(sorted({'scipy', 'torch'} & set(sys.modules)) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or done.stderr.strip() == "", done.stderr
    assert "recommended: new=" in done.stdout


def drawn(page: str) -> list[ElementTree.Element]:
    """Every chart of a page, parsed."""
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


@pytest.mark.parametrize("law", ["d-cpt", "mixing"])
def test_picture_of_two_domains(
    law: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A chart a loss: area, curve, and a mark for every measured point."""
    page = tmp_path / "page.html"
    printed(
        capsys,
        "fit",
        table,
        "--law",
        law,
        *ROLES,
        *DRAWS,
        "--output",
        str(tmp_path / "f"),
        "--plot",
        page,
    )
    charts = drawn(page.read_text())
    assert len(charts) == 2
    for chart in charts:
        assert len(chart.findall("polygon")) == 1
        assert len(chart.findall("polyline")) == 1
        assert len(chart.findall("circle")) == 12
    assert "Published laws disagree" in page.read_text()


def test_curves_over_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`cmr-tokens`: a curve and an area for each mixture, the critical ratio from the file."""
    tokens = np.geomspace(1e6, 1e8, 9)
    shares = [[1 - r, r] for r in (0.3, 0.6, 0.9) for _ in tokens]
    inputs = inputs_of(shares, tokens=np.tile(tokens, 3))
    share, old = inputs.shares[:, 1], 2 + 0.1 * inputs.shares[:, 1] - 0.001 * inputs.tokens**0.25
    first = [{"tokens": 0, "loss/old": 2.0}]
    losses = {"old": old, "new": 3 - share * inputs.tokens**0.02}
    path = jsonl_table(tmp_path / "t.jsonl", inputs, ("old", "new"), losses, first=first)
    page, output = tmp_path / "page.html", tmp_path / "fit.json"
    printed(
        capsys,
        "fit",
        path,
        "--law",
        "cmr-tokens",
        *ROLES,
        *DRAWS,
        "--output",
        output,
        "--plot",
        page,
    )
    charts = drawn(page.read_text())
    assert [len(chart.findall("polygon")) for chart in charts] == [3, 3]
    assert [len(chart.findall("circle")) for chart in charts] == [27, 27]
    text = printed(capsys, "predict", output, "--tokens", "3e7", "--max-old-increase-nats", "0.01")
    # 0.1 r - 0.001 T^0.25 = 0.01
    assert float(re.findall(r"critical ratio: new=(0\.\d+)", text)[0]) == pytest.approx(
        0.1 + 0.01 * 3e7**0.25, abs=5e-3
    )
    said = printed(
        capsys, "predict", output, "--tokens", "3e7", "--shares", "old=0.5,new=0.5", code=EXIT_CODE
    )
    assert "curves over the tokens at measured mixtures only" in said


def test_many_domains_without_scipy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ridge needs none: fit, recommendation, prediction, picture."""
    monkeypatch.setattr(separable, "find_spec", lambda name: None)
    shares = np.random.default_rng(3).dirichlet(np.ones(4), 40)
    inputs = inputs_of(shares)
    losses = {"a": 2 + np.exp(-3 * shares[:, 0]), "b": 2 + np.exp(-2 * shares[:, 1])}
    path = jsonl_table(tmp_path / "t.jsonl", inputs, tuple("abcd"), losses)
    page, output = tmp_path / "page.html", tmp_path / "fit.json"
    asked = ["--law", "regmix", "--old", "a", "--new", "b", *DRAWS, "--old-baseline-nats", "2.4"]
    text = printed(capsys, "fit", path, *asked, "--output", output, "--plot", page)
    assert text.count("recommended: ") == 4
    assert [len(chart.findall("circle")) for chart in drawn(page.read_text())] == [40, 40]
    mean = ",".join(f"{name}=0.25" for name in "abcd")
    assert "a 2.4" in printed(capsys, "predict", output, "--shares", mean)
