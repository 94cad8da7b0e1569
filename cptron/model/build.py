"""Builds what one pipeline stage holds of the megatron-core model.

Place in the flow: architecture + layout + options -> chunks of the model on this rank; weights come later.
Invariant: a chunk holds the layers that `stages.layers_of` says, under any layout, so that all chunks together are
the model, once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.transformer.transformer_config import TransformerConfig

from cptron.errors import ConfigError
from cptron.model.architecture import Architecture
from cptron.model.backend import check_offloading, layer_specs
from cptron.model.causal_lm import CausalLM
from cptron.model.fp8 import resolve_fp8
from cptron.model.fused import fused
from cptron.model.options import ModelOptions
from cptron.model.stages import layers_of
from cptron.model.varlen import offered_options
from cptron.model.vocab import padded_vocab_size
from cptron.runtime.groups import stage_rank
from cptron.runtime.offloading import begin_offloading
from cptron.runtime.topology import Layout

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@fused
def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS = {"silu": F.silu, "gelu_tanh": _gelu_tanh}


def transformer_config(arch: Architecture, layout: Layout, options: ModelOptions) -> TransformerConfig:
    """megatron-core's configuration of this architecture. Every fusion that needs a CUDA extension is off, save
    Apex's weight gradient accumulation where it is installed."""
    dtype = DTYPES[options.precision]
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
        activation_func=ACTIVATIONS[arch.activation],
        add_bias_linear=False,
        add_qkv_bias=arch.qkv_bias,
        qk_layernorm=arch.qk_norm == "head",
        softmax_scale=arch.attention_scale,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        bf16=options.precision == "bf16",
        use_cpu_initialization=not torch.cuda.is_available(),
        init_method_std=0.02,
        **({} if options.random_weights else {"init_method": _leave, "output_layer_init_method": _leave}),
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        calculate_per_token_loss=True,  # gradients are divided by the tokens of the global batch, not per rank
        **_parallel(layout, dtype),
        **_memory(options),
        **_backend(arch, options),
    )


def _leave(weight: torch.Tensor) -> None:
    """In place of random numbers where every weight is about to be loaded: a load fills all of them or raises."""


def _parallel(layout: Layout, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "tensor_model_parallel_size": layout.tp,
        "sequence_parallel": layout.sequence_parallel,
        "context_parallel_size": layout.cp,
        "pipeline_model_parallel_size": layout.pp,
        "pipeline_dtype": dtype,
        "virtual_pipeline_model_parallel_size": layout.virtual_stages if layout.virtual_stages > 1 else None,
        # batched messages of two interleaved stages would be matched by order and silently go to the wrong chunk
        "overlap_p2p_comm": layout.virtual_stages > 1,
        "batch_p2p_comm": layout.virtual_stages == 1,
        "num_layers_in_first_pipeline_stage": layout.first_stage_layers or None,
        "num_layers_in_last_pipeline_stage": layout.last_stage_layers or None,
    }


def _memory(options: ModelOptions) -> dict[str, Any]:
    memory = options.memory
    found: dict[str, Any] = {}
    if memory.recompute == "full":
        some = memory.recompute_layers > 0
        found["recompute_granularity"] = "full"
        found["recompute_method"] = "block" if some else "uniform"
        found["recompute_num_layers"] = memory.recompute_layers if some else 1
    if memory.recompute == "selective":
        found["recompute_granularity"] = "selective"
        found["recompute_modules"] = list(memory.recompute_modules)
    if memory.offload_modules:
        found["fine_grained_activation_offloading"] = True
        found["offload_modules"] = list(memory.offload_modules)
    return found


def _backend(arch: Architecture, options: ModelOptions) -> dict[str, Any]:
    if options.backend == "te":
        from cptron.model.specs_te import te_settings

        return te_settings(options)
    from cptron.model.specs_native import native_settings

    return native_settings(arch, options)


def build_chunks(
    arch: Architecture, layout: Layout | None = None, options: ModelOptions | None = None
) -> list[CausalLM]:
    """The parts of the model that this rank holds, with random weights, on this rank's device: one, or with
    virtual stages one for each, in the order in which they follow on this stage.

    Needs the process groups of `runtime.groups`. Raises `ConfigError` when the backend's package, or the hardware
    that the options need, is missing.
    """
    layout, options = layout or Layout(), options or ModelOptions()
    options = replace(options, fp8=resolve_fp8(options.fp8))
    _check_device(arch, layout, options)
    begin_offloading()
    config = transformer_config(arch, layout, options)
    return [_build_chunk(arch, layout, options, config, number) for number in range(layout.virtual_stages)]


