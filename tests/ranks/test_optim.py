"""Every optimizer on the real engine: torch's updates, whole states under any layout, and clear refusals."""

from __future__ import annotations

import itertools
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import optim_calls
import pytest
from optim_calls import Case, Outcome

from cptron.config.schema import OptimConfig, ParamGroupConfig
from cptron.runtime.topology import Layout
from cptron.testing import run_ranks

ADAMW = OptimConfig(lr=1e-3, weight_decay=0.1, clip_grad_norm=1.0)
SGD = OptimConfig(name="sgd", lr=0.05, momentum=0.9, weight_decay=0.1, clip_grad_norm=1.0)
BF16_MOMENTS = replace(ADAMW, moments="bf16")
MORE = pytest.mark.more
TP2, PP2 = Layout(tp=2, sequence_parallel=True), Layout(pp=2)
LAYOUTS = [(1, Layout()), (2, Layout()), (2, TP2), (2, PP2), (4, replace(TP2, pp=2))]


def ids(value: object) -> str:
    """`2-tp2_pp1`."""
    return value.describe() if isinstance(value, Layout) else str(value)


def run(world_size: int, checkpoint: Path, tokens_NGS1: np.ndarray, case: Case) -> list[Outcome]:
    """All ranks' outcomes."""
    return run_ranks(optim_calls.train, world_size, str(checkpoint), tokens_NGS1, case)


def reference(checkpoint: Path, tokens_NGS1: np.ndarray, optim: OptimConfig) -> Outcome:
    """The same in plain torch."""
    return run_ranks(optim_calls.plain_torch, 1, str(checkpoint), tokens_NGS1, optim)[0]


def assert_same(found: list[Outcome], expected: Outcome, rtol: float = 1e-4) -> None:
    """Losses and norms of every rank, and the loss after the last step."""
    for outcome in found:
        assert not outcome.error
        np.testing.assert_allclose(outcome.losses, expected.losses, rtol=rtol)
        np.testing.assert_allclose(outcome.norms, expected.norms, rtol=10 * rtol)
        np.testing.assert_allclose(outcome.evaluated, expected.evaluated, rtol=rtol)
    assert expected.losses[-1] != expected.losses[0]


@pytest.mark.parametrize("optim", [ADAMW, SGD], ids=lambda optim: optim.name)
@pytest.mark.parametrize(
    ("world_size", "layout"),
    [*(pytest.param(*cut, marks=MORE) for cut in LAYOUTS[:-1]), LAYOUTS[-1]],
    ids=ids,
)
def test_equals_torch(
    optim: OptimConfig,
    world_size: int,
    layout: Layout,
    checkpoints: dict[str, Path],
    tokens_NGS1: np.ndarray,
) -> None:
    """Eight steps of `torch.optim` on the same model: losses within 1e-4, norms within 1e-3."""
    expected = reference(checkpoints["tied"], tokens_NGS1[:8], optim)
    assert_same(
        run(world_size, checkpoints["tied"], tokens_NGS1[:8], Case(optim=optim, layout=layout)), expected
    )


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=MORE), 2])
@pytest.mark.parametrize("optim", [ADAMW, pytest.param(SGD, marks=MORE)], ids=lambda optim: optim.name)
def test_overlap_changes_nothing(
    optim: OptimConfig, world_size: int, checkpoints: dict[str, Path], tokens_NGS1: np.ndarray
) -> None:
    """With messages that overlap, in several buckets and in one: the same to the rounding of the norm's sum, also
    the weights, which another rank's stale shard would change by a whole step."""
    base, tokens = checkpoints["untied"], tokens_NGS1[:5]
    plain = run(world_size, base, tokens, Case(optim=optim))
    for bucket_elements in (10_000, None):
        case = Case(optim=optim, overlap=True, bucket_elements=bucket_elements)
        for found, expected in zip(run(world_size, base, tokens, case), plain, strict=True):
            np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-6)
            np.testing.assert_allclose(found.evaluated, expected.evaluated, rtol=1e-6)
            for name, weight in expected.weights.items():
                np.testing.assert_allclose(found.weights[name], weight, atol=optim.lr / 100)


