"""A branch has all of its parent's state and leaves the parent as it was; `cptron anneal` makes and resumes it."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import rank_calls
import torch
from commands import assert_close, records, snapshot, steps
from shard_files import sign
from tiny_world import ONE, Layout, World, command

from cptron.checkpoint.layout import read_manifest
from cptron.config.load import load_config
from cptron.errors import ConfigError
from cptron.testing import run_ranks
from cptron.train.preflight import preflight

FOUR = Layout(4, tp=2)
"""Two tensor parallel ranks times two data parallel ones."""
SCHEDULE = [
    "optim.schedule=infinite",
    "optim.warmup_steps=1",
    "optim.cooldown_steps=2",
    "optim.lr_constant=1.0e-3",
]
SETTINGS = [
    "data.valid=[]",
    "eval.every_steps=0",
    "eval.at_start=false",
    "checkpoint.every_steps=4",
    "train.steps=10",
]
TOKENS = str(5 * 8 * 32)
"""Five steps."""
STEADY = ["optim.lr_min=1.0e-3", "optim.decay_form=linear"]
"""An anneal in which nothing changes."""


@pytest.fixture(scope="module")
def parent(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten steps, constant from the third on; checkpoints at 4, 8 and 10."""
    return world.trained(tmp_path_factory.mktemp("branch") / "parent", FOUR, *SCHEDULE, *SETTINGS)


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def state(run: Path, step: int) -> dict[str, Any]:
    """`state.json` of a checkpoint."""
    return json.loads((checkpoint(run, step) / "state.json").read_text())  # type: ignore[no-any-return]


def stir(saved: Path) -> list[dict[str, str]]:
    """Give a checkpoint generators that no run begins with; returns them. Nothing in these runs draws from them."""
    values = json.loads((saved / "state.json").read_text())
    stirred = torch.Generator().manual_seed(99).get_state()
    text = base64.b64encode(stirred.numpy().tobytes()).decode()
    values["random_states"] = [dict.fromkeys(found, text) for found in values["random_states"]]
    (saved / "state.json").write_text(json.dumps(values))
    sign(saved)
    return values["random_states"]  # type: ignore[no-any-return]


def branch(world: World, parent: Path, target: Path, layout: Layout, *words: str) -> Path:
    """A child whose rates stay the parent's, from step 4 to 9."""
    start = ["start.mode=branch", f"start.checkpoint={checkpoint(parent, 4)}", *SCHEDULE, *SETTINGS]
    return world.trained(target, layout, *start, *STEADY, "train.steps=9", "optim.decay_steps=9", *words)


def test_a_branch_is_the_undisturbed_continuation(world: World, parent: Path, tmp_path: Path) -> None:
    """Same layout: losses, norms and what was drawn of five steps, and then weights, optimizer, ledger and generators,
    to the bit. The parent is not touched, and the branch names it."""
    run = tmp_path / "parent"
    shutil.copytree(parent, run)
    generators = stir(checkpoint(run, 4))
    before = snapshot(run)
    child = branch(world, run, tmp_path / "child", FOUR, "optim.anneal_steps=5")
    assert steps(child) == [record for record in steps(parent) if 4 < record["step"] <= 9]
    assert len(steps(child)) == 5 and {record["lr"] for record in steps(child)} == {1e-3}
    theirs, ours = (read_manifest(checkpoint(run, 8)) for run in (parent, child))
    assert ours.weights_fingerprint == theirs.weights_fingerprint
    shards = {name: file.sha256 for name, file in theirs.files.items() if name.endswith(".distcp")}
    assert len(shards) >= 4
    assert {name: file.sha256 for name, file in ours.files.items() if name in shards} == shards
    expected = state(parent, 8) | {"random_states": generators}
    expected["watch"] |= {"begun_step": 4, "begun_tokens": state(parent, 4)["tokens_total"]}
    assert state(child, 8) == expected
    assert snapshot(run) == before
    assert ours.parent == ours.lineage[0] == str(checkpoint(run, 4))
    assert ours.lineage[1:] == theirs.lineage
    (start,) = records(child, "start")
    assert start["step"] == 4


@pytest.mark.parametrize("layout", [ONE, Layout(2, pp=2)], ids=str)
def test_a_branch_in_another_layout(world: World, parent: Path, tmp_path: Path, layout: Layout) -> None:
    """Weights and moments are resharded; then sums are added in another order."""
    child = branch(world, parent, tmp_path / "child", layout, "optim.anneal_steps=5")
    assert_close(steps(child), [record for record in steps(parent) if 4 < record["step"] <= 9])


