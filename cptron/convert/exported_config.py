"""The `config.json` of an export: made from the trained model, and proven by `transformers`.

Place in the flow: export. Invariant: a published config describes exactly the tensors beside it, whatever the base
model's config said.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cptron.convert.safetensors_write import TensorSpec
from cptron.errors import ConversionError
from cptron.json_text import parse_json
from cptron.model.architecture import Architecture
from cptron.model.families.family import Family

CARRIED = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "initializer_range",
    "pad_token_id",
    "use_cache",
)
"""What is taken from the base model's config: nothing that changes the shape or the computation of the weights."""
TORCH_NAMES = {"bf16": "bfloat16", "fp32": "float32"}


def exported_config(small_files: Path, family: Family, arch: Architecture, precision: str) -> dict[str, Any]:
    """The config of the model; `small_files` is where the base's is, if there is one."""
    path = small_files / "config.json"
    try:
        base = parse_json(path.read_text()) if path.is_file() else {}
        carried = {key: base[key] for key in CARRIED if key in base}
    except (OSError, ValueError, TypeError) as error:
        raise ConversionError(f"{path} cannot be read ({error}); use another checkpoint") from None
    config = {**family.write_config(arch), **carried, "dtype": TORCH_NAMES[precision]}
    assert family.read_config(config) == arch, "the config that is written describes another model"
    return config


def check_export(directory: Path, specs: Sequence[TensorSpec]) -> None:
    """Raise `ConversionError` unless `transformers` builds, from the config, a model of exactly these tensors, and
    loads the tokenizer if one is there."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        if (directory / "tokenizer.json").is_file():
            AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ConversionError(
            f"transformers does not load the export ({reason}); nothing was published"
        ) from None
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}
    written = {spec.name: spec.shape for spec in specs}
    wrong = sorted(name for name in {**expected, **written} if expected.get(name) != written.get(name))
    if wrong:
        raise ConversionError(
            f"the export has {wrong[0]} of shape {written.get(wrong[0])}, transformers expects "
            f"{expected.get(wrong[0])} ({len(wrong)} tensor(s) in all); nothing was published"
        )
