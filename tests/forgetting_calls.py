"""What the tests of the forgetting monitor run on warm ranks: training that is cut off."""

from __future__ import annotations

from typing import Any

import rank_calls

from cptron.train import monitor as module
from cptron.train.monitor import Monitor


class Killed(BaseException):
    """Ends a rank where a kill would: nothing more is written, nobody is told."""


def train_until(config: str, overrides: list[str], moment: str) -> str:
    """Train, and die on all ranks at a moment of the first action: `journalled`, when it is in the journal and has had
    no effect; `loaded`, when a rollback has loaded its checkpoint and moved nothing; `acted`, when all is done."""
    judge, react, roll_back = Monitor.judge, Monitor.react, module.roll_back

    def judge_and_die(self: Monitor, *words: Any) -> Any:
        action = judge(self, *words)
        if self._pending is not None and self._pending.action != "none":
            raise Killed
        return action

    def react_and_die(self: Monitor) -> bool:
        acts = self._pending is not None and self._pending.action != "none"
        went_back = react(self)
        if acts:
            raise Killed
        return went_back

    def roll_back_and_die(*words: Any) -> None:
        roll_back(*words)
        raise Killed

    if moment == "journalled":
        Monitor.judge = judge_and_die  # type: ignore[method-assign]
    elif moment == "acted":
        Monitor.react = react_and_die  # type: ignore[method-assign]
    else:
        module.roll_back = roll_back_and_die
    try:
        return f"not killed: {rank_calls.train(config, overrides).error}"
    except Killed:
        return "killed"
    finally:
        Monitor.judge, Monitor.react = judge, react  # type: ignore[method-assign]
        module.roll_back = roll_back


def judge_when_off(config: str, overrides: list[str]) -> tuple[int, bool, str]:
    """What a monitor does where nothing is watched, in a process that belongs to no group: a collective would fail."""
    from pathlib import Path
    from types import SimpleNamespace

    from cptron.config.load import load_config
    from cptron.train.state import TrainState

    run = SimpleNamespace(
        config=load_config(Path(config), overrides).config, state=TrainState(), directory=Path("nowhere")
    )
    monitor = Monitor(run, [], lambda: None)  # type: ignore[arg-type]
    record: dict[str, Any] = {}
    action = monitor.judge({}, record)
    monitor.count(None)  # type: ignore[arg-type]
    monitor.on_save(run, Path("nowhere"))  # type: ignore[arg-type]
    assert not record and run.state == TrainState()
    return int(action), monitor.react(), monitor.ending()
