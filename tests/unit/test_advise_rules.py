"""Advice is a pure function of facts: every choice has evidence, every file loads, and more of one thing never means
less of what follows from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from advice_facts import CONSTANT, GRID, INSTRUCT, LLAMA, PLAIN, any_facts, corpus, gap, held, with_chat
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.advise.advice import Advice, advise
from cptron.advise.amounts import LEAST_SHARE, plan, replay_wanted
from cptron.advise.evidence import EVIDENCE, strength_of
from cptron.advise.facts import Facts, StepZeroLoss
from cptron.advise.shift import ORDER, gap_nats, judge
from cptron.advise.written import commented_yaml
from cptron.config.check import check_config
from cptron.config.load import config_to_dict, load_config, load_text
from cptron.errors import ConfigError


def loaded(advice: Advice) -> dict[str, Any]:
    """What `cptron train` makes of the file, by dotted key; it has passed the trainer's rules."""
    config = load_text(commented_yaml(advice), "advice").config
    check_config(config, advice.facts.ranks)
    flat: dict[str, Any] = {}
    for section, keys in config_to_dict(config).items():
        for key, value in keys.items():
            if f"{section}.{key}" in ("data.sources", "data.valid"):
                for item in value:
                    name = f"{section}.{key}.{item['name']}"
                    flat |= {f"{name}.{leaf}": content for leaf, content in item.items()}
            else:
                flat[f"{section}.{key}"] = value
    return flat


@pytest.mark.parametrize("case", GRID)
def test_every_file_loads_with_the_advised_values(case: str) -> None:
    """As it is, with every value that the advice names, and nothing else."""
    advice = advise(GRID[case])
    found = loaded(advice)
    for key, value in advice.values().items():
        expected = list(value) if isinstance(value, tuple) else value
        assert found[key] == expected, key
    assert [key for key in found if key.endswith(".path")] == [k for k in advice.given if k.endswith(".path")]


@pytest.mark.parametrize("case", GRID)
def test_every_choice_has_evidence(case: str) -> None:
    """That exists, with its strength and its disputes beside it in the file, and in JSON."""
    advice = advise(GRID[case])
    text = " ".join(commented_yaml(advice).replace("\n", " ").replace(" # ", " ").split())
    for choice in advice.choices:
        assert choice.evidence and set(choice.evidence) <= EVIDENCE.keys()
        assert choice.why.endswith(".") and choice.unknown == choice.unknown.strip(), choice
        assert "  " not in choice.why + choice.unknown and not choice.unknown.endswith(("then", "and", "."))
        assert f"Evidence ({choice.strength}): {', '.join(choice.evidence)}." in text.replace(" #", "")
        for _, other in choice.disputes:
            assert other in advice.cited
    written = json.loads(json.dumps(advice.to_dict()))
    assert {name for choice in written["choices"] for name in choice["evidence"]} <= written[
        "evidence"
    ].keys()
    assert written["unknown"] and all(f"- {part}" in text for part in written["unknown"])


def test_the_table_agrees_with_itself() -> None:
    """Disagreement is mutual, names exist, and all of it is used by some case."""
    for name, one in EVIDENCE.items():
        for other in one.against:
            assert name in EVIDENCE[other].against, f"{name} and {other}"
    cited = {name for facts in GRID.values() for name in advise(facts).cited}
    assert cited == EVIDENCE.keys()


@pytest.mark.parametrize(
    ("names", "strength"),
    [
        (["floors"], "rule of thumb"),
        (["parmar"], "weak"),
        (["freezing", "tiny-freezing"], "fair"),
        (["large-batches", "small-batches"], "good"),
        (["decay-tenth", "decay-none"], "fair"),
        (["parmar", "ibrahim-rate"], "weak"),
    ],
)
def test_strength_is_counted(names: list[str], strength: str) -> None:
    """By how it is known, and less where it disagrees."""
    assert strength_of(names) == strength


