"""A run that was cut off goes on where it stood and gives the bytes of one that was not; only its own command does."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokens_world import save_byte_tokenizer

from cptron.cli import main
from cptron.errors import DataError
from cptron.tokens import checkpointer, encode, partial_file, preprocess_plan, read_lines
from cptron.tokens.engine import choose_engine
from cptron.tokens.journal import Journal, locked
from cptron.tokens.manifest import verify
from cptron.tokens.outputs import Outputs
from cptron.tokens.preprocess import PreprocessOptions, preprocess
from cptron.tokens.source_hash import SourceHasher

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with EOS."""
    return save_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), ["</s>"], eos_token="</s>")


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three records in a block, a checkpoint as often as the one before allows."""
    monkeypatch.setattr(read_lines, "_BLOCK_RECORDS", 3)
    monkeypatch.setattr(checkpointer, "_INTERVAL_S", 0.0)


@pytest.fixture
def options(tmp_path: Path, tokenizer: Path) -> PreprocessOptions:
    """Two inputs, one packed, with empty texts and damaged records; two keys; damaged records kept aside."""
    import gzip

    lines = [json.dumps({"text": f"a{n} é" * (n % 4), "title": f"t{n}"}) for n in range(40)]
    lines[7], lines[20] = '{"text": 3, "title": ""}', "{"
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:25]) + "\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(("\n".join(lines[25:]) + "\n").encode()))
    return PreprocessOptions(
        inputs=(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl.gz")),
        output_prefix=str(tmp_path / "out/x"),
        tokenizer=str(tokenizer),
        json_keys=("text", "title"),
        append_eod=True,
        on_error="quarantine",
        workers=1,
        engine="reference",
    )


def files_in(directory: Path) -> Files:
    """Content of every file."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def whole(options: PreprocessOptions, tmp_path: Path) -> Files:
    """The files of a run that is not cut off."""
    preprocess(replace(options, output_prefix=str(tmp_path / "whole/x")), progress=False)
    return files_in(tmp_path / "whole")


class StopError(BaseException):
    """What ends a run from outside."""


def stop_at_block(patch: pytest.MonkeyPatch, number: int, error: BaseException) -> Callable[[], int]:
    """Make writing block `number` from now fail; returns how many blocks have been written."""

    add, seen = Outputs.add, 0

    def add_or_stop(self: Outputs, block: encode.Encoded) -> None:
        nonlocal seen
        if seen == number:
            raise error
        seen += 1
        add(self, block)

    patch.setattr(Outputs, "add", add_or_stop)
    return lambda: seen


@pytest.mark.parametrize(
    "stops",
    [[0], [13], [2, 0, 3], *(pytest.param(stops, marks=pytest.mark.more) for stops in ([1], [5], [1] * 13))],
)
def test_a_run_that_was_stopped_gives_the_same_bytes(
    stops: Sequence[int], options: PreprocessOptions, whole: Files, tmp_path: Path
) -> None:
    """Token files, manifests and quarantine, for any number of stops; nothing else is left behind."""
    for number in stops:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(StopError):
            stop_at_block(patch, number, StopError())
            preprocess(options, progress=False)
        assert not list((tmp_path / "out").glob("*.manifest.json"))
    preprocess(replace(options, workers=3), progress=False)
    assert files_in(tmp_path / "out") == whole
    for key in options.json_keys:
        verify(tmp_path / f"out/x_{key}_document")


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_what_was_written_after_the_last_checkpoint_is_cut_off(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, tokenizer: Path
) -> None:
    """A kill leaves more bytes in the files than the journal tells of, whole documents or parts of them."""
    root = tmp_path_factory.mktemp("kill")
    (root / "a.jsonl").write_text("".join(json.dumps({"text": "ab" * (n % 5)}) + "\n" for n in range(30)))
    options = PreprocessOptions(
        inputs=(str(root / "a.jsonl"),), output_prefix=str(root / "out/x"), tokenizer=str(tokenizer), workers=1,
        engine="reference",
    )  # fmt: skip
    preprocess(replace(options, output_prefix=str(root / "whole/x")), progress=False)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopError):
        patch.setattr(read_lines, "_BLOCK_RECORDS", 3)
        stop_at_block(patch, data.draw(st.integers(1, 9)), StopError())
        preprocess(options, progress=False)
    for path in (root / "out").glob("*.partial"):
        with path.open("ab") as stream:
            stream.write(data.draw(st.binary(max_size=9)))
    preprocess(options, progress=False)
    assert files_in(root / "out") == files_in(root / "whole")


