"""FP8 linears on real ranks: the cut over tensor ranks does not change numbers, nor what a checkpoint holds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from fp8_calls import SHAPE, Case, agreed_scale, layer_results, state_names, whole_numbers, whole_results

from cptron.config.schema import Fp8Config
from cptron.runtime.topology import Layout
from cptron.testing import run_ranks

TP2 = Layout(tp=2)
TP2_SP = Layout(tp=2, sequence_parallel=True)
LAYOUTS = {"tp2": TP2, "tp2_sp": TP2_SP}
MORE = pytest.mark.more
TENSORWISE, ROWWISE = Fp8Config(recipe="tensorwise"), Fp8Config(recipe="rowwise")


def run(case: Case, layout: Layout, **options: Any) -> dict[str, torch.Tensor | None]:
    """Whole results of one layer under a layout."""
    parts = run_ranks(layer_results, layout.tp, case, layout, **options)
    return whole_results(case, layout, parts)


def close(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """Each of the results, relative to its largest number."""
    for name in ("y", "dx", "dw", "db"):
        if expected[name] is None:
            assert found[name] is None, name
            continue
        size = expected[name].abs().max().item()
        torch.testing.assert_close(
            found[name],
            expected[name],
            rtol=tolerance,
            atol=tolerance * size,
            msg=lambda text, n=name: f"{n}: {text}",
        )


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        pytest.param("column", TENSORWISE, marks=MORE),
        pytest.param("column", ROWWISE, marks=pytest.mark.core_ranks),
        ("row", TENSORWISE),
        pytest.param("row", ROWWISE, marks=MORE),
    ],
    ids=lambda value: value.recipe if isinstance(value, Fp8Config) else value,
)
def test_the_cut_does_not_change_numbers(kind: str, recipe: Fp8Config) -> None:
    """tp 1, tp 2, and tp 2 with sequence parallelism: same quantised values, other order of fp32 sums."""
    case = Case(kind=kind, fp8=recipe, bias=kind == "column")
    expected = run(case, Layout())
    for layout in LAYOUTS.values():
        close(run(case, layout), expected, 1e-5)


def rounded(matrix: torch.Tensor, dtype: torch.dtype, dim: int | None) -> torch.Tensor:
    """What FP8 keeps of it, in float64; written anew, from the definition."""
    size = matrix.abs().amax() if dim is None else matrix.abs().amax(dim, keepdim=True)
    scale = torch.finfo(dtype).max / size
    return (matrix * scale).to(dtype).double() / scale.double()


@pytest.mark.parametrize("recipe", [TENSORWISE, ROWWISE, Fp8Config(recipe="rowwise", gradient_dtype="e4m3")])
def test_products_are_of_the_rounded_operands(recipe: Fp8Config) -> None:
    """The three products against float64: each operand rounded along its own contraction, or as a whole."""
    case = Case(fp8=recipe)
    found = run(case, Layout())
    x_TK, weight_NK, dy_TN = (tensor.flatten(0, -2) for tensor in whole_numbers(case))
    low = torch.float8_e4m3fn
    gradient = torch.float8_e5m2 if recipe.gradient_dtype == "e5m2" else low
    dims = {"rows": 1, "columns": 0} if recipe.recipe == "rowwise" else {"rows": None, "columns": None}
    rows, columns = dims["rows"], dims["columns"]
    expected = {
        "y": rounded(x_TK, low, rows) @ rounded(weight_NK, low, rows).t(),
        "dx": rounded(dy_TN, gradient, rows) @ rounded(weight_NK, low, columns),
        "dw": rounded(dy_TN, gradient, columns).t() @ rounded(x_TK, low, columns),
        "db": None,
    }
    flat = {name: None if value is None else value.flatten(0, -2).double() for name, value in found.items()}
    close(flat, expected, 1e-5)


def test_fp8_is_near_the_base_class() -> None:
    """Within the rounding of the formats, and closer with scales for rows."""
    plain = run(Case(), Layout(), plain=True)
    errors = {}
    for recipe in (TENSORWISE, ROWWISE):
        found = run(Case(fp8=recipe), Layout())
        for name in ("y", "dx", "dw"):
            value, exact = found[name], plain[name]
            assert value is not None and exact is not None
            errors[recipe.recipe, name] = (torch.norm(value - exact) / torch.norm(exact)).item()
    assert all(0.005 < error < 0.08 for error in errors.values()), errors


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("column", TP2),
        ("row", TP2_SP),
        pytest.param("column", TP2_SP, marks=MORE),
        pytest.param("row", TP2, marks=MORE),
    ],
    ids=lambda value: value.describe() if isinstance(value, Layout) else value,
)
def test_a_frozen_weight_saves_no_input(kind: str, layout: Layout) -> None:
    """No gradient of the weight; the input's is the same, and the weight is all that is kept."""
    case = Case(kind=kind)
    frozen = replace(case, frozen=True)
    parts = run_ranks(layer_results, 2, frozen, layout)
    found = whole_results(frozen, layout, parts)
    assert found.pop("dw") is None
    close({**found, "dw": None}, {**run(case, layout), "dw": None}, 0)
    assert not any("float8" in dtype for dtype, _ in parts[0]["saved"])


