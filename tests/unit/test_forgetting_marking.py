"""Which checkpoints the monitor goes back to, and which it keeps as the best."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from run_checkpoints import make_run, store
from shard_files import sign

from cptron.checkpoint.layout import STATE
from cptron.checkpoint.marks import read_marks
from cptron.forgetting.marking import BEST, mark_best, newest_quiet
from cptron.forgetting.policy import PolicyState
from cptron.forgetting.watch import Watch


def test_it_goes_back_to_before_the_alarm(tmp_path: Path) -> None:
    """A checkpoint of the very step was saved before its evaluation, and says nothing of it."""
    config = make_run(tmp_path / "run", [])
    for step, above in ((4, 0), (8, 1), (12, 0)):
        made = store(tmp_path / "run", step, config)
        watch = replace(Watch(), policy=PolicyState(above=above))
        (made / STATE).write_text(json.dumps({"watch": watch.to_dict()}))
        sign(made)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert newest_quiet(checkpoints, 13) == 12
    assert newest_quiet(checkpoints, 12) == 4
    assert newest_quiet(checkpoints, 4) is None


def test_the_best_so_far_is_marked(tmp_path: Path) -> None:
    """From save to save; a checkpoint without an evaluation changes nothing."""
    config = make_run(tmp_path / "run", [])
    checkpoints = tmp_path / "run" / "checkpoints"

    def saved(step: int, old: float, new: float) -> int | None:
        metrics = {f"forgetting/old/change_{end}": old for end in ("nats", "low", "high")}
        store(tmp_path / "run", step, config, metrics={**metrics, "learning/new/change_nats": new})
        return mark_best(checkpoints, 0.1)

    store(tmp_path / "run", 2, config)
    assert mark_best(checkpoints, 0.1) is None and read_marks(checkpoints) == {}
    assert [saved(4, 0.0, -0.1), saved(8, 0.05, -0.5), saved(12, 0.3, -0.9)] == [4, 8, 8]
    assert read_marks(checkpoints) == {8: (BEST,)}
