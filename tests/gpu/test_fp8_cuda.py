"""FP8 on a GPU that multiplies it against the emulation on the CPU; skipped without CUDA or before Ada."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def fp8_hardware() -> None:
    """Skip where products would be emulated on the GPU too."""
    from cptron.model.fp8 import hardware_has_fp8

    if not hardware_has_fp8():
        pytest.skip("needs compute capability 8.9")


def operands(format: str, dim: int | None) -> tuple[Any, Any, Any, Any]:
    """a [48, 64] and b [32, 64] on the GPU, and their scales."""
    import torch

    from cptron.model.fp8 import DTYPES, find_scale

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, 64, generator=generator).cuda().bfloat16() for rows in (48, 32))
    return a, b, find_scale(a, DTYPES[format], dim), find_scale(b, DTYPES["e4m3"], dim)  # type: ignore[index]


def on_cpu(scaled: Any) -> Any:
    """The same FP8 matrix in host memory, where products are emulated."""
    from cptron.model.fp8 import Scaled

    return Scaled(scaled.data_RC.cpu(), scaled.inverse_scale.cpu())


@pytest.mark.parametrize("dim", [None, 0, 1])
@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
def test_quantisation_is_that_of_the_cpu(format: str, dim: int | None) -> None:
    """Scales up to the division's last bits; codes exactly, given the scale."""
    import torch

    from cptron.model.fp8 import DTYPES, find_scale, quantize

    dtype = DTYPES[format]  # type: ignore[index]
    a, _, scale, _ = operands(format, dim)
    torch.testing.assert_close(scale.cpu(), find_scale(a.cpu(), dtype, dim), rtol=1e-6, atol=0)
    found, expected = quantize(a, scale, dtype), quantize(a.cpu(), scale.cpu(), dtype)
    assert torch.equal(found.data_RC.cpu().view(torch.uint8), expected.data_RC.view(torch.uint8))
    turned = found.turned()
    assert torch.equal(turned.data_RC.cpu().view(torch.uint8), expected.turned().data_RC.view(torch.uint8))


@pytest.mark.parametrize("dim", [None, 1])
@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
@pytest.mark.parametrize("fast", [False, True])
def test_products_are_those_of_the_emulation(format: str, dim: int | None, fast: bool) -> None:
    """Within bf16's rounding, and what shorter sums lose."""
    import torch

    from cptron.model.fp8 import DTYPES, matmul, quantize

    a, b, a_scale, b_scale = operands(format, dim)
    a8 = quantize(a, a_scale, DTYPES[format])  # type: ignore[index]
    b8 = quantize(b, b_scale, DTYPES["e4m3"])
    found = matmul(a8, b8, torch.bfloat16, fast_accumulation=fast).float().cpu()
    expected = matmul(on_cpu(a8), on_cpu(b8), torch.float32)
    size = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=(1e-2 if fast else 2e-3) * size)


@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_found(format: str, bad: float) -> None:
    """They come through compiled quantisation and the product as NaN."""
    import torch

    from cptron.model.fp8 import DTYPES, find_scale, matmul, quantize

    a, b, _, b_scale = operands(format, None)
    a[3, 5] = bad
    dtype = DTYPES[format]  # type: ignore[index]
    a8 = quantize(a, find_scale(a, dtype), dtype)
    b8 = quantize(b, b_scale, DTYPES["e4m3"])
    assert matmul(a8, b8, torch.bfloat16).isnan().all()


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
@pytest.mark.parametrize("kind", ["column", "row"])
def test_layers_on_a_gpu_are_near_fp32(kind: str, recipe: Any) -> None:
    """Output and gradients of both linears in bf16, within the rounding of the formats."""
    import torch

    from cptron.config.schema import Fp8Config
    from cptron.runtime.session import open_session

    with open_session(device="cuda"):
        layer = make_layer(kind, Fp8Config(recipe=recipe))
        x = torch.randn(64, 2, 128, device="cuda").bfloat16().requires_grad_()
        y, _ = layer(x)
        dy = torch.randn_like(y)
        y.backward(dy)
        exact_x, exact_w = x.detach().float(), layer.weight.detach().float()
        exact = {"y": exact_x @ exact_w.t(), "dx": dy.float() @ exact_w}
        exact["dw"] = dy.float().flatten(0, 1).t() @ exact_x.flatten(0, 1)
        for name, found in {"y": y, "dx": x.grad, "dw": layer.weight.grad}.items():
            error = torch.norm(found.float() - exact[name]) / torch.norm(exact[name])
            assert error < 0.08, (name, error.item())


def make_layer(kind: str, fp8: Any) -> Any:
    """A column- or row-parallel layer of 128 inputs and 256 outputs in bf16."""
    import torch

    import cptron.runtime.megatron_ready  # noqa: F401

    from megatron.core.transformer.transformer_config import TransformerConfig

    from cptron.model.linear_fp8 import fp8_column_parallel, fp8_row_parallel

    config = TransformerConfig(
        num_layers=1,
        hidden_size=128,
        num_attention_heads=4,
        gradient_accumulation_fusion=False,
        params_dtype=torch.bfloat16,
    )
    shared: Any = {
        "config": config,
        "init_method": torch.nn.init.normal_,
        "bias": False,
        "skip_bias_add": False,
    }
    if kind == "column":
        return fp8_column_parallel(fp8)(128, 256, gather_output=False, **shared)
    return fp8_row_parallel(fp8)(128, 256, input_is_parallel=True, **shared)
