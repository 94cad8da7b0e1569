"""What the FP8 tests run on each rank: one layer of given weights, forward and backward, on given numbers.

Shapes: S sequence, B batch, K inputs and N outputs of the whole layer; each rank cuts what its layout cuts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig

from cptron.config.schema import Fp8Config
from cptron.model.linear_fp8 import fp8_column_parallel, fp8_row_parallel
from cptron.runtime.launcher import launched_ranks
from cptron.runtime.session import open_session
from cptron.runtime.topology import Layout

SHAPE = {"S": 16, "B": 2, "K": 32, "N": 64}


@dataclass(frozen=True)
class Case:
    """One layer and how it is used."""

    kind: str = "column"
    fp8: Fp8Config = field(default_factory=lambda: Fp8Config(recipe="tensorwise"))
    frozen: bool = False
    bias: bool = False
    dtype: torch.dtype = torch.float32
    passes: int = 1
    bad_input: float | None = None
    bad_gradient: float | None = None


def whole_numbers(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [S, B, K], weight [N, K] and dy [S, B, N], equal on all ranks; the last rank has the largest numbers."""
    generator = torch.Generator().manual_seed(7)
    s, b, k, n = SHAPE.values()
    x_SBK, weight_NK, dy_SBN = (
        torch.randn(shape, generator=generator).to(case.dtype) for shape in ((s, b, k), (n, k), (s, b, n))
    )
    for tensor in (x_SBK, weight_NK, dy_SBN):
        tensor[-1] *= 5
        tensor[..., -1] *= 3
    if case.bad_input is not None:
        x_SBK[-1, 0, -1] = case.bad_input
    if case.bad_gradient is not None:
        dy_SBN[-1, 0, -1] = case.bad_gradient
    return x_SBK, weight_NK, dy_SBN


def make_layer(case: Case, layout: Layout, *, plain: bool = False) -> Any:
    """The FP8 layer, or the class it derives from."""
    config = TransformerConfig(
        num_layers=1,
        hidden_size=SHAPE["K"],
        num_attention_heads=4,
        tensor_model_parallel_size=layout.tp,
        sequence_parallel=layout.sequence_parallel,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        params_dtype=case.dtype,
    )
    shared: Any = {"config": config, "init_method": torch.nn.init.normal_, "bias": case.bias}
    sizes = (SHAPE["K"], SHAPE["N"])
    if case.kind == "column":
        column = ColumnParallelLinear if plain else fp8_column_parallel(case.fp8)
        return column(*sizes, **shared, gather_output=False, skip_bias_add=False)
    row = RowParallelLinear if plain else fp8_row_parallel(case.fp8)
    return row(*sizes, **shared, input_is_parallel=True, skip_bias_add=False)


def cut(tensor: torch.Tensor, dim: int | None) -> torch.Tensor:
    """This rank's part along `dim`; all of it for None."""
    if dim is None:
        return tensor
    world, rank = (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_rank(),
    )
    return tensor.chunk(world, dim)[rank].contiguous()


def layer_results(case: Case, layout: Layout, *, plain: bool = False) -> dict[str, Any]:
    """Output, gradients (None where there is none), bytes saved for backward, on this rank."""
    ranks = launched_ranks()
    assert ranks is not None
    with open_session(ranks, layout, threads_per_rank=1):
        column, tokens = case.kind == "column", 0 if layout.sequence_parallel else None
        whole_x_SBK, whole_weight_NK, whole_dy_SBN = whole_numbers(case)
        x_SBK = cut(whole_x_SBK, tokens if column else 2).requires_grad_()
        layer = make_layer(case, layout, plain=plain)
        with torch.no_grad():
            layer.weight.copy_(cut(whole_weight_NK, 0 if column else 1))
            if case.bias:
                layer.bias.fill_(0.5)
        layer.weight.requires_grad_(not case.frozen)
        saved: dict[int, torch.Tensor] = {}
        for _ in range(case.passes):
            with torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: saved.setdefault(tensor.data_ptr(), tensor), lambda tensor: tensor
            ):
                y_SBN, _ = layer(x_SBK)
            y_SBN.backward(cut(whole_dy_SBN, 2 if column else tokens))
        bias = layer.bias.grad if case.bias else None
        return {
            "y": y_SBN.detach(),
            "dx": x_SBK.grad,
            "dw": layer.weight.grad,
            "db": bias,
            "saved": sorted((str(tensor.dtype), tuple(tensor.shape)) for tensor in saved.values()),
            "saves_weight": any(tensor is layer.weight for tensor in saved.values()),
            "name": type(layer).__name__,
        }


def whole_results(case: Case, layout: Layout, parts: list[dict[str, Any]]) -> dict[str, torch.Tensor | None]:
    """The results of all ranks put together; what is the same on all must be the same."""
    column, tokens = case.kind == "column", 0 if layout.sequence_parallel else None
    cuts = {
        "y": 2 if column else tokens,
        "dx": tokens if column else 2,
        "dw": 0 if column else 1,
        "db": 0 if column else None,
    }
    found: dict[str, torch.Tensor | None] = {}
    for name, dim in cuts.items():
        values = [part[name] for part in parts]
        if values[0] is None:
            found[name] = None
        elif dim is None:
            assert all(torch.equal(value, values[0]) or value.isnan().any() for value in values)
            found[name] = values[0]
        else:
            found[name] = torch.cat(values, dim)
    return found


def state_names(case: Case, layout: Layout, *, plain: bool) -> list[Any]:
    """Names, shapes and cuts of everything a checkpoint holds of the layer."""
    ranks = launched_ranks()
    assert ranks is not None
    with open_session(ranks, layout, threads_per_rank=1):
        layer = make_layer(case, layout, plain=plain)
        metadata = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
        sharded = layer.sharded_state_dict("layer.", metadata=metadata)
        attributes = [
            (name, parameter.tensor_model_parallel, parameter.partition_dim, parameter.requires_grad)
            for name, parameter in layer.named_parameters()
            if hasattr(parameter, "tensor_model_parallel")
        ]
        return [
            list(layer.state_dict()),
            [
                (name, getattr(shard, "global_shape", None), getattr(shard, "global_offset", None))
                for name, shard in sharded.items()
            ],
            attributes,
        ]


def agreed_scale(values: list[float]) -> float:
    """The scale all ranks find when each holds one of `values`."""
    from cptron.model.fp8 import find_scale

    ranks = launched_ranks()
    assert ranks is not None
    with open_session(ranks, Layout(tp=len(values)), threads_per_rank=1):
        group = parallel_state.get_tensor_model_parallel_group()
        return find_scale(torch.tensor([[values[ranks.rank]]]), torch.float8_e4m3fn, group=group).item()