def test_anneal_starts_and_goes_on(world: World, parent: Path, tmp_path: Path) -> None:
    """One command: the rates fall to the lowest; killed before its first save or after it, the same command ends on
    the same curve; with the parent gone the file alone does. Its log proves what it has seen, the parent's part too."""
    run = tmp_path / "parent"
    shutil.copytree(parent, run)
    words: list[str | Path] = ["anneal", run, "--from", "4", "--tokens", TOKENS, "parallel.tp=1"]
    words += ["optim.decay_form=linear", "checkpoint.every_steps=3"]
    done = command(*words)
    assert not done.error, done.error
    assert "branching from" in done.stdout and "finished 9 steps" in done.stdout
    child = tmp_path / "parent-anneal-4"
    whole = steps(child)
    assert [record["lr"] for record in whole] == pytest.approx(
        [1e-3 - 0.9e-3 * number / 5 for number in range(5)]
    )
    assert whole[0]["loss_nats_per_token"] == pytest.approx(steps(parent)[4]["loss_nats_per_token"], rel=1e-4)
    shutil.rmtree(child / "checkpoints")
    assert not command(*words).error
    assert steps(child) == whole
    shutil.rmtree(checkpoint(child, 9))
    assert not command(*words).error
    assert steps(child) == whole
    audited = command("data", "ledger", child)
    assert not audited.error, audited.error
    assert f"equal to the ledger of {checkpoint(child, 9)}" in audited.stdout
    shutil.rmtree(run)
    shutil.rmtree(checkpoint(child, 9))
    assert not command("train", tmp_path / "parent-anneal-4.yaml").error
    assert steps(child) == whole


def test_a_branch_with_a_blend_of_its_own(world: World, parent: Path, tmp_path: Path) -> None:
    """A new source begins at its beginning, a kept one goes on, one that is left out stays on record; and the log is
    proven across the change."""
    sources = f"[{{name: domain, path: {world.tokens('domain')}, token_share: 0.5}}, "
    sources += f"{{name: fresh, path: {world.tokens('general_valid')}, token_share: 0.5}}]"
    child = branch(world, parent, tmp_path / "child", ONE, "optim.anneal_steps=5", f"data.sources={sources}")
    before, after = (state(run, step)["ledger"]["entries"] for run, step in ((parent, 4), (child, 9)))
    assert before.keys() == {"domain", "general"} and after.keys() == {"domain", "general", "fresh"}
    assert after["general"]["cursor"] == before["general"]["cursor"] and after["general"]["share"] == 0
    drawn = after["domain"]["cursor"] - before["domain"]["cursor"]
    assert drawn + after["fresh"]["cursor"] == 5 * 8 and 0 < drawn < 40
    assert "general" in (child / "config.until_step_00000004.yaml").read_text()
    audited = command("data", "ledger", child)
    assert not audited.error, audited.error


def test_a_branch_of_an_adapter(world: World, tmp_path: Path) -> None:
    """The adapter's parameters and moments, on the base that it was trained on."""
    words = [*SCHEDULE, *SETTINGS, "adapter.kind=lora", "adapter.rank=4"]
    run = world.trained(tmp_path / "parent", ONE, *words, "train.steps=7", "checkpoint.every_steps=4")
    child = branch(
        world,
        run,
        tmp_path / "child",
        ONE,
        *words,
        "train.steps=7",
        "optim.decay_steps=7",
        "optim.anneal_steps=3",
    )
    assert steps(child) == steps(run)[4:]
    ours, theirs = (read_manifest(checkpoint(directory, 7)) for directory in (child, run))
    assert ours.weights_fingerprint == theirs.weights_fingerprint and ours.base == theirs.base


