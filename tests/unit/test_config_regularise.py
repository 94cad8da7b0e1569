"""Rules of regularisers and freeze schedules: what cannot be meant is refused with the key at fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_world import CONFIG

from cptron.config.check import check_config
from cptron.config.load import load_config
from cptron.errors import ConfigError

REPLAY = "data.sources.general.role=replay"
NO_DECAY = "optim.weight_decay=0"


def check(tmp_path: Path, *overrides: str) -> None:
    """Load the tiny world's configuration with overrides and check it for one rank."""
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(root=tmp_path))
    check_config(load_config(path, list(overrides)).config, 1)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["regularise.l2sp=1", NO_DECAY],
        ["regularise.ewc=0.1", "regularise.fisher=F"],
        ["regularise.agem=true", REPLAY],
        ["regularise.distill.weight=1", "regularise.distill.teacher=cached", REPLAY],
        ["optim.freeze=[{match: 'layers\\.[0-3]\\.', until_tokens: 10}]"],
        ["adapter.kind=lora", "optim.freeze=[{match: lora, until_tokens: 10}]"],
    ],
)
def test_what_can_be_meant_passes(words: list[str], tmp_path: Path) -> None:
    check(tmp_path, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["regularise.l2sp=-1", NO_DECAY], "l2sp=-1.0 must not be negative"),
        (["regularise.l2sp=1"], "takes the place of weight decay"),
        (["regularise.l2sp=501", NO_DECAY], "must be at most 1"),
        (["regularise.l2sp=300", NO_DECAY, "optim.groups=[{match: '*', lr_mult: 2.0}]"], "must be at most 1"),
        (["regularise.ewc=1"], "regularise.fisher='' names none"),
        (["regularise.fisher=F"], "would not be read"),
        (["regularise.l2sp=1", NO_DECAY, "adapter.kind=lora"], "would hold weights that do not move"),
        (["regularise.l2sp=1", NO_DECAY, "start.checkpoint=''", "start.hugging_face=H"], "names none"),
        (["regularise.agem=true"], "no source has role=replay"),
        (["regularise.agem=true", REPLAY, "adapter.kind=lora"], "gradients of adapters"),
        (["regularise.agem=true", REPLAY, "doremi.reference=R"], "remove the section regularise"),
        (["regularise.l2sp=1", NO_DECAY, "doremi.reference=R"], "remove the section regularise"),
        (
            [
                *("regularise.distill.weight=1", "regularise.distill.teacher=cached", REPLAY),
                "data.stages=[{until_tokens: 100, seq_length: 8}, {}]",
            ],
            "data.stages have 8, 32; use teacher=live",
        ),
        (
            ["regularise.agem=true", REPLAY, "data.sources.domain.role=replay"],
            "no source has role=new",
        ),
        (["regularise.distill.weight=1"], "asks the teacher about replay sources"),
        (["regularise.distill.weight=1", REPLAY, "regularise.distill.top_k=0"], "top_k=0"),
        (["optim.freeze=[{match: '(', until_tokens: 1}]"], "is no regular expression"),
        (["optim.freeze=[{match: '', until_tokens: 1}]"], "would fit every parameter"),
        (["optim.freeze=[{match: a, until_tokens: 0}]"], "until_tokens=0 must be at least 1"),
        (["optim.freeze=[{match: a, until_tokens: 1, rows_below: -1}]"], "rows_below=-1"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        check(tmp_path, *words)
    assert message in str(refused.value)
