"""What must hold after every fault: which checkpoint is resumed, how much is lost, what is said, and the curve.

Place in the flow: called by the trials. Invariant: every check compares with the undisturbed run or with what is on
disk, never with what the run says of itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from faults.injection.ground import (
    EVERY_STEPS,
    LAYOUTS,
    Ground,
    Undisturbed,
    curve,
    last_step,
    newest_step,
    resumed_step,
)
from faults.injection.ranks import Ranks
from faults.injection.trials import Trial
from tiny_world import Layout

from cptron.checkpoint import verify
from cptron.checkpoint.layout import list_checkpoints
from cptron.errors import EXIT_CODE

ASYNCHRONOUS = "checkpoint.asynchronous=true"


def chosen_options(trial: Trial) -> list[str]:
    """Every other round through the layouts saves in the background."""
    return [ASYNCHRONOUS] if trial.number // len(LAYOUTS) % 2 else []


def lost_steps(run: Path) -> int:
    """Steps on record that no published checkpoint holds."""
    return last_step(run) - newest_step(run)


def check_lost(lost: int, options: Sequence[str]) -> None:
    """No more than the steps from save to save; a save in the background may be one save behind."""
    bound = EVERY_STEPS * (2 if ASYNCHRONOUS in options else 1)
    assert 0 <= lost <= bound, f"{lost} steps were lost, of {bound} that may be"


def check_resume(
    ground: Ground,
    run: Path,
    layout: Layout,
    options: Sequence[str],
    calm: Undisturbed,
) -> None:
    """The same command goes on from the newest published checkpoint and ends with the curve of the undisturbed run."""
    expected = newest_step(run)
    ground.finish(run, layout, options)
    found = resumed_step(run)
    assert found == expected, f"resumed from step {found}, but step {expected} was published"
    check_curve(run, calm)
    left = [path.name for path in (run / "checkpoints").glob(".*")]
    assert not left, f"the run has ended and left {left}"


def check_curve(run: Path, calm: Undisturbed) -> None:
    """Every step and every evaluation is that of the undisturbed run, to the bit."""
    (steps, evals), (calm_steps, calm_evals) = curve(run), calm.curve
    for what, ours, theirs in (("steps", steps, calm_steps), ("evaluations", evals, calm_evals)):
        numbers, calm_numbers = ([record["step"] for record in found] for found in (ours, theirs))
        assert numbers == calm_numbers, f"{what} {numbers}, in the undisturbed run {calm_numbers}"
        different = [one["step"] for one, other in zip(ours, theirs, strict=True) if one != other]
        assert not different, f"other values than in the undisturbed run in {what} {different}"


def start_over(run: Path) -> None:
    """Put a run away, so that the next start is a new one."""
    if run.exists():
        run.rename(run.with_name(f"ended_{len(list(run.parent.iterdir()))}"))


def check_failure(ranks: Ranks, codes: list[int], *words: str) -> None:
    """Every rank says one line with one of these words and ends with the code of an error that a user can act on."""
    lines = ranks.errors()
    said = "\n".join(ranks.text(rank)[-1500:] for rank in range(len(codes)))
    assert set(codes) == {EXIT_CODE}, f"exit codes {codes}, not {EXIT_CODE}: {said}"
    assert "Traceback" not in said and len(lines) == len(codes), f"not one line a rank: {said}"
    said_all = all(any(word in line for word in words) for line in lines)
    assert said_all, f"none of {words} is said: {lines}"


def check_kept(run: Path) -> int:
    """Every published checkpoint verifies; returns the steps that are lost."""
    for _, directory in list_checkpoints(run / "checkpoints"):
        assert not verify.damage(directory), (
            f"a failed save has left {directory.name} damaged: {verify.damage(directory)}"
        )
    lost = last_step(run) - newest_step(run)
    assert 0 <= lost <= 2 * EVERY_STEPS, f"{lost} steps were lost"
    return lost
