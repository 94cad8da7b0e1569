"""Builds the megatron-core model of one pipeline stage.

Place in the flow: architecture + layout -> GPTModel on this rank; weights come later. Invariant: the built
model computes what `transformers` computes for the same architecture and weights.

Shapes: S sequence, B batch, V vocabulary on this rank.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from cptron.model.architecture import Architecture
from cptron.model.rope import inverse_frequencies
from cptron.model.vocab import padded_vocab_size
from cptron.runtime.groups import is_first_stage, is_last_stage

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class CausalLM(GPTModel):  # type: ignore[misc]
    """megatron-core's GPTModel with the rotary table of `rope` and padding kept out of the softmax."""

    def __init__(self, arch: Architecture, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.arch = arch
        device = self.rotary_pos_emb.inv_freq.device
        self.rotary_pos_emb.inv_freq = inverse_frequencies(arch).to(device)
        rows = self.vocab_size // self.config.tensor_model_parallel_size
        first_row = parallel_state.get_tensor_model_parallel_rank() * rows
        self.num_real_columns = min(max(arch.vocab_size - first_row, 0), rows)

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Cross entropy in nats `[B, S]` of `labels [B, S]` given vocabulary-parallel `logits [S, B, V]`."""
        if self.num_real_columns < logits.size(-1):
            padding = torch.arange(logits.size(-1), device=logits.device) >= self.num_real_columns
            logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
        return super().compute_language_model_loss(labels, logits)  # type: ignore[no-any-return]


def transformer_config(
    arch: Architecture,
    *,
    tp: int,
    pp: int,
    precision: Literal["bf16", "fp32"],
    recompute: Literal["none", "full"] = "none",
) -> TransformerConfig:
    """megatron-core's configuration of this architecture. Every fusion that needs a CUDA extension is off."""
    dtype = DTYPES[precision]
    return TransformerConfig(
        num_layers=arch.num_layers,
        hidden_size=arch.hidden_size,
        ffn_hidden_size=arch.ffn_hidden_size,
        num_attention_heads=arch.num_attention_heads,
        num_query_groups=arch.num_kv_heads,
        kv_channels=arch.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=arch.norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=precision == "bf16",
        use_cpu_initialization=not torch.cuda.is_available(),
        init_method_std=0.02,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        calculate_per_token_loss=True,  # gradients are divided by the tokens of the global batch, not per rank
        recompute_granularity="full" if recompute == "full" else None,
        recompute_method="uniform" if recompute == "full" else None,
        recompute_num_layers=1 if recompute == "full" else None,
    )


def build_model(
    arch: Architecture,
    *,
    tp: int = 1,
    pp: int = 1,
    precision: Literal["bf16", "fp32"] = "fp32",
    spec: Literal["native", "te"] = "native",
    recompute: Literal["none", "full"] = "none",
) -> CausalLM:
    """The part of the model that this rank holds, with random weights, on this rank's device.

    Needs the process groups of `runtime.groups`. Raises `ConfigError` when the spec's package is missing.
    """
    config = transformer_config(arch, tp=tp, pp=pp, precision=precision, recompute=recompute)
    layer_spec: Any
    if spec == "te":
        from cptron.model import specs_te

        layer_spec = specs_te.layer_spec()
    else:
        from cptron.model import specs_native

        layer_spec = specs_native.block_spec(arch.num_layers // pp)
    model = CausalLM(
        arch,
        config=config,
        transformer_layer_spec=layer_spec,
        vocab_size=padded_vocab_size(arch.vocab_size, tp),
        max_sequence_length=arch.max_position_embeddings,
        pre_process=is_first_stage(),
        post_process=is_last_stage(),
        share_embeddings_and_output_weights=arch.tied_embeddings,
        position_embedding_type="rope",
        rotary_base=int(arch.rope_theta),
    )
    return model.cuda() if torch.cuda.is_available() else model
