"""One rank's part in ending together, where something stands in its way."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from cptron.config.schema import RuntimeConfig
from cptron.errors import EXIT_CODE, HANG_EXIT_CODE, ConfigError
from cptron.runtime import failure
from cptron.runtime.failure import CommonEnd
from cptron.runtime.launcher import Ranks
from cptron.runtime.lifeline import Ending
from cptron.runtime.pace import Pace


class Exits:
    """In place of `os._exit`."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.come = threading.Event()

    def __call__(self, code: int) -> None:
        self.codes.append(code)
        self.come.set()


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> Exits:
    """The ends of this process; what ends it late does so at once."""
    exits = Exits()
    monkeypatch.setattr(os, "_exit", exits)
    for name in ("TEARDOWN_S", "SHOW_S", "GRACE_S"):
        monkeypatch.setattr(failure, name, 0.2)
    return exits


def common_end(tmp_path: Path, world_size: int = 2) -> CommonEnd:
    """That of rank 0."""
    return CommonEnd(
        Ranks(0, world_size, 0, world_size, "torchrun"), Pace(), RuntimeConfig(), tmp_path / "run.json"
    )


@pytest.mark.parametrize("deed", ["hears", "hangs"])
def test_a_hang_of_the_disk_ends_every_rank(
    deed: str, exits: Exits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever hears of the hang ends, though the disk takes no stacks; whoever hangs has told the others before."""
    disk_is_asked, disk_is_back, told, told_by_then = threading.Event(), threading.Event(), [], []

    def keep_stacks(*_: object) -> None:
        told_by_then.extend(told)
        disk_is_asked.set()
        disk_is_back.wait(120)

    monkeypatch.setattr(failure, "keep_stacks", keep_stacks)
    end = common_end(tmp_path)
    end._lifeline = SimpleNamespace(ending=None, tell=told.append)  # type: ignore[assignment]
    hears = (end._other_ended, Ending(1, HANG_EXIT_CODE, "a step"))
    thread = threading.Thread(target=lambda: hears[0](hears[1]) if deed == "hears" else end._hang("a step"))
    thread.start()
    ended = disk_is_asked.wait(60) and exits.come.wait(60)
    disk_is_back.set()
    thread.join()
    end.close()
    assert ended and set(exits.codes) == {HANG_EXIT_CODE}
    assert told_by_then == ([] if deed == "hears" else [Ending(0, HANG_EXIT_CODE, "a step")])


def test_an_error_is_said_though_the_teardown_never_ends(
    exits: Exits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the command would say it at its end, which does not come."""
    end = common_end(tmp_path, 1)
    with pytest.raises(ConfigError), end.shared():
        raise ConfigError("a value is wrong; mend it")
    assert exits.come.wait(60) and exits.codes == [EXIT_CODE]
    assert capsys.readouterr().err == "cptron: error: a value is wrong; mend it\n"


def test_the_timer_and_the_main_thread_say_it_once(
    exits: Exits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rank that hears of an end is ended by its timer, or by its collective, or by both in the same moment."""
    end, ending = common_end(tmp_path), Ending(1, 1, "too bad")
    end._lifeline = SimpleNamespace(ending=ending, wait=lambda _: ending, tell=None)  # type: ignore[assignment]
    end._other_ended(ending)
    assert exits.come.wait(60)
    end._failed(RuntimeError("gloo: connection reset"))
    end.close()
    assert capsys.readouterr().err == "cptron: [rank 0] stops because rank 1 failed: too bad\n"