def cut_off(options: PreprocessOptions, blocks: int = 4) -> Path:
    """Stop `options` after some blocks; returns the journal."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopError):
        stop_at_block(patch, blocks, StopError())
        preprocess(options, progress=False)
    return Journal(options.output_prefix).path


OTHER: dict[str, dict[str, Any]] = {
    "append_eod": {"append_eod": False},
    "max_document_bytes": {"max_document_bytes": 1 << 20},
    "on_error": {"on_error": "skip"},
    "json_keys": {"json_keys": ("text",)},
}


@pytest.mark.parametrize("field", OTHER)
def test_another_command_does_not_go_on(
    field: str, options: PreprocessOptions, tmp_path: Path, whole: Files
) -> None:
    """It is refused and changes nothing; --restart begins again."""
    other = replace(options, **OTHER[field])
    cut_off(options, 9)
    before = files_in(tmp_path / "out")
    with pytest.raises(DataError, match=rf"unfinished run with {field} .*--restart"):
        preprocess(other, progress=False)
    assert files_in(tmp_path / "out") == before
    preprocess(replace(options, restart=True), progress=False)
    assert files_in(tmp_path / "out") == whole


def test_changed_inputs_do_not_go_on(options: PreprocessOptions, tmp_path: Path) -> None:
    """Another size, or another time at the same size."""
    cut_off(options)
    path = tmp_path / "a.jsonl"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(DataError, match=r"with inputs .*a\.jsonl"):
        preprocess(options, progress=False)
    preprocess(replace(options, restart=True), progress=False)


def test_an_input_that_changes_meanwhile_is_refused(
    options: PreprocessOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hash would be of other bytes than those that were encoded."""

    add = Outputs.add

    def add_and_touch(self: Outputs, block: encode.Encoded) -> None:
        add(self, block)
        os.utime(tmp_path / "a.jsonl", ns=(0, 0))

    monkeypatch.setattr(Outputs, "add", add_and_touch)
    with pytest.raises(DataError, match="has changed since the start"):
        preprocess(options, progress=False)
    assert not list((tmp_path / "out").glob("*manifest*"))


