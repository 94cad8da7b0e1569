"""Weights that go wrong in the memory of one rank: to NaN, which ends the run, or far off, which a rollback heals.

Place in the flow: faults of `catalogue`. Invariant: the step that found it changes no weight that is saved.
"""

from __future__ import annotations

import json
import shutil

from commands import records
from faults.injection.checks import check_curve, check_failure, check_kept, check_resume, chosen_options
from faults.injection.ground import LAYOUTS, STEPS, Undisturbed, curve, last_step
from faults.injection.trials import Told, Trial

HISTORY = 4
"""Steps that the detector has seen before the spike, at least."""
ROLLBACK = ["guards.on_spike=rollback", f"guards.spike_min_history={HISTORY}", "guards.skip_batches=0"]


def make_nan(trial: Trial) -> Told:
    """A matrix of one rank becomes NaN: no rank saves it, all say so, and the run goes on from before."""
    layout = LAYOUTS[trial.number % len(LAYOUTS)]
    options = chosen_options(trial)
    calm = trial.ground.undisturbed(layout, options)
    steps_before = trial.draw.randrange(len(calm.curve[0]))
    victim = trial.draw.randrange(layout.world_size)
    change = {"victim": victim, "step": steps_before, "part": "linear_fc2", "factor": float("nan")}
    with trial.ground.start(trial.run, layout, options, "poison", **change) as ranks:
        codes = ranks.wait()
    check_failure(ranks, codes, "nan")
    assert last_step(trial.run) == steps_before, f"{last_step(trial.run)} steps on record, not {steps_before}"
    lost = check_kept(trial.run)
    check_resume(trial.ground, trial.run, layout, options, calm)
    return Told("NaN in a weight", detected=True, lost_steps=lost)


def inflate(trial: Trial) -> Told:
    """The last norm of one rank is suddenly a thousand times too large: the run goes back to a checkpoint, drops the
    batch, and ends as one that never trained on this batch."""
    layout = LAYOUTS[trial.number % len(LAYOUTS)]
    options = [*chosen_options(trial), *ROLLBACK]
    steps_before = trial.draw.randrange(HISTORY, STEPS)
    victim = layout.world_size - 1  # of the last stage, under any layout
    change = {"victim": victim, "step": steps_before, "part": "final_layernorm", "factor": 1000.0}
    with trial.ground.start(trial.run, layout, options, "poison", **change) as ranks:
        codes = ranks.wait()
    assert set(codes) == {0}, f"ended with {codes}: {ranks.text()[-1500:]}"
    lines = (trial.run / "journal.jsonl").read_text().splitlines()
    found = [(entry["action"], entry["batch"], entry["to_step"]) for entry in map(json.loads, lines)]
    assert [action for action, *_ in found] == ["rollback"] and found[0][1] == steps_before + 1, found
    assert records(trial.run, "guard")[0]["event"] == "rollback"

    saved = found[0][2]
    planned = (
        trial.directory / "planned"
    )  # stops at this checkpoint, and goes on with a journal that drops the batch
    trial.ground.finish(planned, layout, [*options, f"train.steps={saved}"])
    shutil.copy(trial.run / "journal.jsonl", planned)
    trial.ground.finish(planned, layout, options)
    steps, evals = curve(planned)
    check_curve(
        trial.run, Undisturbed(planned, (steps, [record for record in evals if record["step"] != saved]))
    )
    check_kept(trial.run)
    return Told("spike", detected=True, lost_steps=steps_before - saved)
