"""LoRA (Hu et al. 2021) and DoRA (Liu et al. 2024) beside megatron-core's tensor-parallel linears.

Place in the flow: the layer specs ask for an adapted class in place of each linear; `adapters` freezes, initialises
and names what was added. Adapter for `megatron.core.tensor_parallel.layers`. Invariant: an adapted layer computes
what Hugging Face PEFT computes with one adapter for each projection, and every rank's gradients are those of a
single process.

Shapes: S sequence, B batch, I inputs and O outputs of the layer on this rank, P outputs of one projection on this
rank, R rank of the adapter. Column-parallel layers cut P, row-parallel ones I.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.tensor_parallel.layers import RowParallelLinear, set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from cptron.config.schema import AdapterConfig
from cptron.model.architecture import Architecture

Role = Literal["qkv", "proj", "fc1", "fc2"]

PROJECTIONS: dict[Role, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "proj": ("o_proj",),
    "fc1": ("gate_proj", "up_proj"),
    "fc2": ("down_proj",),
}
"""Hugging Face projections that each linear holds, in the order of its rows."""


def with_adapter(base: type, role: Role, arch: Architecture, adapter: AdapterConfig) -> type:
    """`base` with a submodule `adapter`; `base` itself where the configuration asks for none in this role.

    `base` is megatron-core's column- or row-parallel linear, or a class derived from it that multiplies in
    `_forward_impl`.
    """
    if adapter.kind == "none" or not set(PROJECTIONS[role]) & set(adapter.targets):
        return base
    extra = {"adapter_role": role, "adapter_arch": arch, "adapter_config": adapter}
    return type(f"{base.__name__}With{adapter.kind.capitalize()}", (AdaptedLinear, base), extra)


class AdaptedLinear(torch.nn.Module):
    """What `with_adapter` puts before a linear: the product of the base goes through `adapter`.

    In row-parallel layers that is before the sum over the tensor ranks, which then sums both.
    """

    adapter_role: Role
    adapter_arch: Architecture
    adapter_config: AdapterConfig
    weight: torch.nn.Parameter
    sequence_parallel: bool
    tp_group: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.adapter = Adapter(self)

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        bias_O = kwargs["bias"]  # DoRA rescales what comes of the weight, not the bias
        output_SBO = super()._forward_impl(input, weight, *args, **{**kwargs, "bias": None})  # type: ignore[misc]
        adapted_SBO = self.adapter(input, output_SBO, weight)
        return adapted_SBO if bias_O is None else adapted_SBO + bias_O

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The base's shards, and the adapter's cut as `Projection.cut_axes` says."""
        found = super().sharded_state_dict(prefix, sharded_offsets, metadata)  # type: ignore[misc]
        assert metadata is not None
        axes = {
            f"{name}.{parameter}": axis
            for name, projection in self.adapter.projections().items()
            for parameter, axis in projection.cut_axes().items()
        }
        found |= make_sharded_tensors_for_checkpoint(
            self.adapter.state_dict(prefix="", keep_vars=True),
            f"{prefix}adapter.",
            axes,
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )
        return found  # type: ignore[no-any-return]


