"""What may change at a resume: the table, and what `run.accept_changes` may name."""

from __future__ import annotations

from pathlib import Path

import pytest

from cptron.config.check import check_config
from cptron.config.load import load_config
from cptron.config.resume_rules import RULES, check_accepted, rule_of
from cptron.config.stored import dotted
from cptron.errors import ConfigError

CONFIG = """\
run: {dir: here}
start: {checkpoint: base}
data:
  seq_length: 32
  sources: [{name: law, path: a, token_share: 0.5}, {name: web, path: b, token_share: 0.5}]
train: {steps: 20, global_batch_size: 8, micro_batch_size: 2}
optim: {lr: 2.0e-3}
eval: {at_start: false}
"""
FACTS = ("start", "model", "tokenizer", "data.sources.law.content")
NAMED = {
    "start",
    "tokenizer",
    "data.sources.law.content",
    "data.sources.law.order",
    "data.sources.web.order",
    "run.seed",
    "train.precision",
    "data.seq_length",
    "data.packing",
    "data.order",
}
NEVER = {"model", "optim.name", "optim.frozen", "adapter.kind", "forgetting.base"}
OF_ADAPTERS = {"adapter.kind", "adapter.rank", "adapter.alpha", "adapter.targets"}
OF_MEGATRON = {
    "data.megatron_samples",
    "data.megatron_split",
    "data.sources.law.token_share",
    "data.sources.web.token_share",
}


def values(tmp_path: Path, *overrides: str) -> dict[str, str]:
    """A configuration as the rules see it."""
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return dotted(load_config(path, overrides).config) | dict.fromkeys(FACTS, "")


@pytest.mark.parametrize(
    ("overrides", "never"),
    [
        ((), NEVER),
        (("adapter.kind=lora",), NEVER | OF_ADAPTERS | {"start"}),
        (("data.order=megatron",), NEVER | OF_MEGATRON),
    ],
)
def test_every_key_has_its_rule(overrides: tuple[str, ...], never: set[str], tmp_path: Path) -> None:
    """A new key of the configuration is only listed, unless the table says otherwise."""
    now = values(tmp_path, *overrides)
    found = {
        verdict: {key for key in now if rule_of(key, now, now).verdict == verdict}
        for verdict in ("named", "never")
    }
    assert found == {"named": NAMED - never, "never": never}


def test_a_rule_counts_where_both_sides_have_its_condition(tmp_path: Path) -> None:
    """What describes the order that is left, or entered, has no say in whether that is accepted."""
    ours, theirs = values(tmp_path), values(tmp_path, "data.order=megatron")
    for before, now in ((ours, theirs), (theirs, ours)):
        assert rule_of("data.megatron_samples", before, now).verdict == "listed"
        assert rule_of("data.order", before, now).verdict == "named"
    without, with_one = values(tmp_path), values(tmp_path, "adapter.kind=lora")
    for before, now in ((without, with_one), (with_one, without)):
        assert rule_of("adapter.kind", before, now).verdict == "never"


def test_what_can_be_accepted(tmp_path: Path) -> None:
    """Keys whose change must be named; what is listed anyway, can never be or does not exist is an error of the
    configuration, found before anything is opened."""
    check_accepted(tuple(sorted(NAMED)))
    for key, words in {
        "optim.lr": "needs no acceptance",
        "run.sead": "did you mean run.seed",
        "optim.name": "cannot change in a run",
        "model": "cannot change in a run",
        "x": "it takes start, tokenizer,",
    }.items():
        with pytest.raises(ConfigError, match=f"run.accept_changes names {key}.*{words}"):
            check_accepted(("run.seed", key))
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    check_config(load_config(path, ["run.accept_changes=[run.seed]"]).config, 1)
    with pytest.raises(ConfigError, match=r"run\.accept_changes names optim\.lr"):
        check_config(load_config(path, ["run.accept_changes=[optim.lr]"]).config, 1)


def test_every_rule_says_why() -> None:
    """What is refused says what depends on it; what can be accepted also what will happen."""
    for rule in RULES[:-1]:
        assert rule.why and rule.verdict != "listed"
        assert bool(rule.effect) == (rule.verdict == "named")
    assert RULES[-1].key == "*" and RULES[-1].verdict == "listed"


def test_the_page_has_the_table() -> None:
    """docs/checkpoints.md names every key with what happens."""
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    for rule in RULES[:-1]:
        lines = [line for line in page.splitlines() if line.startswith(f"| `{rule.key}` ")]
        assert any(rule.why in line and (rule.effect or "never") in line for line in lines)
