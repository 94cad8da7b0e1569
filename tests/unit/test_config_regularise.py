"""Rules of regularisers and freeze schedules: what cannot be meant is refused with the key at fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_world import CONFIG

from cptron.config.check import check_config
from cptron.config.load import load_config
from cptron.errors import ConfigError
from cptron.train.preflight import regularise_notes

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
        ["regularise.l2sp=1", NO_DECAY, "start.mode=branch", "regularise.base=B"],
        ["regularise.l2sp=1", NO_DECAY, "start.checkpoint=''", "start.hugging_face=H", "regularise.base=B"],
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
        (
            ["regularise.l2sp=300", NO_DECAY, "data.stages=[{until_tokens: 100, lr_scale: 2.0}, {}]"],
            "must be at most 1",
        ),
        (["regularise.ewc_form=proximal"], "ewc_form=proximal has no effect without regularise.ewc"),
        (["regularise.fisher_precision=bf16"], "fisher_precision=bf16 has no effect without"),
        (["regularise.anchor_precision=bf16"], "has no effect without regularise.l2sp or regularise.ewc"),
        (["regularise.distill.teacher=cached"], "teacher=cached has no effect"),
        (["regularise.distill.top_k=8"], "distill.top_k=8 has no effect with regularise.distill.weight=0"),
        (["regularise.base=B"], "regularise.base=B would not be read"),
        (["regularise.l2sp=1", NO_DECAY, "start.mode=branch"], "is in the middle of a run"),
        (["regularise.distill.weight=1", REPLAY, "start.mode=branch"], "is in the middle of a run"),
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
        (
            [
                *("regularise.agem=true", REPLAY),
                "data.stages=[{until_tokens: 100, shares: {general: 1}}, {}]",
            ],
            "agem=true with data.stages.0.shares={'general': 1.0} would train on nothing",
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


def test_what_is_experimental_says_so_at_the_start(tmp_path: Path) -> None:
    """One note for each such key that is on, and none otherwise."""
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(root=tmp_path))
    assert regularise_notes(load_config(path, []).config) == ()
    agem, ado = regularise_notes(load_config(path, ["regularise.agem=true", "data.mixer=ado"]).config)
    assert agem.startswith("regularise.agem=true is experimental")
    assert ado.startswith("data.mixer=ado is experimental")


@pytest.mark.parametrize(("beta2", "words"), [(0.95, []), (0.999, ["are up to 6.6 times the rate"])])
def test_what_begins_to_move_too_fast_is_spoken_of(beta2: float, words: list[str], tmp_path: Path) -> None:
    """The bound of the note is what AdamW does with zero moments, a constant gradient and a late step count."""
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(root=tmp_path))
    freeze = "optim.freeze=[{match: word_embeddings, until_tokens: 9}]"
    notes = regularise_notes(load_config(path, [freeze, f"optim.beta2={beta2}"]).config)
    assert len(notes) == len(words) and all(word in note for word, note in zip(words, notes, strict=True))
    first, second, fastest = 0.0, 0.0, 0.0
    for _ in range(200):
        first, second = 0.9 * first + 0.1, beta2 * second + (1 - beta2)
        fastest = max(fastest, first / second**0.5)
    assert fastest == pytest.approx({0.95: 1.0967, 0.999: 6.5685}[beta2], rel=1e-4)