class Projection(torch.nn.Module):
    """The adapter of one Hugging Face projection. NaN until `adapters` or a checkpoint fills it, so that a forgotten
    start shows at once."""

    def __init__(self, linear: AdaptedLinear, rows: int) -> None:
        super().__init__()
        settings, weight_OI = linear.adapter_config, linear.weight
        self.row_parallel = isinstance(linear, RowParallelLinear)
        self.tp_group = linear.tp_group
        self.scale = settings.alpha / settings.rank
        like: Any = {"dtype": weight_OI.dtype, "device": weight_OI.device}

        def parameter(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.full(shape, torch.nan, **like))

        self.lora_A = parameter(settings.rank, weight_OI.size(1))
        self.lora_B = parameter(rows, settings.rank)
        self.magnitude = parameter(rows) if settings.kind == "dora" else None
        self._mark(linear.sequence_parallel)

    def cut_axes(self) -> dict[str, int]:
        """Axis along which each parameter is cut over the tensor ranks; the others are replicated."""
        if self.row_parallel:
            return {"lora_A": 1}
        return {"lora_B": 0} if self.magnitude is None else {"lora_B": 0, "magnitude": 0}

    def _mark(self, sequence_parallel: bool) -> None:
        """Tell megatron-core which parameters are cut (a norm counts the others once), and which gradients it must
        sum over the tensor ranks."""
        axes = self.cut_axes()
        for name, parameter in self.named_parameters():
            set_tensor_model_parallel_attributes(parameter, name in axes, axes.get(name, -1), 1)
            parameter.allreduce = True  # type: ignore[attr-defined]
        if sequence_parallel and not self.row_parallel:
            self.lora_A.sequence_parallel = True  # type: ignore[attr-defined]

    def low_rank(self, input_SBI: torch.Tensor) -> torch.Tensor:
        """`scale * B A x [S, B, P]`; in row-parallel layers this rank's summand of it."""
        lora_A_RI, lora_B_PR = (matrix.to(input_SBI.dtype) for matrix in (self.lora_A, self.lora_B))
        low_SBR = F.linear(input_SBI, lora_A_RI)
        if self.row_parallel:
            lora_B_PR = copy_to_tensor_model_parallel_region(lora_B_PR, group=self.tp_group)
        elif getattr(self.lora_A, "sequence_parallel", False):
            low_SBR = gather_from_sequence_parallel_region(low_SBR, group=self.tp_group)
        else:
            low_SBR = copy_to_tensor_model_parallel_region(low_SBR, group=self.tp_group)
        return F.linear(low_SBR, lora_B_PR) * self.scale

    def rescaling(self, weight_PI: torch.Tensor) -> torch.Tensor:
        """DoRA's `magnitude / ||W + scale * B A|| [P]`; the norm is a constant, as in section 4.3 of the paper."""
        magnitude_P = self.magnitude
        assert magnitude_P is not None
        if self.row_parallel:
            magnitude_P = copy_to_tensor_model_parallel_region(magnitude_P, group=self.tp_group)
        return magnitude_P / self.row_norms(weight_PI)

    @torch.no_grad()
    def row_norms(self, weight_PI: torch.Tensor) -> torch.Tensor:
        """`||W + scale * B A|| [P]` over whole rows, rounded as the magnitudes are, so that new ones rescale by 1.

        The square is expanded, so that nothing of W's size is made; collective in row-parallel layers.
        """
        lora_A_RI, lora_B_PR = self.lora_A.float(), self.lora_B.float() * self.scale
        square_P: torch.Tensor = torch.linalg.vector_norm(weight_PI, dim=1, dtype=torch.float32) ** 2
        cross_PR = F.linear(weight_PI, self.lora_A.to(weight_PI.dtype)).float()
        square_P += (lora_B_PR * (2 * cross_PR + lora_B_PR @ (lora_A_RI @ lora_A_RI.t()))).sum(1)
        if self.row_parallel and self.tp_group is not None and self.tp_group.size() > 1:
            dist.all_reduce(square_P, group=self.tp_group)
        return square_P.sqrt().to(weight_PI.dtype)


class Adapter(torch.nn.Module):
    """The adapters of the projections in one linear, by Hugging Face name."""

    def __init__(self, linear: AdaptedLinear) -> None:
        super().__init__()
        role, arch, settings = linear.adapter_role, linear.adapter_arch, linear.adapter_config
        rows = linear.weight.size(0)
        per_projection = [1] * len(PROJECTIONS[role])
        self.groups = 1
        if role == "qkv":  # rows of each key/value group: its queries, its key, its value
            per_projection = [arch.num_attention_heads // arch.num_kv_heads, 1, 1]
            self.groups = rows // (sum(per_projection) * arch.head_dim)
        unit = rows // (self.groups * sum(per_projection))
        self.names = PROJECTIONS[role]
        self.sizes = [unit * count for count in per_projection]
        for name, size in zip(self.names, self.sizes, strict=True):
            if name in settings.targets:
                self.add_module(name, Projection(linear, self.groups * size))

    def forward(
        self, input_SBI: torch.Tensor, output_SBO: torch.Tensor, weight_OI: torch.Tensor
    ) -> torch.Tensor:
        """The adapted output, given the base's on the same input."""
        dtype = output_SBO.dtype
        found = self.projections()
        deltas = {name: projection.low_rank(input_SBI) for name, projection in found.items()}
        blank = output_SBO.new_zeros(1).expand(*output_SBO.shape[:-1], self.groups * max(self.sizes))
        adapted_SBO = output_SBO + self._join([deltas.get(name, blank) for name in self.names])
        if any(projection.magnitude is None for projection in found.values()):  # LoRA
            return adapted_SBO
        scales = {
            name: found[name].rescaling(part_PI) for name, part_PI in self.split_weight(weight_OI).items()
        }
        ones = output_SBO.new_ones(self.groups * max(self.sizes))
        return adapted_SBO * self._join([scales.get(name, ones) for name in self.names]).to(dtype)

    def projections(self) -> dict[str, Projection]:
        """The adapted projections."""
        return {name: module for name, module in self.named_children() if isinstance(module, Projection)}

    def split_weight(self, weight_OI: torch.Tensor) -> dict[str, torch.Tensor]:
        """Rows `[P, I]` of the base's weight that belong to each adapted projection."""
        grouped = weight_OI.detach().view(self.groups, -1, weight_OI.size(1)).split(self.sizes, dim=1)
        parts = zip(self.names, grouped, strict=True)
        return {name: part.flatten(0, 1) for name, part in parts if hasattr(self, name)}

    def _join(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Outputs `[..., P]` of all projections to the order of the base's rows `[..., O]`. A filler may be wider."""
        if len(parts) == 1:
            return parts[0]
        grouped = [
            part[..., : self.groups * size].unflatten(-1, (self.groups, size))
            for part, size in zip(parts, self.sizes, strict=True)
        ]
        return torch.cat(grouped, dim=-1).flatten(-2)
