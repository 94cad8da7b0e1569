"""Tensors there and back, bit for bit, and the layout of the joined ones against indexing by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_arch import SMALL

from cptron.convert.hf_import import check_names
from cptron.convert.weight_map import hugging_face_names, to_hugging_face, to_megatron
from cptron.errors import ConversionError
from cptron.model.architecture import Architecture
from cptron.model.families import family_of
from cptron.model.vocab import padded_vocab_size

LLAMA = family_of("llama")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]

Tensors = dict[str, torch.Tensor]


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Small, with head sizes that need not be hidden / heads."""
    kv_heads, per_group = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return Architecture(
        family="llama",
        num_layers=draw(st.integers(1, 3)),
        hidden_size=draw(st.integers(1, 20)),
        ffn_hidden_size=draw(st.integers(1, 20)),
        num_attention_heads=kv_heads * per_group,
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([2, 4, 6])),
        vocab_size=draw(st.integers(1, 150)),
        max_position_embeddings=64,
        norm_eps=1e-5,
        rope_theta=1e4,
        tied_embeddings=draw(st.booleans()),
    )


def hugging_face_tensors(arch: Architecture, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensors:
    """Random tensors under the names and with the shapes of transformers' Llama, written out by hand."""
    hidden, query, group = (
        arch.hidden_size,
        arch.num_attention_heads * arch.head_dim,
        arch.num_kv_heads * arch.head_dim,
    )
    shapes = {"model.embed_tokens.weight": (arch.vocab_size, hidden), "model.norm.weight": (hidden,)}
    if not arch.tied_embeddings:
        shapes["lm_head.weight"] = (arch.vocab_size, hidden)
    for layer in range(arch.num_layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
            f"{prefix}.self_attn.q_proj.weight": (query, hidden),
            f"{prefix}.self_attn.k_proj.weight": (group, hidden),
            f"{prefix}.self_attn.v_proj.weight": (group, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, query),
            f"{prefix}.mlp.gate_proj.weight": (arch.ffn_hidden_size, hidden),
            f"{prefix}.mlp.up_proj.weight": (arch.ffn_hidden_size, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, arch.ffn_hidden_size),
        }
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


@settings(deadline=None, max_examples=60)
@given(architectures(), st.sampled_from(DTYPES), st.integers(1, 4))
def test_there_and_back_is_bit_identical(arch: Architecture, dtype: torch.dtype, tp: int) -> None:
    """Every tensor, none added, none lost, whatever the padding of the vocabulary."""
    tensors = hugging_face_tensors(arch, dtype)
    assert set(hugging_face_names(LLAMA, arch)) == set(tensors)
    padded = padded_vocab_size(arch.vocab_size, tp)
    megatron = list(to_megatron(LLAMA, arch, tensors.__getitem__, padded))
    assert len({name for name, _ in megatron}) == len(megatron)
    back = list(to_hugging_face(LLAMA, arch, dict(megatron).__getitem__))
    assert len(back) == len(tensors)
    for name, tensor in back:
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
        assert torch.equal(tensor, tensors[name]), name


@settings(deadline=None, max_examples=40)
@given(architectures())
def test_joined_layouts_by_hand(arch: Architecture) -> None:
    """Row by row: query heads of a group, its key, its value; gate, then up; vocabulary, then zeros."""
    tensors = hugging_face_tensors(arch)
    megatron = dict(to_megatron(LLAMA, arch, tensors.__getitem__, padded_vocab_size(arch.vocab_size, 1)))
    per_group, size = arch.num_attention_heads // arch.num_kv_heads, arch.head_dim
    for layer in range(arch.num_layers):
        attention = f"model.layers.{layer}.self_attn"
        rows = []
        for group in range(arch.num_kv_heads):
            heads = [(f"{attention}.q_proj.weight", group * per_group + head) for head in range(per_group)]
            heads += [(f"{attention}.k_proj.weight", group), (f"{attention}.v_proj.weight", group)]
            rows += [tensors[name][head * size + row] for name, head in heads for row in range(size)]
        joined = megatron[f"decoder.layers.{layer}.self_attention.linear_qkv.weight"]
        assert torch.equal(joined, torch.stack(rows))
        fc1 = megatron[f"decoder.layers.{layer}.mlp.linear_fc1.weight"]
        assert torch.equal(fc1[: arch.ffn_hidden_size], tensors[f"model.layers.{layer}.mlp.gate_proj.weight"])
        assert torch.equal(fc1[arch.ffn_hidden_size :], tensors[f"model.layers.{layer}.mlp.up_proj.weight"])
    embedding = megatron["embedding.word_embeddings.weight"]
    assert torch.equal(embedding[: arch.vocab_size], tensors["model.embed_tokens.weight"])
    assert not embedding[arch.vocab_size :].any()
    assert ("output_layer.weight" in megatron) != arch.tied_embeddings


@pytest.mark.parametrize("name", sorted(hugging_face_tensors(SMALL)))
def test_a_wrong_shape_is_refused(name: str) -> None:
    """For each of the tensors: named, with both shapes."""
    tensors = hugging_face_tensors(SMALL)
    rows = tensors[name].shape[0]
    tensors[name] = tensors[name][:-1]
    with pytest.raises(ConversionError, match=rf"{name} has shape \[{rows - 1}.* implies \[{rows}"):
        list(to_megatron(LLAMA, SMALL, tensors.__getitem__, 128))


def test_names_must_match_the_config() -> None:
    """Exactly: one less, one more and another number of layers are refused; stored rotary tables are not weights."""
    names = set(hugging_face_tensors(SMALL))
    check_names(LLAMA, SMALL, names)
    check_names(LLAMA, SMALL, names | {"model.layers.0.self_attn.rotary_emb.inv_freq"})
    with pytest.raises(ConversionError, match=r"lacks 1 tensor.*model\.norm\.weight"):
        check_names(LLAMA, SMALL, names - {"model.norm.weight"})
    with pytest.raises(ConversionError, match=r"unknown 1 tensor.*q_proj\.bias"):
        check_names(LLAMA, SMALL, names | {"model.layers.0.self_attn.q_proj.bias"})
    with pytest.raises(ConversionError, match="unknown 9 tensor"):
        check_names(
            LLAMA, SMALL, names | {n.replace("layers.1", "layers.2") for n in names if "layers.1" in n}
        )


def test_a_tied_copy_of_the_output_is_allowed() -> None:
    """Some files hold `lm_head.weight` though it is the embedding."""
    values = SMALL.to_dict() | {"tied_embeddings": True}
    names = set(hugging_face_tensors(SMALL))
    check_names(LLAMA, Architecture.from_dict(values), names)
    check_names(LLAMA, Architecture.from_dict(values), names - {"lm_head.weight"})
