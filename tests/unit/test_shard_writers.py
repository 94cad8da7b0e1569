"""Two writers of the same never mix their bytes, and what dead ones left is removed, nothing of living ones."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from corpus_world import STEPS, config_of, files_of, lines_of, loaded, run, text_of

from cptron.corpus import shard_file, work
from cptron.corpus.document import Document
from cptron.corpus.executor import LocalExecutor
from cptron.corpus.quarantine import Quarantine
from cptron.corpus.run import curate, prepare
from cptron.corpus.sealed import read_record
from cptron.corpus.shard_file import ShardWriter, read_shard
from cptron.corpus.work import Unit, Work
from cptron.durable import own_directory, replace_text
from cptron.partials import own_partial, partials_of, remove_partials
from cptron.tokens.records import Reject

DOCUMENTS = [Document(text_of(number), f"d{number}", "x") for number in range(40)]
MOMENTS = ("while it is read", "quarantine", "shard", "record")
"""Of a unit; the last three: right before that gets its name."""


def test_a_shard_of_two_writers_is_that_of_one(tmp_path: Path) -> None:
    """Whoever is first or last; one that dies in the middle leaves nothing that counts."""
    wanted, path = tmp_path / "wanted", tmp_path / "00000.jsonl.zst"
    with ShardWriter(wanted, 1) as writer:
        for document in DOCUMENTS:
            writer.write(document)
        record = writer.publish()
    with ExitStack() as stack:
        first, second, dies = (stack.enter_context(ShardWriter(path, 1)) for _ in range(3))
        for document in DOCUMENTS:
            for writer in (first, second):
                writer.write(document)
        assert first.publish() == record
        dies.write(DOCUMENTS[0])
        assert path.read_bytes() == wanted.read_bytes()
        assert second.publish() == record
    assert path.read_bytes() == wanted.read_bytes() and list(read_shard(path)) == DOCUMENTS
    assert sorted(tmp_path.iterdir()) == [path, wanted]


def test_who_begins_again_takes_nothing_away(tmp_path: Path) -> None:
    """Damaged records of a shard that is done, while another process does it once more and dies."""
    reject = Reject("a.jsonl", 3, "bad_json", "", b"{")
    with Quarantine(tmp_path, 0) as first:
        first.add(reject, 0)
        first.publish()
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    with Quarantine(tmp_path, 0) as again:
        assert path.read_bytes() == content
        again.add(reject, 0)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == content


def settings(tmp_path: Path, name: str) -> dict[str, Any]:
    """A few shards with damaged records, and features of them."""
    if not (tmp_path / "a.jsonl").exists():
        lines = lines_of([text_of(number % 20) for number in range(30)])
        (tmp_path / "a.jsonl").write_bytes(lines.replace(b'"text"', b'"txet"', 2) + b"{\n")
    config: dict[str, Any] = config_of(tmp_path / name, {"x": [str(tmp_path / "a.jsonl")]}, STEPS[:2])
    return config


def content_of(output: Path) -> dict[str, Any]:
    """All in `.work` but times; every file of a record is the one that it tells of."""
    found: dict[str, Any] = {}
    for path in (output / ".work").rglob("*"):
        name = str(path.relative_to(output))
        if path.suffix == ".json" and path.name != "chain.json":
            found[name] = {key: value for key, value in read_record(path).items() if key != "cpu_s"}
            for step in found[name].get("steps", ()):
                step.pop("cpu_s")
        elif path.is_file() and path.name != "lock":
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of an undisturbed run."""
    root = tmp_path_factory.mktemp("whole")
    run(settings(root, "out"))
    return root / "out"


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_unit_done_twice_at_once(
    moment: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process does all of a unit at one moment of it: documents, damaged records, features and counts are those
    of an undisturbed run, and nothing else is left."""
    config = loaded(config_of(tmp_path / "out", {"x": [str(whole.parent / "a.jsonl")]}, STEPS[:2]))
    doing: list[tuple[Work, Unit]] = []
    twice = 0

    def other_does_it() -> None:
        nonlocal twice
        if len(doing) == 1:  # not again by the other one
            twice += 1
            other = prepare(config, alone=False)
            other.do(doing[0][1])
            if moment == MOMENTS[0]:  # as when all is published, and what others are still at is removed
                remove_partials(other.places(), only_stale=False)

    def at(owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def changed(*given: Any, **options: Any) -> Any:
            other_does_it()
            return original(*given, **options)

        monkeypatch.setattr(owner, name, changed)

    do = Work.do

    def noted(self: Work, unit: Unit) -> None:
        doing.append((self, unit))
        try:
            do(self, unit)
        finally:
            doing.pop()

    monkeypatch.setattr(Work, "do", noted)
    owner, name = {
        "while it is read": (work, "read_shard"),
        "quarantine": (Quarantine, "publish"),
        "shard": (shard_file.ShardWriter, "publish"),
        "record": (work, "write_record"),
    }[moment]
    if moment == "while it is read":
        at(work, "read_documents")
    at(owner, name)
    with LocalExecutor(1, progress=False) as executor:
        curate(prepare(config), executor, 1)
    assert twice > 3
    assert files_of(tmp_path / "out") == files_of(whole)
    assert content_of(tmp_path / "out") == content_of(whole)


def test_a_text_that_two_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins and ends while the first is about to give its file the name."""
    path, replaced = tmp_path / "a", Path.replace

    def nested(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", replaced)
        replace_text(path, "the second, which is longer")
        assert path.read_text() == "the second, which is longer"
        return replaced(self, target)

    monkeypatch.setattr(Path, "replace", nested)
    replace_text(path, "the first")
    assert path.read_text() == "the first" and list(tmp_path.iterdir()) == [path]


def test_a_directory_that_two_make(tmp_path: Path) -> None:
    """The first stays as it is for whoever reads it, or is replaced where that is asked for; nothing else is left."""
    final = tmp_path / "decision"
    for replaces, wanted in ((False, "second"), (True, "first")):
        with own_directory(final, replaces=replaces) as first:
            (first / "by").write_text("first")
            with own_directory(final, replaces=replaces) as second:
                (second / "by").write_text("second")
        assert (final / "by").read_text() == wanted and list(tmp_path.iterdir()) == [final]
    with pytest.raises(ZeroDivisionError), own_directory(final, replaces=True):
        raise ZeroDivisionError
    assert (final / "by").read_text() == "first" and list(tmp_path.iterdir()) == [final]


def named(final: Path, number: Iterator[int], **parts: str) -> Path:
    """What another writer than this process has begun."""
    found = re.fullmatch(r"(.*)\.(\w+)-(\w+)-(\w+)-(\w+)\.partial", own_partial(final).name)
    assert found
    name, machine, process, start, _ = found.groups()
    of = {"machine": machine, "process": process, "start": start, **parts}
    path = final.with_name(f"{name}.{of['machine']}-{of['process']}-{of['start']}-{next(number)}.partial")
    path.write_text("begun")
    return path


def test_what_the_dead_left_is_removed(tmp_path: Path) -> None:
    """Of this machine at once, also where their number is another process by now; of others after a day. What a resume
    goes on from, and what is not ours, is not touched."""
    final, number = tmp_path / "a", itertools.count()
    old_s = os.stat(tmp_path).st_mtime - 25 * 3600
    living = [named(final, number), named(final, number, machine="00000000")]
    dead = [
        named(final, number, process=str(2**22 + 1)), named(final, number, process=str(2**40)),
        named(final, number, start="1"), named(final, number, machine="00000000"), tmp_path / own_partial(final).name,
    ]  # fmt: skip
    dead[-1] = dead[-1].with_name(dead[-1].name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-"))
    dead[-1].mkdir()
    (dead[-1] / "content").touch()
    os.utime(dead[3], (old_s, old_s))
    os.utime(living[0], (old_s, old_s))
    others = [tmp_path / "a.bin.partial", tmp_path / "a"]
    for path in others:
        path.touch()
        os.utime(path, (old_s, old_s))
    assert set(partials_of(final)) == {*living, *dead} and not partials_of(tmp_path / "b")
    remove_partials([tmp_path], only_stale=True)
    assert set(tmp_path.iterdir()) == {*living, *others}
    remove_partials([tmp_path], only_stale=False)
    assert set(tmp_path.iterdir()) == set(others)


def test_the_next_text_removes_what_dead_writers_of_it_left(tmp_path: Path) -> None:
    """And nothing else."""
    final, number = tmp_path / "a", itertools.count()
    named(final, number, start="1")
    kept = {named(final, number), named(tmp_path / "b", number, start="1")}
    replace_text(final, "new")
    assert set(tmp_path.iterdir()) == {final, *kept} and final.read_text() == "new"


def test_a_run_removes_what_killed_ones_left(tmp_path: Path) -> None:
    """Before it begins, what cannot be finished; in the end, all."""
    run(settings(tmp_path, "out"))
    (stage,) = (tmp_path / "out/.work").glob("1-*")
    number = itertools.count()
    left = [
        named(tmp_path / "out/x-00000.jsonl.zst", number, machine="00000000"), named(stage / "00000.jsonl.zst", number)
    ]  # fmt: skip
    run(settings(tmp_path, "out"))
    assert not any(path.exists() for path in left)
