"""Evaluations as files and against one another: exact, refused when damaged, compared in nats, in bytes, or not at
all.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokens_world import write_known

from cptron.config.load import load_config
from cptron.data.valid import ValidSet
from cptron.data.windows import SetFacts
from cptron.errors import CheckpointError, ConfigError, TrainingError
from cptron.forgetting.base import Control, choose_base, kept_base
from cptron.forgetting.bootstrap import Interval
from cptron.forgetting.compare import (
    Resampling,
    change_of,
    not_comparable,
    scores,
    set_record,
    suite_changes,
    without_interval,
)
from cptron.forgetting.evaluation import (
    EvaluatedSet,
    Evaluation,
    evaluation_path,
    read_evaluation,
    write_evaluation,
)
from cptron.forgetting.sets import evaluated_sets

HOW = Resampling(1, 0.95, 300)
SAME = SetFacts("w")


def evaluated(suite: str = "old", windows: int = 20, seed: int = 0, facts: SetFacts = SAME) -> EvaluatedSet:
    """Windows of 8 to 16 tokens with 2 nats each, more or less."""
    tokens_W = np.random.default_rng(0).integers(8, 17, windows)
    draw = np.random.default_rng(seed)
    return EvaluatedSet(suite, facts, 2.0 * tokens_W + draw.normal(0, 1, windows), tokens_W, 3 * tokens_W)


def test_a_file_is_what_was_written(tmp_path: Path) -> None:
    """To the bit, with and without bytes, of text and probes."""
    found = Evaluation(
        3,
        99,
        {
            "a": evaluated(facts=SetFacts("w", "t", "tok", (0, 5))),
            "b": replace(evaluated("probe"), bytes_W=None, kind="induction"),
        },
        2,
    )
    write_evaluation(tmp_path / "f" / "x.losses", found.to_bytes())
    again = read_evaluation(tmp_path / "f" / "x.losses")
    assert again.to_bytes() == found.to_bytes()
    assert (again.step, again.tokens_total, again.attempt) == (3, 99, 2)
    assert again.sets["a"].facts == found.sets["a"].facts
    assert again.sets["a"].nats_W.tolist() == found.sets["a"].nats_W.tolist()
    assert again.sets["b"].bytes_W is None


def test_any_damage_is_found() -> None:
    """Every byte counts, and so does the length."""
    content = Evaluation(0, 0, {"a": evaluated(windows=2)}).to_bytes()
    start = content.index(b"\n")
    for place in (*range(start, len(content), 7), 1, start - 3):
        damaged = bytearray(content)
        damaged[place] ^= 1
        with pytest.raises(CheckpointError, match="x is no record of an evaluation"):
            Evaluation.from_bytes(bytes(damaged), "x")
    for damaged_length in (content[:-8], content + b"\0" * 8, b"", b"{}\n", b"[]\n"):
        with pytest.raises(CheckpointError, match="no record of an evaluation"):
            Evaluation.from_bytes(damaged_length, "x")


def test_a_loss_that_is_no_number_is_not_kept() -> None:
    """Neither the file nor the journal could be read again, and the run could not go on."""
    found = EvaluatedSet("old", SetFacts("w"), np.array([1.0, math.nan]), np.array([1, 1]))
    with pytest.raises(TrainingError, match="the loss on a after step 4 is nan"):
        Evaluation(4, 99, {"a": found}).to_bytes()


def test_the_same_windows_are_compared_in_pairs() -> None:
    """Exactly, where every window has changed alike; the interval is of no width then."""
    before = evaluated()
    now = replace(before, nats_W=before.nats_W + 0.25 * before.tokens_W)
    (interval,) = suite_changes(Evaluation(1, 1, {"a": now}), Evaluation(0, 0, {"a": before}), HOW).values()
    for value in (interval.estimate, interval.low, interval.high):
        assert value == pytest.approx(0.25, abs=1e-12)


def test_a_suite_is_the_mean_of_its_sets() -> None:
    """Whatever their sizes (macro-average); sets without a suite are in none."""
    base, now = {}, {}
    for name, suite, windows, shift in (("a", "old", 10, 0.1), ("b", "old", 500, 0.3), ("c", "new", 9, -1.0)):
        base[name] = evaluated(suite, windows)
        now[name] = replace(base[name], nats_W=base[name].nats_W + shift * base[name].tokens_W)
    now["d"] = base["d"] = evaluated("")
    found = suite_changes(Evaluation(1, 1, now), Evaluation(0, 0, base), HOW)
    assert {suite: round(interval.estimate, 9) for suite, interval in found.items()} == {
        "old": 0.2,
        "new": -1.0,
    }


def test_another_tokenizer_is_compared_by_bytes() -> None:
    """Half as many tokens for the same bytes at twice the nats each: nothing has changed. The change is per token of
    the present tokenizer."""
    before = evaluated(windows=400, facts=SetFacts("w", "t", "one"))
    assert before.bytes_W is not None
    now = EvaluatedSet(
        "old",
        SetFacts("other", "t", "two"),
        before.nats_W.reshape(-1, 2).sum(1),
        before.tokens_W.reshape(-1, 2).sum(1) // 2,
        before.bytes_W.reshape(-1, 2).sum(1),
    )
    change = change_of("a", now, before)
    assert not isinstance(change, str)
    interval = HOW.mean([change])
    assert interval.estimate == pytest.approx(0, abs=1e-9) and interval.low < -0.01 < 0.01 < interval.high
    worse = replace(now, nats_W=now.nats_W + 0.5 * now.tokens_W)
    worse_change = change_of("a", worse, before)
    assert not isinstance(worse_change, str)
    assert worse_change.estimate == pytest.approx(0.5, abs=1e-9)
    assert now.bits_per_byte == pytest.approx(before.nats_W.sum() / math.log(2) / before.bytes_W.sum())


def test_what_cannot_be_compared_says_why() -> None:
    known = evaluated(facts=SetFacts("w", "t", "one"))
    base = {"a": evaluated(), "b": replace(known, bytes_W=None), "d": known}
    other, same_text, cut = SetFacts("v"), SetFacts("v", "t", "two"), SetFacts("v", "t", "one")
    now = {"a": evaluated(facts=other), "b": evaluated(facts=same_text), "c": evaluated()}
    now["d"] = evaluated(facts=cut)
    found = not_comparable(Evaluation(1, 1, now), Evaluation(0, 0, base))
    assert "that the text is the same is not known" in found["a"]
    assert "the bytes of its tokens are not known" in found["b"]
    assert found["c"] == "it was not evaluated"
    assert "cut or read otherwise (data.seq_length, attention)" in found["d"]


def test_what_attention_sees_is_part_of_a_window(tmp_path: Path) -> None:
    """Losses with and without the document mask differ by themselves; the usual reading adds nothing."""
    write_known(tmp_path / "v", [[1, 2, 3, 4, 5]] * 4)
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG.replace("path: v", f"path: {tmp_path / 'v'}"))

    def facts(*words: str) -> SetFacts:
        (found,) = evaluated_sets(load_config(path, words).config, 100)
        return found.facts

    assert facts().windows == ValidSet("a", str(tmp_path / "v"), 8, 0, 1, 0, 1).facts.windows
    others = [facts("attention.document_mask=false"), facts("attention.reset_positions=true"), facts()]
    assert len({found.windows for found in others}) == 3
    assert facts("attention.document_mask=true") == facts()


def test_probes_are_compared_by_what_they_show() -> None:
    """Second window of each sequence minus the first, per token; a shift of both shows nothing."""
    tokens_W = np.array([4, 2] * 3)
    before = EvaluatedSet("probe", SetFacts("p"), np.array([8.0, 2.0] * 3), tokens_W, None, "induction")
    assert scores(before).tolist() == [-1.0] * 3
    now = replace(before, nats_W=before.nats_W + tokens_W * np.array([1.0, 1.5] * 3))
    record = set_record(Evaluation(1, 1, {"p": now}), Evaluation(0, 0, {"p": before}), HOW)
    assert record == {
        "probe/p/score_nats": pytest.approx(-0.5),
        "probe/p/change_nats": pytest.approx(0.5),
        "probe/p/change_low": pytest.approx(0.5),
        "probe/p/change_high": pytest.approx(0.5),
    }


CONFIG = """\
run: {dir: RUN}
start: {checkpoint: b}
data: {seq_length: 8, sources: [{name: a, path: p, token_share: 1}], valid: [{name: a, path: v, suite: old}]}
train: {steps: 8, global_batch_size: 1}
optim: {lr: 1e-3}
"""


def test_which_base_is_chosen(tmp_path: Path) -> None:
    """What the start carries where it fits, else step 0; what was asked for, or an error."""
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    start = tmp_path / "start"
    write_evaluation_at(start / "forgetting" / "base.losses", Evaluation(0, 0, {"a": evaluated(seed=7)}))
    step_0 = Evaluation(0, 0, {"a": evaluated()})
    plain = load_config(path).config
    assert choose_base(plain, None, step_0) == (step_0, "base: step 0 of this run")
    inherited, origin = choose_base(plain, start, step_0)
    assert inherited.sets["a"].nats_W.tolist() == evaluated(seed=7).nats_W.tolist() and origin.endswith(
        "start"
    )
    assert choose_base(load_config(path, ["forgetting.base=step0"]).config, start, step_0)[0] is step_0
    other = Evaluation(0, 0, {"a": evaluated(facts=SetFacts("v")), "b": evaluated()})
    chosen, why = choose_base(plain, start, other)
    assert chosen is other and "tells nothing of a" in why
    asked = load_config(path, [f"forgetting.base={start}"]).config
    assert choose_base(asked, None, step_0)[1] == f"base: step 0 of {start}"
    with pytest.raises(ConfigError, match="tells nothing of set a"):
        choose_base(asked, None, other)
    with pytest.raises(ConfigError, match=r"has no forgetting/base\.losses"):
        choose_base(load_config(path, [f"forgetting.base={tmp_path}"]).config, None, step_0)
    assert kept_base(tmp_path / "run", tmp_path / "checkpoint") is None
    kept = kept_base(start, tmp_path / "checkpoint")
    assert kept is not None and kept.sets.keys() == {"a"}


def write_evaluation_at(path: Path, evaluation: Evaluation) -> None:
    """With the folders above it."""
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    write_evaluation(path, evaluation.to_bytes())


def test_a_control_is_asked_at_the_same_tokens(tmp_path: Path) -> None:
    for step, tokens in ((0, 0), (5, 1000), (10, 2000)):
        write_evaluation_at(evaluation_path(tmp_path, step), Evaluation(step, tokens, {"a": evaluated()}))
    control = Control(tmp_path)
    near = {tokens: control.near(tokens) for tokens in (0, 500, 995, 1009, 1011, 2000)}
    steps = {tokens: found and found.step for tokens, found in near.items()}
    assert steps == {0: 0, 500: None, 995: 5, 1009: 5, 1011: None, 2000: 10}
    with pytest.raises(ConfigError, match="has no evaluations in forgetting/"):
        Control(tmp_path / "nothing")


def test_intervals_of_one_window_are_infinite() -> None:
    """One window says nothing of how sure the change is."""
    now = Evaluation(1, 1, {"a": evaluated(windows=1)})
    assert suite_changes(now, now, HOW)["old"] == Interval(0.0, -math.inf, math.inf)
    both = Evaluation(1, 1, {"a": evaluated(windows=1), "b": evaluated(), "c": evaluated("probe", windows=1)})
    assert suite_changes(both, both, HOW)["old"].low == -math.inf
    (said,) = without_interval(both)
    assert said.startswith("change of a has no interval") and "none of suite old: nothing is decided" in said
