"""Rules of the section `forgetting`: each is broken once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_arch import SMALL

from cptron.config.check import check_config
from cptron.config.check_forgetting import check_probes
from cptron.config.load import load_config
from cptron.errors import ConfigError
from cptron.forgetting.settings import is_watched

CONFIG = """\
run: {dir: RUN}
start: {checkpoint: b}
data:
  seq_length: 8
  sources: [{name: a, path: p, token_share: 1}, {name: b, path: q, token_share: 1, role: replay}]
  valid: [{name: a, path: v, suite: old}, {name: induction, path: w}]
train: {steps: 8, global_batch_size: 1}
optim: {lr: 1e-3}
eval: {every_steps: 2}
checkpoint: {every_steps: 2}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A configuration that keeps all rules."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    return tmp_path / "c.yaml"


@pytest.mark.parametrize("action", ["alert", "raise_replay", "lower_lr", "rollback", "stop_and_keep_best"])
def test_every_action_is_possible(path: Path, action: str) -> None:
    check_config(load_config(path, [f"forgetting.action={action}"]).config, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["patience=0"], "patience=0 must be at least 1"),
        (["grace_tokens=-1"], "grace_tokens=-1 must be at least 0"),
        (["resamples=9"], "resamples=9 must be at least 100"),
        (["epsilon_nats=0"], "epsilon_nats=0.0 must be more than 0"),
        (["confidence=1"], "confidence=1.0 must be from 0.5"),
        (["mapping_sequences=1"], "mapping_sequences=1 has no interval"),
        (["mapping_sequences=2", "mapping_pairs=40"], "must come twice in probe_tokens=128 tokens; use at most 32"),
        (["induction_sequences=2"], "has a set induction, the name of a probe"),
        (["eval.at_start=false"], "are counted from step 0"),
        (["control=x", "data.valid.a.suite=''"], "and data.valid names none"),
        (["base=x", "data.valid.a.suite=''"], "forgetting.base=x is compared on sets with a suite"),
        (["action=lower_lr", "data.valid.a.suite=new"], "sets with suite old, and data.valid has none"),
        (["action=lower_lr", "eval.every_steps=0"], "needs evaluations on the way"),
        (["action=raise_replay", "data.sources.b.role=new"], "needs a source with role replay"),
        (["action=rollback", "checkpoint.every_steps=0"], "goes back to a checkpoint"),
        (["action=stop_and_keep_best", "checkpoint.every_steps=0"], "checkpoints that were evaluated"),
        (["action=stop_and_keep_best", "checkpoint.every_steps=3"], "checkpoints that were evaluated"),
        (["eval.every_tokens=-1"], "eval.every_tokens=-1 must not be negative"),
        (["eval.every_tokens=5", "eval.every_steps=0", "data.valid=[]"], "eval.every_tokens=5 but data.valid is empty"),
    ],
)  # fmt: skip
def test_broken_rules(path: Path, words: list[str], message: str) -> None:
    """Value, rule and remedy."""
    overrides = [word if "." in word.split("=")[0] else f"forgetting.{word}" for word in words]
    with pytest.raises(ConfigError) as caught:
        check_config(load_config(path, overrides).config, 1)
    assert message in str(caught.value) and ";" in str(caught.value)


def test_probes_fit_the_model(path: Path) -> None:
    """In positions and in ids."""
    large = replace(SMALL, max_position_embeddings=256, vocab_size=300)
    probes = ["forgetting.mapping_sequences=2", "data.valid=[]"]
    check_probes(load_config(path, probes).config, large)
    check_probes(load_config(path).config, SMALL)
    for arch, message in (
        (replace(large, max_position_embeddings=100), "must be at most the model's 100 positions"),
        (replace(large, vocab_size=100), "need 128 different tokens, the model has 100"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_probes(load_config(path, probes).config, arch)


def test_what_is_watched(path: Path) -> None:
    """A suite or a probe; nothing else turns the monitor on."""
    assert is_watched(load_config(path).config)
    assert not is_watched(load_config(path, ["data.valid.a.suite=''", "forgetting.action=lower_lr"]).config)
    assert is_watched(load_config(path, ["data.valid=[]", "forgetting.mapping_sequences=2"]).config)