@pytest.mark.parametrize("recipe", [TENSORWISE, ROWWISE], ids=lambda fp8: fp8.recipe)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_input_is_saved_in_fp8(layout: Layout, recipe: Fp8Config) -> None:
    """This rank's tokens only; in no other precision."""
    case = Case(fp8=recipe, dtype=torch.bfloat16)
    saved = run_ranks(layer_results, 2, case, layout)[0]["saved"]
    tokens = SHAPE["S"] * SHAPE["B"] // (2 if layout.sequence_parallel else 1)
    matrices = [(dtype, shape) for dtype, shape in saved if len(shape) > 1 and min(shape) > 1]
    weight = ("torch.bfloat16", (SHAPE["N"] // 2, SHAPE["K"]))
    assert matrices == sorted([weight, ("torch.float8_e4m3fn", (tokens, SHAPE["K"]))])


@pytest.mark.parametrize("frozen", [False, True])
def test_the_weight_is_saved_as_itself(frozen: bool) -> None:
    """Not a view of it: megatron-core marks parameters that are not to be offloaded with the activations."""
    assert all(part["saves_weight"] for part in run_ranks(layer_results, 2, Case(frozen=frozen), TP2))


def test_gradients_accumulate() -> None:
    """Two passes give twice the gradient of one."""
    once, twice = run(Case(), TP2), run(Case(passes=2), TP2)
    for name in ("dx", "dw"):
        one, two = once[name], twice[name]
        assert one is not None and two is not None
        assert torch.equal(2 * one, two)


def test_bf16_stays_bf16() -> None:
    """Outputs and gradients have the layer's precision, and are the fp32 ones rounded."""
    case = Case(dtype=torch.bfloat16)
    half = run(case, TP2_SP)
    for name in ("y", "dx", "dw"):
        value = half[name]
        assert value is not None and value.dtype == torch.bfloat16
    close(half, run(case, Layout()), 2e-2)


@pytest.mark.parametrize(
    ("values", "expected"),
    [pytest.param((1.0, 7.0), 64.0, marks=MORE), ((-7.0, 1.0), 64.0), ((0.0, 0.0), 1.0)],
)
def test_ranks_agree_on_scales(values: tuple[float, float], expected: float) -> None:
    """The largest magnitude of all of them counts."""
    assert run_ranks(agreed_scale, 2, list(values)) == [expected] * 2


@pytest.mark.parametrize(
    "values", [pytest.param((1.0, math.nan), marks=MORE), (math.nan, 1.0), (math.inf, 0.0)]
)
def test_ranks_agree_on_numbers_that_are_not_finite(values: tuple[float, float]) -> None:
    """A NaN on one rank reaches all."""
    assert all(math.isnan(scale) for scale in run_ranks(agreed_scale, 2, list(values)))


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("column", math.nan),
        ("row", math.inf),
        pytest.param("column", math.inf, marks=MORE),
        pytest.param("row", math.nan, marks=MORE),
    ],
)
def test_gradients_that_are_not_finite_stay_so(kind: str, bad: float) -> None:
    """Every rank finds them, also where the bad number lies on another rank."""
    for part in run_ranks(layer_results, 2, Case(kind=kind, bad_gradient=bad), TP2):
        assert part["dw"].isnan().any() and part["dx"].isnan().any()
        assert part["y"].isfinite().all()
    for part in run_ranks(layer_results, 2, Case(kind=kind, bad_input=bad), TP2):
        assert part["y"].isnan().any()


@pytest.mark.parametrize("kind", ["column", pytest.param("row", marks=pytest.mark.core_ranks)])
def test_checkpoints_are_those_of_the_base_class(kind: str) -> None:
    """Names, shapes, offsets and attributes of parameters."""
    case = Case(kind=kind, bias=True)
    assert run_ranks(state_names, 2, case, TP2, plain=False) == run_ranks(
        state_names, 2, case, TP2, plain=True
    )
