"""Tables and stored fits that are damaged, wrong or hostile give one line; whatever they hold, nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mixture_world import jsonl_table, replay_table, two_domains

from cptron.errors import CptronError, DataError
from cptron.mixture.fit import FitOptions, fit_table
from cptron.mixture.fit_file import read_fit, write_fit
from cptron.mixture.predict import predict, scalars_for
from cptron.mixture.read_points import read_points

GOOD = "share/old,share/new,tokens,loss/old\n0.25,0.75,100,2.5\n0.5,0.5,100,2.25\n"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_and_jsonl_say_the_same(tmp_path: Path) -> None:
    """Numbers as text or as numbers, columns in any order, blank cells and lines."""
    rows = [
        {"loss/old": 2.5, "share/new": 0.75, "share/old": "0.25", "tokens": 100},
        {"share/old": 0.5, "share/new": 0.5, "tokens": 100.0, "loss/old": 2.25},
    ]
    other = tmp_path / "runs.jsonl"
    other.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    for path in (written(tmp_path, "\ufeff" + GOOD + ",,,\n\n"), other):
        table = read_points(path)
        assert [
            (dict(zip(table.domains, p.shares, strict=True)), p.tokens, p.losses) for p in table.points
        ] == [
            ({"old": 0.25, "new": 0.75}, 100.0, {"old": 2.5}),
            ({"old": 0.5, "new": 0.5}, 100.0, {"old": 2.25}),
        ]


def test_rows_before_training_are_baselines(tmp_path: Path) -> None:
    """They need no shares."""
    table = read_points(replay_table(tmp_path / "a.csv", seeds=[1]))
    assert [(b.params, b.losses) for b in table.baselines] == [(119000.0, {"old": 1.326, "new": 2.709})]
    assert len(table.points) == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no rows"),
        ("share/old,share/new,tokens,loss/old\n", "has no rows"),
        (GOOD.replace("loss/old", "perplexity"), "has the column 'perplexity'"),
        (GOOD.replace("share/old", "share/"), "has the column 'share/'"),
        (GOOD.replace("share/new", "share/old"), "names a column twice"),
        ("tokens,loss/a\n1,2\n", "has no column share/DOMAIN"),
        ("tokens,share/a\n1,1\n", "has no column loss/NAME"),
        (GOOD.replace("0.75", "0.8"), ":2 has shares that sum to 1.05"),
        (GOOD.replace("0.25,0.75", "25,75"), "shares that sum to 100"),
        (GOOD.replace("0.25,0.75", "-0.25,1.25"), ":2 has '-0.25' for share/old, must be a number from 0"),
        (GOOD.replace(",2.5", ",nan"), ":2 has 'nan' for loss/old"),
        (GOOD.replace(",2.5", ",inf"), ":2 has 'inf' for loss/old"),
        (GOOD.replace("100,2.25", "many,2.25"), ":3 has 'many' for tokens"),
        (GOOD.replace("100,2.25", ",2.25"), ":3 has no value for tokens"),
        (GOOD.replace("100,2.25", "100,"), ":3 has no loss"),
        (GOOD.replace("100,2.25", "100,2.25,7"), ":3 has 5 cells, must have 4"),
        (GOOD + '0.5,0.5,100,"2', "must be CSV"),
        ('{"share/a": 1, "tokens": 1, "loss/a": 2}\n{"share/a": 1', ":2 must be a JSON object"),
        ('{"share/a": 1, "tokens": 1, "loss/a": 2}\n[1]', ":2 must be a JSON object"),
        ('{"share/a": 1, "tokens": true, "loss/a": 2}', "has True for tokens"),
        ('{"share/a": 1, "tokens": 1' + "0" * 400 + ', "loss/a": 2}', "for tokens, must be a number"),
        ('{"share/a": {"x": 1}, "tokens": 1, "loss/a": 2}', "for share/a, must be a number from 0"),
        (
            '{"share/a": 1, "tokens": 1, "params": 0, "loss/a": 2}',
            "has 0 for params, must be a number above 0",
        ),
    ],
)
def test_damaged_tables(tmp_path: Path, text: str, said: str) -> None:
    """One line with file, line and value."""
    with pytest.raises(DataError) as caught:
        read_points(written(tmp_path, text))
    assert said in str(caught.value)
    assert "runs.csv" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_tables_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00share")
    for path in (tmp_path / "bytes", tmp_path / "absent", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_points(path)


@given(
    text=st.text(alphabet='share/oldnewtks,.0123456789{}[]":\n\r-e\t\0é', max_size=200)
    | st.binary(max_size=80).map(lambda data: GOOD + data.decode("latin-1")),
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_table_or_one_line(tmp_path: Path, text: str) -> None:
    """Nothing but a DataError is raised, and what passes has shares that sum to 1."""
    path = tmp_path / "any"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        table = read_points(path)
    except DataError as error:
        assert len(str(error).splitlines()) == 1
        return
    for point in table.points:
        assert abs(sum(point.shares) - 1) < 1e-9
        assert all(np.isfinite(loss) for loss in point.losses.values())


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of a fit, small."""
    folder = tmp_path_factory.mktemp("stored")
    table = read_points(replay_table(folder / "a.csv"))
    fit = fit_table(table, FitOptions("d-cpt", {"old": (), "new": ()}, "old", "new", 40, 0))
    write_fit(folder / "fit.json", fit)
    found: dict[str, Any] = json.loads((folder / "fit.json").read_text())
    for one in found["fits"]:
        one["draws"] = one["draws"][:3]
    return found


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Put `value` at `a/0/b`."""

    def done(fit: Any) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        for part in way:
            fit = fit[part]
        fit[last] = value

    return done


@pytest.mark.parametrize(
    "damage",
    [
        change("kind", "other"),
        change("version", 2),
        change("law", "astrology"),
        change("domains", ["old"]),
        change("domains", ["old", "old"]),
        change("fits", []),
        change("fits/0/parameters", [1.0]),
        change("fits/0/parameters", [float("nan")] * 4),
        change("fits/0/draws", []),
        change("fits/0/draws/1", [1.0, 2.0]),
        change("fits/0/settings", {"kind": "d_cpt", "own": [7], "terms": []}),
        change("fits/0/settings", {"kind": "d_cpt", "own": [], "terms": []}),
        change("fits/0/settings", {"kind": "d_cpt", "own": [0], "terms": ["luck"]}),
        change("fits/0/settings", {"kind": "d_cpt", "own": "old", "terms": []}),
        change("fits/0/settings", {"kind": ["x"]}),
        change("fits/0/settings", {}),
        change("fits/0/mixture", [0.5]),
        change("fits/0/left_out", None),
        change("fits/0/extra", 1),
        change("ranges/shares", [[0.0, 1.0]]),
        change("ranges/shares", [[1.0, 0.0], [0.0, 1.0]]),
        change("ranges/shares", [[0.0, 1.0], [0.0]]),
        change("ranges/scalars", {"luck": [0.0, 1.0]}),
        change("ranges", []),
        change("points/0", {"shares": [1.0]}),
        change("points/0/shares", ["a", "b"]),
        change("points/0/losses", [1.0]),
        change("baselines/0/losses", {"old": "x"}),
        change("baselines/0/params", None),
        change("own", {"old": [1]}),
        change("old", 3),
    ],
)
def test_damaged_fits(
    tmp_path: Path, stored: dict[str, Any], damage: Callable[[dict[str, Any]], None]
) -> None:
    """Each is refused, with the file's name."""
    fit = json.loads(json.dumps(stored))
    damage(fit)
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(fit))
    with pytest.raises(DataError, match=r"fit\.json is no fit of cptron mixlaw"):
        read_fit(path)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.sampled_from(["old", "d_cpt", "power", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kind", "own", "old"]), inner, max_size=2)
    ),
    max_leaves=5,
)
PLACES = [
    *("own", "old", "new", "baselines/0", "points/0", "points/1/tokens", "ranges/shares/0", "ranges/scalars"),
    *(f"fits/0/{part}" for part in ("settings", "settings/own", "settings/terms", "parameters", "draws/0")),
    "fits/1/mixture",
]