@pytest.mark.parametrize("layout", [pytest.param(PP2, marks=MORE), replace(PP2, virtual_stages=2)], ids=ids)
def test_overlap_with_stages(layout: Layout, checkpoints: dict[str, Path], tokens_NGS1: np.ndarray) -> None:
    """Stages and virtual stages times data parallel, tied embeddings: as without overlap."""
    base, tokens = checkpoints["tied"], tokens_NGS1[:4]
    plain = run(4, base, tokens, Case(optim=ADAMW, layout=layout))
    overlapped = run(4, base, tokens, Case(optim=ADAMW, layout=layout, overlap=True))
    for found, expected in zip(overlapped, plain, strict=True):
        np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-6)
        np.testing.assert_allclose(found.evaluated, expected.evaluated, rtol=1e-6)


@pytest.mark.more
@pytest.mark.core_ranks
@pytest.mark.parametrize(
    ("optim", "precision"),
    [
        pytest.param(ADAMW, "bf16", id="adamw-bf16"),
        pytest.param(ADAMW, "fp32", id="adamw-fp32"),
        pytest.param(SGD, "fp32", id="sgd-fp32"),
        pytest.param(SGD, "bf16", id="sgd-bf16"),
        pytest.param(BF16_MOMENTS, "bf16", id="bf16_moments-bf16"),
        pytest.param(BF16_MOMENTS, "fp32", id="bf16_moments-fp32"),
    ],
)
def test_resumes_under_any_layout(
    optim: OptimConfig,
    precision: str,
    checkpoints: dict[str, Path],
    tokens_NGS1: np.ndarray,
    tmp_path: Path,
) -> None:
    """Saved by two data parallel ranks: to the bit in the same layout, to rounding in others."""
    base = checkpoints["tied"]
    (tmp_path / "shards").mkdir()
    shards = str(tmp_path / "shards")
    whole = run(2, base, tokens_NGS1[:8], Case(optim=optim, precision=precision))[0]
    run(2, base, tokens_NGS1[:4], Case(optim=optim, precision=precision, save=shards))
    for world_size, layout in [(2, Layout()), (1, Layout()), (2, TP2), (2, PP2)]:
        case = Case(optim=optim, precision=precision, layout=layout, resume=shards)
        continued = run(world_size, base, tokens_NGS1[4:8], case)[0]
        assert not continued.error
        if (world_size, layout) == (2, Layout()):
            assert continued.losses == whole.losses[4:]
        rtol = 0.02 if precision == "bf16" else 1e-3 if optim.moments == "bf16" else 1e-4
        np.testing.assert_allclose(continued.losses, whole.losses[4:], rtol=rtol)


@pytest.mark.core_ranks
def test_bf16_moments_cost_half(checkpoints: dict[str, Path], tokens_NGS1: np.ndarray) -> None:
    """Half the bytes of state on every rank, and losses within 1e-3 of fp32 moments over eight steps."""
    full = run(2, checkpoints["untied"], tokens_NGS1[:8], Case(optim=ADAMW))
    half = run(2, checkpoints["untied"], tokens_NGS1[:8], Case(optim=BF16_MOMENTS))
    for small, large in zip(half, full, strict=True):
        assert 2 * small.state_bytes == large.state_bytes
        np.testing.assert_allclose(small.losses, large.losses, rtol=1e-3)
        assert small.losses != large.losses


@pytest.mark.core_ranks
def test_sgd_state_is_one_tensor(
    checkpoints: dict[str, Path], tokens_NGS1: np.ndarray, tmp_path: Path
) -> None:
    """Half of AdamW's state, also after a load; and AdamW's checkpoint is refused by name."""
    base, tokens = checkpoints["untied"], tokens_NGS1[:1]
    for name in ("adamw", "sgd"):
        (tmp_path / name).mkdir()
    adamw = run(2, base, tokens, Case(optim=ADAMW, save=str(tmp_path / "adamw")))[0]
    sgd = run(2, base, tokens, Case(optim=SGD, save=str(tmp_path / "sgd")))[0]
    again = run(2, base, tokens, Case(optim=SGD, resume=str(tmp_path / "sgd")))[0]
    assert 2 * sgd.state_bytes == 2 * again.state_bytes == adamw.state_bytes
    for outcome in run(2, base, tokens, Case(optim=SGD, resume=str(tmp_path / "adamw"))):
        assert outcome.error.startswith("CheckpointError") and "exp_avg_sq" in outcome.error


