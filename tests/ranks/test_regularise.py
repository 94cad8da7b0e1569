"""Regularisers on the real engine: the same under every layout, exact where something stands still."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import regularise_calls
from regularise_calls import Found
from tiny_world import CONFIG

from cptron.runtime.topology import Layout
from cptron.testing import run_ranks

TP2, PP2 = Layout(tp=2, sequence_parallel=True), Layout(pp=2)
LAYOUTS = {
    "dp2": (2, Layout()),
    "tp2": (2, TP2),
    "pp2": (2, PP2),
    "vpp2": (2, Layout(pp=2, virtual_stages=2)),
    "tp2_pp2_dp2": (8, Layout(tp=2, pp=2, sequence_parallel=True)),
}
BASIC = ["optim.lr=1.0e-3", "optim.weight_decay=0.0", "optim.clip_grad_norm=1.0"]
REPLAY = ["data.sources.general.role=replay"]
EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's configuration whose data are never read."""
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(CONFIG.format(root=path.parent))
    return path


def run(
    config_file: Path, base: Path, tokens_NGS1: np.ndarray, words: list[str], layout: str = "", **more: bool
) -> list[Found]:
    """All ranks' findings; without a layout one rank's."""
    world_size, cut = LAYOUTS[layout] if layout else (1, Layout())
    return run_ranks(
        regularise_calls.steps,
        world_size,
        str(base),
        tokens_NGS1,
        BASIC + words,
        cut,
        config_file=str(config_file),
        **more,
    )