def test_the_policy_may_change_before_the_first_damaged_record(
    options: PreprocessOptions, whole: Files, tmp_path: Path
) -> None:
    """A run that stopped at a record after hours goes on with another --on-error."""
    with pytest.raises(DataError, match=r"a\.jsonl:8 is damaged"):
        preprocess(replace(options, on_error="stop"), progress=False)
    assert Journal(options.output_prefix).path.exists()
    preprocess(options, progress=False)
    assert files_in(tmp_path / "out") == whole


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    code: int, options: PreprocessOptions, whole: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any write; a part of what was to be written may be there."""
    write = partial_file.PartialFile.write
    for limit in (0, 1, 7, 20):
        left = limit

        def write_some(self: partial_file.PartialFile, content: Any) -> None:
            nonlocal left
            if left == 0:
                self._file.write(memoryview(content).cast("B")[:3])
                raise OSError(code, os.strerror(code), str(self.path))
            left -= 1
            write(self, content)

        with monkeypatch.context() as patch:
            patch.setattr(partial_file.PartialFile, "write", write_some)
            with pytest.raises(
                DataError, match=r"partial cannot be written .*run the same command again"
            ) as error:
                preprocess(options, progress=False)
            assert "\n" not in str(error.value)
    preprocess(options, progress=False)
    assert files_in(tmp_path / "out") == whole


@pytest.mark.parametrize("name", ["x_text_document.bin", "x_title_document.lengths", "x.quarantine.jsonl"])
@pytest.mark.parametrize("damage", ["shorter", "gone"])
def test_lost_partial_files_are_noticed(
    name: str, damage: str, options: PreprocessOptions, tmp_path: Path
) -> None:
    """A journal whose files are not what it tells of is no ground to go on from."""
    cut_off(options, 9)
    path = tmp_path / "out" / f"{name}.partial"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:1])
    with pytest.raises(DataError, match=r"journal requires .*--restart"):
        preprocess(options, progress=False)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format_version": 99}'])
def test_a_damaged_journal_is_one_line(content: bytes, options: PreprocessOptions) -> None:
    """It is written in one step, so only something else can have damaged it."""
    cut_off(options).write_bytes(content)
    with pytest.raises(DataError, match="--restart"):
        preprocess(options, progress=False)


def test_two_processes_cannot_write_one_prefix(options: PreprocessOptions, tmp_path: Path) -> None:
    """The second one is refused, and the lock of a dead process is none."""
    (tmp_path / "out").mkdir()
    with locked(options.output_prefix), pytest.raises(DataError, match="locked by another process"):
        preprocess(options, progress=False)
    (tmp_path / "out/x.preprocess.lock").touch()
    preprocess(options, progress=False)
    assert not (tmp_path / "out/x.preprocess.lock").exists()


@pytest.mark.parametrize("block", [0, 4])
def test_the_first_of_two_gives_way_without_locks(
    block: int, options: PreprocessOptions, whole: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file system has none, or a lost node lives on: another process takes up what the first has come to and
    ends; the first then saves, publishes and removes nothing."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("cptron.tokens.journal.fcntl.flock", none)
    add, seen = Outputs.add, 0

    def add_beside_another(self: Outputs, encoded: encode.Encoded) -> None:
        nonlocal seen
        seen += 1
        if seen == block + 1:
            monkeypatch.setattr(Outputs, "add", add)
            preprocess(options, progress=False)
        add(self, encoded)

    monkeypatch.setattr(Outputs, "add", add_beside_another)
    with pytest.raises(DataError, match="that of another process, which has begun"):
        preprocess(options, progress=False)
    assert files_in(tmp_path / "out") == whole


def test_an_interrupt_is_one_line(
    options: PreprocessOptions,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit status 130, what to do next, and a journal."""
    arguments = ["--input", *options.inputs, "--output-prefix", options.output_prefix]
    arguments += ["--tokenizer-model", options.tokenizer, "--on-error", "skip"]
    stop_at_block(monkeypatch, 3, KeyboardInterrupt())
    assert main(["preprocess", *arguments]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped: run the same command again to go on"
    monkeypatch.undo()
    assert main(["preprocess", *arguments]) == 0
    assert "going on after 9 records" in capsys.readouterr().err


def test_output_of_another_run_is_not_replaced_by_a_resume(
    options: PreprocessOptions, tmp_path: Path
) -> None:
    """Files that came to the prefix after the run was cut off."""
    cut_off(options)
    (tmp_path / "out/x_text_document.bin").write_bytes(b"kept")
    with pytest.raises(DataError, match="--overwrite"):
        preprocess(options, progress=False)
    assert (tmp_path / "out/x_text_document.bin").read_bytes() == b"kept"


def test_checkpoints_do_not_come_more_often_than_they_should(
    options: PreprocessOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short run makes none, so a damaged record at its end leaves nothing behind."""
    monkeypatch.setattr(checkpointer, "_INTERVAL_S", 3600.0)
    saved: list[object] = []
    monkeypatch.setattr(Journal, "save", lambda self, entry: saved.append(entry.publishing))
    preprocess(options, progress=False)
    assert len(saved) == 1 and saved[0] != ()


def test_the_same_engine_is_chosen_after_a_resume(
    options: PreprocessOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample is that of the beginning, not of where reading goes on."""
    samples: list[Sequence[bytes]] = []

    def seen(tokenizer: Any, texts: Sequence[bytes], wanted: Any) -> Any:
        samples.append(texts)
        return choose_engine(tokenizer, texts, wanted)

    monkeypatch.setattr(preprocess_plan, "choose_engine", seen)
    cut_off(options)
    preprocess(options, progress=False)
    assert len(samples) == 2 and samples[0] == samples[1] != []


def test_a_journal_tells_only_of_what_is_durable() -> None:
    """Outputs are forced to disk before each checkpoint; after a power cut it would tell of bytes that are gone."""
    done: list[str] = []
    outputs = SimpleNamespace(checkpoint=None, sync=lambda: done.append("sync"))
    journal = SimpleNamespace(save=lambda _: done.append("save"))
    saver = checkpointer.Checkpointer(journal, {}, outputs, saved=False)  # type: ignore[arg-type]
    saver.save_now()
    saver.block_done(1)
    saver.close()
    assert done == ["sync", "save"] * 2 and saver.saved


def test_an_input_is_hashed_behind_its_reader(tmp_path: Path) -> None:
    """It is in the page cache then, and read from disk once."""
    path = tmp_path / "a"
    path.write_bytes(bytes(10))
    with SourceHasher([path]) as hasher:
        assert not hasher._done.done()
        time.sleep(0.2)
        assert not hasher._done.done()
        hasher.allow(0, 10)
        assert hasher.result()[0].bytes == 10