@settings(max_examples=40, deadline=None)
@given(facts=any_facts, chat=st.none() | st.integers(2_000, 10**10))
def test_limits_hold_for_any_facts(facts: Facts, chat: int | None) -> None:
    """No new data beyond their passes, no budget beyond its tokens, replay at its floor; or a refusal in one line."""
    facts = facts if chat is None else with_chat(facts, chat)
    try:
        advice = advise(facts)
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    amounts = advice.amounts
    assert amounts.tokens <= facts.budget_tokens
    assert amounts.steps >= 2 and amounts.global_batch_size % facts.ranks == 0
    assert sum(amounts.shares.values()) == pytest.approx(1)
    for one in facts.corpora:
        assert amounts.epochs[one.name] <= facts.max_epochs or one.name in amounts.beyond_epochs
    assert not {one.name for one in facts.new} & set(amounts.beyond_epochs)
    old = sum(amounts.shares[one.name] for one in facts.replay)
    if facts.replay:
        assert LEAST_SHARE * 0.999 <= old <= 0.501
    assert bool(facts.replay) == bool(old)
    found = loaded(advice)
    assert found["data.replay_floor"] <= old + amounts.chat
    assert bool(found["regularise.l2sp"]) == (not facts.replay and not facts.chat)
    assert found["optim.lr"] <= max(facts.base.lr_peak, 5e-5)


@settings(max_examples=40, deadline=None)
@given(facts=any_facts, chat=st.none() | st.integers(100_000, 10**10))
def test_more_shift_never_means_less_replay(facts: Facts, chat: int | None) -> None:
    """Nor does what must not suffer."""
    facts = facts if chat is None else with_chat(facts, chat)
    try:
        shares = [plan(facts, kind).replay for kind in ORDER]
        essential = [plan(replace(facts, general="essential"), kind).replay for kind in ORDER]
    except ConfigError:
        return
    assert shares == sorted(shares)
    for kind in ORDER:
        wanted = replace(facts, general="wanted")
        assert replay_wanted(wanted, kind) <= replay_wanted(replace(facts, general="essential"), kind)
    assert essential == sorted(essential)


@given(gaps=st.tuples(st.floats(-3, 9), st.floats(-3, 9)))
def test_a_larger_gap_is_never_a_weaker_shift(gaps: tuple[float, float]) -> None:
    """And another language is strong at any gap."""
    low, high = (judge(replace(PLAIN, losses=gap(nats))).kind for nats in sorted(gaps))
    assert ORDER.index(low) <= ORDER.index(high)
    assert judge(replace(PLAIN, losses=gap(gaps[0]), language="other")).kind == "strong"


def test_gap_by_bytes_where_they_are_known() -> None:
    """Of twice the bits per byte, at 2 nats an old token, the gap is 2 nats, whatever a new token is worth."""
    new = StepZeroLoss(name="new", suite="new", nats_per_token=1.1, bits_per_byte=1.6)
    old = StepZeroLoss(name="old", suite="old", nats_per_token=2.0, bits_per_byte=0.8)
    assert gap_nats([new, old]) == pytest.approx(2.0)
    assert gap_nats([new, replace(old, bits_per_byte=None)]) == pytest.approx(-0.9)
    assert gap_nats([new]) is None


@pytest.mark.parametrize(
    ("facts", "values"),
    [
        (PLAIN, {"optim.preset": "strong-shift", "optim.lr": 1.5e-4, "optim.schedule": "cosine"}),
        (GRID["other language"], {"optim.lr": 3e-4, "optim.lr_min": 3e-5, "start.state": "decayed"}),
        (GRID["weak"], {"optim.preset": "weak-shift", "optim.lr": 3e-5, "optim.warmup_steps": 0}),
        (replace(PLAIN, budget_tokens=10**9), {"optim.preset": "small-domain", "optim.lr": 3e-5}),
        (GRID["other language, small"], {"optim.lr": 6e-5, "optim.warmup_steps": 10}),
        (
            GRID["small model"],
            {"optim.lr": 1e-5, "forgetting.induction_sequences": 0, "data.seq_length": 128},
        ),
        (
            GRID["constant phase"],
            {"optim.schedule": "wsd", "optim.lr": 3e-5, "optim.warmup_steps": 0, "optim.preset": "none"},
        ),
        (GRID["64K"], {"optim.preset": "long-context", "optim.lr": 1e-5, "attention.document_mask": True}),
        (GRID["long context"], {"optim.lr": 5e-6, "data.seq_length": 131_072}),
        (GRID["no replay"], {"regularise.l2sp": 1.0, "optim.weight_decay": 0.0}),
        (GRID["no replay, Hugging Face"], {"regularise.l2sp": 0.0, "optim.weight_decay": 0.1}),
        (GRID["no replay, essential"], {"forgetting.action": "stop_and_keep_best"}),
        (replace(PLAIN, general="essential"), {"forgetting.action": "raise_replay"}),
        (PLAIN, {"forgetting.action": "alert", "forgetting.epsilon_nats": 0.05}),
        (GRID["no validation"], {"eval.at_start": False, "eval.every_steps": 0}),
    ],
)
def test_decisions(facts: Facts, values: dict[str, Any]) -> None:
    """The cases that the page names."""
    found = loaded(advise(facts))
    assert {key: found[key] for key in values} == values


