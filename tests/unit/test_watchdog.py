"""When a rank is called hung, and what it shows then."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cptron.config.schema import RuntimeConfig
from cptron.runtime import watchdog as watchdog_module
from cptron.runtime.pace import EVALUATION, SAVE, Pace
from cptron.runtime.watchdog import Watchdog, allowed_s, keep_stacks, stacks

RUNTIME = RuntimeConfig(hang_factor=20.0, hang_min_s=300, hang_phase_s=3600)


def paced(monkeypatch: pytest.MonkeyPatch, *durations_s: float) -> Pace:
    """A pace after steps of these durations; time stands still afterwards."""
    now_s = [0.0]
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now_s[0])
        pace = Pace()
        for duration_s in durations_s:
            now_s[0] += duration_s
            pace.step_done()
    return pace


def test_what_a_step_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty times the median, which a few slow steps do not move, and never less than the least."""
    assert allowed_s(paced(monkeypatch, 900.0, 30.0, 31.0, 32.0, 500.0), RUNTIME) == 20 * 31.5
    assert allowed_s(paced(monkeypatch, 900.0, 0.1, 0.1), RUNTIME) == 300


def test_what_is_no_step_has_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start with the first step, an evaluation, a save; longer where one was seen to take longer."""
    assert allowed_s(paced(monkeypatch), RUNTIME) == 3600
    assert allowed_s(paced(monkeypatch, 900.0), RUNTIME) == 3600
    pace = paced(monkeypatch, 900.0, 0.1, 0.1)
    for phase in (EVALUATION, SAVE):
        with pace.during(phase):
            assert allowed_s(pace, RUNTIME) == 3600
    pace._longest_s[SAVE] = 400.0
    with pace.during(SAVE):
        assert allowed_s(pace, RUNTIME) == 8000


def test_time_in_which_the_process_was_suspended_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler may stop a job for an hour. Steps that go on are no hang either; one that does not is told once."""
    monkeypatch.setattr(watchdog_module, "TICK_S", 0.01)
    monkeypatch.setattr(watchdog_module, "allowed_s", lambda pace, runtime: 0.3)
    pace, told, looks, now_s, flow_s = Pace(), threading.Event(), [0], [time.monotonic()], [0.0]
    whats: list[str] = []

    def monotonic() -> float:
        """A clock that stands still, until it moves on with each look of the watchdog."""
        if threading.current_thread().name == "watchdog":
            looks[0] += 1
            now_s[0] += flow_s[0]
        return now_s[0]

    monkeypatch.setattr(time, "monotonic", monotonic)
    watch = Watchdog(pace, RuntimeConfig(), lambda what: (whats.append(what), told.set())[0])
    for _ in range(10):
        now_s[0] += 3600.0
        seen = looks[0]
        while looks[0] < seen + 3 and not told.is_set():
            time.sleep(0.001)
        pace.step_done()
    assert not told.is_set()
    flow_s[0] = 0.01
    assert told.wait(60)
    watch.close()
    assert len(whats) == 1 and whats[0].startswith("a step has not ended for 0 s (limit 0 s, the median is ")


def test_it_can_be_turned_off() -> None:
    """`runtime.hang_factor: 0`."""
    Watchdog(Pace(), RuntimeConfig(hang_factor=0.0), lambda what: None).close()
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]


def test_stacks_of_all_threads(tmp_path: Path) -> None:
    """The main thread's first; kept where the run is, and nowhere before there is a run."""
    reading, closed = threading.Event(), threading.Event()

    def waits_for_a_disk() -> None:
        reading.set()
        closed.wait(60)

    threading.Thread(target=waits_for_a_disk, name="reader").start()
    assert reading.wait(60)
    text = stacks()
    closed.set()
    main, *others = text.split("thread ")[1:]
    assert (
        main.startswith("MainThread, most recent call first:\n") and "in test_stacks_of_all_threads" in main
    )
    (reader,) = [other for other in others if other.startswith("reader")]
    assert "waits_for_a_disk" in reader
    run_file = tmp_path / "run.json"
    keep_stacks(run_file, 3, "why", text)
    assert not (tmp_path / "stacks").exists()
    run_file.touch()
    for _ in range(2):
        keep_stacks(run_file, 3, "why", text)
    assert (tmp_path / "stacks" / "rank_3.txt").read_text().count("rank 3: why\n" + text) == 2
