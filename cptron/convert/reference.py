"""Logits that `transformers` computes, with one parameter of the model in memory at a time.

Place in the flow: the independent side of every proof: probe, verification, direct start. Invariant: the computation
is `transformers`' own model code in fp32; only where its parameters come from, and when, is ours.

Shapes: S tokens, H hidden, V vocabulary, R rows.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F

from cptron.convert.source import WeightSource

ROWS_AT_ONCE = 8192
"""Rows of the embedding, and of the output matrix, which with its fp32 copy would be the largest thing in memory."""


def reference_logits(config: dict[str, Any], source: WeightSource, token_ids: list[int]) -> torch.Tensor:
    """Logits `[S, V]` of the model of a Hugging Face `config`, in fp32 on the CPU."""
    model = _empty_model(config)
    scratch = _Scratch()
    tied = "lm_head.weight" if model.config.tie_word_embeddings else ""
    for name, module in model.named_modules():
        own = {key: f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)}
        if f"{name}.weight" == tied:
            own["weight"] = "model.embed_tokens.weight"
        if isinstance(module, torch.nn.Embedding):
            _read_rows(module, source, own["weight"])
        elif module is model.get_output_embeddings():
            module.forward = types.MethodType(_OutputRows(source, own, scratch), module)
        elif own:
            _fill_when_called(module, source, own, scratch)
    with torch.no_grad():
        return model(torch.tensor([token_ids]), use_cache=False).logits[0]  # type: ignore[no-any-return]


def _empty_model(config: dict[str, Any]) -> Any:
    """The model without parameters, but with all that is computed and not loaded (rotary frequencies, scales)."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    with torch.device("meta"):
        values = {key: value for key, value in config.items() if key != "quantization_config"}
        settings = CONFIG_MAPPING[config["model_type"]].from_dict(values)
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32).eval()
    for name, module in model.named_modules():
        buffers = {key: value for key, value in module._buffers.items() if value is not None}
        if not buffers:
            continue
        for key, buffer in buffers.items():
            module._buffers[key] = torch.full_like(buffer, torch.nan, device="cpu")
        with torch.no_grad():
            model._init_weights(module)
        for key in buffers:
            assert not module._buffers[key].isnan().any(), f"transformers leaves {name}.{key} unset"
    return model


class _Scratch:
    """fp32 copies of parameters in memory that is used again: fresh memory for each would cost as much as the products.

    What is taken last is given back first, as modules call each other.
    """

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []
        self._used: list[torch.Tensor] = []

    def float(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in fp32."""
        fitting = [buffer for buffer in self._free if buffer.numel() >= tensor.numel()]
        if fitting:
            buffer = min(fitting, key=torch.Tensor.numel)
            self._free = [other for other in self._free if other is not buffer]
        else:
            self._free.clear()  # all too small; a model's largest parameters come in its first layer
            buffer = torch.empty(tensor.numel())
        self._used.append(buffer)
        return buffer[: tensor.numel()].view(tensor.shape).copy_(tensor)

    def give_back(self, count: int) -> None:
        """Free the last `count` copies."""
        for _ in range(count):
            self._free.append(self._used.pop())


def _fill_when_called(
    module: torch.nn.Module, source: WeightSource, own: dict[str, str], scratch: _Scratch
) -> None:
    """Give the module its parameters when it is called, and take them away again."""
    empty = dict(module._parameters)

    def fill(module: torch.nn.Module, inputs: Any) -> None:
        for key, name in own.items():
            module._parameters[key] = torch.nn.Parameter(
                scratch.float(source.read(name)), requires_grad=False
            )

    def clear(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        module._parameters.update(empty)
        scratch.give_back(len(own))

    module.register_forward_pre_hook(fill)
    module.register_forward_hook(clear)


def _read_rows(module: torch.nn.Embedding, source: WeightSource, name: str) -> None:
    """The embedding's own forward pass, over a table of the rows that are asked for."""
    whole = type(module).forward

    def forward(self: Any, input_ids: torch.Tensor) -> torch.Tensor:
        used, places = input_ids.unique(return_inverse=True)
        rows = []
        for block in (used // ROWS_AT_ONCE).unique().tolist():  # a source may have to read far for any row
            start = block * ROWS_AT_ONCE
            inside = used[used // ROWS_AT_ONCE == block] - start
            end = start + min(int(inside.max()) + 1, ROWS_AT_ONCE)
            rows.append(source.read_range(name, 0, start, end)[inside])
        before, padding = self._parameters["weight"], self.padding_idx
        self._parameters["weight"] = torch.nn.Parameter(torch.cat(rows).float(), requires_grad=False)
        self.padding_idx = None  # has no part in the forward pass, but must be a row
        output: torch.Tensor = whole(self, places)
        self._parameters["weight"], self.padding_idx = before, padding
        return output

    module.forward = types.MethodType(forward, module)  # type: ignore[method-assign]


class _OutputRows:
    """The output layer by groups of rows."""

    def __init__(self, source: WeightSource, own: dict[str, str], scratch: _Scratch) -> None:
        self._source, self._name, self._scratch = source, own["weight"], scratch
        assert list(own) == ["weight"], "an output layer with a bias"

    def __call__(self, module: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        parts = []
        for start in range(0, module.out_features, ROWS_AT_ONCE):
            end = min(start + ROWS_AT_ONCE, module.out_features)
            rows = self._scratch.float(self._source.read_range(self._name, 0, start, end))
            parts.append(F.linear(hidden, rows))
            self._scratch.give_back(1)
        return torch.cat(parts, dim=-1)
