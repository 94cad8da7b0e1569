"""FP8 quantisation against a table of all representable numbers, and products against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.config.check_fp8 import check_fp8_shapes
from cptron.config.schema import Fp8Config
from cptron.errors import ConfigError
from cptron.model import fp8
from cptron.model.fp8 import DTYPES, Scaled, find_scale, matmul, quantize, resolve_fp8, scaled_product

FORMATS = sorted(DTYPES)
STEPS = {"e4m3": (2.0**-4, 2.0**-10), "e5m2": (2.0**-3, 2.0**-17)}
"""Half a step of rounding: relative for normal numbers, absolute for denormal ones (table 1 of the paper)."""


def table(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Every finite non-negative number of the format, rising, and its code; -0 and negative ones mirror these."""
    codes = torch.arange(128, dtype=torch.uint8)
    values = codes.view(dtype).double()
    finite = values.isfinite()
    return values[finite], codes[finite]


def brute_force(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round float64 to the nearest number of the format, ties to even codes, saturating: by looking at all of them."""
    values, codes = table(dtype)
    distance = (x.double().abs().unsqueeze(-1) - values).abs()
    ties = distance == distance.amin(-1, keepdim=True)
    even = ties & (codes % 2 == 0)
    choice = torch.where(even.any(-1, keepdim=True), even, ties)
    return values[choice.int().argmax(-1)] * torch.where(x < 0, -1.0, 1.0)


def random_matrix(rows: int, columns: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    """Normal numbers whose logarithms are spread too, so that denormal codes occur."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, columns, generator=generator)
    return normal * torch.exp(spread * torch.randn(rows, columns, generator=generator))


def quantized(x: torch.Tensor, format: Any, dim: int | None = None) -> Scaled:
    """`x` in FP8 with its own scale."""
    return quantize(x, find_scale(x, DTYPES[format], dim), DTYPES[format])


def test_formats_are_those_of_the_paper() -> None:
    """Largest numbers of table 1."""
    assert [table(DTYPES[name])[0].max().item() for name in ("e4m3", "e5m2")] == [448, 57344]


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), dim=st.sampled_from([None, 0, 1]), bf16=st.booleans())
def test_codes_are_the_nearest_numbers(format: Any, seed: int, dim: int | None, bf16: bool) -> None:
    """Of `x * scale`, nearest even, for every kind of scale; the largest number becomes the largest code."""
    x = random_matrix(6, 8, seed, spread=4).to(torch.bfloat16 if bf16 else torch.float32)
    scale = find_scale(x, DTYPES[format], dim)
    assert scale.dtype == torch.float32
    assert scale.shape == {None: (), 0: (1, 8), 1: (6, 1)}[dim]
    found = quantize(x, scale, DTYPES[format])
    assert torch.equal(found.data_RC.double(), brute_force(x.float() * scale, DTYPES[format]))
    top = found.data_RC.float().abs()
    expected = torch.finfo(DTYPES[format]).max
    assert bool(((top.amax() if dim is None else top.amax(dim)) == expected).all())


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), exponent=st.integers(-60, 60))
def test_error_of_a_round_trip_is_bounded(format: Any, seed: int, exponent: int) -> None:
    """By half a step of the format, whatever the size of the numbers."""
    x = random_matrix(5, 16, seed, spread=3) * 2.0**exponent
    found = quantized(x, format)
    relative, absolute = STEPS[format]
    bound = torch.maximum(relative * x.abs(), absolute * found.inverse_scale) * (1 + 1e-5)
    assert bool(((found.dequantized() - x).abs() <= bound).all())


@pytest.mark.parametrize("format", FORMATS)
@given(seed=st.integers(0, 2**32), exponent=st.integers(-40, 40))
def test_a_power_of_two_only_moves_the_scale(format: Any, seed: int, exponent: int) -> None:
    """Same codes, exactly scaled values."""
    x = random_matrix(4, 8, seed)
    plain, moved = quantized(x, format), quantized(x * 2.0**exponent, format)
    assert torch.equal(plain.data_RC.float(), moved.data_RC.float())
    assert torch.equal(plain.inverse_scale * 2.0**exponent, moved.inverse_scale)


@pytest.mark.parametrize("format", FORMATS)
def test_larger_than_the_scale_expects_saturates(format: Any) -> None:
    """A scale found on other numbers must not make infinities or NaN of finite ones."""
    largest = torch.finfo(DTYPES[format]).max
    found = quantize(torch.tensor([[1e30, -1e30, 1.0]]), torch.tensor(1.0), DTYPES[format])
    assert found.data_RC.float().tolist() == [[largest, -largest, 1.0]]


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_have_scale_one(format: Any) -> None:
    """Alone or as one row of several."""
    assert find_scale(torch.zeros(2, 3), DTYPES[format]).item() == 1
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    found = quantized(x, format, dim=1)
    assert found.inverse_scale[0].item() == 1
    torch.testing.assert_close(found.dequantized(), x)
    assert not matmul(found, found, torch.float32).isnan().any()