def _check_device(arch: Architecture, layout: Layout, options: ModelOptions) -> None:
    """Raise `ConfigError` for what this device, or this torch on it, cannot do."""
    if options.memory.offload_modules and not torch.cuda.is_available():
        raise ConfigError(
            f"memory.offload_modules={list(options.memory.offload_modules)} moves activations from a GPU to the host, "
            "but there is no GPU; leave it out here"
        )
    check_offloading(options.memory.offload_modules)
    flash = torch.cuda.is_available() and options.backend == "native" and options.precision == "bf16"
    if flash:
        _check_varlen(arch, layout, options)


def _check_varlen(arch: Architecture, layout: Layout, options: ModelOptions) -> None:
    """Raise `ConfigError` for what torch's variable-length attention is needed for and cannot do."""
    offered = offered_options()
    segments = options.attention.document_mask or layout.cp > 1
    if segments and not offered:
        raise ConfigError(
            f"attention.document_mask and parallel.cp={layout.cp} need torch 2.10 on GPUs in bf16, here is "
            f"{torch.__version__}; install it, or set attention.document_mask=false and parallel.cp=1"
        )
    if arch.sliding_window is not None and "window_size" not in offered:
        raise ConfigError(
            f"a model of the {arch.family} family with sliding_window={arch.sliding_window} needs a torch whose "
            f"variable-length attention has windows, on GPUs in bf16; here is {torch.__version__}, install a newer one"
        )
    if segments and arch.attention_scale is not None and "scale" not in offered:
        raise ConfigError(
            f"a model of the {arch.family} family with attention scale {arch.attention_scale:g} needs a torch whose "
            f"variable-length attention takes a scale; here is {torch.__version__}, install a newer one"
        )


def build_model(arch: Architecture, options: ModelOptions | None = None) -> CausalLM:
    """The whole model in this one process, for conversion and evaluation."""
    (model,) = build_chunks(arch, Layout(), options)
    return model


def _build_chunk(
    arch: Architecture, layout: Layout, options: ModelOptions, config: TransformerConfig, number: int
) -> CausalLM:
    stage = stage_rank()
    layers = layers_of(arch.num_layers, layout, stage, number)
    first, last = (0, 0), (layout.pp - 1, layout.virtual_stages - 1)
    ends = ((stage, number) == first, (stage, number) == last)
    model = _chunk_of(arch, layout, options, config, layers, ends, number)
    found = [layer.layer_number - 1 for layer in model.decoder.layers]
    assert found == list(layers), f"megatron-core cuts the layers otherwise: {found}, not {layers}"
    return model


def build_slice(arch: Architecture, layers: range, options: ModelOptions | None = None) -> CausalLM:
    """Some consecutive layers as a chunk of their own, in this one process: with the embedding where the first is
    among them, with norm and output layer where the last is. Its modules count layers from 0."""
    options = options or ModelOptions()
    config = transformer_config(arch, Layout(), options)
    ends = (layers.start == 0, layers.stop == arch.num_layers)
    return _chunk_of(arch, Layout(), options, config, layers, ends, 0)


def _chunk_of(
    arch: Architecture,
    layout: Layout,
    options: ModelOptions,
    config: TransformerConfig,
    layers: range,
    ends: tuple[bool, bool],
    number: int,
) -> CausalLM:
    model = CausalLM(
        arch,
        options,
        config=config,
        transformer_layer_spec=layer_specs(arch, layers, options),
        vocab_size=padded_vocab_size(arch.vocab_size, layout.tp),
        max_sequence_length=arch.max_position_embeddings,
        pre_process=ends[0],
        post_process=ends[1],
        share_embeddings_and_output_weights=arch.tied_embeddings,
        position_embedding_type="none",  # attention rotates queries and keys itself
        vp_stage=number if layout.virtual_stages > 1 else None,
    )
    return model.cuda() if torch.cuda.is_available() else model
