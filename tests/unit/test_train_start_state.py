"""What is declared or known of the base's rate, and which first rates it allows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from run_checkpoints import make_run, store

from cptron.checkpoint.layout import read_manifest
from cptron.checkpoint.saved_rate import SavedRate, saved_rate, scale_at_save
from cptron.config.check_start import check_start
from cptron.config.load import load_config
from cptron.config.schema import Config, FreezeConfig, StageConfig, StartConfig
from cptron.errors import ConfigError
from cptron.forgetting.reaction import Reaction
from cptron.inspect import describe
from cptron.train.preflight import freeze_notes
from cptron.train.resume import Found, accepted_changes, found_parent
from cptron.train.start_state import start_notes

CONSTANT = {"state": "constant_phase", "lr_at_save": 1.65e-4}


@pytest.fixture
def parent(tmp_path: Path) -> Config:
    """Infinite: constant from 610 to 900, decayed at 1000."""
    return make_run(tmp_path / "run", [5, 700, 950, 1000], "optim.anneal_steps=100")


def known(tmp_path: Path, step: int) -> SavedRate:
    """What a checkpoint tells."""
    found = saved_rate(read_manifest(tmp_path / f"run/checkpoints/step_{step:08d}"))
    assert found is not None
    return found


def asking(parent: Config, start: dict[str, Any], **optim: Any) -> Config:
    """A new run with a constant rate, or as `optim` says."""
    values: dict[str, Any] = {
        "lr": 1.65e-4,
        "lr_min": 0.0,
        "schedule": "constant",
        "warmup_steps": 0,
        **optim,
    }
    values |= {"anneal_steps": 0, "cooldown_steps": 0, "lr_constant": 0.0}
    return dataclasses.replace(
        parent,
        start=StartConfig(checkpoint="base", **start),
        optim=dataclasses.replace(parent.optim, **values),
    )


@pytest.mark.parametrize(
    ("step", "state", "at_save"),
    [
        (5, "unknown", 1.8e-4),
        (700, "constant_phase", 1.65e-4),
        (950, "unknown", 6.9540e-05),
        (1000, "decayed", 3e-5),
    ],
)
def test_a_runs_checkpoint_knows_it(
    parent: Config, tmp_path: Path, step: int, state: str, at_save: float
) -> None:
    """Derived from the stored configuration, and shown by `cptron inspect`."""
    found = known(tmp_path, step)
    assert (found.state, found.peak) == (state, 3e-4)
    assert found.at_save == pytest.approx(at_save, rel=1e-4)
    shown = describe(str(tmp_path / f"run/checkpoints/step_{step:08d}"))["learning_rate"]
    assert shown["state"] == state and shown["lr_at_save"] == found.at_save and shown["lr_peak"] == 3e-4


def test_others_do_not(parent: Config, tmp_path: Path) -> None:
    """Converted models, and runs of a version whose configuration this one does not understand."""
    manifest = read_manifest(tmp_path / "run/checkpoints/step_00000700")
    assert saved_rate(dataclasses.replace(manifest, config={})) is None
    odd = {**manifest.config, "optim": {**manifest.config["optim"], "schedule": "wavy"}}
    assert saved_rate(dataclasses.replace(manifest, config=odd)) is None
    broken = {**manifest.config, "optim": {**manifest.config["optim"], "cooldown_steps": -3}}
    assert saved_rate(dataclasses.replace(manifest, config=broken)) is None


@pytest.mark.parametrize("start", [CONSTANT, {}], ids=["declared", "known"])
@pytest.mark.parametrize(
    ("optim", "how"),
    [({"warmup_steps": 50}, "optim.warmup_steps=50"), ({"lr": 3e-4}, "a first rate of 0.0003")],
)
def test_no_silent_rewarm_from_the_constant_phase(
    parent: Config, tmp_path: Path, start: dict[str, Any], optim: dict[str, Any], how: str
) -> None:
    """Refused with the values that go on as before; named, it is a note. The constant rate itself, or less, is fine."""
    saved = None if start else known(tmp_path, 700)
    with pytest.raises(ConfigError) as caught:
        start_notes(asking(parent, start, **optim), saved, 0)
    assert f"constant of 0.000165, and {how} would raise" in str(caught.value)
    assert "use optim.lr=0.000165 and optim.warmup_steps=0, or start.rewarm=true" in str(caught.value)
    (note,) = start_notes(asking(parent, start | {"rewarm": True}, **optim), saved, 0)
    assert note == f"start.rewarm=true: {how} although the base comes from a constant phase of 0.000165"
    assert start_notes(asking(parent, start), saved, 0) == ()
    assert start_notes(asking(parent, start, lr=1e-5), saved, 0) == ()


def test_declared_without_its_rate(parent: Config) -> None:
    """Then only a warm-up is known to raise it, and a note says so."""
    start = {"state": "constant_phase"}
    (note,) = start_notes(asking(parent, start, lr=1.0), None, 0)
    assert "nothing tells whether a first rate of 1 is above the base's; give start.lr_at_save" in note
    with pytest.raises(
        ConfigError, match=r"constant, and optim.warmup_steps=9 .* use optim.warmup_steps=0, or"
    ):
        start_notes(asking(parent, start, warmup_steps=9), None, 0)


def test_what_stages_and_the_monitor_make_of_the_rate(parent: Config, tmp_path: Path) -> None:
    """A run that the monitor had slowed down goes on at what it really had; a later stage does not rise unseen."""
    saved, checkpoint = known(tmp_path, 700), tmp_path / "run/checkpoints/step_00000700"
    slowed = {"reaction": Reaction(lr_factor=0.5).to_dict()}
    (checkpoint / "state.json").write_text(json.dumps(slowed))
    staged = dataclasses.replace(
        parent, data=dataclasses.replace(parent.data, stages=(StageConfig(lr_scale=0.5),))
    )
    in_stage = dataclasses.replace(saved, config=staged)
    assert [scale_at_save(in_stage, checkpoint, with_monitor=told) for told in (True, False)] == [0.25, 0.5]
    with pytest.raises(ConfigError, match=r"constant of 8.25e-05, and a first rate of 0.000165 would"):
        start_notes(asking(parent, {}), saved, 0, 0.5)
    assert start_notes(asking(parent, {}, lr=8.25e-5), saved, 0, 0.5) == ()
    tokens = parent.train.global_batch_size * parent.data.seq_length
    stages = (StageConfig(until_tokens=10 * tokens), StageConfig(lr_scale=2.0))
    rising = asking(parent, {})
    rising = dataclasses.replace(rising, data=dataclasses.replace(parent.data, stages=stages))
    with pytest.raises(ConfigError, match=r"a rate of 0.00033 in data.stages.1 would raise"):
        start_notes(rising, saved, 0)


def test_a_decayed_base_may_be_warmed_up(parent: Config, tmp_path: Path) -> None:
    """A jump without warm-up is said."""
    saved = known(tmp_path, 1000)
    assert start_notes(asking(parent, {}, lr=3e-4, warmup_steps=50), saved, 0) == ()
    assert start_notes(asking(parent, {}, lr=3e-5), saved, 0) == ()
    (note,) = start_notes(asking(parent, {}, lr=3e-4), saved, 0)
    assert "jumps from 3e-05 to 0.0003" in note


def test_an_unknown_state_is_said(parent: Config) -> None:
    (note,) = start_notes(asking(parent, {}, warmup_steps=50), None, 0)
    assert note.startswith("start.state=unknown: nothing tells")
    assert start_notes(asking(parent, {"state": "decayed"}, warmup_steps=50), None, 0) == ()


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            {"state": "decayed"},
            r"start.state=decayed, but start.checkpoint=base was saved at step 700 in the phase ",
        ),
        (
            {"lr_at_save": 3e-4},
            r"start.lr_at_save=0.0003, but the run of .* would have gone on with 0.000165",
        ),
    ],
)
def test_a_declaration_that_the_checkpoint_contradicts(
    parent: Config, tmp_path: Path, start: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        start_notes(asking(parent, start), known(tmp_path, 700), 0)
    assert start_notes(asking(parent, {**CONSTANT, "lr_at_save": 1.65e-4}), known(tmp_path, 700), 0) == ()


def test_a_branch_counts_from_its_checkpoint(parent: Config, tmp_path: Path) -> None:
    """The parent's warm-up lies before it."""
    config = dataclasses.replace(
        parent, start=StartConfig(mode="branch", checkpoint="base"), optim=parent.optim
    )
    assert start_notes(config, known(tmp_path, 700), 700) == ()
    risen = dataclasses.replace(config, optim=dataclasses.replace(parent.optim, lr_constant=2e-4))
    with pytest.raises(ConfigError, match=r"a first rate of 0.0002 would raise"):
        start_notes(risen, known(tmp_path, 700), 700)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"mode": "branch"}, r"start.checkpoint='', but start.mode=branch"),
        ({"mode": "branch", "hugging_face": "m"}, r"start.hugging_face=m, but start.mode=branch"),
        ({"checkpoint": "c", "lr_peak": -1.0}, r"start.lr_peak=-1.0 must not be negative"),
        ({"mode": "random", "state": "decayed"}, r"start.state=decayed.* start.mode=random has none"),
    ],
)
def test_rules_of_the_start(parent: Config, start: dict[str, Any], message: str) -> None:
    architecture = "a.json" if start.get("mode") == "random" else ""
    model = dataclasses.replace(parent.model, architecture=architecture)
    with pytest.raises(ConfigError, match=message):
        check_start(dataclasses.replace(parent, start=StartConfig(**start), model=model))


