"""Tensor rules of every family against the model that `transformers` builds from the config that the family writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.convert.weight_map import (
    Part,
    expected_shapes,
    hugging_face_shapes,
    layers_of,
    megatron_shape,
    read_part,
    to_hugging_face,
    to_megatron,
)
from cptron.model.architecture import Architecture, LinearScaling, LongRopeScaling
from cptron.model.families import FAMILIES

FIXED: dict[str, dict[str, Any]] = {
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": "head"},
    "gemma3_text": {
        "qk_norm": "head",
        "activation": "gelu_tanh",
        "norm_placement": "sandwich",
        "zero_centered_norm": True,
    },
    "olmo2": {"qk_norm": "projection", "norm_placement": "post", "rotation_in_fp32": True},
}
"""What all models of a family have in common."""


@st.composite
def architectures(draw: st.DrawFn, model_type: str) -> Architecture:
    """Small ones that the family can have."""
    kv_heads, per_group, size = (
        draw(st.sampled_from([1, 2, 4])),
        draw(st.integers(1, 3)),
        draw(st.sampled_from([4, 6, 8])),
    )
    heads, layers = kv_heads * per_group, draw(st.integers(1, 4))
    hidden = heads * size if model_type in ("phi3", "gemma3_text") else draw(st.integers(2, 20)) * heads
    numbers = st.lists(st.integers(0, layers - 1), unique=True).map(lambda found: tuple(sorted(found)))
    found: dict[str, Any] = {**FIXED.get(model_type, {})}
    if model_type in ("mistral", "phi3") and draw(st.booleans()):
        found |= {"sliding_window": draw(st.integers(1, 99)), "windowed_layers": tuple(range(layers))}
    if model_type in ("qwen2", "qwen3", "gemma3_text", "smollm3") and (windowed := draw(numbers)):
        found |= {"sliding_window": draw(st.integers(1, 99)), "windowed_layers": windowed}
    if model_type == "smollm3":
        found["unrotated_layers"] = draw(numbers)
    if model_type == "gemma3_text":
        found |= {"embedding_scale": hidden**0.5, "attention_scale": draw(st.integers(1, 400)) ** -0.5}
        if "windowed_layers" in found:
            found["rope_local_theta"] = draw(st.floats(2.0, 1e6))
        if draw(st.booleans()):
            found["rope_scaling"] = LinearScaling(linear_factor=draw(st.floats(1.0, 16.0)))
    if model_type == "phi3":
        rotary = draw(st.sampled_from(range(2, size + 1, 2)))
        found["rotary_dim"] = None if rotary == size else rotary
        if draw(st.booleans()):
            divisors = st.lists(st.floats(0.5, 9.0), min_size=rotary // 2, max_size=rotary // 2).map(tuple)
            found["rope_scaling"] = LongRopeScaling(
                short_factor=draw(divisors),
                long_factor=draw(divisors),
                original_max_position_embeddings=draw(st.integers(2, 64)),
                attention_factor=draw(st.floats(0.5, 3.0)),
            )
    return Architecture(
        family=model_type,
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=draw(st.integers(1, 5)) * 4,
        num_attention_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=size,
        vocab_size=draw(st.integers(1, 150)),
        max_position_embeddings=64,
        norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        rope_theta=draw(st.floats(2.0, 1e7)),
        tied_embeddings=draw(st.booleans()),
        **found,
    )


ANY = st.sampled_from(sorted(FAMILIES)).flatmap(architectures)


@settings(deadline=None, max_examples=60)
@given(ANY)
def test_a_written_config_is_read_as_the_architecture(arch: Architecture) -> None:
    """Also by way of JSON and of transformers' own class."""
    from transformers import AutoConfig

    family = FAMILIES[arch.family]
    written = json.loads(json.dumps(family.write_config(arch)))
    assert written["model_type"] == arch.family
    assert family.read_config(written) == arch
    theirs = AutoConfig.for_model(written.pop("model_type"), **written)
    assert family.read_config(json.loads(theirs.to_json_string(use_diff=False))) == arch
    assert Architecture.from_dict(json.loads(json.dumps(arch.to_dict()))) == arch


@settings(deadline=None, max_examples=40)
@given(ANY)
def test_names_and_shapes_are_those_of_transformers(arch: Architecture) -> None:
    """Of the class that the config names; a tied output is no tensor of its own."""
    import transformers

    written = FAMILIES[arch.family].write_config(arch)
    (name,) = written["architectures"]
    config = transformers.AutoConfig.for_model(written.pop("model_type"), **written)
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    theirs = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if arch.tied_embeddings:
        theirs.pop("lm_head.weight", None)
    assert hugging_face_shapes(FAMILIES[arch.family], arch) == theirs


@settings(deadline=None, max_examples=60)
@given(ANY)
def test_there_and_back_is_bit_identical(arch: Architecture) -> None:
    """Every tensor of every family."""
    family = FAMILIES[arch.family]
    tensors = {name: torch.randn(shape) for name, shape in hugging_face_shapes(family, arch).items()}
    megatron = dict(to_megatron(family, arch, tensors.__getitem__, 256))
    back = dict(to_hugging_face(family, arch, megatron.__getitem__))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
@settings(deadline=None, max_examples=12)
@given(st.data())
def test_parts_are_the_whole(model_type: str, data: st.DataObject) -> None:
    """Each rule's parts of all tensor ranks along its cut, or the same on each; gate and up are cut one by one."""
    arch = data.draw(architectures(model_type))
    size = data.draw(st.sampled_from([size for size in (1, 2, 4) if arch.num_kv_heads % size == 0]))
    for rule in FAMILIES[arch.family].rules_for(arch):
        layer = layers_of(rule, arch)[-1]
        shapes = expected_shapes(rule, arch)
        names = [name.format(layer=layer) for name in rule.hugging_face]
        tensors = {name: torch.randn(shape) for name, shape in zip(names, shapes, strict=True)}

        def read(
            name: str, dim: int, start: int, end: int, tensors: dict[str, torch.Tensor] = tensors
        ) -> torch.Tensor:
            return tensors[name].narrow(dim, start, end - start)

        whole = read_part(rule, arch, layer, read, 384)
        assert tuple(whole.shape) == megatron_shape(rule, arch, 384)
        parts = [read_part(rule, arch, layer, read, 384, Part(rank, size)) for rank in range(size)]
        if rule.cut is None:
            assert all(torch.equal(part, whole) for part in parts)
        elif rule.layout == "gate_up":
            halves = [part.chunk(2) for part in parts]
            joined = torch.cat([torch.cat([half[n] for half in halves]) for n in range(2)])
            assert torch.equal(joined, whole)
        else:
            assert torch.equal(torch.cat(parts, rule.cut), whole)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_rules_name_each_parameter_once(model_type: str) -> None:
    """And every matrix that adapters may stand beside is a tensor of its own."""
    family = FAMILIES[model_type]
    rules = (*family.rules, family.output_rule)
    assert len({rule.megatron for rule in rules}) == len(rules)
    assert all(len(rule.shapes) == len(rule.hugging_face) for rule in rules)
    names = {name.split(".")[-2] for rule in rules for name in rule.hugging_face}
    assert set(family.adaptable) <= names
