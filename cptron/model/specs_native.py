"""Layer specs that need neither Transformer Engine nor Apex.

Place in the flow: `model.build` chooses between this and `specs_te`. Invariant: parameter names in
checkpoints are those of the Transformer Engine spec (norms fused into the linear that follows), so either
spec loads the other's checkpoints.
"""

from __future__ import annotations

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from cptron.model.attention import TorchAttention
from cptron.model.norm import RMSNorm

CHECKPOINT_KEYS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
"""Names under which the norms are stored, as Transformer Engine's fused layers store them."""


def layer_spec() -> ModuleSpec:
    """One pre-norm decoder layer of the Llama shape."""
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=TorchAttention,
            linear_proj=RowParallelLinear,
            q_layernorm=IdentityOp,
            k_layernorm=IdentityOp,
        ),
    )
    mlp = ModuleSpec(
        module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    )
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=dict(CHECKPOINT_KEYS),
        ),
    )


def block_spec(num_layers_on_stage: int) -> TransformerBlockSubmodules:
    """The layers of one pipeline stage and the final norm."""
    return TransformerBlockSubmodules(layer_specs=[layer_spec()] * num_layers_on_stage, layer_norm=RMSNorm)