def test_a_stored_change_is_in_the_checkpoint(parent: Config, tmp_path: Path) -> None:
    """An override on resume decides from the first checkpoint that was trained with it."""
    changed = dataclasses.replace(parent, optim=dataclasses.replace(parent.optim, lr_constant=1e-4))
    store(tmp_path / "run", 800, changed)
    assert known(tmp_path, 800).at_save == 1e-4 and known(tmp_path, 700).at_save == 1.65e-4


@pytest.mark.parametrize(
    ("step", "changes", "note"),
    [
        (1000, {"train.steps": 2000}, "3e-05 -> 0.000165, it rises again"),
        (950, {"optim.lr_min": 6e-5}, "6.954e-05 -> 9.075e-05, it rises again"),
        (700, {"optim.lr_constant": 1e-4}, "0.000165 -> 0.0001"),
        (5, {"optim.lr": 6e-4}, "0.00018 -> 0.00036"),
        (5, {"optim.lr_min": 0.0}, ""),
        (700, {"train.steps": 2000}, ""),
    ],
)
def test_a_changed_rate_is_said_on_resume(
    parent: Config, tmp_path: Path, step: int, changes: dict[str, Any], note: str
) -> None:
    """Both rates of the next step, and that the model is warmed up again where it had begun to decay."""
    checkpoint = tmp_path / f"run/checkpoints/step_{step:08d}"
    words = [f"{key}={value}" for key, value in changes.items()]
    config = load_config(tmp_path / "run/config.yaml", words).config
    _, notes = accepted_changes(config, Found(checkpoint, {}, ()), {}, read_manifest(checkpoint).arch, {})
    rates = [found for found in notes if "learning rate" in found]
    assert rates == ([f"learning rate of the next step: {note}"] if note else [])


