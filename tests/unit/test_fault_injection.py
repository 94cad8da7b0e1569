"""The fault-injection harness is worth what its parts are worth: damage that damages, trials that are counted."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from faults.injection.damage import KINDS, contents, damage
from faults.injection.ground import Ground
from faults.injection.trials import CannotInject, Fault, Told, Trial, run_trials
from tiny_world import World


def make_checkpoints(root: Path) -> Path:
    """Three directories with files of several kinds; some have the same content, one has none."""
    for step in (2, 4, 6):
        directory = root / f"step_{step:08d}"
        (directory / "shards").mkdir(parents=True)
        (directory / "shards" / "0.bin").write_bytes(random.Random(step).randbytes(9000))
        (directory / "shards" / "1.bin").write_bytes(random.Random(-step).randbytes(300))
        (directory / "zeros.json").write_bytes(bytes(5000))
        (directory / "same.json").write_text("{}")
        (directory / "empty.txt").write_bytes(b"")
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_every_damage_changes_something(kind: str, tmp_path: Path) -> None:
    """Whatever is drawn; else a trial would ask for the detection of nothing. The oldest checkpoint is left alone."""
    for number in range(30):
        checkpoints = make_checkpoints(tmp_path / str(number))
        before = contents(checkpoints)
        done = damage(random.Random(number), checkpoints, kind)
        after = contents(checkpoints)
        assert before != after, done
        oldest = {name: data for name, data in before.items() if name.startswith("step_00000002")}
        assert oldest.items() <= after.items(), done


def test_trials_are_counted_and_failed_ones_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure is a row's, with the command that repeats it and its directory; what is drawn depends on its number."""
    drawn: dict[int, float] = {}

    def inject(trial: Trial) -> Told:
        drawn[trial.number] = trial.draw.random()
        trial.run.mkdir()
        assert trial.number != 1, "no such luck"
        return Told("all of it", detected=True, lost_steps=trial.number)

    fault = Fault("mock", "nothing", inject, full=4, short=())
    ground = Ground(World(tmp_path / "world"), tmp_path)
    row = run_trials(fault, ground, 5, range(4)).row()
    assert (row["injected"], row["detected"], row["survived"]) == (4, 3, 3)
    assert row["lost_steps"] == {"median": 2, "max": 3}
    assert row["failed"] == {"1": "AssertionError: no such luck"}
    assert '--only "mock" --trial 1 --seed 5' in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "trials").iterdir()] == ["mock_1"]
    before = dict(drawn)
    run_trials(fault, ground, 5, [2])
    assert drawn == before and len(set(drawn.values())) == 4


def test_what_a_machine_does_not_permit_is_said(tmp_path: Path) -> None:
    """Not counted as injected, and no failure."""

    def inject(trial: Trial) -> Told:
        raise CannotInject("no mounts here")

    fault = Fault("mock", "nothing", inject, full=4, short=())
    row = run_trials(fault, Ground(World(tmp_path / "world"), tmp_path), 5, range(4)).row()
    assert (row["injected"], row["failed"], row["not_injected"]) == (0, {}, "no mounts here")
