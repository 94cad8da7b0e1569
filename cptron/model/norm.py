"""RMSNorm as a megatron-core submodule, where a layer has it: of hidden states, of heads, of whole projections, and
behind a row-parallel linear.

Place in the flow: part of the native layer spec. Invariant: the gradient of a weight that every tensor rank holds is
summed where the ranks see different parts: those of hidden states by the mark `sequence_parallel`, those of heads by
megatron-core's setting `qk_layernorm`; a weight that is cut over the ranks is in neither sum.

Shapes: S tokens of a row, B rows, N heads on this rank, D head size, P = N * D, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from cptron.model.architecture import Architecture
from cptron.model.fused import fused


class RMSNorm(torch.nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class ZeroCenteredRMSNorm(RMSNorm):
    """The same with 1 + weight, in fp32 and rounded at the end; the weight begins at 0."""

    def reset_parameters(self) -> None:
        """Start from the norm that changes no scale."""
        torch.nn.init.zeros_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The norm over the last dimension."""
        assert self.eps is not None
        return _zero_centered(x, self.weight, self.eps)


def norm_of(arch: Architecture) -> type[RMSNorm]:
    """The norm of hidden states, and of heads."""
    return ZeroCenteredRMSNorm if arch.zero_centered_norm else RMSNorm


class ProjectionNorm(torch.nn.Module):
    """RMSNorm over the heads of all tensor ranks together; the weight is this rank's part."""

    def __init__(self, config: TransformerConfig, num_channels: int, tp_group: Any) -> None:
        super().__init__()
        self.eps, self.tp_group = config.layernorm_epsilon, tp_group
        self.num_channels = num_channels * tp_group.size()
        ones = torch.ones(num_channels, dtype=config.params_dtype, device="cpu")  # goes along with the model
        self.weight = torch.nn.Parameter(ones)
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)
        self.weight.allreduce = True  # type: ignore[attr-defined]

    def forward(self, x_SBND: torch.Tensor) -> torch.Tensor:
        """The norm over the last two dimensions."""
        squares_SB1 = _sum_of_squares(x_SBND)
        if self.tp_group.size() > 1:
            # each rank uses the sum of all of them: its gradient is summed on the way back, too
            squares_SB1 = reduce_from_tensor_model_parallel_region(squares_SB1, group=self.tp_group)
            squares_SB1 = copy_to_tensor_model_parallel_region(squares_SB1, group=self.tp_group)
        return _divided(x_SBND, squares_SB1, self.weight, self.num_channels, self.eps)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The weight, cut over the tensor ranks."""
        assert metadata is not None
        return make_sharded_tensors_for_checkpoint(  # type: ignore[no-any-return]
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )


class ProjectionNormedAttention(SelfAttention):  # type: ignore[misc]
    """megatron-core's attention with norms of whole queries and keys.

    They are not built from the spec: it would need the setting `qk_layernorm`, which sums these gradients over tensor
    ranks that hold different weights.
    """

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        tp_group, size = self.pg_collection.tp, self.hidden_size_per_attention_head
        self.q_layernorm = ProjectionNorm(config, self.num_attention_heads_per_partition * size, tp_group)
        self.k_layernorm = ProjectionNorm(config, self.num_query_groups_per_partition * size, tp_group)


def with_post_norm(base: type, arch: Architecture) -> type:
    """The row-parallel linear `base` with a norm of its output, once that is summed over the tensor ranks; `base`
    itself where the architecture has none there."""
    if arch.norm_placement == "pre":
        return base
    return type(f"{base.__name__}WithNorm", (PostNormedLinear, base), {"post_norm": norm_of(arch)})


class PostNormedLinear(torch.nn.Module):
    """What `with_post_norm` puts before a linear."""

    post_norm: type[RMSNorm]
    config: TransformerConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.post_layernorm = self.post_norm(
            self.config, self.config.hidden_size, self.config.layernorm_epsilon
        )

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The normed output, and no bias to be added to it."""
        output_SBH, bias = super().forward(input_)
        assert bias is None
        return self.post_layernorm(output_SBH), None


@fused
def _zero_centered(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x.float(), weight.shape, 1.0 + weight.float(), eps).type_as(x)


@fused
def _sum_of_squares(x_SBND: torch.Tensor) -> torch.Tensor:
    return x_SBND.float().square().sum((-2, -1))[..., None]


@fused
def _divided(
    x_SBND: torch.Tensor, squares_SB1: torch.Tensor, weight_P: torch.Tensor, num_channels: int, eps: float
) -> torch.Tensor:
    x_SBP = x_SBND.flatten(2).float() * torch.rsqrt(squares_SB1 / num_channels + eps)
    return (weight_P * x_SBP).to(x_SBND.dtype).view_as(x_SBND)
