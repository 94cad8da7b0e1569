"""The harness finds what it is there to find: readers that fail in each way, planted here."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_worker
import pytest
from fuzz_bytes import mutate_bytes
from fuzz_json import mutate_json
from fuzz_target import Seed, Target
from fuzz_worker import Outcome, run_target

from cptron.errors import CptronError, DataError
from cptron.json_text import parse_json

WHOLE = b'{"a": [1, 2, 3], "b": "text"}'


def make(root: Path) -> list[Seed]:
    """One file."""
    (root / "f").write_bytes(WHOLE)
    return [Seed(root, "f")]


def outcome(tmp_path: Path, read: Callable[[bytes], Any], count: int = 3, **fields: Any) -> Outcome:
    """What comes of a reader that does `read` with damaged content, and reads the whole file rightly."""

    def careful(directory: Path) -> Any:
        content = (directory / "f").read_bytes()
        return content if content == WHOLE else read(content)

    facts: dict[str, Any] = {
        "format": "f",
        "name": "f",
        "reader": "here",
        "make": make,
        "mutate": lambda *_: b"damaged",
    }
    return run_target(Target(read=careful, **{**facts, **fields}), tmp_path, 0, count)


def refuse(message: str) -> Callable[[bytes], Any]:
    """A reader that raises a user's error."""

    def read(_: bytes) -> Any:
        raise DataError(message)

    return read


def exhausted(_: bytes) -> Any:
    """A lack of memory hidden behind a user's error."""
    try:
        return bytearray(1 << 45)
    except MemoryError:
        raise DataError("f is damaged; restore it") from None


def busy(_: bytes) -> Any:
    """No end."""
    while True:
        pass


def large(_: bytes) -> int:
    """Memory that is used and given back."""
    return sum(bytearray(b"\1" * (90 << 20))[:: 1 << 20])


def crash(_: bytes) -> None:
    """The end of the process, without pytest's record of it among the lines of the tests."""
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)


def wrote(_: bytes) -> None:
    """A file where none should be."""
    with open("fuzz-outside", "w"):
        pass


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (lambda _: 1 / 0, "exception"),
        (crash, "crash"),
        (busy, "hang"),
        (lambda _: time.sleep(60), "hang"),
        (large, "memory"),
        (exhausted, "address space"),
        (lambda _: os.system("true"), "program"),
        (wrote, "program"),
        (refuse(" "), "message"),
    ],
)
def test_each_failure_is_a_finding(
    read: Callable[[bytes], Any], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "hang":  # else a machine that stands still for a moment makes one of any
        monkeypatch.setattr(fuzz_worker, "CPU_S", 1.0)
        monkeypatch.setattr(fuzz_worker, "WALL_S", 3.0)
    monkeypatch.chdir(tmp_path)
    found = outcome(tmp_path, read, count=1).findings
    assert [finding.kind for finding in found] == [kind]


def test_a_wrong_value_and_a_planted_one_that_passes_are_findings(tmp_path: Path) -> None:
    wrong = outcome(
        tmp_path / "wrong",
        lambda content: content,
        check=lambda _, value: "wrong" if value != WHOLE else None,
    )
    assert {finding.kind for finding in wrong.findings} == {"wrong value"}
    planted = outcome(
        tmp_path / "planted",
        lambda content: content,
        planted=lambda _: {"code": b"x"},
        refused=frozenset({"code"}),
    )
    assert "accepted" in {finding.kind for finding in planted.findings}


def test_good_readers_have_no_findings_and_inputs_are_counted(tmp_path: Path) -> None:
    found = outcome(tmp_path / "refused", refuse("f is damaged; restore it"), count=5)
    assert (found.inputs, found.refused, found.read, found.findings) == (5, 5, 0, [])
    found = outcome(tmp_path / "read", len, count=5)
    assert (found.inputs, found.read, found.findings) == (5, 5, [])


def test_a_crash_does_not_end_the_others(tmp_path: Path) -> None:
    """Ten inputs, ten crashes: the harness goes on after each."""
    found = outcome(tmp_path, lambda _: os.kill(os.getpid(), signal.SIGKILL), count=10)
    assert found.inputs == 10 and len(found.findings) == 10


def test_a_failing_input_is_shrunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bytes that make it fail."""
    monkeypatch.setattr(fuzz_worker, "SHRINK_S", 600.0)

    def read(content: bytes) -> Any:
        if b"Q" in content:
            raise ValueError("Q")
        return None

    found = outcome(tmp_path, read, count=1, mutate=lambda *_: b"x" * 100 + b"Q" + b"y" * 100)
    assert [finding.content for finding in found.findings] == [b"Q"]


def test_inputs_depend_on_seed_and_number_alone(tmp_path: Path) -> None:
    seen: list[set[bytes]] = []
    for attempt, seed in enumerate((1, 1, 2)):
        target = Target(
            format="f", name="f", reader="here", make=make, read=lambda directory: (directory / "f").read_bytes(),
            mutate=mutate_bytes,
        )  # fmt: skip
        directory = tmp_path / str(attempt)
        directory.mkdir()
        seeds = make(directory)
        plan = fuzz_worker._Plan(target, directory, seeds, [WHOLE], [], seed, 50)
        seen.append({plan.input(number)[2] for number in range(50)})
    assert seen[0] == seen[1] != seen[2]
    assert len(seen[0]) > 40


def test_damage_to_json_is_of_every_kind() -> None:
    """Some of it is JSON with another value, some is none, some is deep."""
    import random

    texts = [mutate_json(random.Random(number), WHOLE, []) for number in range(400)]
    kinds = set()
    for text in texts:
        try:
            kinds.add(type(parse_json(text)).__name__)
        except ValueError as error:
            kinds.add("deep" if "deeply" in str(error) else "none")
    assert kinds >= {"dict", "none", "deep"} and len(kinds) >= 5


def test_a_users_error_is_one_line_of_readable_characters() -> None:
    """Whatever a damaged file puts into it."""
    text = str(CptronError("a\nb\r\u2028c\x1b[31m" + "x" * 10_000 + "end"))
    assert text.startswith("a b  c\\x1b[31mxxx") and text.endswith("xend")
    assert len(text) < 1700 and len(text.splitlines()) == 1