@pytest.mark.parametrize("format", FORMATS)
def test_denormal_numbers_are_small_but_no_hazard(format: Any) -> None:
    """The scale stays finite, its inverse a normal number, and nothing becomes NaN."""
    x = torch.tensor([[1e-45, -1e-40, 1.2e-38]])
    scale = find_scale(x, DTYPES[format])
    found = quantize(x, scale, DTYPES[format])
    assert 1 < scale.item() < torch.inf
    assert found.inverse_scale.item() >= torch.finfo(torch.float32).tiny
    assert found.dequantized().isfinite().all()
    tiny = torch.full((1, 4), 1e-30)
    torch.testing.assert_close(quantized(tiny, format).dequantized(), tiny)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_not_finite_makes_all_under_its_scale_nan(format: Any, bad: float) -> None:
    """Nothing is clamped to a large number; rows with another scale stay."""
    x = torch.ones(3, 4)
    x[1, 2] = bad
    assert quantized(x, format).dequantized().isnan().all()
    assert quantized(x, format).data_RC.float().isnan().all()
    assert quantized(x, format, dim=1).dequantized().isnan().any(1).tolist() == [False, True, False]
    assert matmul(quantized(x, format), quantized(torch.ones(2, 4), "e4m3"), torch.float32).isnan().all()


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    dims=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 33)),
    format=st.sampled_from(FORMATS),
    rowwise=st.booleans(),
)
def test_products_equal_float64(seed: int, dims: tuple[int, int, int], format: Any, rowwise: bool) -> None:
    """Of the quantised values; with scales for rows of either operand and scales for all."""
    rows, columns, contraction = dims
    a, b = random_matrix(rows, contraction, seed), random_matrix(columns, contraction, seed + 1)
    dim = 1 if rowwise else None
    scales = [find_scale(x, dtype, dim).double() for x, dtype in ((a, DTYPES[format]), (b, DTYPES["e4m3"]))]
    rounded = [
        brute_force(x * scale.float(), dtype) / scale
        for x, scale, dtype in ((a, scales[0], DTYPES[format]), (b, scales[1], DTYPES["e4m3"]))
    ]
    expected = rounded[0] @ rounded[1].t()
    found = matmul(quantized(a, format, dim), quantized(b, "e4m3", dim), torch.float32)
    size = (rounded[0].abs() @ rounded[1].abs().t()).max().item()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-6 * size)
    half = matmul(quantized(a, format, dim), quantized(b, "e4m3", dim), torch.bfloat16)
    assert torch.equal(half, found.to(torch.bfloat16))


@pytest.mark.parametrize("rowwise", [False, True])
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32])
@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**32),
    dims=st.tuples(*[st.integers(1, 6).map(lambda n: 16 * n)] * 3),
    format=st.sampled_from(FORMATS),
)
def test_emulation_equals_torchs_scaled_product(
    rowwise: bool, out_dtype: torch.dtype, seed: int, dims: tuple[int, int, int], format: Any
) -> None:
    """torch's kernel for CPUs, called as on a GPU: the same products to the rounding of fp32 sums, and of bf16 where
    that is what the kernel writes."""
    rows, columns, depth = dims
    dim = 1 if rowwise else None
    a = quantized(random_matrix(rows, depth, seed), format, dim)
    b = quantized(random_matrix(columns, depth, seed + 1), "e4m3", dim)
    expected = matmul(a, b, torch.float32)
    found = scaled_product(a, b, out_dtype, fast_accumulation=False)
    assert found.dtype == out_dtype
    bf16 = rowwise or out_dtype == torch.bfloat16
    size = (a.dequantized().abs() @ b.dequantized().abs().t()).clamp(min=1e-30)
    assert (
        (found.float() - expected).abs() <= (2.0**-8 * expected.abs() if bf16 else 0) + 2.0**-20 * size
    ).all()


def test_turned_is_the_transpose() -> None:
    """Of values and scales, in memory too."""
    x = random_matrix(3, 5, 0)
    for dim in (None, 0, 1):
        turned = quantized(x, "e4m3", dim).turned()
        assert turned.data_RC.is_contiguous() and turned.inverse_scale.is_contiguous()
        assert torch.equal(turned.dequantized(), quantized(x, "e4m3", dim).dequantized().t())


def test_resolving_where_hardware_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse, emulate or switch off; without FP8 asked for nothing happens."""
    monkeypatch.setattr(fp8, "hardware_has_fp8", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_fp8(Fp8Config()) == Fp8Config()
    with pytest.raises(ConfigError, match=r"fp8.recipe=rowwise .* the CPU .*fp8.without_hardware=emulate"):
        resolve_fp8(Fp8Config(recipe="rowwise"))
    emulated = Fp8Config(recipe="tensorwise", without_hardware="emulate")
    assert resolve_fp8(emulated) == emulated
    off = resolve_fp8(Fp8Config(recipe="tensorwise", without_hardware="off", bf16_first_layers=1))
    assert (off.recipe, off.bf16_first_layers) == ("none", 1)


def test_resolving_where_hardware_is_present(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration as it is, save for products that no hardware has."""
    monkeypatch.setattr(fp8, "hardware_has_fp8", lambda: True)
    config = Fp8Config(recipe="tensorwise", without_hardware="off")
    assert resolve_fp8(config) == config
    with pytest.raises(ConfigError, match=r"fp8\.forward_dtype=e5m2"):
        resolve_fp8(Fp8Config(recipe="tensorwise", forward_dtype="e5m2"))


@pytest.mark.parametrize(
    ("size", "named"),
    [
        ("hidden", "hidden size = 72"),
        ("ffn_on_rank", "ffn size / parallel.tp = 72"),
        ("heads_on_rank", "heads"),
        ("qkv_rows_on_rank", "rows of query, key and value"),
        ("tokens", "tokens of a micro-batch"),
    ],
)
def test_sizes_must_be_aligned(size: str, named: str) -> None:
    """The size at fault is named; a good set passes."""
    good = {"hidden": 64, "ffn_on_rank": 96, "heads_on_rank": 32, "qkv_rows_on_rank": 48, "tokens": 16}
    check_fp8_shapes(**good)
    with pytest.raises(ConfigError, match=named):
        check_fp8_shapes(**{**good, size: 72})
