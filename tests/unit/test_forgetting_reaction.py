"""What the monitor decides and does: shares, alarms of its other kinds, actions and their limits, the journal."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cptron.config.load import load_config
from cptron.config.schema import Config
from cptron.errors import CheckpointError
from cptron.forgetting.alarms import GapState, RepetitionState, judge_gap, judge_repetition
from cptron.forgetting.bootstrap import Interval
from cptron.forgetting.decide import Measured, decide
from cptron.forgetting.journal import Verdict, after_rollbacks, append_verdict, in_a_branch, read_verdicts
from cptron.forgetting.left import is_left
from cptron.forgetting.policy import PolicyState
from cptron.forgetting.reaction import LR_FLOOR, REPLAY_CAP, Reaction, can_raise, raised_shares
from cptron.forgetting.settings import rules_of
from cptron.forgetting.watch import Watch

CONFIG = """\
run: {dir: RUN}
start: {checkpoint: b}
data:
  seq_length: 10
  sources: [{name: a, path: p, token_share: 0.9}, {name: b, path: q, token_share: 0.1, role: replay}]
  valid: [{name: a, path: v, suite: new}, {name: b, path: w, suite: old}]
train: {steps: 100, global_batch_size: 2}
optim: {lr: 1e-3, warmup_steps: 5}
eval: {every_tokens: 100}
checkpoint: {every_steps: 10}
"""


def config_of(tmp_path: Path, *overrides: str) -> Config:
    """The configuration above, changed."""
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    return load_config(path, list(overrides)).config


@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.booleans()), min_size=1, max_size=6),
    st.sampled_from([1.0, 2.0, 8.0, 64.0]),
)
def test_shares_keep_floor_cap_and_proportion(sources: list[tuple[float, bool]], factor: float) -> None:
    """Replay is never below what was configured, nor raised beyond half of the tokens."""
    shares, is_replay = [share for share, _ in sources], [old for _, old in sources]
    raised = raised_shares(shares, is_replay, factor)
    assert sum(raised) == pytest.approx(1)
    before = sum(share for share, old in sources if old) / sum(shares)
    now = sum(share for share, old in zip(raised, is_replay, strict=True) if old)
    if 0 < before < 1:
        assert now == pytest.approx(max(before, min(REPLAY_CAP, factor * before)))
    for kind in (True, False):
        ratios = [new / old for new, old, own in zip(raised, shares, is_replay, strict=True) if own is kind]
        assert ratios == pytest.approx([ratios[0]] * len(ratios) if ratios else [])
    assert can_raise(shares, is_replay, factor) == (raised_shares(shares, is_replay, 2 * factor) != raised)


def test_grace_is_the_larger_of_warm_up_and_a_part_of_the_run(tmp_path: Path) -> None:
    """In tokens; unless it is given."""
    assert rules_of(config_of(tmp_path)).grace_tokens == 5 * 20
    assert rules_of(config_of(tmp_path, "train.steps=1000")).grace_tokens == 20 * 20
    assert rules_of(config_of(tmp_path, "forgetting.grace_tokens=7")).grace_tokens == 7
    bigger = "data.stages=[{until_tokens: 60}, {global_batch_size: 8}]"
    assert rules_of(config_of(tmp_path, bigger)).grace_tokens == 3 * 20 + 2 * 80


def test_a_branch_has_a_grace_of_its_own(tmp_path: Path) -> None:
    """Of the steps that it has, without the warm-up that lies before it; nothing is decided in it; rows begin anew."""
    config = config_of(tmp_path, "train.steps=600", "forgetting.action=alert")
    assert [rules_of(config, begun).grace_tokens for begun in (0, 3, 500)] == [12 * 20, 239, 2 * 20]
    parent = replace(ABOVE, lines=3)
    watch, _ = in_a_branch(parent, Reaction(), 500, 10_000)
    assert watch == Watch(begun_step=500, begun_tokens=10_000)
    found = {tokens: judged(config, 1.0, watch, Reaction(), tokens).finding for tokens in (10_039, 10_040)}
    assert found == {10_039: "grace", 10_040: "above"}
    earlier = {key: value for key, value in watch.to_dict().items() if not key.startswith("begun")}
    assert Watch.from_dict(earlier) == Watch()


def judged(
    config: Config, change: float, watch: Watch, reaction: Reaction, tokens: int = 1000, quiet: int | None = 8
) -> Verdict:
    """The verdict on a change of old data that is sure."""
    intervals = {"old": Interval(change, change, change)}
    shares = tuple(source.token_share for source in config.data.sources)
    found = Measured(10, tokens, intervals, {"a": 2.0, "b": 2.0}, {"a": 0.5, "b": 0.5}, shares)
    return decide(config, watch, reaction, found, lambda: quiet)


ABOVE = Watch(policy=PolicyState(above=1))


@pytest.mark.parametrize(
    ("words", "reaction", "quiet", "action", "after", "why"),
    [
        (["alert"], Reaction(), 8, "alert", Reaction(), ""),
        (["raise_replay"], Reaction(), 8, "raise_replay", Reaction(replay_factor=2, actions=1), "replay times 2"),
        (["raise_replay"], Reaction(replay_factor=8), 8, "alert", Reaction(replay_factor=8), "half of the tokens"),
        (["lower_lr"], Reaction(), 8, "lower_lr", Reaction(lr_factor=0.5, actions=1), "rate times 0.5"),
        (["lower_lr"], Reaction(lr_factor=LR_FLOOR), 8, "alert", Reaction(lr_factor=LR_FLOOR), "at 0.0625 of"),
        (
            ["rollback"],
            Reaction(),
            8,
            "rollback",
            Reaction(replay_factor=2, attempt=1, actions=1),
            "to step 8, replay",
        ),
        (
            ["rollback"],
            Reaction(replay_factor=8),
            8,
            "rollback",
            Reaction(lr_factor=0.5, replay_factor=8, attempt=1, actions=1),
            "learning rate times 0.5",
        ),
        (["rollback"], Reaction(), None, "raise_replay", Reaction(replay_factor=2, actions=1), "no checkpoint"),
        (["stop_and_keep_best"], Reaction(), 8, "stop_and_keep_best", Reaction(actions=1, stopped=True), ""),
        (["rollback"], Reaction(actions=4), 8, "alert", Reaction(actions=4), "4 actions were taken"),
    ],
)  # fmt: skip
def test_every_action_and_its_limit(
    words: list[str],
    reaction: Reaction,
    quiet: int | None,
    action: str,
    after: Reaction,
    why: str,
    tmp_path: Path,
) -> None:
    """What cannot be done is not done, and the verdict says why; nothing at all before an alarm."""
    config = config_of(tmp_path, f"forgetting.action={words[0]}")
    verdict = judged(config, 1.0, ABOVE, reaction, quiet=quiet)
    assert (verdict.finding, verdict.action, verdict.reaction) == ("alarm", action, after)
    assert why in verdict.why
    assert verdict.to_step == (8 if action == "rollback" else 0)
    assert verdict.watch.policy == PolicyState(0, True, 1) and verdict.watch.lines == 1
    for change, watch, tokens in ((1.0, Watch(), 1000), (0.01, ABOVE, 1000), (1.0, ABOVE, 99)):
        quietly = judged(config, change, watch, reaction, tokens, quiet)
        assert (quietly.action, quietly.reaction) == ("none", reaction)


def test_a_run_without_replay_lowers_its_rate_when_it_goes_back(tmp_path: Path) -> None:
    sources = "data.sources=[{name: a, path: p, token_share: 1}]"
    verdict = judged(config_of(tmp_path, "forgetting.action=rollback", sources), 1.0, ABOVE, Reaction())
    assert (verdict.action, verdict.reaction.lr_factor) == ("rollback", 0.5)


def test_overfitting_is_an_alarm_and_learning_is_none() -> None:
    """A falling loss, whose mean in training lags behind, is no growing gap; one that grows is an alarm once, until it
    has come back."""

    def alarms(train: list[float], valid: list[float]) -> list[bool]:
        state, found = GapState(), []
        for train_nats, valid_nats in zip(train, valid, strict=True):
            state, grown = judge_gap(0.1, 2, state, train_nats, valid_nats)
            found.append(grown is not None)
        return found

    valid = [9.0, 4.0, 3.0, 2.6, 2.4, 2.3, 2.3]
    falling = [9.0, *((before + after) / 2 for before, after in itertools.pairwise(valid))]
    assert not any(alarms(falling, valid))
    overfitted = [2.0, 2.0, 1.95, 1.8, 1.6, 1.4, 1.2]
    assert alarms(overfitted, [2.0] * 7) == [False, False, False, False, True, False, False]
    noisy = [2.0, 2.05, 1.95, 2.05, 1.95, 2.05, 2.0]
    assert not any(alarms(noisy, [2.0] * 7))


def test_repetition_is_said_once() -> None:
    """Passing the limit of epochs; and learning by heart, only while the source repeats."""

    def said(epochs: list[float], train: list[float], valid: list[float | None]) -> list[str]:
        state, found = RepetitionState(), []
        for values in zip(epochs, train, valid, strict=True):
            state, what = judge_repetition(4.0, 2, state, *values)
            found.append(what)
        return found

    falling = [2.0, 1.9, 1.8, 1.7, 1.6]
    assert said([3, 4, 5, 6, 7], [2.0] * 5, [2.0] * 5) == ["", "epochs", "", "", ""]
    assert said([1.2, 1.4, 1.6, 1.8, 2], falling, [2.0] * 5) == ["", "", "useless", "", ""]
    assert said([0.2, 0.4, 0.6, 0.8, 1], falling, [2.0] * 5) == [""] * 5
    assert said([1.2, 1.4, 1.6, 1.8, 2], falling, falling) == [""] * 5
    assert said([1.2, 1.4, 1.6, 1.8, 2], falling, [None] * 5) == [""] * 5


def test_sums_of_training_are_by_source() -> None:
    watch = (
        Watch()
        .learned({"a": 3.0, "b": 9.0}, {"a": 2, "b": 0})
        .learned({"a": 1.0, "b": 8.0}, {"a": 2, "b": 4})
    )
    assert watch.train_nats(["a"]) == 1.0 and watch.train_nats(["a", "b"]) == 1.5
    assert watch.train_nats(["c"]) is None
    assert Watch.from_dict(json.loads(json.dumps(watch.to_dict()))) == watch


def a_verdict(step: int, attempt: int, to_step: int = 0) -> Verdict:
    """A rollback where `to_step` is given."""
    rolls = to_step > 0
    return Verdict(
        attempt, step, 10 * step, "alarm", "rollback" if rolls else "alert", "why\n", Interval(1.0, float("-inf"), 2.0),
        None, ("é",), to_step, Watch(policy=PolicyState(alarms=attempt + 1)), Reaction(attempt=attempt + rolls),
    )  # fmt: skip


def test_the_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    """A line that was cut off has no effect and is replaced; any other damage is refused."""
    path = tmp_path / "forgetting.jsonl"
    assert read_verdicts(path) == []
    lines = [a_verdict(4, 0), a_verdict(8, 0, 4)]
    for verdict in lines:
        append_verdict(path, verdict)
    assert read_verdicts(path) == lines
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert read_verdicts(path) == lines[:1]
    append_verdict(path, lines[1])
    assert path.read_bytes() == whole
    for damaged in (
        b"{}\n",
        b"[]\n",
        whole.replace(b'"step": 8', b'"step": -8'),
        whole.replace(b'"alarm"', b'"no"'),
    ):
        path.write_bytes(whole + damaged)
        with pytest.raises(CheckpointError, match="is no verdict of the monitor"):
            read_verdicts(path)


def test_a_verdict_is_of_one_evaluation(tmp_path: Path) -> None:
    """The same numbers of step and tokens with other batches or settings are another; and so it is read again."""
    verdict = replace(a_verdict(4, 0), batch=4, settings="abc")
    others = [replace(verdict, batch=6), replace(verdict, settings="abd"), replace(verdict, attempt=1)]
    assert len({each.place for each in (verdict, *others)}) == 4
    for each in (verdict, *others):
        append_verdict(tmp_path / "forgetting.jsonl", each)
    assert read_verdicts(tmp_path / "forgetting.jsonl") == [verdict, *others]


def test_why_there_is_no_more_replay(tmp_path: Path) -> None:
    """A stage may draw none."""
    config = config_of(tmp_path, "forgetting.action=raise_replay")
    found = Measured(10, 1000, {"old": Interval(1.0, 1.0, 1.0)}, {"a": 2.0, "b": 2.0}, {}, (1.0, 0.0))
    verdict = decide(config, ABOVE, Reaction(), found, lambda: None)
    assert (verdict.action, verdict.why) == ("alert", "the stage draws no replay")


def test_rollbacks_of_the_journal_are_in_force_at_their_checkpoint() -> None:
    """One after the other, at the step that each went to, and nowhere else; lost lines are noticed."""
    lines = [a_verdict(4, 0), a_verdict(8, 0, 4), a_verdict(8, 1, 4), a_verdict(20, 2, 16)]
    watch, reaction = after_rollbacks(4, Watch(lines=1), Reaction(), lines)
    assert (reaction.attempt, watch.policy.alarms, watch.lines) == (2, 2, 4)
    assert after_rollbacks(8, Watch(), Reaction(), lines) == (Watch(), Reaction())
    assert after_rollbacks(16, Watch(), Reaction(attempt=2), lines)[1].attempt == 3
    assert after_rollbacks(16, Watch(), Reaction(attempt=3), lines)[1].attempt == 3
    with pytest.raises(CheckpointError, match=r"has 4 line\(s\), the checkpoint was made with 5"):
        after_rollbacks(4, Watch(lines=5), Reaction(), lines)
    left = {
        (step, attempt) for step in (4, 8, 16, 20) for attempt in range(4) if is_left(step, attempt, lines)
    }
    assert left == {(8, 0), (16, 0), (20, 0), (8, 1), (16, 1), (20, 1), (20, 2)}


@pytest.mark.parametrize(
    "change", [{"lr_factor": 0}, {"attempt": -1}, {"stopped": 1}, {"actions": True}, {"x": 1}]
)
def test_a_damaged_state_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must hold"):
        Reaction.from_dict({**Reaction().to_dict(), **change})
    for damaged in (
        None,
        {},
        {**Watch().to_dict(), "lines": -1},
        {**Watch().to_dict(), "gap": {"above": "x"}},
    ):
        with pytest.raises(ValueError, match=r"must|none of a monitor"):
            Watch.from_dict(damaged)


def test_what_rollbacks_keep_of_the_watch() -> None:
    """Epochs and gap are those of the checkpoint; only the number of alarms goes on."""
    watch = Watch(policy=PolicyState(above=0), gap=GapState(reference_nats=0.5))
    after, _ = after_rollbacks(4, watch, Reaction(), [a_verdict(8, 0, 4)])
    assert after == replace(watch, policy=PolicyState(alarms=1), lines=1)
