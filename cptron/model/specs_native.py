"""Layer specs that need neither Transformer Engine nor Apex.

Place in the flow: `model.build` chooses between this and `specs_te`. Invariant: parameter names in
checkpoints are those of the Transformer Engine spec (norms fused into the linear that follows), so either
spec loads the other's checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from cptron.checkpoint.names import STORED_PREFIXES
from cptron.model.adapter_layers import Role, with_adapter
from cptron.model.architecture import Architecture
from cptron.model.attention import TorchAttention
from cptron.model.backend import has_apex_weight_gradients
from cptron.model.linear_fp8 import fp8_column_parallel, fp8_row_parallel
from cptron.model.norm import ProjectionNormedAttention, norm_of, with_post_norm
from cptron.model.options import ModelOptions


def native_settings(arch: Architecture, options: ModelOptions) -> dict[str, Any]:
    """What of megatron-core's configuration depends on this backend."""
    on_gpu = torch.cuda.is_available()
    return {
        "bias_activation_fusion": on_gpu and arch.activation == "silu",  # one kernel, compiled by torch
        "gradient_accumulation_fusion": on_gpu
        and options.fp8.recipe == "none"
        and has_apex_weight_gradients(),
    }


def block_spec(
    arch: Architecture, layers: Sequence[int], options: ModelOptions
) -> TransformerBlockSubmodules:
    """The layers numbered `layers` (from 0) and the final norm."""
    specs = [_layer_spec(arch, number, options) for number in layers]
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=norm_of(arch))


def _layer_spec(arch: Architecture, number: int, options: ModelOptions) -> ModuleSpec:
    """Decoder layer `number`."""
    linears = _linears(arch, number, options)
    norm = norm_of(arch)
    pre_norm = IdentityOp if arch.norm_placement == "post" else norm
    head_norm = norm if arch.qk_norm == "head" else IdentityOp
    core = partial(TorchAttention, window=arch.window_of(number), rotary=arch.rotary_of(number))
    attention = ModuleSpec(
        module=ProjectionNormedAttention if arch.qk_norm == "projection" else SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=linears["qkv"],
            core_attention=core,
            linear_proj=linears["proj"],
            q_layernorm=head_norm,
            k_layernorm=head_norm,
        ),
    )
    mlp = ModuleSpec(
        module=MLP, submodules=MLPSubmodules(linear_fc1=linears["fc1"], linear_fc2=linears["fc2"])
    )
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=pre_norm,
            self_attention=attention,
            self_attn_bda=_residual_add,
            pre_mlp_layernorm=pre_norm,
            mlp=mlp,
            mlp_bda=_residual_add,
            sharded_state_dict_keys_map=dict(STORED_PREFIXES),
        ),
    )


def _residual_add(training: bool, fused: bool) -> Callable[..., torch.Tensor]:
    """What megatron-core calls with (output and bias, residual, dropout): there is neither bias nor dropout."""

    def add(
        output_and_bias: tuple[torch.Tensor, None], residual: torch.Tensor, dropout: float
    ) -> torch.Tensor:
        output, bias = output_and_bias
        assert bias is None and dropout == 0.0
        return residual + output

    return add


def _linears(arch: Architecture, number: int, options: ModelOptions) -> dict[Role, type]:
    """Classes of the matrix products of layer `number`, by their role."""
    column, row = ColumnParallelLinear, RowParallelLinear
    fp8 = options.fp8
    if fp8.recipe != "none" and fp8.bf16_first_layers <= number < arch.num_layers - fp8.bf16_last_layers:
        column, row = fp8_column_parallel(fp8), fp8_row_parallel(fp8)
    classes: dict[Role, type] = {"qkv": column, "proj": row, "fc1": column, "fc2": row}
    adapted = {role: with_adapter(base, role, arch, options.adapter) for role, base in classes.items()}
    normed: tuple[Role, ...] = ("proj", "fc2")
    return adapted | {role: with_post_norm(adapted[role], arch) for role in normed}
