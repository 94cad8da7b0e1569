"""A run that stopped goes on as if it had not: to the bit in the same layout, within 1e-4 in another."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import rank_calls
from commands import assert_close, evals, records, snapshot, steps
from faults.injection import matrix
from tiny_world import LAYOUTS, ONE, Layout, World

from cptron.config.load import load_config
from cptron.testing import run_ranks
from cptron.train.preflight import preflight


def interrupted(whole: Path, target: Path) -> Path:
    """Copy of a whole run as a crash between steps 10 and 20 leaves it: later metrics, no later checkpoint."""
    shutil.copytree(whole, target)
    shutil.rmtree(target / "checkpoints" / "step_00000020")
    return target


def ledger(run_dir: Path, step: int) -> dict[str, object]:
    """Position of the data in a checkpoint."""
    path = run_dir / "checkpoints" / f"step_{step:08d}" / "state.json"
    return json.loads(path.read_text())["ledger"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "layout",
    [ONE, *(pytest.param(cut, marks=pytest.mark.more) for cut in LAYOUTS[1:-1]), LAYOUTS[-1]],
    ids=str,
)
def test_same_layout_to_the_bit(
    layout: Layout, world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """Losses, norms, rates, tokens and validation of the second half are those of the uninterrupted run."""
    whole = whole_runs[layout]
    run = world.trained(interrupted(whole, tmp_path / "run"), layout)
    assert [record["step"] for record in records(run, "start")] == [0, 10]
    assert steps(run) == steps(whole)
    assert evals(run) == evals(whole)
    assert ledger(run, 20) == ledger(whole, 20)


@pytest.mark.more
def test_stopping_at_fewer_steps_and_going_on(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """A finished run of 10 steps, extended to 20, equals 20 at once; a third call finds nothing to do."""
    layout = Layout(2, tp=2)
    run = world.trained(tmp_path / "run", layout, "train.steps=10")
    assert [record["step"] for record in steps(run)] == list(range(1, 11))
    world.trained(run, layout, "train.steps=20")
    assert steps(run) == steps(whole_runs[layout])
    assert evals(run) == evals(whole_runs[layout])
    before, checkpoints = steps(run), snapshot(run / "checkpoints")
    world.trained(run, layout, "train.steps=20")
    assert (steps(run), snapshot(run / "checkpoints")) == (before, checkpoints)
    assert evals(run) == evals(whole_runs[layout])


@pytest.fixture(scope="module")
def before_resharding(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Layout], Path]:
    """The uninterrupted run of a layout, made when it is asked for first."""
    root = tmp_path_factory.mktemp("before")

    @functools.cache
    def made(layout: Layout) -> Path:
        return world.trained(root / str(layout), layout, *matrix.SETTINGS)

    return made


PAIRS = [(number, (number + 1) % len(matrix.LAYOUTS)) for number in range(len(matrix.LAYOUTS))] + [
    (4, 0),
    (5, 6),
    (6, 1),
]
"""Numbers of layouts: each is left and taken up once, and three more: 12 of the 81 of `make faults`, one of them in
`make test`."""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            matrix.LAYOUTS[before],
            matrix.LAYOUTS[after],
            marks=[pytest.mark.more] * (number != 1),
        )
        for number, (before, after) in enumerate(PAIRS)
    ],
    ids=str,
)
def test_other_layout_within_tolerance(
    before: Layout,
    after: Layout,
    world: World,
    before_resharding: Callable[[Layout], Path],
    tmp_path: Path,
) -> None:
    """Weights, moments and the order of the data survive a change of layout: the next ten steps, each loss and norm."""
    whole = before_resharding(before)
    run = world.trained(matrix.interrupt(whole, tmp_path / "run"), after, *matrix.SETTINGS)
    assert matrix.compare(run, whole, same_layout=False) < 1e-4
    assert ledger(run, 12) == ledger(whole, 12)


@pytest.mark.more
def test_other_batch_cut_within_tolerance(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """The micro-batch size is no part of what is computed."""
    run = world.trained(
        interrupted(whole_runs[ONE], tmp_path / "run"),
        ONE,
        "train.micro_batch_size=4",
        "eval.micro_batch_size=3",
    )
    assert_close(steps(run), steps(whole_runs[ONE]))
    assert_close(evals(run), evals(whole_runs[ONE]))


def test_new_learning_rate_is_used_on_resume(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """An override wins over what the checkpoint was trained with, is said, shows in the metrics and changes the
    weights."""
    whole = whole_runs[ONE]
    changes = ("optim.schedule=constant", "optim.lr=5.0e-4")
    run = interrupted(whole, tmp_path / "run")
    (outcome,) = world.train(run, ONE, *changes)
    assert not outcome.error
    assert (
        f'changed since step 10: run.dir "{whole}" -> "{run}", optim.lr 0.002 -> 0.0005, '
        'optim.schedule "cosine" -> "constant"'
    ) in outcome.stdout
    assert steps(run)[:10] == steps(whole)[:10]
    assert {record["lr"] for record in steps(run, after=10)} == {5.0e-4}
    assert steps(run)[10]["loss_nats_per_token"] == steps(whole)[10]["loss_nats_per_token"]
    assert steps(run)[11]["loss_nats_per_token"] != steps(whole)[11]["loss_nats_per_token"]
    assert "lr: 0.002" in (run / "config.until_step_00000010.yaml").read_text()


def test_changed_shares_go_on_without_repeating_samples(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """New shares apply from the resumed step on, and each source goes on where it was."""
    shares = ("data.sources.domain.token_share=0.25", "data.sources.general.token_share=0.75")
    run = world.trained(interrupted(whole_runs[ONE], tmp_path / "run"), ONE, *shares)
    half, end = steps(run)[9], steps(run)[-1]
    gained = end["tokens/domain"] - half["tokens/domain"]
    assert gained / (end["tokens_total"] - half["tokens_total"]) == pytest.approx(0.25, abs=0.02)
    assert end["tokens/domain"] + end["tokens/general"] == end["tokens_total"] > 20 * 8 * 32 - 5 * 32


def test_what_export_needs_outlives_the_checkpoint_resumed_from(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """With `keep_last=1` the first save deletes the source; the second still has the base model's small files."""
    run = interrupted(whole_runs[ONE], tmp_path / "run")
    world.trained(run, ONE, "checkpoint.keep_last=1", "checkpoint.every_steps=5")
    (last,) = (run / "checkpoints").iterdir()
    assert last.name == "step_00000020"
    carried = {path.name: path.read_bytes() for path in (last / "hugging_face").iterdir()}
    wanted = {path.name: path.read_bytes() for path in (world.base / "hugging_face").iterdir()}
    assert "config.json" in wanted and carried == wanted
    (exported,) = run_ranks(rank_calls.command, 1, ["export", str(run), str(tmp_path / "hf")])
    assert exported.error == ""


def test_killed_between_its_first_two_files(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """A start claims its directory with `run.json` and stores its configuration next: without one, nothing is known to
    have changed, and the same command begins."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(whole_runs[ONE] / "run.json", run)
    words = (
        "data.valid=[]",
        "eval.every_steps=0",
        "eval.at_start=false",
        "train.steps=2",
        "optim.warmup_steps=0",
    )
    world.trained(run, ONE, *words)
    assert [record["step"] for record in steps(run)] == [1, 2]


def test_a_start_from_a_run_says_what_it_passes_over(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """The newest checkpoint of the run it starts from is damaged: the plan names it, and the one that is used."""
    parent = tmp_path / "parent"
    shutil.copytree(whole_runs[ONE], parent)
    (parent / "checkpoints" / "step_00000020" / "state.json").unlink()
    config = load_config(world.config, [f"run.dir={tmp_path / 'run'}", f"start.checkpoint={parent}"]).config
    plan = preflight(config, 1)
    assert plan.base == parent / "checkpoints" / "step_00000010"
    assert [note for note in plan.notes if "step_00000010 is used: " in note and "step_00000020" in note]
