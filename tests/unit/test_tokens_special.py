"""What a tokenizer's post-processor adds, found without parsing its vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cptron.errors import DataError
from cptron.tokens.special_tokens import tokenizer_adds_bos

BOS = {"SpecialToken": {"id": "<s>", "type_id": 0}}
SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}


def processor(*single: dict[str, Any]) -> dict[str, Any]:
    """A template around a text."""
    tokens = {"<s>": {"id": "<s>", "ids": [7], "tokens": ["<s>"]}}
    return {
        "type": "TemplateProcessing",
        "single": list(single),
        "pair": [SEQUENCE, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": tokens,
    }


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("value", "adds"), [(None, False), (processor(SEQUENCE), False), (processor(BOS, SEQUENCE), True)]
)
def test_wherever_the_key_stands(
    tmp_path: Path, indent: int | None, first: bool, value: Any, adds: bool
) -> None:
    """Before or after a vocabulary whose tokens are named like the key, compact or indented."""
    vocab = {'"post_processor"': 0, '"post_processor": {"type"': 1, "post_processor": 2}
    model, key = {"model": {"type": "BPE", "vocab": vocab}}, {"post_processor": value}
    content = key | model if first else model | key
    (tmp_path / "tokenizer.json").write_text(json.dumps(content, indent=indent))
    assert tokenizer_adds_bos(str(tmp_path), 7) is adds
    assert tokenizer_adds_bos(str(tmp_path / "tokenizer.json"), 7) is adds


def test_what_cannot_be_reproduced_is_refused(tmp_path: Path) -> None:
    """A token after the text, another than BOS before it, or files that contradict one another."""
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({"post_processor": processor(SEQUENCE, BOS)}))
    with pytest.raises(DataError, match="after a text"):
        tokenizer_adds_bos(str(file), 7)
    file.write_text(json.dumps({"post_processor": processor(BOS, SEQUENCE)}))
    with pytest.raises(DataError, match=r"\[7\] before"):
        tokenizer_adds_bos(str(file), 8)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
    with pytest.raises(DataError, match="add_bos_token False"):
        tokenizer_adds_bos(str(file), 7)


@pytest.mark.parametrize("name", ["tokenizer.model", "words.tiktoken"])
def test_only_a_tokenizer_json_has_a_post_processor(name: str, tmp_path: Path) -> None:
    """Other files are not parsed; what is stated beside them still has to agree."""
    (tmp_path / name).write_bytes(b"\n\x0e\n\x05<unk>")
    assert tokenizer_adds_bos(str(tmp_path / name), 7) is False
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    with pytest.raises(DataError, match=f"{name} adds none"):
        tokenizer_adds_bos(str(tmp_path / name), 7)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    """Not a traceback."""
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / name).write_text('{"post_processor": ')
    with pytest.raises(DataError, match=f"{name} must be JSON") as caught:
        tokenizer_adds_bos(str(tmp_path), 7)
    assert "\n" not in str(caught.value)
