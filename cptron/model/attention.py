"""Core attention on torch's scaled dot product attention: flash on GPU, fused on CPU, grouped-query aware.

Place in the flow: a submodule of the native layer spec; stands where megatron-core's `DotProductAttention` or
Transformer Engine's attention stands. Invariant: causal self-attention, exactly softmax(q k^T * scale) v.

Shapes: S sequence, B batch, N query heads on this rank, G key/value groups on this rank, D head size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


class TorchAttention(MegatronModule):  # type: ignore[misc]
    """Causal attention without materialised scores and without repeated keys and values."""

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
    ) -> None:
        super().__init__(config=config)
        assert attention_type == "self" and config.context_parallel_size == 1
        assert config.attention_dropout == 0.0 if attention_dropout is None else attention_dropout == 0.0
        self.scale = 1.0 / math.sqrt(config.kv_channels) if softmax_scale is None else softmax_scale

    def forward(
        self,
        query_SBND: torch.Tensor,
        key_SBGD: torch.Tensor,
        value_SBGD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """Attend; returns `[S, B, N * D]`. A mask other than the causal one is a programmer error."""
        assert attention_mask is None and attention_bias is None and packed_seq_params is None
        context_BNSD = F.scaled_dot_product_attention(
            query_SBND.permute(1, 2, 0, 3),
            key_SBGD.permute(1, 2, 0, 3),
            value_SBGD.permute(1, 2, 0, 3),
            is_causal=True,
            scale=self.scale,
            enable_gqa=query_SBND.size(2) != key_SBGD.size(2),
        )
        return context_BNSD.permute(2, 0, 1, 3).reshape(query_SBND.size(0), query_SBND.size(1), -1)
