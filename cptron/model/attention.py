"""Core attention of the native backend: rotary embedding, documents, context parallelism, and torch's kernels.

Place in the flow: a submodule of the native layer spec; stands where megatron-core's `DotProductAttention`
stands. `AttentionInputs` reaches it as megatron-core's `packed_seq_params`. Invariant: exactly
softmax(q k^T * scale) v over the keys of a query's own document up to itself, or of these the last ones where the layer
has a window; no dense mask of a batch.

Shapes: S tokens of a row on this rank, B rows, N query heads on this rank, G key/value groups on this rank, D head
size, T = B * S, K keys of all segments, W tokens of a whole sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from cptron.model.rotary import rotate
from cptron.model.segments import Segments
from cptron.model.varlen import causal_attention, varlen_attention

Rotary = Literal["global", "local", "none"]
"""Which table turns queries and keys of a layer."""


@dataclass
class AttentionInputs(PackedSeqParams):  # type: ignore[misc]
    """What every layer's attention needs to know of a micro-batch.

    A subclass of megatron-core's class only because that is what its layers hand through; of its fields none
    is set but `qkv_format`, which says that tensors keep their sequence and batch dimensions.
    """

    qkv_format: str = "sbhd"
    cos: Any = None
    """`[S, B or 1, 1, half of the rotated channels]`, in the model's dtype."""
    sin: Any = None
    local_cos: Any = None
    """Those of layers with a window, where they have their own."""
    local_sin: Any = None
    segments: Any = None
    """`Segments` of this rank."""
    query_starts: Any = None
    """`segments.query_starts` on the device."""
    key_starts: Any = None
    """`segments.key_starts` on the device."""

    def rotated(self, x_SBND: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """Queries or keys turned by the table that the layer uses."""
        if rotary == "none":
            return x_SBND
        cos, sin = (self.cos, self.sin) if rotary == "global" else (self.local_cos, self.local_sin)
        return rotate(x_SBND, cos, sin)


class TorchAttention(MegatronModule):  # type: ignore[misc]
    """Causal attention within documents. `window` and `rotary` are the layer's, as `Architecture` has them."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        *,
        window: int | None = None,
        rotary: Rotary = "global",
    ) -> None:
        super().__init__(config=config)
        self.window = window
        self.rotary: Rotary = rotary
        assert attention_type == "self"
        assert config.attention_dropout == 0.0 if attention_dropout is None else attention_dropout == 0.0
        self.scale = 1.0 / math.sqrt(config.kv_channels) if softmax_scale is None else softmax_scale
        self.cp_group = parallel_state.get_context_parallel_group()

    def forward(
        self,
        query_SBND: torch.Tensor,
        key_SBGD: torch.Tensor,
        value_SBGD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: AttentionInputs | None = None,
    ) -> torch.Tensor:
        """Attend; returns `[S, B, N * D]`. `packed_seq_params` says where each token stands and what it sees."""
        assert attention_mask is None and attention_bias is None
        inputs = packed_seq_params
        assert inputs is not None
        query_SBND = inputs.rotated(query_SBND, self.rotary)
        key_SBGD = inputs.rotated(key_SBGD, self.rotary)
        if self.cp_group.size() > 1:
            both_2SBGD = torch.stack([key_SBGD, value_SBGD])
            key_SBGD, value_SBGD = _GatherContext.apply(both_2SBGD, self.cp_group)  # type: ignore[no-untyped-call]
        segments: Segments = inputs.segments
        window = None if self.window is None or self.window >= segments.longest_key else self.window
        if segments.whole_rows and window is None:
            return self._attend_rows(query_SBND, key_SBGD, value_SBGD)
        return self._attend_segments(query_SBND, key_SBGD, value_SBGD, inputs, window)

    def _attend_rows(
        self, query_SBND: torch.Tensor, key_SBGD: torch.Tensor, value_SBGD: torch.Tensor
    ) -> torch.Tensor:
        context_BNSD = causal_attention(
            query_SBND.permute(1, 2, 0, 3),
            key_SBGD.permute(1, 2, 0, 3),
            value_SBGD.permute(1, 2, 0, 3),
            self.scale,
        )
        return context_BNSD.permute(2, 0, 1, 3).reshape(query_SBND.size(0), query_SBND.size(1), -1)

    def _attend_segments(
        self,
        query_SBND: torch.Tensor,
        key_WBGD: torch.Tensor,
        value_WBGD: torch.Tensor,
        inputs: AttentionInputs,
        window: int | None,
    ) -> torch.Tensor:
        seq_length, rows = query_SBND.shape[:2]
        context_TND = varlen_attention(
            query_SBND.transpose(0, 1).flatten(0, 1),
            _keys_of(inputs.segments, key_WBGD),
            _keys_of(inputs.segments, value_WBGD),
            inputs.segments,
            inputs.query_starts,
            inputs.key_starts,
            self.scale,
            window,
        )
        return context_TND.reshape(rows, seq_length, -1).transpose(0, 1).contiguous()


def _keys_of(segments: Segments, x_WBGD: torch.Tensor) -> torch.Tensor:
    """The slices of whole sequences that this rank's segments attend to, one after the other: `[K, G, D]`."""
    whole = x_WBGD.size(0)
    if all((start, stop) == (0, whole) for _, start, stop in segments.key_slices):
        return x_WBGD.transpose(0, 1).flatten(0, 1)
    return torch.cat([x_WBGD[start:stop, row] for row, start, stop in segments.key_slices])


class _GatherContext(torch.autograd.Function):
    """Keys and values of all context ranks in the order of the sequence: `[2, S, B, G, D]` -> two `[W, B, G, D]`.

    Backward: each rank gets back the sum of what all ranks say of its own tokens.
    """

    @staticmethod
    def forward(ctx: Any, both_2SBGD: torch.Tensor, group: Any) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.group = group
        cp, seq_length = group.size(), both_2SBGD.size(1)
        gathered = both_2SBGD.new_empty((cp * 2, *both_2SBGD.shape[1:]))
        dist.all_gather_into_tensor(gathered, both_2SBGD.contiguous(), group=group)
        # by rank, key or value, first or second chunk: the first chunks follow each other, the second ones backwards
        chunks = gathered.unflatten(0, (cp, 2)).unflatten(2, (2, seq_length // 2))
        whole = torch.cat([chunks[:, :, 0], chunks[:, :, 1].flip(0)]).transpose(0, 1).flatten(1, 2)
        return whole[0], whole[1]

    @staticmethod
    def backward(ctx: Any, grad_key: torch.Tensor, grad_value: torch.Tensor) -> Any:
        cp = ctx.group.size()
        chunks = torch.stack([grad_key, grad_value]).unflatten(1, (2 * cp, -1)).transpose(0, 1)
        by_rank = torch.stack([chunks[:cp], chunks[cp:].flip(0)], dim=2).flatten(2, 3).flatten(0, 1)
        own = by_rank.new_empty((2, *by_rank.shape[1:]))
        dist.reduce_scatter_tensor(own, by_rank.contiguous(), group=ctx.group)
        return own, None
