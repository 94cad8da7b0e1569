"""Which checkpoints the monitor goes back to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from run_checkpoints import make_run, store
from shard_files import sign

from cptron.checkpoint.layout import STATE
from cptron.forgetting.marking import newest_quiet
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
