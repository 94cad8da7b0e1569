"""A curation gives the same bytes whatever the workers and however often it was cut off; nothing is lost uncounted."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from corpus_world import (
    STEPS,
    config_of,
    documents_of,
    files_of,
    lines_of,
    loaded,
    run,
    text_of,
    write_inputs,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.corpus import work
from cptron.corpus.counts import SAMPLES
from cptron.corpus.document import Document, Dropped, Result
from cptron.corpus.executor import LocalExecutor
from cptron.corpus.load import load_curation
from cptron.corpus.run import do_missing, do_stage, finish_stage, locked, prepare
from cptron.corpus.step import MapStep, Tally
from cptron.corpus.steps import length
from cptron.errors import DataError


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Files of all kinds."""
    return write_inputs(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def whole(inputs: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed run in one process."""
    output = tmp_path_factory.mktemp("whole") / "out"
    run(config_of(output, inputs, STEPS))
    return output


def test_counts_are_those_of_the_files(whole: Path) -> None:
    """Every line of the input is a document, a rejected record, or dropped by a named step for a reason."""
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["records_read"] == 63 + 30 + 20 + 11 + 5
    assert manifest["records_rejected"] == {"bad_json": 1, "bad_utf8": 1, "missing_key": 1, "not_a_string": 1}
    steps = {step["name"]: step for step in manifest["steps"]}
    assert steps["length"]["dropped"] == {"too_few_words": 20}
    assert steps["exact_dedup"]["dropped"] == {"duplicate": 14 + 5}  # the first line of all is damaged
    assert steps["pii"]["counted"] == {"email": 5, "phone": 5}
    assert steps["pii"]["documents_in"] == steps["pii"]["documents_changed"] == 5
    assert steps["length"]["documents_changed"] == 0
    assert manifest["documents"] == len(documents_of(whole)) == 129 - 4 - 20 - 19
    assert sum(step["documents_in"] for step in manifest["steps"]) > 0
    for step in manifest["steps"]:
        assert step["documents_in"] == step["documents_out"] + sum(step["dropped"].values())


def test_documents_keep_what_they_are(whole: Path, inputs: dict[str, list[str]]) -> None:
    """Text, metadata, and an id that names the place: the byte of the line in its file, whatever the shard."""
    documents = documents_of(whole)
    assert len({document["id"] for document in documents}) == len(documents)
    lines = Path(inputs["web"][0]).read_bytes()
    of_a = [document for document in documents if document["id"].startswith("web/a.jsonl#")]
    for document in of_a:
        place = int(document["id"].rsplit("#", 1)[1])
        record = json.loads(lines[place:].split(b"\n", 1)[0])
        assert document["text"] == record["text"]
        assert document["meta"] == {"number": record["number"], "url": "https://example.org/"}
    assert {document["id"].split("#")[0] for document in documents if document["source"] == "web"} == {
        "web/a.jsonl", "web/b.jsonl.gz", "web/d.zip/in/x.jsonl", "web/d.zip/in/y.txt",
    }  # fmt: skip
    assert all(
        "<EMAIL> or <PHONE>." in document["text"] for document in documents if document["source"] == "book"
    )


def test_quarantine_names_file_and_line(whole: Path, inputs: dict[str, list[str]]) -> None:
    """Lines are counted in the file, though it was read in parts."""
    rejects = [json.loads(line) for line in (whole / "quarantine.jsonl").read_text().splitlines()]
    assert [(reject["record"], reject["reason"]) for reject in rejects] == [
        (1, "missing_key"), (61, "bad_json"), (62, "not_a_string"), (63, "bad_utf8"),
    ]  # fmt: skip
    assert {reject["path"] for reject in rejects} == {inputs["web"][0]}


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.more)])
def test_workers_do_not_matter(
    workers: int, inputs: dict[str, list[str]], whole: Path, tmp_path: Path
) -> None:
    """Byte for byte, reports included."""
    run(config_of(tmp_path / "out", inputs, STEPS), workers)
    assert files_of(tmp_path / "out") == files_of(whole)


def test_a_worker_that_is_killed_while_none_has_work_is_one_line() -> None:
    """As between two stages: their pool takes nothing more."""

    def broken(*_: object) -> None:
        raise BrokenProcessPool("a child is gone")

    units: Any = [SimpleNamespace(weight=1)] * 2
    with LocalExecutor(2, progress=False) as executor:
        pool: Any = SimpleNamespace(submit=broken)
        executor._started = lambda work: pool  # type: ignore[method-assign]
        with pytest.raises(DataError, match="a worker was killed at one of 2 shards"):
            executor.run(None, units, "map", 0)  # type: ignore[arg-type]


def test_parts_of_a_job_array(
    inputs: dict[str, list[str]], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three parts, each stage by itself, give what one run gives, and share the units; a stage cannot be finished
    before its parts."""
    done: list[tuple[int, int]] = []
    original = work.Work.do
    monkeypatch.setattr(
        work.Work, "do", lambda self, unit: (done.append((unit.number % 3, part)), original(self, unit))[1]
    )
    (tmp_path / "c.yaml").write_text(json.dumps(config_of(tmp_path / "out", inputs, STEPS)))
    executor = LocalExecutor(1, progress=False)
    first = prepare(load_curation(tmp_path / "c.yaml"))
    for stage in (first.stages[0], first.stages[-1]):
        with pytest.raises(DataError, match="shards to do"):
            finish_stage(first, stage, 1)
    for stage in first.stages:
        for part in (2, 0, 1):
            mine = prepare(load_curation(tmp_path / "c.yaml"))
            do_missing(mine, "hash", stage, executor, (part, 3))
            do_stage(mine, mine.stages[stage.number], executor, (part, 3))
        finish_stage(first, stage, 1)
    assert done and all(number == part for number, part in done)
    run(config_of(tmp_path / "out", inputs, STEPS))
    assert files_of(tmp_path / "out") == files_of(whole)


class Cut(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.more) for seed in (1, 2))])
def test_cut_off_anywhere(
    seed: int, inputs: dict[str, list[str]], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is cut off again and again, in the middle of units too, ends with the same bytes, and does no unit
    twice that was done."""
    done: list[work.Unit] = []
    original = work.Work.do

    def do(self: work.Work, unit: work.Unit) -> None:
        if (len(done) + seed) % 4 == 3:
            done.append(unit)
            monkeypatch.setattr(work, "write_record", cut)
        try:
            original(self, unit)
        finally:
            monkeypatch.undo()
            monkeypatch.setattr(work.Work, "do", do)
        done.append(unit)

    def cut(path: Path, record: dict[str, Any]) -> None:
        raise Cut

    monkeypatch.setattr(work.Work, "do", do)
    cuts = 0
    while True:
        try:
            run(config_of(tmp_path / "out", inputs, STEPS))
            break
        except Cut:
            cuts += 1
            assert not (tmp_path / "out/manifest.json").exists()
    assert cuts > 3
    assert len(done) == len(set(done)) + cuts  # those that were cut off, once more
    assert files_of(tmp_path / "out") == files_of(whole)


def test_changed_step_begins_at_its_stage(
    inputs: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What stages before it made is used again; the output is that of a fresh run; stale work is removed."""
    changed = [*STEPS[:3], {"step": "exact_dedup", "name": "again", "same": "text"}, *STEPS[4:]]
    run(config_of(tmp_path / "out", inputs, STEPS))
    done: list[work.Unit] = []
    original = work.Work.do
    monkeypatch.setattr(work.Work, "do", lambda self, unit: (done.append(unit), original(self, unit))[1])
    run(config_of(tmp_path / "out", inputs, changed))
    assert "changed since the last run, from again on" in capsys.readouterr().err
    assert {(unit.kind, unit.stage) for unit in done} == {("features", 1), ("map", 2)}
    run(config_of(tmp_path / "fresh", inputs, changed))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")
    assert {path.name for path in (tmp_path / "out/.work").iterdir() if path.is_dir()} == {
        path.name for path in (tmp_path / "fresh/.work").iterdir() if path.is_dir()
    }


def test_intermediate_files_can_be_left_out(
    inputs: dict[str, list[str]], whole: Path, tmp_path: Path
) -> None:
    """The output is the same, and the work folder holds the last stage alone."""
    run(config_of(tmp_path / "out", inputs, STEPS, keep_intermediate=False))
    assert files_of(tmp_path / "out") == files_of(whole)
    assert len([path for path in (tmp_path / "out/.work").iterdir() if path.is_dir()]) == 2


def test_changed_input_is_noticed(tmp_path: Path) -> None:
    """Another size or time is another input; the same content elsewhere is the same corpus."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.jsonl").write_bytes(lines_of([text_of(n) for n in range(9)]))
    first = run(config_of(tmp_path / "out", {"x": [str(tmp_path / "raw")]}, STEPS[:2]))
    (tmp_path / "raw/a.jsonl").write_bytes(lines_of([text_of(n) for n in range(9, 18)]))
    assert (
        run(config_of(tmp_path / "out", {"x": [str(tmp_path / "raw")]}, STEPS[:2])).fingerprint
        != first.fingerprint
    )
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved/a.jsonl").write_bytes(lines_of([text_of(n) for n in range(9)]))
    moved = run(config_of(tmp_path / "out2", {"x": [str(tmp_path / "moved")]}, STEPS[:2]))
    assert moved.fingerprint == first.fingerprint and moved.files == first.files


def test_inputs_alike_in_size_and_time_are_told_apart(tmp_path: Path) -> None:
    """In another order they are other files at each place: the manifest has the hash of each under its own name."""
    for name in "ab":
        (tmp_path / name).write_bytes(lines_of([name * 9]))
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    for order in ("ab", "ba"):
        inputs = {name: [str(tmp_path / name)] for name in order}
        found = run(config_of(tmp_path / "out", inputs, STEPS[:1])).inputs
        assert [(file.name, file.sha256) for file in found] == [
            (f"{name}/{name}", hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()) for name in order
        ]


def test_output_of_others_is_left_alone(inputs: dict[str, list[str]], tmp_path: Path) -> None:
    """A folder with other files is refused; two runs at once too, so that none discards what the other is at. What was
    cut off in publishing can be begun again."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="no curated corpus"):
        run(config_of(tmp_path / "out", inputs, STEPS))
    config = config_of(tmp_path / "mine", inputs, STEPS[:1])
    run(config)
    (made,) = (tmp_path / "mine/.work").glob("0-*")
    with (
        locked(tmp_path / "mine/.work/lock", shared=True),
        pytest.raises(DataError, match="is locked by another"),
    ):
        run(config, restart=True)
    assert any(made.iterdir())
    (tmp_path / "mine/manifest.json").unlink()
    assert run(config, restart=True).documents


def test_nothing_is_discarded_under_a_run(inputs: dict[str, list[str]], tmp_path: Path) -> None:
    """`--restart` beside a run is refused like any second run; without one it begins anew."""
    config = config_of(tmp_path / "out", inputs, STEPS[:1])
    first = run(config)
    work = tmp_path / "out/.work"
    before = sorted(work.rglob("*"))
    with locked(work / "lock", shared=True), pytest.raises(DataError, match="locked by another process"):
        prepare(loaded(config), restart=True)
    assert sorted(work.rglob("*")) == before
    prepare(loaded(config), restart=True)
    assert not list(work.rglob("*.zst")) and run(config) == first


@pytest.mark.parametrize(("output", "path"), [("in/deep/out", "in"), ("in", "in/*.jsonl")])
def test_output_within_the_input(output: str, path: str, tmp_path: Path) -> None:
    """The next run would read what this one wrote."""
    (tmp_path / "in/.work").mkdir(parents=True)  # as if it were a curated corpus
    (tmp_path / "in/x.jsonl").write_bytes(lines_of(["a text"]))
    config = loaded(config_of(tmp_path / "out", {"x": [str(tmp_path / path)]}, []))
    elsewhere = replace(config, corpus=replace(config.corpus, output=str(tmp_path / output)))
    with pytest.raises(DataError, match="lie in each other"):
        prepare(elsewhere, restart=True)
    assert not (tmp_path / "in/deep").exists()


class Scripted(MapStep[Any]):
    """Does with a document what its text says; looks at several at once."""

    batch_documents = 3

    def apply(self, document: Document, tally: Tally) -> Result:
        """Drop, double, change, break or pass."""
        verb = document.text[:1]
        tally[verb] += 1
        if verb == "d":
            return Dropped("asked")
        if verb == "m":
            return document, Document(document.text + "!", document.id + "/1", document.source)
        if verb == "b":
            raise ValueError("broken")
        return document.with_text(document.text.upper()) if verb == "c" else document


TEXTS = st.lists(st.sampled_from(["drop", "more", "change", "pass", "pass on", "é pass", ""]), max_size=12)


@settings(max_examples=25)
@given(first=TEXTS, second=TEXTS)
def test_nothing_is_lost_or_counted_twice(first: list[str], second: list[str], tmp_path_factory: Any) -> None:
    """Against a plain loop over the texts: documents, bytes and reasons at each step, whatever the shards."""
    root = tmp_path_factory.mktemp("counts")
    paths = {"x": [str(root / "x.jsonl")], "y": [str(root / "y.jsonl")]}
    (root / "x.jsonl").write_bytes(lines_of(first))
    (root / "y.jsonl").write_bytes(lines_of(second))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(length, "Step", Scripted)
        config = config_of(root / "out", paths, [{"step": "length"}, {"step": "exact_dedup", "same": "text"}])
        manifest = run({**config, "shard_bytes": 1024})
    texts = [text for text in [*first, *second] if text[:1] != "d"]
    made = [part for text in texts for part in _scripted(text)]
    scripted, dedup = manifest.steps
    assert scripted.documents_in == len(first) + len(second) == manifest.records_read
    assert scripted.dropped == ({"asked": n} if (n := len(first) + len(second) - len(texts)) else {})
    assert (scripted.documents_made, scripted.documents_out) == (len(made) - len(texts), len(made))
    assert scripted.bytes_out == sum(len(text.encode()) for text in made)
    assert [document["text"] for document in documents_of(root / "out")] == list(dict.fromkeys(made))
    assert dedup.documents_out == manifest.documents == len(set(made))


def _scripted(text: str) -> Sequence[str]:
    return {"m": [text, text + "!"], "c": [text.upper()]}.get(text[:1], [text])


def test_step_that_breaks_is_counted_and_then_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One document in a hundred is put aside with the error; more of them are the step's fault."""
    monkeypatch.setattr(length, "Step", Scripted)
    paths = {"x": [str(tmp_path / "x.jsonl")]}
    (tmp_path / "x.jsonl").write_bytes(lines_of(["pass"] * 50 + ["break"] * 2 + ["pass"]))
    manifest = run(config_of(tmp_path / "out", paths, [{"step": "length"}]))
    assert (manifest.documents, manifest.steps[0].dropped) == (51, {"step_failed": 2})
    assert manifest.steps[0].counted == {"p": 51, "b": 2}
    rejects = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert [(reject["reason"], reject["raw"]) for reject in rejects] == [("step_failed", "break")] * 2
    (tmp_path / "x.jsonl").write_bytes(lines_of(["break"] * 50))
    with pytest.raises(DataError, match=r"failed at 2\d of 2\d documents"):
        run(config_of(tmp_path / "out", paths, [{"step": "length"}]))


def test_samples_of_what_was_dropped_are_few_and_always_the_same(whole: Path) -> None:
    """At most so many of each reason, with the text's beginning."""
    report = json.loads((whole / "report.json").read_text())
    samples = report["steps"][0]["samples"]["too_few_words"]
    assert len(samples) == SAMPLES
    assert all(sample["text"] and sample["detail"].endswith("words") for sample in samples)


def test_page_cannot_be_spoofed(tmp_path: Path) -> None:
    """Texts of a corpus make no markup in the report."""
    (tmp_path / "x.jsonl").write_bytes(lines_of(["<script>alert(1)</script> | [x](http://example.org)"]))
    steps = [{"step": "length", "min_words": 99}]
    run(config_of(tmp_path / "out", {"x": [str(tmp_path / "x.jsonl")]}, steps))
    (line,) = [line for line in (tmp_path / "out/report.md").read_text().splitlines() if "script" in line]
    assert r"\<script\>" in line and not re.search(r"(?<!\\)[<>|\[\]]", line)
