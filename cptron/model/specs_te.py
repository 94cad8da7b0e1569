"""Layers on Transformer Engine, where it is installed.

Place in the flow: `model.backend` chooses between this and `specs_native`. Invariant: the same parameters under the
same names in checkpoints, and the same rotary embedding and documents, as the native layers.

Shapes: S tokens of a row on this rank, B rows, N query heads, G key/value groups, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.extensions.transformer_engine import TEDotProductAttention, TENorm
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from cptron.model.architecture import Architecture
from cptron.model.attention import AttentionInputs
from cptron.model.backend import has_apex_weight_gradients
from cptron.model.options import ModelOptions


class TeAttention(TEDotProductAttention):  # type: ignore[misc]
    """Transformer Engine's attention, after our rotation, and over documents where a row holds several."""

    def forward(
        self,
        query_SBND: torch.Tensor,
        key_SBGD: torch.Tensor,
        value_SBGD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: Any,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: AttentionInputs | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attend; returns `[S, B, N * D]`."""
        inputs = packed_seq_params
        assert inputs is not None and attention_mask is None
        query_SBND = inputs.rotated(query_SBND, "global")
        key_SBGD = inputs.rotated(key_SBGD, "global")
        whole = inputs.segments.whole_rows or self.config.context_parallel_size > 1
        if whole:  # with context parallelism rows are one document each: the configuration check sees to it
            tensors = [query_SBND, key_SBGD, value_SBGD]
            context: torch.Tensor = super().forward(
                *tensors, None, attn_mask_type, attention_bias, None, **kwargs
            )
            return context
        seq_length, rows = query_SBND.shape[:2]
        longest = inputs.segments.longest_query
        packed = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=inputs.query_starts,
            cu_seqlens_kv=inputs.key_starts,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )
        tensors = [x.transpose(0, 1).flatten(0, 1) for x in (query_SBND, key_SBGD, value_SBGD)]
        context = super().forward(*tensors, None, attn_mask_type, attention_bias, packed, **kwargs)
        return context.reshape(rows, seq_length, -1).transpose(0, 1).contiguous()


def te_settings(options: ModelOptions) -> dict[str, Any]:
    """What of megatron-core's configuration depends on this backend."""
    fp8 = options.fp8
    settings: dict[str, Any] = {
        "bias_activation_fusion": True,
        "gradient_accumulation_fusion": has_apex_weight_gradients(),  # the output layer is megatron-core's own
    }
    if fp8.recipe != "none":
        settings |= {
            "fp8": "hybrid" if fp8.gradient_dtype == "e5m2" else "e4m3",
            "fp8_recipe": fp8.recipe,
            "fp8_param": fp8.param_gather,
            "first_last_layers_bf16": fp8.bf16_first_layers + fp8.bf16_last_layers > 0,
            "num_layers_at_start_in_bf16": fp8.bf16_first_layers,
            "num_layers_at_end_in_bf16": fp8.bf16_last_layers,
        }
    return settings


def block_spec(
    arch: Architecture, layers: Sequence[int], options: ModelOptions
) -> TransformerBlockSubmodules:
    """The layers numbered `layers` (from 0) and the final norm. Which of them stay in bf16 is a setting."""
    spec = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=arch.qk_norm == "head")
    spec.submodules.self_attention.submodules.core_attention = TeAttention
    return TransformerBlockSubmodules(layer_specs=[spec] * len(layers), layer_norm=TENorm)