GROUPED = replace(
    ADAMW,
    groups=(
        ParamGroupConfig(match="*word_embeddings*", lr_mult=0.0),
        ParamGroupConfig(match="*linear_fc1*", lr_mult=0.25),
        ParamGroupConfig(match="decoder.layers.3.*", lr_mult=4.0),
    ),
)


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [pytest.param(2, Layout(), marks=MORE), pytest.param(2, PP2, marks=MORE), (4, replace(TP2, pp=2))],
    ids=ids,
)
def test_groups_learn_at_their_rates(
    world_size: int, layout: Layout, checkpoints: dict[str, Path], tokens_NGS1: np.ndarray
) -> None:
    """As `torch.optim.AdamW` with the same groups; tied embeddings keep still on both stages; layer numbers are the
    whole model's."""
    base, tokens = checkpoints["tied"], tokens_NGS1[:5]
    expected = reference(base, tokens, GROUPED)
    found = run(world_size, base, tokens, Case(optim=GROUPED, layout=layout))
    assert_same(found, expected)
    assert sorted({mult for mult, _, _ in found[0].rates}) == [0.0, 0.25, 1.0, 4.0]
    assert all(rate == pytest.approx(ADAMW.lr * mult) for mult, rate, _ in found[0].rates)
    assert not np.allclose(reference(base, tokens, ADAMW).losses, expected.losses, rtol=1e-3)


@pytest.mark.core_ranks
def test_groups_are_those_of_the_configuration_after_a_load(
    checkpoints: dict[str, Path], tokens_NGS1: np.ndarray, tmp_path: Path
) -> None:
    """Multipliers kept, changed, dropped and added on resume are obeyed, and the step goes on."""
    base, shards = checkpoints["tied"], str(tmp_path / "shards")
    (tmp_path / "shards").mkdir()
    whole = run(2, base, tokens_NGS1[:6], Case(optim=GROUPED))[0]
    run(2, base, tokens_NGS1[:3], Case(optim=GROUPED, save=shards))
    kept = run(2, base, tokens_NGS1[3:6], Case(optim=GROUPED, resume=shards))[0]
    assert kept.losses == whole.losses[3:]
    changed = replace(GROUPED, groups=(ParamGroupConfig(match="*linear_fc2*", lr_mult=0.5),))
    for optim, mults in ((changed, [0.5, 1.0]), (ADAMW, [1.0])):
        outcome = run(2, base, tokens_NGS1[3:6], Case(optim=optim, resume=shards))[0]
        assert not outcome.error
        assert sorted({mult for mult, _, _ in outcome.rates}) == mults
        assert {step for _, _, step in outcome.rates} == {6}
        assert outcome.losses[0] == whole.losses[3]
        assert outcome.losses[2] != whole.losses[5]


@pytest.mark.skipif(find_spec("emerging_optimizers") is not None, reason="Muon can be had here")
def test_muon_without_its_package(checkpoints: dict[str, Path], tokens_NGS1: np.ndarray) -> None:
    """A refusal on every rank, not an assertion of megatron-core's."""
    for outcome in run(2, checkpoints["tied"], tokens_NGS1[:1], Case(optim=replace(ADAMW, name="muon"))):
        assert outcome.error.startswith("ConfigError: optim.name=muon: megatron-core ")


FROZEN = {
    "embeddings": ("*word_embeddings*",),
    "first_stage": ("*word_embeddings*", "decoder.layers.0.*", "decoder.layers.1.*"),
    "last_stage": ("decoder.layers.[23].*", "decoder.final_layernorm*", "*word_embeddings*", "output_layer*"),
}


@pytest.mark.parametrize("recompute", [pytest.param("none", marks=MORE), "full"])
@pytest.mark.parametrize(
    "part", [pytest.param("embeddings", marks=MORE), pytest.param("first_stage", marks=MORE), "last_stage"]
)
def test_frozen_parameters_change_nothing_else(
    part: str, recompute: str, checkpoints: dict[str, Path], tokens_NGS1: np.ndarray
) -> None:
    """The rest learns as in plain torch, on one rank and on stages of which one has nothing to train."""
    base, tokens = checkpoints["untied"], tokens_NGS1[:4]
    optim = replace(ADAMW, frozen=FROZEN[part])
    names = optim_frozen_names(part)
    expected = run_ranks(optim_calls.plain_torch, 1, str(base), tokens, optim, names)[0]
    for world_size, layout in ((1, Layout()), (2, PP2)):
        found = run(world_size, base, tokens, Case(optim=optim, layout=layout, recompute=recompute))
        assert_same(found, expected)
        assert found[0].frozen == sorted(names)