def test_another_tokenizer_of_a_branch_must_be_named(parent: Config, tmp_path: Path) -> None:
    """As at a resume: the parent's checkpoint says which one it was."""
    found = found_parent(tmp_path / "run/checkpoints/step_00000700")
    assert found.checkpoint is not None
    arch, config = read_manifest(found.checkpoint).arch, dataclasses.replace(parent)
    with pytest.raises(ConfigError, match=r"the branch has changed since step 700: tokenizer ffffffffffff"):
        accepted_changes(config, found, {"tokenizer": "0" * 64}, arch, {})
    assert accepted_changes(config, found, {"tokenizer": "f" * 64}, arch, {}) == ((), ())


def test_rules_of_freezing_that_have_passed_are_said(parent: Config, tmp_path: Path) -> None:
    """Of a branch, or added at a resume: tokens count from the beginning. What the checkpoint was trained with is past
    by itself."""
    checkpoint = tmp_path / "run/checkpoints/step_00000700"
    trained = read_manifest(checkpoint).tokens_total
    rules = tuple(
        FreezeConfig(match=name, until_tokens=trained + more) for name, more in (("a", 0), ("b", 1))
    )
    config = dataclasses.replace(parent, optim=dataclasses.replace(parent.optim, freeze=rules))
    (note,) = freeze_notes(config, checkpoint)
    assert note.startswith(
        f"optim.freeze.0.until_tokens={trained} does nothing: {trained} tokens were trained on"
    )
    assert freeze_notes(config, None) == freeze_notes(parent, checkpoint) == ()
    assert freeze_notes(config, store(tmp_path / "run", 800, config)) == ()
