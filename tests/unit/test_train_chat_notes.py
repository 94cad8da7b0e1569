"""What a plan says of chats: their part after the mask, too few or too many for an instruct model, and their order."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_world import write_tokens
from tokens_world import write_known

from cptron.config.load import load_config
from cptron.config.schema import Config
from cptron.data.content import open_content
from cptron.errors import DataError
from cptron.tokens.index_layout import loss_mask_path
from cptron.train.chat_notes import chat_notes, learned_part
from cptron.train.origin import Origin

YAML = """\
run: {{dir: runs/x}}
start: {{checkpoint: base}}
data:
  seq_length: 8
  sources:
    - {{name: text, path: {root}/text, token_share: {text}}}
    - {{name: chats, path: {root}/chats, token_share: {chats}, role: {role}}}
  valid: []
train: {{steps: 2, global_batch_size: 2, micro_batch_size: 1}}
optim: {{lr: 1.0e-3}}
eval: {{at_start: false}}
"""
CHAT = {"chat_template": "ab" * 32, "loss_mask": "assistant"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A text and chats, of which a quarter is learned, and an instruct model's small files."""
    write_tokens(tmp_path / "text", [20, 20])
    write_known(tmp_path / "chats", [range(8)] * 4, [0, 0, 0, 1] * 8, options=CHAT)
    (tmp_path / "chat_template.jinja").write_text("x")
    return tmp_path


def config_of(root: Path, chats: float, role: str = "replay", *overrides: str) -> Config:
    """`chats` of 100 tokens are chats."""
    (root / "run.yaml").write_text(YAML.format(root=root, text=100 - chats, chats=chats, role=role))
    return load_config(root / "run.yaml", overrides).config


def notes_of(root: Path, config: Config, base: Path | None = None) -> list[str]:
    """With the model in `root` as the base."""
    nothing: Any = None
    origin = Origin(arch=nothing, weights="", tokenizer="", hugging_face=base or root)
    contents = {source.name: open_content(source.path) for source in config.data.sources}
    return list(chat_notes(config, origin, contents))


@pytest.mark.parametrize("chats", [1.0, 3.0, 5.0])
def test_the_usual_replay_is_only_counted(chats: float, root: Path) -> None:
    """Read and trained on are two numbers where a mask leaves tokens out."""
    (note,) = notes_of(root, config_of(root, chats))
    trained = 100 * chats * 0.25 / (chats * 0.25 + 100 - chats)
    assert note == (
        f"source chats: its loss mask counts 25 % of its tokens; {chats:.3g} % of the tokens read, {trained:.3g} % of "
        "those trained on"
    )


@pytest.mark.parametrize("chats", [0.5, 0.9, 5.2, 40.0])
def test_unusual_replay_is_said(chats: float, root: Path) -> None:
    """With the number; not of a base without a chat template, nor of chats that are the new data."""
    _, note = notes_of(root, config_of(root, chats))
    assert (
        note.startswith(f"chats of role replay (chats) are {chats:.3g} % of the tokens; usual")
        and "1 to 5 %" in note
    )
    assert len(notes_of(root, config_of(root, chats), root / "elsewhere")) == 1
    assert len(notes_of(root, config_of(root, chats, "new"))) == 1


def test_stages_are_looked_at_one_by_one(root: Path) -> None:
    """Only those that are unusual are named."""
    stages = "data.stages=[{until_tokens: 9, shares: {chats: 1}}, {shares: {chats: 1, text: 32}}]"
    masked, note = notes_of(root, config_of(root, 3.0, "replay", stages))
    assert "100 % of those trained on in data.stages.0" in masked and "in data.stages.1" in masked
    assert "100 % of the tokens in data.stages.0;" in note and "data.stages.1" not in note


@pytest.mark.parametrize("where", ["file", "config"])
def test_an_instruct_model_without_chats(where: str, root: Path) -> None:
    """Never silent: files whose chats are drawn in no stage, or that no manifest vouches for, are none. A base model
    without a template hears nothing."""
    base = root / "base"
    base.mkdir()
    stages = "data.stages=[{shares: {text: 1}}]"
    assert not notes_of(root, config_of(root, 3.0, "replay", stages), base)[1:]
    if where == "file":
        (base / "chat_template.jinja").write_text("x")
    else:
        (base / "tokenizer_config.json").write_text(json.dumps({"chat_template": "x"}))
    masked, note = notes_of(root, config_of(root, 3.0, "replay", stages), base)
    assert masked.endswith("never drawn")
    assert "has a chat template, but no source is known to hold chats" in note and "\n" not in note


def test_an_order_that_is_lost_is_said(root: Path) -> None:
    """Questions before their documents stay so with `order: given` alone."""
    write_known(root / "chats", [range(8)], [1] * 8, options={**CHAT, "chat_and_text": "true"})
    (note,) = notes_of(root, config_of(root, 3.0))
    assert "order=given" in note
    assert notes_of(root, config_of(root, 3.0, "replay", "data.sources.chats.order=given")) == []


def test_another_template_is_said(root: Path) -> None:
    """Where both are known, and by their text alone."""
    for text, count in (("x", 0), ("y", 1)):
        options = {**CHAT, "chat_template_source": hashlib.sha256(text.encode()).hexdigest()}
        write_known(root / "chats", [range(8)], [1] * 8, options=options)
        notes = notes_of(root, config_of(root, 3.0))
        assert len(notes) == count and all("another chat template than the base" in note for note in notes)
        assert notes_of(root, config_of(root, 3.0), root / "elsewhere") == []


def test_a_mask_that_does_not_fit_is_refused(root: Path) -> None:
    """Before any rank is started."""
    manifest = root / "chats.manifest.json"
    known = json.loads(manifest.read_text())
    known["files"]["loss_mask"]["bytes"] = 31
    manifest.write_text(json.dumps(known))
    loss_mask_path(root / "chats").write_bytes(bytes(31))
    with pytest.raises(DataError, match="must have one for each"):
        notes_of(root, config_of(root, 3.0))


def test_the_part_that_is_learned() -> None:
    """Exact for small masks; of a large one, samples all over it."""
    draw = np.random.default_rng(0)
    for size in (1, 7, 1 << 18, (1 << 18) + 1):
        mask = draw.integers(0, 2, size).astype(np.uint8)
        assert learned_part(mask) == pytest.approx(mask.mean(), abs=1e-3 if size > 1 << 18 else 1e-12)
    large = np.zeros(40 << 20, np.uint8)
    large[: 10 << 20] = 1
    assert learned_part(large) == pytest.approx(0.25, abs=0.02)
    assert learned_part(np.zeros(0, np.uint8)) == 1