def assert_same(found: list[Found], expected: Found) -> None:
    """Losses, norms and what is measured, on every rank."""
    for outcome in found:
        assert not outcome.error, outcome.error
        np.testing.assert_allclose(outcome.losses, expected.losses, rtol=1e-4)
        np.testing.assert_allclose(outcome.norms, expected.norms, rtol=1e-3)
        for ours, theirs in zip(outcome.measures, expected.measures, strict=True):
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                assert ours[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_l2sp_under_layouts(
    precision: str, config_file: Path, checkpoints: dict[str, Path], tokens_NGS1: np.ndarray
) -> None:
    """Nothing has drifted at the start, to the bit, in either precision; then the pull keeps weights nearer."""
    words, tokens = [f"train.precision={precision}"], tokens_NGS1[:3]
    pulled = [*words, "regularise.l2sp=200.0"]
    (one,) = run(config_file, checkpoints["tied"], tokens, pulled)
    (weak,) = run(config_file, checkpoints["tied"], tokens, [*words, "regularise.l2sp=1.0e-9"])
    assert set(one.measures[0].values()) == {0.0}
    assert 0 < one.measures[-1]["drift/all"] < 0.95 * weak.measures[-1]["drift/all"]
    assert "drift/output" not in one.measures[0], "tied: there is none"
    for layout in ("dp2",) if precision == "bf16" else ("tp2", "pp2"):
        found = run(config_file, checkpoints["tied"], tokens, pulled, layout)
        if precision == "fp32":
            assert_same(found, one)
        assert set(found[0].measures[0].values()) == {0.0}


FREEZE = [
    "optim.freeze=[{match: word_embeddings, until_tokens: 150, rows_below: 150}, "
    "{match: 'layers\\.[01]\\.', until_tokens: 150}]"
]


@pytest.mark.parametrize(
    "layout",
    [
        *(pytest.param(cut, marks=pytest.mark.more) for cut in ("dp2", "tp2")),
        pytest.param("pp2", marks=pytest.mark.core_ranks),
    ],
)
def test_what_stands_still_does_not_move_by_a_bit(
    layout: str, config_file: Path, checkpoints: dict[str, Path], tokens_NGS1: np.ndarray
) -> None:
    """Neither weights nor moments of it, with weight decay on; one stage has little to train. After the tokens it
    moves."""
    words = [*FREEZE, "optim.weight_decay=0.1"]
    still = run(config_file, checkpoints["untied"], tokens_NGS1[:2], words, layout)
    later = run(config_file, checkpoints["untied"], tokens_NGS1[:3], words, layout)
    rows = {row for outcome in still for row in outcome.rows_moved.get(EMBEDDING, [])}
    assert min(rows) >= 150 and len(rows) > 20
    rows = {row for outcome in later for row in outcome.rows_moved.get(EMBEDDING, [])}
    assert min(rows) < 150
    for outcome in still:
        for name, moved in outcome.moved.items():
            if ".layers.0." in name or ".layers.1." in name:
                assert moved == outcome.moments[name] == 0.0, name
            elif ".layers." in name:
                assert moved > 0 and outcome.moments[name] > 0, name
    assert all(moved > 0 for outcome in later for name, moved in outcome.moved.items() if ".layers." in name)
    (one,) = run(config_file, checkpoints["untied"], tokens_NGS1[:3], words)
    assert_same(later, one)
    (free,) = run(config_file, checkpoints["untied"], tokens_NGS1[:3], ["optim.weight_decay=0.1"])
    assert one.norms[0] < 0.95 * free.norms[0], "the norm is of what moves"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{match: nothing_here, until_tokens: 9}", "fits no trained parameter"),
        ("{match: linear_fc1, until_tokens: 9, rows_below: 5}", "are no tokens"),
        ("{match: word_embeddings, until_tokens: 9, rows_below: 301}", "more than the model's 300"),
        ("{match: '.', until_tokens: 9}", "fits all"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused_on_every_rank(
    rule: str, message: str, config_file: Path, checkpoints: dict[str, Path], tokens_NGS1: np.ndarray
) -> None:
    """With stages, where most rules fit nothing on some rank."""
    for outcome in run(
        config_file, checkpoints["untied"], tokens_NGS1[:1], [f"optim.freeze=[{rule}]"], "pp2"
    ):
        assert outcome.error.startswith("ConfigError") and message in outcome.error


@pytest.mark.core_ranks
def test_projection_under_layouts(
    config_file: Path, checkpoints: dict[str, Path], tokens_NGS1: np.ndarray
) -> None:
    """Replay rows that repeat the new ones with other targets conflict; the steps are those of one rank, also where
    messages overlap. The same rows twice do not conflict, and the step is that of the new rows alone."""
    words = [*REPLAY, "regularise.agem=true"]
    tokens = np.repeat(tokens_NGS1[:1], 5, axis=0)  # learned until what the replay rows want is unlikely
    tokens[:, :, ::2] = 7
    tokens[:, ::2, 1::2], tokens[:, 1::2, 1::2] = 11, 13
    (one,) = run(config_file, checkpoints["tied"], tokens, words)
    assert any(measures["agem/projected"] for measures in one.measures)
    for layout, overlap in (("dp2", True), ("tp2", False), ("vpp2", False)):
        assert_same(run(config_file, checkpoints["tied"], tokens, words, layout, overlap=overlap), one)
    agreeing = tokens_NGS1[:2].copy()
    agreeing[:, 1::2] = agreeing[:, ::2]
    (found,) = run(config_file, checkpoints["tied"], agreeing, words)
    (alone,) = run(config_file, checkpoints["tied"], agreeing[:, ::2], [])
    assert all(measures["agem/projected"] == 0 for measures in found.measures)
    np.testing.assert_allclose(found.norms, alone.norms, rtol=1e-5)
    assert found.measures[1]["agem/cosine"] > 0.9


def test_projection_by_hand() -> None:
    """Two ranks with half of the elements each, and a stretch that both have: as on the whole vectors; g.r is never
    less than 0, and a gradient that does not conflict keeps its bits."""
    for sign in (-1.0, 1.0):
        halves = run_ranks(regularise_calls.projected, 2, sign)
        before, reference = (np.concatenate([half[place] for half in halves]) for place in (0, 1))
        after = np.concatenate([half[2] for half in halves])
        if sign < 0:
            expected = before - before @ reference / (reference @ reference) * reference
            np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)
            assert abs(after @ reference) <= 1e-6 * (before @ before + reference @ reference)
        else:
            assert (after == before).all()