def optim_frozen_names(part: str) -> list[str]:
    """What the patterns of a part mean, spelled out."""
    of_layer = (
        "input_layernorm.weight",
        "mlp.linear_fc1.weight",
        "mlp.linear_fc2.weight",
        "pre_mlp_layernorm.weight",
        "self_attention.linear_proj.weight",
        "self_attention.linear_qkv.weight",
    )
    layers = {"embeddings": (), "first_stage": (0, 1), "last_stage": (2, 3)}[part]
    names = [f"decoder.layers.{layer}.{name}" for layer in layers for name in of_layer]
    ends = ["decoder.final_layernorm.weight", "output_layer.weight"] if part == "last_stage" else []
    return ["embedding.word_embeddings.weight", *names, *ends]


def test_frozen_tied_embeddings_stay_on_both_stages(
    checkpoints: dict[str, Path], tokens_NGS1: np.ndarray, tmp_path: Path
) -> None:
    """Their two copies keep the same bits, with and without stages; and the run resumes."""
    optim = replace(ADAMW, frozen=("*word_embeddings*",))
    base, shards = checkpoints["tied"], str(tmp_path / "shards")
    (tmp_path / "shards").mkdir()
    one = run(1, base, tokens_NGS1[:4], Case(optim=optim))[0]
    staged = run(2, base, tokens_NGS1[:4], Case(optim=optim, layout=PP2))
    assert_same(staged, one)
    first = staged[0].weights["embedding.word_embeddings.weight"]
    np.testing.assert_array_equal(first, staged[1].weights["embedding.word_embeddings.weight"])
    run(2, base, tokens_NGS1[:2], Case(optim=optim, layout=PP2, save=shards))
    np.testing.assert_allclose(
        run(1, base, tokens_NGS1[2:4], Case(optim=optim, resume=shards))[0].losses, one.losses[2:], rtol=1e-4
    )
    unfrozen = run(1, base, tokens_NGS1[2:4], Case(optim=ADAMW, resume=shards))[0]
    assert unfrozen.error.startswith("CheckpointError") and "word_embeddings" in unfrozen.error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen": ("*word_embeddings*", "*nothing*")}, "'*nothing*' fits no parameter"),
        pytest.param({"frozen": ("*",)}, "fits all", marks=MORE),
        ({"groups": (ParamGroupConfig(match="layers.0"),)}, "'layers.0' fits no trained parameter"),
        (
            {"frozen": ("*fc1*",), "groups": (ParamGroupConfig(match="*fc1*"),)},
            "'*fc1*' fits no trained parameter",
        ),
    ],
)
def test_patterns_that_fit_nothing_are_refused_on_every_rank(
    changes: dict[str, object], message: str, checkpoints: dict[str, Path], tokens_NGS1: np.ndarray
) -> None:
    """With stages, where most patterns fit nothing on some rank."""
    optim = replace(ADAMW, **changes)  # type: ignore[arg-type]
    for outcome in run(2, checkpoints["untied"], tokens_NGS1[:1], Case(optim=optim, layout=PP2)):
        assert outcome.error.startswith("ConfigError") and message in outcome.error


@pytest.mark.parametrize(
    ("layer", "overlap", "rank"),
    [
        pytest.param(*case, marks=() if case in ((0, True, 1), (3, False, 0)) else MORE)
        for case in itertools.product((0, 3), (False, True), (0, 1))
    ],
)
def test_nan_is_traced_to_its_parameter_and_rank(
    rank: int, overlap: bool, layer: int, checkpoints: dict[str, Path], tokens_NGS1: np.ndarray
) -> None:
    """One of two data parallel ranks: named alone, wherever the shard lies, in the same words on both."""
    name = f"decoder.layers.{layer}.mlp.linear_fc2.weight"
    case = Case(optim=ADAMW, poison=(rank, name), overlap=overlap)
    outcomes = run(2, checkpoints["untied"], tokens_NGS1[:2], case)
    assert outcomes[0].error == outcomes[1].error
    assert outcomes[0].error.startswith(
        "TrainingError: gradient norm is nan; no weight was changed. 1 parameter(s)"
    )
    assert f"{name} (on rank {rank}: tp 0, pp 0)" in outcomes[0].error


def test_nan_on_a_stage_and_tensor_rank(checkpoints: dict[str, Path], tokens_NGS1: np.ndarray) -> None:
    """Rank 3 of TP2 x PP2; the layer has its number in the whole model."""
    name = "decoder.layers.3.mlp.linear_fc1.weight"
    case = Case(optim=ADAMW, layout=Layout(tp=2, pp=2), poison=(3, name))
    for outcome in run(4, checkpoints["untied"], tokens_NGS1[:1], case):
        assert f"{name} (on rank 3: tp 1, pp 1)" in outcome.error
