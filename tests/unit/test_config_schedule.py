"""Rules of the learning rate, and presets that fill in what is not written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cptron.config.check_schedule import check_schedule, idle_keys
from cptron.config.load import config_to_dict, load_config, load_values, resolved_yaml
from cptron.config.presets import PRESETS, preset_note
from cptron.config.schema import Config, OptimConfig
from cptron.errors import ConfigError
from cptron.optim.schedule import learning_rate

WSD = {"schedule": "wsd", "anneal_steps": 20}
INFINITE = {"schedule": "infinite", "cooldown_steps": 30, "lr_constant": 0.5, "anneal_steps": 20}
RUN = """\
run: {dir: here}
start: {checkpoint: base}
data: {seq_length: 4096, sources: [{name: a, path: a, token_share: 1}]}
train: {steps: 1000, global_batch_size: 8}
eval: {at_start: false}
"""
VALUES = ("schedule", "lr", "lr_min", "warmup_steps")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, r"optim.lr=0.0 must be more than 0; use e.g. 1e-5, or an optim.preset"),
        ({"warmup_from": 2.0}, r"optim.warmup_from=2.0 must be from 0 to optim.lr=1.0"),
        (
            {"schedule": "inverse_sqrt"},
            r"optim.warmup_steps=0 with optim.schedule=inverse_sqrt, which .* use e.g. 100",
        ),
        ({"anneal_steps": 5}, r"optim.anneal_steps=5 belongs to optim.schedule=wsd or infinite, not cosine"),
        ({**WSD, "lr_constant": 0.5}, r"optim.lr_constant=0.5 belongs to optim.schedule=infinite, not wsd"),
        ({**WSD, "cooldown_steps": 5}, r"optim.cooldown_steps=5 belongs to optim.schedule=infinite"),
        (
            {"schedule": "wsd"},
            r"optim.anneal_steps=0 must be the length of the decay .* use e.g. 10, or .*constant",
        ),
        (
            {**WSD, "warmup_steps": 81},
            r"anneal_steps=20 before train.steps=100 .* at step 81; use at most 19",
        ),
        ({**WSD, "decay_steps": 19}, r"anneal_steps=20 before optim.decay_steps=19 .* use at most 19"),
        ({**WSD, "decay_form": "geometric"}, r"optim.lr_min=0.0 is never reached by .* use e.g. 0.01"),
        ({**INFINITE, "lr_constant": 0.0}, r"optim.lr_constant=0.0 must be more than 0, .* use e.g. 0.5"),
        (
            {**INFINITE, "lr_min": 0.6},
            r"optim.lr_constant=0.5 must be .* from optim.lr_min=0.6 .* use e.g. 0.6",
        ),
        (
            {**INFINITE, "cooldown_steps": 0},
            r"optim.cooldown_steps=0 must lead from optim.lr=1.0 .*=0.5; use",
        ),
        (
            {**INFINITE, "cooldown_steps": 81},
            r"optim.anneal_steps=20 before train.steps=100 .* use at most 19",
        ),
        ({**INFINITE, "anneal_steps": -1}, r"optim.anneal_steps=-1 must be the length"),
    ],
)
def test_each_broken_rule_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_schedule(OptimConfig(**{"lr": 1.0, **changes}), 100)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        WSD,
        {**WSD, "warmup_steps": 80},
        {**INFINITE, "cooldown_steps": 80},
        {**INFINITE, "cooldown_steps": 0, "lr_constant": 1.0},
        {**INFINITE, "anneal_steps": 0, "cooldown_steps": 500},
        {"schedule": "inverse_sqrt", "warmup_steps": 1},
    ],
)
def test_what_just_fits(values: dict[str, Any]) -> None:
    check_schedule(OptimConfig(lr=1.0, **values), 100)


@pytest.mark.parametrize(
    ("values", "idle"),
    [
        ({"schedule": "cosine"}, ("warmup_from=0.1", "decay_form=linear", "cooldown_form=inverse_sqrt")),
        ({**WSD, "warmup_steps": 2}, ("cooldown_form=inverse_sqrt",)),
        (INFINITE, ("warmup_from=0.1",)),
        (
            {**INFINITE, "anneal_steps": 0},
            ("warmup_from=0.1", "lr_min=0.2", "decay_steps=90", "decay_form=linear"),
        ),
        (
            {"schedule": "inverse_sqrt", "warmup_steps": 2},
            ("decay_steps=90", "decay_form=linear", "cooldown_form=inverse_sqrt"),
        ),
    ],
)
def test_values_without_effect_are_known(values: dict[str, Any], idle: tuple[str, ...]) -> None:
    """What is said to change no rate changes none; what is not, does."""
    written = {"warmup_from": 0.1, "lr_min": 0.2, "decay_steps": 90, "decay_form": "linear"}
    optim = OptimConfig(lr=1.0, **{**values, **written, "cooldown_form": "inverse_sqrt"})
    check_schedule(optim, 100)
    assert idle_keys(optim) == idle
    rates = [learning_rate(optim, step, 100) for step in range(100)]
    for key in (*written, "cooldown_form"):
        without = dataclasses.replace(optim, **{key: getattr(OptimConfig(), key)})
        changes = [learning_rate(without, step, 100) for step in range(100)] != rates
        assert changes == (key not in {word.partition("=")[0] for word in idle}), key


def loaded(tmp_path: Path, *overrides: str) -> Config:
    """A run with these overrides and no rate of its own."""
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return load_config(path, overrides).config


def chosen(config: Config) -> list[Any]:
    """What a preset gives."""
    return [getattr(config.optim, key) for key in VALUES]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["optim.preset=strong-shift", "start.lr_peak=3e-4"], ["cosine", 3e-4, 3e-5, 10]),
        (["optim.preset=strong-shift", "optim.lr=1e-4"], ["cosine", 1e-4, 1e-5, 10]),
        (["optim.preset=weak-shift", "start.lr_at_save=4.5e-5"], ["cosine", 4.5e-5, 4.5e-7, 0]),
        (["optim.preset=small-domain"], ["cosine", 1e-5, 1e-6, 10]),
        (["optim.preset=small-domain", "train.steps=5"], ["cosine", 1e-5, 1e-6, 4]),
        (["optim.preset=long-context", "data.seq_length=65536"], ["cosine", 1e-5, 1e-6, 100]),
        (["optim.preset=long-context", "data.seq_length=524288"], ["cosine", 5e-6, 5e-7, 100]),
    ],
)
def test_presets(tmp_path: Path, overrides: list[str], expected: list[Any]) -> None:
    """Each passes the rules, is explicit in the resolved configuration and reads back equal."""
    config = loaded(tmp_path, *overrides)
    assert chosen(config) == expected
    check_schedule(config.optim, config.train.steps)
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(config))
    assert load_config(tmp_path / "resolved.yaml").config == config
    assert load_values(config_to_dict(config), "a checkpoint").config == config


def test_weak_shift_never_warms_up(tmp_path: Path) -> None:
    """It goes on at the rate of the pretraining's end and only falls."""
    config = loaded(tmp_path, "optim.preset=weak-shift", "start.lr_at_save=4.5e-5")
    rates = [learning_rate(config.optim, step, 1000) for step in range(1000)]
    assert rates[0] == 4.5e-5 and rates == sorted(rates, reverse=True)