def test_shares() -> None:
    """By shift and by what must not suffer; conversations beside it; less where there is less, but never none."""
    shares = {
        (general, nats): advise(replace(PLAIN, general=general, losses=gap(nats))).amounts.replay
        for general in ("wanted", "essential")
        for nats in (0.1, 0.8, 2.0)
    }
    assert list(shares.values()) == [0.05, 0.10, 0.25, 0.10, 0.25, 0.50]
    assert advise(GRID["long context"]).amounts.replay == 0.40
    chats = advise(GRID["instruct base"]).amounts
    assert chats.shares["talk"] == pytest.approx(4 * 100e6 / 30e9, rel=0.01)
    few = advise(GRID["few replay"])
    assert few.amounts.replay == LEAST_SHARE and few.amounts.beyond_epochs == ("web",)
    assert loaded(few)["data.sources.web.max_epochs"] == 0
    assert loaded(few)["data.sources.manuals.max_epochs"] == 4


def test_the_limit_of_passes_ends_a_run() -> None:
    """At four passes over new data, with replay on top of it; more budget changes nothing."""
    small = replace(PLAIN, new=(corpus("manuals", 10**8),))
    amounts = advise(small).amounts
    assert amounts.limited_by == "epochs"
    assert 3.9 < amounts.epochs["manuals"] <= 4
    assert advise(replace(small, budget_tokens=10**13)).amounts == amounts
    assert advise(replace(small, budget_tokens=10**8)).amounts.limited_by == "budget"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (replace(PLAIN, new=()), "--new"),
        (replace(PLAIN, budget_tokens=0), "budget is 0"),
        (replace(PLAIN, budget_tokens=20), "no two batches"),
        (replace(PLAIN, max_epochs=0.0), "--max-epochs=0.0"),
        (replace(PLAIN, ranks=0), "--ranks=0"),
        (replace(PLAIN, ranks=10**8), "no two batches"),
        (replace(PLAIN, base=replace(LLAMA, lr_peak=0.0)), "give --lr-peak"),
        (replace(PLAIN, base=replace(LLAMA, lr_at_save=0.0), losses=gap(0.1)), "give --lr-at-save"),
        (replace(PLAIN, base=replace(CONSTANT, lr_at_save=0.0)), "give --lr-at-save"),
        (replace(PLAIN, base=replace(LLAMA, lr_at_save=1e-3)), "above --lr-peak"),
        (replace(PLAIN, base=replace(LLAMA, lr_peak=3.0)), "--lr-peak=3.0"),
        (replace(PLAIN, seq_length=10**6), "131072 positions"),
        (replace(PLAIN, goal="long-context", seq_length=4096), "4096 tokens is not long"),
        (replace(PLAIN, new=(corpus("manuals", 5),)), "manuals (tokens/manuals) has 5 tokens"),
        (
            replace(PLAIN, new=(corpus("manuals", 10**4),), seq_length=8192, max_epochs=2.0),
            "1 whole sequences",
        ),
        (replace(PLAIN, chat=(corpus("talk", 10**6),)), "no instruct model"),
        (replace(PLAIN, replay=(corpus("manuals", 10**6),)), "named twice"),
        (replace(PLAIN, new=(corpus("a b", 10**6),)), "'a b' must be named"),
        (replace(PLAIN, valid=(held("induction", "old"),)), "name of a probe"),
    ],
)
def test_refusals_are_one_line(facts: Facts, words: str) -> None:
    """With value and remedy."""
    with pytest.raises(ConfigError) as caught:
        advise(facts)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value) and ";" in str(caught.value)


def test_names_cannot_leave_a_comment(tmp_path: Path) -> None:
    """A path with line ends and quotes is a value, and no key."""
    path = 'x"\noptim: {lr: 1}\n#\u2028y: \x1b\x00z'
    facts = replace(PLAIN, base=replace(INSTRUCT, path=path, rope=path), run_dir=path, budget_from=path)
    written = tmp_path / "run.yaml"
    written.write_text(commented_yaml(advise(facts)))
    config = load_config(written).config
    assert config.start.checkpoint == path and config.run.dir == path
    assert config.optim.lr == 1.5e-4
