"""The journal of the guards: what is in it decides, and nothing that was changed afterwards passes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cptron.errors import CheckpointError
from cptron.train.journal import JOURNAL, Entry, Journal, append_entry, read_journal

ENTRY = Entry(
    batch=7,
    step=6,
    action="skip",
    cause="spike",
    loss_nats_per_token=9.5,
    grad_norm=3.25,
    z_loss=8.0,
    z_grad_norm=2.0,
    first=7,
    data="d",
)
NUMBERS = st.floats()
ENTRIES = st.builds(
    lambda batch, before, action, cause, numbers, found: Entry(
        batch, batch, action, cause, *numbers, max(1, batch - before), "d", 0, found
    ),
    st.integers(1, 10**9),
    st.integers(0, 20),
    st.sampled_from(["log", "skip", "rollback"]),
    st.sampled_from(["spike", "nonfinite"]),
    st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    st.text(),
)


@given(st.lists(ENTRIES, max_size=5), st.binary(max_size=30))
@settings(max_examples=50)
def test_what_was_appended_is_read(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry], torn: bytes
) -> None:
    """To the bit, NaN too; a line cut off by a kill is no entry, and the next one replaces it."""
    path = tmp_path_factory.mktemp("journal") / JOURNAL
    assert read_journal(path) == []
    for entry in entries:
        with path.open("ab") as file:
            file.write(torn.replace(b"\n", b" ").replace(b"\r", b" "))
        append_entry(path, entry)
    assert [entry.to_line() for entry in read_journal(path)] == [entry.to_line() for entry in entries]


def test_an_entry_is_on_disk_before_the_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is forced, and the directory that has its name."""
    forced, fsync = set(), os.fsync

    def watched(descriptor: int) -> None:
        forced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    append_entry(tmp_path / JOURNAL, ENTRY)
    assert {(tmp_path / JOURNAL).stat().st_ino, tmp_path.stat().st_ino} <= forced


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 0},
        {"batch": -7},
        {"batch": 7.0},
        {"batch": True},
        {"batch": 2**63},
        {"first": 0},
        {"first": 8},
        {"action": "stop"},
        {"cause": ""},
        {"grad_norm": "many"},
        {"grad_norm": 1},
        {"data": 5},
        {"found": None},
        {"more": 1},
    ],
    ids=str,
)
def test_a_changed_line_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    """With file and line."""
    path = tmp_path / JOURNAL
    append_entry(path, ENTRY)
    append_entry(path, ENTRY)
    line = json.dumps({**json.loads(ENTRY.to_line()), **change}).encode()
    path.write_bytes(ENTRY.to_line() + line + b"\n")
    with pytest.raises(CheckpointError, match=rf"{JOURNAL}:2 is no entry of a journal"):
        read_journal(path)


@pytest.mark.parametrize("line", [b"", b"5", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"batch": 1}'])
def test_a_line_that_is_none_is_refused(line: bytes, tmp_path: Path) -> None:
    """One clear error."""
    path = tmp_path / JOURNAL
    path.write_bytes(line + b"\n")
    with pytest.raises(CheckpointError, match=rf"{JOURNAL}:1 is no entry"):
        read_journal(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_journal(path)


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    """A path that cannot be written is a clear error."""
    with pytest.raises(CheckpointError, match="cannot be written"):
        append_entry(tmp_path / "absent" / JOURNAL, ENTRY)


def test_which_batches_it_decides_over() -> None:
    """All up to the last entry that is about the run's present data."""
    rollback = replace(ENTRY, batch=20, first=18, action="rollback", to_step=10)
    logged = replace(ENTRY, batch=12, first=12, action="log")
    other = replace(ENTRY, batch=90, first=80, data="other")
    journal = Journal([ENTRY, logged, rollback, other], "d")
    assert journal.not_repeated == 1
    assert [batch for batch in range(1, 100) if journal.decides(batch)] == list(range(1, 21))
    assert [batch for batch in range(1, 100) if journal.dropping(batch)] == [7, 18, 19, 20]
    assert journal.dropping(19) == rollback
    assert [batch for batch in range(1, 100) if journal.logged(batch)] == [12]
    assert [journal.actions_since(batch) for batch in (7, 8, 20, 21)] == [2, 1, 1, 0]
    assert not Journal([], "d").decides(1)


def test_a_number_that_json_lacks_is_a_text() -> None:
    """So that other readers of JSON take the file."""
    line = replace(ENTRY, loss_nats_per_token=math.nan, grad_norm=math.inf).to_line()
    values = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (values["loss_nats_per_token"], values["grad_norm"]) == ("nan", "inf")


@dataclass
class Machine:
    """A run without a model: it trains, drops or goes back, by the journal first and then by chance.

    What matters here is only which batches are trained on, in which order, by the time each one is passed.
    """

    journal_lines: list[Entry] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    """Batches in the weights."""
    drawn: int = 0
    saved: list[tuple[int, list[int]]] = field(default_factory=lambda: [(0, [])])
    """Checkpoints: batches drawn, batches in the weights."""

    def go(self, until: int, verdicts: Iterator[str], kill_after: int) -> None:
        """Up to batch `until`, or to the action number `kill_after` of the journal, which has no effect any more."""
        while self.drawn < until:
            journal = Journal(self.journal_lines, "d")
            self.drawn += 1
            if journal.dropping(self.drawn):
                continue
            verdict = "train" if journal.decides(self.drawn) else next(verdicts)
            if verdict in ("train", "log"):
                self.trained.append(self.drawn)
            if verdict != "train":
                at, weights = self.saved[-1]
                first = max(at + 1, self.drawn - 2) if verdict == "rollback" else self.drawn
                action = {"log": "log", "skip": "skip", "rollback": "rollback"}[verdict]
                entry = replace(ENTRY, batch=self.drawn, first=first, action=action)  # type: ignore[arg-type]
                self.journal_lines.append(entry)
                if len(self.journal_lines) == kill_after:
                    return
                if verdict == "rollback":
                    self.drawn, self.trained = at, list(weights)
            if verdict in ("train", "log") and len(self.trained) % 4 == 0:
                self.saved.append((self.drawn, list(self.trained)))

    def resume(self) -> None:
        """Start again from the newest checkpoint."""
        self.drawn, self.trained = self.saved[-1][0], list(self.saved[-1][1])


@given(
    st.lists(st.sampled_from(["train"] * 6 + ["log", "skip", "rollback"]), min_size=1, max_size=60),
    st.integers(1, 8),
)
@example(["train", "log", "log", "log", "rollback"], 3)
def test_a_run_that_was_killed_at_any_action_trains_on_the_same_batches(
    verdicts: list[str], kill_after: int
) -> None:
    """Each action's batches are dropped before and after, nothing is dropped twice, and nothing else is."""
    whole, killed = Machine(), Machine()
    whole.go(40, iter([*verdicts, *["train"] * 2000]), kill_after=0)
    rest = iter([*verdicts, *["train"] * 2000])
    killed.go(40, rest, kill_after)
    if len(killed.journal_lines) == kill_after:
        killed.resume()
        killed.go(40, rest, kill_after=0)
    assert killed.trained == whole.trained
    assert killed.journal_lines == whole.journal_lines
    dropped = {
        batch for entry in whole.journal_lines if entry.drops for batch in range(entry.first, entry.batch + 1)
    }
    assert sorted({*whole.trained, *dropped}) == list(range(1, 41))
    assert not dropped & set(whole.trained)