@given(st.sampled_from(sorted(PRESETS)), st.sets(st.sampled_from(VALUES)))
def test_what_is_written_wins(tmp_path_factory: pytest.TempPathFactory, preset: str, keys: set[str]) -> None:
    """Whichever of the keys are written, also with the value that is the default."""
    written = {"schedule": "constant", "lr": 2e-5, "lr_min": 0.0, "warmup_steps": 0}
    words = [f"optim.{key}={written[key]}" for key in sorted(keys)]
    words += [f"optim.preset={preset}", "start.lr_peak=3e-4", "start.lr_at_save=3e-5"]
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(RUN)
    found = load_config(path, words)
    for key in VALUES:
        value = getattr(found.config.optim, key)
        where = found.provenance[f"optim.{key}"]
        assert where == ("override" if key in keys else f"preset {preset}")
        if key in keys:
            assert value == written[key]


@pytest.mark.parametrize(
    ("preset", "key"), [("strong-shift", "start.lr_peak"), ("weak-shift", "start.lr_at_save")]
)
def test_a_rate_that_nothing_tells_is_asked_for(tmp_path: Path, preset: str, key: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"optim.preset={preset} begins at .* {key}=0.0 does not tell it; set"
    ):
        loaded(tmp_path, f"optim.preset={preset}")


def test_the_note_says_what_and_why(tmp_path: Path) -> None:
    """One line, with the written value beside the preset's; and every piece of evidence says how sure it is."""
    config = loaded(tmp_path, "optim.preset=small-domain", "optim.warmup_steps=50")
    note = preset_note(config)
    assert "\n" not in note
    assert (
        "optim.preset=small-domain: schedule cosine, lr 1e-05, lr_min 1e-06, warmup_steps 50 (the preset's is 10)"
        in note
    )
    assert "Amazon Nova documentation (read): 1e-5 to 1e-6" in note
    assert (
        preset_note(dataclasses.replace(config, optim=dataclasses.replace(config.optim, preset="none"))) == ""
    )
    for preset in PRESETS.values():
        assert preset.evidence
        assert all(
            any(f"({how})" in piece for how in ("read", "second-hand", "from memory"))
            for piece in preset.evidence
        )