def test_a_child_is_held_to_what_its_parent_began_with(world: World, tmp_path: Path) -> None:
    """Near the parent's starting weights, which still teach: with equal rates it is the parent to the bit, drift and
    divergence included. What it is held to cannot change."""
    words = [*SCHEDULE, *SETTINGS, "train.steps=6", "log.every_steps=1", "optim.weight_decay=0.0"]
    words += ["regularise.l2sp=20.0", "data.sources.general.role=replay"]
    words += ["regularise.distill.weight=0.5", "regularise.distill.top_k=4"]
    run = world.trained(tmp_path / "parent", ONE, *words)
    done = command("anneal", run, "--from", "4", "--tokens", str(2 * 8 * 32), *STEADY)
    assert not done.error, done.error
    child = tmp_path / "parent-anneal-4"
    assert steps(child) == steps(run)[4:]
    assert steps(child)[0]["drift/all"] > 0 and len(steps(child)) == 2
    shutil.rmtree(checkpoint(child, 6))
    file = tmp_path / "parent-anneal-4.yaml"
    file.write_text(file.read_text().replace(f"base: {world.base}", f"base: {checkpoint(run, 4)}"))
    refused = command("train", file)
    assert refused.error.startswith("ConfigError") and "those it began with" in refused.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["start.checkpoint={base}"], "holds weights only, and start.mode=branch needs optimizer"),
        (
            ["start.checkpoint={parent}"],
            "is a run, whose newest checkpoint changes; start.mode=branch needs one",
        ),
        (
            ["optim.name=sgd"],
            'a branch cannot change so since step 4, named or not: optim.name "adamw" -> "sgd"',
        ),
        (
            ["run.seed=9"],
            "the branch has changed since step 4: run.seed 1234 -> 9 .*'run.accept_changes=\\[run.seed\\]'",
        ),
        (["optim.lr_constant=1.5e-3"], "start.state=constant_phase: .* a first rate of 0.0015 would raise"),
        (
            ["start.mode=init_from", "optim.warmup_steps=2"],
            "constant of 0.001, and optim.warmup_steps=2 would raise",
        ),
    ],
)
def test_refused_before_any_rank_starts(
    world: World, parent: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    start = ["start.mode=branch", f"start.checkpoint={checkpoint(parent, 4)}", f"run.dir={tmp_path}/child"]
    asked = [word.format(base=world.base, parent=parent) for word in words]
    config = load_config(world.config, [*SCHEDULE, *SETTINGS, *start, *asked]).config
    with pytest.raises(ConfigError, match=message):
        preflight(config, 1)


def test_a_named_change_takes_effect_once(world: World, parent: Path, tmp_path: Path) -> None:
    """Also where the branch starts again before its first save: the accounts are renewed from the parent's."""
    words = ["run.seed=9", "run.accept_changes=[run.seed]", "optim.anneal_steps=5"]
    child = branch(world, parent, tmp_path / "child", ONE, *words)
    first, entries = steps(child), state(child, 9)["ledger"]["entries"]
    old = state(parent, 4)["ledger"]["entries"]["domain"]["cursor"]
    assert entries["domain.until_step_00000004"]["cursor"] == old
    assert sum(entries[name]["cursor"] for name in ("domain", "general")) == 5 * 8
    shutil.rmtree(child / "checkpoints")
    branch(world, parent, child, ONE, *words)
    assert steps(child) == first and state(child, 9)["ledger"]["entries"] == entries


def train_and_show_groups(
    config: str, overrides: list[str]
) -> tuple[rank_calls.Outcome, list[dict[str, float]]]:
    """Train; afterwards what every parameter group holds, of the optimizer and of the inner ones that step."""
    from cptron.train import setup

    prepare, kept = setup.prepare, []

    def prepare_and_keep(*arguments: Any) -> Any:
        run = prepare(*arguments)
        kept.append(run.optimizer)
        return run

    setup.prepare = prepare_and_keep
    try:
        outcome = rank_calls.train(config, overrides)
    finally:
        setup.prepare = prepare
    (optimizer,) = kept
    groups = [*optimizer.param_groups]
    for part in optimizer.chained_optimizers:
        groups += part.optimizer.param_groups
    names = ("lr", "lr_mult", "weight_decay", "wd_mult", "eps")
    shown = [{name: group[name] for name in names} | {"beta1": group["betas"][0]} for group in groups]
    return outcome, shown


def test_an_override_on_resume_reaches_every_group(world: World, parent: Path, tmp_path: Path) -> None:
    """Rate, decay, beta and eps of the checkpoint are nowhere left, on any rank of the distributed optimizer; groups
    with a multiplier have theirs."""
    run = tmp_path / "run"
    shutil.copytree(parent, run)
    shutil.rmtree(checkpoint(run, 10))
    changes = ["optim.lr=7.0e-4", "optim.schedule=constant", "optim.lr_constant=0", "optim.cooldown_steps=0"]
    changes += ["optim.weight_decay=0.3", "optim.beta1=0.5", "optim.eps=1.0e-6"]
    changes += ['optim.groups=[{match: "*word_embeddings*", lr_mult: 0.1}]']
    words = [f"run.dir={run}", *FOUR.overrides, *SCHEDULE, *SETTINGS, *changes, "train.steps=9"]
    found = run_ranks(train_and_show_groups, 4, str(world.config), words)
    for outcome, groups in found:
        assert not outcome.error, outcome.error
        assert len(groups) >= 4
        for group in groups:
            assert group["lr"] == 7e-4 * group["lr_mult"]
            assert group["weight_decay"] == 0.3 * group["wd_mult"]
            assert (group["beta1"], group["eps"]) == (0.5, 1e-6)
    assert any(group["lr_mult"] == 0.1 for _, groups in found for group in groups)
    assert "learning rate of the next step: 0.001 -> 0.0007" in found[0][0].stdout
    assert [record["lr"] for record in steps(run, after=8)] == [7e-4]