@given(place=st.sampled_from(PLACES), value=JSON)
@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_anywhere_is_refused_or_used(
    tmp_path: Path, stored: dict[str, Any], place: str, value: Any
) -> None:
    """A file that is read can be predicted from; what fails, fails with one line."""
    fit = json.loads(json.dumps(stored))
    change(place, value)(fit)
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(fit))
    try:
        read = read_fit(path)
        predict(read, scalars_for(read, {}, extrapolate=True), [0.25, 0.75], extrapolate=True)
    except CptronError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(("scale", "shift"), [(1.4426950408889634, 0.0), (0.02, 7.0)])
def test_units_of_the_loss_do_not_matter(tmp_path: Path, scale: float, shift: float) -> None:
    """Bits or nats, per token or per byte: predictions change as the losses do."""
    inputs = two_domains([0.05, 0.1, 0.2, 0.4, 0.6, 0.8])
    losses = np.array([2.0, 1.8, 1.65, 1.5, 1.43, 1.4])
    found = []
    for values in (losses, scale * losses + shift):
        path = jsonl_table(tmp_path / "t.jsonl", inputs, ("old", "new"), {"old": values})
        fit = fit_table(read_points(path), FitOptions("cmr", {"old": ()}, "old", None, 40, 0))
        (one,) = predict(fit, scalars_for(fit, {}, extrapolate=False), [0.3, 0.7], extrapolate=False)
        found.append(one.value)
    assert found[1] == pytest.approx(scale * found[0] + shift, rel=1e-5)
