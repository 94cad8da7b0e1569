"""Rules of stages, floors, mixers and proxies: each is refused with its key and a remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_config_check import GOOD, changed, source

from cptron.config.check import check_config
from cptron.config.schema import Config, DoremiConfig, StageConfig
from cptron.errors import ConfigError
from cptron.train.resume import _compare_orders

SOURCES = (
    source(name="new", path="t/a", token_share=0.9),
    source(name="old", path="t/b", token_share=0.1, role="replay"),
)
FIRST = StageConfig(until_tokens=1000, shares={"new": 1.0, "old": 0.25})


def mixed(*stages: StageConfig, **values: Any) -> Config:
    """Two sources, of which one is replay."""
    return changed(data__sources=SOURCES, data__stages=stages, **values)


def test_good_mixes_pass() -> None:
    """Ends by tokens and by the rate, in any order; floors that every blend keeps."""
    check_config(mixed(FIRST, StageConfig(seq_length=128, global_batch_size=4), data__replay_floor=0.1), 1)
    by_rate = StageConfig(until_lr_frac=0.5, shares={"new": 0.5, "old": 0.5})
    check_config(mixed(FIRST, by_rate, StageConfig(until_tokens=5000), StageConfig(lr_scale=0.1)), 1)
    check_config(mixed(StageConfig(shares={"new": 1.0})), 1)
    # the sources' own shares may be below the floor where no stage uses them
    check_config(mixed(FIRST, replace(FIRST, until_tokens=0), data__replay_floor=0.2), 1)
    check_config(mixed(data__mixer="ado", data__mixer_every_batches=1, data__mixer_skip_batches=0), 1)
    check_config(replace(mixed(), doremi=DoremiConfig(reference="runs/ref")), 1)


@pytest.mark.parametrize(
    ("stages", "values", "message"),
    [
        ((replace(FIRST, shares={"web": 1.0}), StageConfig()), {}, r"stages\.0\.shares names web.*use new or old"),
        ((replace(FIRST, shares={"new": -1.0}), StageConfig()), {}, r"stages\.0\.shares\.new=-1\.0 must be 0"),
        ((replace(FIRST, shares={"new": 0.0}), StageConfig()), {}, r"stages\.0\.shares=.* draws nothing"),
        ((FIRST, FIRST), {}, r"stages\.1 .* is the last and goes on"),
        ((StageConfig(), StageConfig()), {}, r"stages\.0 .* must have exactly one end"),
        ((replace(FIRST, until_lr_frac=0.5), StageConfig()), {}, r"stages\.0 .* must have exactly one end"),
        ((FIRST, FIRST, StageConfig()), {}, r"stages\.1\.until_tokens=1000 must be more than .* 1000"),
        (
            (StageConfig(until_lr_frac=0.5), StageConfig()),
            {"optim__schedule": "constant"},
            r"stages\.0\.until_lr_frac=0\.5 is not reached",
        ),
        ((StageConfig(until_lr_frac=1.0), StageConfig()), {}, r"until_lr_frac=1\.0 must be from 0"),
        ((StageConfig(lr_scale=0.0),), {}, r"stages\.0\.lr_scale=0\.0 must be more than 0"),
        ((StageConfig(seq_length=-1),), {}, r"stages\.0\.seq_length=-1 must not be negative"),
        (
            (StageConfig(seq_length=63),),
            {"parallel__tp": 2},
            r"stages\.0: data\.seq_length=63 must be a multiple",
        ),
        (
            (StageConfig(global_batch_size=3),),
            {"train__micro_batch_size": 2},
            r"stages\.0: train\.global_batch_size=3",
        ),
        ((), {"data__replay_floor": 0.11}, r"data\.sources gives sources of role replay 0\.1 of the tokens"),
        (
            (replace(FIRST, shares={"new": 1.0}), StageConfig()),
            {"data__replay_floor": 0.05},
            r"data\.stages\.0 gives sources of role replay 0 of the tokens",
        ),
        ((), {"data__replay_floor": 1.0}, r"replay_floor=1\.0 must be from 0 to below 1"),
        ((), {"data__order": "megatron", "data__megatron_samples": 99, "data__mixer": "ado"}, r"data\.order=meg"),
        ((), {"data__mixer_every_batches": 0}, r"mixer_every_batches=0 .* at least 1"),
        ((), {"data__mixer": "ado"}, r"mixer=ado sets its first shares after batch 1000, .*; lower these, or use st"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_named(
    stages: tuple[StageConfig, ...], values: dict[str, Any], message: str
) -> None:
    """By the value, with what to do."""
    world_size = values.get("parallel__tp", 1)
    with pytest.raises(ConfigError, match=message):
        check_config(mixed(*stages, **values), world_size)


def test_floors_of_sources() -> None:
    """A least share below what a blend gives, and room for all of them."""
    with pytest.raises(ConfigError, match=r"data\.sources gives old 0\.1 of the tokens, .* min_share=0\.2"):
        check_config(changed(data__sources=(SOURCES[0], replace(SOURCES[1], min_share=0.2))), 1)
    with pytest.raises(ConfigError, match=r"min_share of all sources come to 1\.1"):
        sources = (replace(SOURCES[0], min_share=0.6), SOURCES[1])
        check_config(changed(data__sources=sources, data__replay_floor=0.5), 1)
    with pytest.raises(ConfigError, match=r"min_share=1\.0 must be from 0 to below 1"):
        check_config(changed(data__sources=(replace(SOURCES[0], min_share=1.0), SOURCES[1])), 1)
    with pytest.raises(ConfigError, match="no source has role replay"):
        check_config(changed(data__sources=(SOURCES[0],), data__replay_floor=0.1), 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(GOOD, doremi=DoremiConfig(step_size=0.0)), r"doremi\.step_size=0\.0"),
        (replace(GOOD, doremi=DoremiConfig(smoothing=1.5)), r"doremi\.smoothing=1\.5"),
        (replace(mixed(StageConfig()), doremi=DoremiConfig(reference="r")), r"with 1 stages"),
        (
            replace(changed(data__sources=SOURCES[:1]), doremi=DoremiConfig(reference="r")),
            r"weights 1 source\(s\)",
        ),
    ],
)
def test_a_proxy_that_cannot_be(config: Config, message: str) -> None:
    """Numbers that make no weights, or nothing to weigh."""
    with pytest.raises(ConfigError, match=message):
        check_config(config, 1)


def test_the_order_of_a_source_changes_only_where_it_was_one() -> None:
    """Runs of earlier versions have shuffled; sources that come and go need no acceptance."""
    before = {"data.sources.a.path": "p", "data.sources.gone.order": '"given"'}
    now = {"data.sources.a.order": '"given"', "data.sources.new.order": '"given"'}
    _compare_orders(before, now)
    assert before == {"data.sources.a.path": "p", "data.sources.a.order": '"shuffled"'}
    assert now == {"data.sources.a.order": '"given"'}
