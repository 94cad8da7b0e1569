"""What a curation publishes is whole, and on disk before it has its name; what does not add up is not published."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from corpus_world import STEPS, config_of, files_of, lines_of, run, text_of, write_inputs

from cptron.cli import main
from cptron.corpus.executor import LocalExecutor
from cptron.corpus.load import load_curation
from cptron.corpus.manifest import FORMAT_VERSION, read_manifest, require_sizes, write_manifest
from cptron.corpus.run import curate, locked, prepare
from cptron.corpus.sealed import read_record, read_sealed, write_record, write_sealed
from cptron.corpus.shard_file import ShardWriter, read_shard
from cptron.errors import DataError

LINES = lines_of([text_of(number % 20) for number in range(30)])


def small(tmp_path: Path) -> dict[str, Any]:
    """A curation of one small file, with a corpus step."""
    if not (tmp_path / "a.jsonl").exists():
        (tmp_path / "a.jsonl").write_bytes(LINES)
    found: dict[str, Any] = config_of(tmp_path / "out", {"x": [str(tmp_path / "a.jsonl")]}, STEPS[:2])
    return found


class Disk:
    """Watches what is forced to disk, and checks each name that is given."""

    def __init__(self, output: Path, patch: pytest.MonkeyPatch) -> None:
        self.output, self.named = output, list[str]()
        self._synced: dict[int, int] = {}
        self._waiting = set[str]()
        for name in ("rename", "replace", "link"):
            patch.setattr(os, name, self._watched(getattr(os, name)))
        patch.setattr(os, "fsync", self._sync)

    def _sync(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        self._synced[found.st_ino] = found.st_mtime_ns
        if found.st_ino == self.output.stat().st_ino:
            self._waiting.clear()

    def _require(self, path: Path, final: Path) -> None:
        found = path.stat()
        assert self._synced.get(found.st_ino) == found.st_mtime_ns, f"{final} is named before it is on disk"

    def _watched(self, original: Callable[..., None]) -> Callable[..., None]:
        def name(source: Any, target: Any, **options: Any) -> None:
            final = Path(target)
            for path in (Path(source), *Path(source).rglob("*")):
                self._require(path, final)
            if final.parent == self.output:
                assert not (self.output / "manifest.json").exists(), f"{final} is changed under a manifest"
                assert final.name != "manifest.json" or not self._waiting, f"{self._waiting} may yet be lost"
                self._waiting.add(final.name)
            original(source, target, **options)
            self.named.append(final.name)

        return name


def test_everything_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, directories of decisions, and the names in the output when the manifest gets its own, which comes last and
    goes first."""
    inputs = write_inputs(tmp_path / "raw")
    (tmp_path / "out").mkdir()
    config = config_of(tmp_path / "out", inputs, [*STEPS[:2], {"step": "near_duplicates"}])
    disk = Disk(tmp_path / "out", monkeypatch)
    for _ in range(2):  # the second time all is done, and is published again
        disk.named.clear()
        manifest = run(config)
        assert disk.named[-1] == "manifest.json"
        assert {file.name for file in manifest.files} | {"quarantine.jsonl", "report.json"} <= set(disk.named)


def test_files_are_copied_where_there_are_no_second_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes, and as durable."""
    run(small(tmp_path))
    wanted = files_of(tmp_path / "out")

    def none(*_: object, **__: object) -> None:
        raise PermissionError(1, "no links here")

    with monkeypatch.context() as patch:
        disk = Disk(tmp_path / "out", patch)
        patch.setattr(os, "link", none)
        run(small(tmp_path))
    assert files_of(tmp_path / "out") == wanted and wanted.keys() & set(disk.named)


def test_a_full_disk_is_told_in_one_line_wherever_it_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th file cannot be opened, for every n until the run comes to its end: an error that says what to do each
    time, and then the undisturbed bytes."""
    config = config_of(tmp_path / "out", write_inputs(tmp_path / "raw"), STEPS[:2])
    run({**config, "shard_bytes": 1 << 20})
    wanted = files_of(tmp_path / "out")
    whole, left = Path.open, 0

    def full(path: Path, mode: str = "r", *given: Any, **named: Any) -> Any:
        nonlocal left
        if mode[0] != "r" and tmp_path / "out" in path.parents and (left := left - 1) == 0:
            raise OSError(28, "No space left on device", str(path))
        return whole(path, mode, *given, **named)

    monkeypatch.setattr(Path, "open", full)
    shutil.rmtree(tmp_path / "out")
    for number in itertools.count(1):
        left = number
        try:
            run({**config, "shard_bytes": 1 << 20})
            break
        except DataError as error:
            assert "No space left on device" in str(error)
            assert not (tmp_path / "out/manifest.json").exists()
        left = -1
    assert number > 5 and files_of(tmp_path / "out") == wanted


def test_what_is_cut_off_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One damaged record may stand for half a corpus: the command and the report say so."""
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES)[:-12])
    config = config_of(tmp_path / "out", {"x": [str(tmp_path / "a.jsonl.gz")]}, [])
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert main(["curate", str(tmp_path / "c.yaml"), "--workers", "1"]) == 0
    told = "1 file is cut off or damaged: nobody knows how much is missing"
    assert told in capsys.readouterr().out and told in (tmp_path / "out/report.md").read_text()


def test_files_of_an_earlier_curation_go(tmp_path: Path) -> None:
    """Fewer files, and nothing damaged, leave nothing of what was there before."""
    (tmp_path / "a.jsonl").write_bytes(LINES + b"{\n")
    first = run(small(tmp_path))
    assert len(first.files) > 1 and (tmp_path / "out/quarantine.jsonl").exists()
    (tmp_path / "a.jsonl").write_bytes(LINES[: LINES.index(b"\n") + 1])
    second = run(small(tmp_path))
    assert {path.name for path in (tmp_path / "out").glob("*.jsonl*")} == {file.name for file in second.files}
    assert len(second.files) == 1


def test_the_output_is_packed_as_asked_for(tmp_path: Path) -> None:
    """Between stages speed counts, in the output the level."""
    sizes = []
    for level in (1, 19):
        (tmp_path / "a.jsonl").write_bytes(lines_of([text_of(number) for number in range(300)]))
        found = run({**small(tmp_path), "compression_level": level, "shard_bytes": 1 << 20}, restart=True)
        sizes.append(sum(file.bytes for file in found.files))
    assert sizes[1] < 0.95 * sizes[0]


def test_an_input_that_changes_meanwhile_is_no_corpus(tmp_path: Path) -> None:
    """What was read and what is there are two things."""
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(small(tmp_path)))
    work = prepare(load_curation(path))
    (tmp_path / "a.jsonl").write_bytes(LINES + LINES)
    with (
        LocalExecutor(1, progress=False) as executor,
        pytest.raises(DataError, match="has changed since the start"),
    ):
        curate(work, executor, 1)
    assert not (tmp_path / "out/manifest.json").exists()


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """Parts may run beside each other, a run beside nothing."""
    run(small(tmp_path))
    lock = tmp_path / "out/.work/lock"
    for shared in (False, True):
        with locked(lock, shared=shared), pytest.raises(DataError, match="locked by another process"):
            run(small(tmp_path))
    with locked(lock, shared=True), locked(lock, shared=True):
        pass


def lose_between(record: dict[str, Any]) -> None:
    """A document that one step let through and the next never got."""
    record["steps"][-1]["left"]["documents"] -= 1
    record["steps"][-1]["came"]["documents"] -= 1


def lose_within(record: dict[str, Any]) -> None:
    """A document that a step neither let through nor dropped."""
    record["documents"] -= 1
    record["steps"][-1]["left"]["documents"] -= 1


def lose_behind(record: dict[str, Any]) -> None:
    """A document that was counted and not written."""
    record["documents"] -= 1


def lose_before(record: dict[str, Any]) -> None:
    """A record that was read and came to no step."""
    record["records"] += 1


@pytest.mark.parametrize("lose", [lose_between, lose_within, lose_behind, lose_before])
def test_counts_that_do_not_fit_are_not_published(
    lose: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    """Whoever lost the document."""
    config = {**small(tmp_path), "steps": [STEPS[0], STEPS[4]]}
    run(config)
    (path,) = (tmp_path / "out/.work").glob("0-*/00000.json")
    record = read_record(path)
    lose(record)
    write_record(path, record)
    with pytest.raises(DataError, match="lost documents between its steps"):
        run(config)
    assert not (tmp_path / "out/manifest.json").exists() or read_manifest(tmp_path / "out")


def test_a_record_without_its_shard_is_done_again(tmp_path: Path) -> None:
    """And a corpus is what it was."""
    run(small(tmp_path))
    wanted = files_of(tmp_path / "out")
    for path in (tmp_path / "out/.work").glob("1-*/*.zst"):
        path.unlink()
    run(small(tmp_path))
    assert files_of(tmp_path / "out") == wanted


def test_a_shard_of_other_documents_is_refused(tmp_path: Path) -> None:
    """Sound in itself, but not what its record counted."""
    run(small(tmp_path))
    (path,) = (tmp_path / "out/.work").glob("0-[0-9a-f]*/00000.jsonl.zst")
    documents = list(read_shard(path))
    with ShardWriter(path, 1) as writer:
        for document in documents[1:]:
            writer.write(document)
        writer.publish()
    for last in (tmp_path / "out/.work").glob("1-*/00000.json"):
        last.unlink()
    with pytest.raises(DataError, match=f"has {len(documents) - 1} documents, must have {len(documents)}"):
        run(small(tmp_path))


def test_inputs_may_not_share_a_file(tmp_path: Path) -> None:
    """Its documents would be there twice."""
    config = small(tmp_path)
    inputs = [config["inputs"][0], {**config["inputs"][0], "name": "y"}]
    with pytest.raises(DataError, match="is in the inputs x and y, must be in one"):
        run({**config, "inputs": inputs})


@pytest.mark.parametrize("damage", [b"", b"\0", b"abc"])
def test_sealed_files_prove_themselves(damage: bytes, tmp_path: Path) -> None:
    """Whole, cut off, and with one bit changed anywhere."""
    path = tmp_path / "f"
    write_sealed(path, damage)
    whole = path.read_bytes()
    assert read_sealed(path) == damage
    for changed in (whole[:-1], whole + b"\0", *_flipped(whole)):
        path.write_bytes(changed)
        with pytest.raises(DataError, match="--restart"):
            read_sealed(path)
    write_record(path, {"a": len(damage)})
    whole = path.read_bytes()
    assert read_record(path) == {"a": len(damage)}
    for changed in (b"", whole[:-2], whole + b"\n", *_flipped(whole)):
        path.write_bytes(changed)
        with pytest.raises(DataError, match="--restart"):
            read_record(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_record(tmp_path / "absent")


def _flipped(whole: bytes) -> list[bytes]:
    return [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]


def changed(directory: Path, values: Mapping[str, Any]) -> None:
    """The manifest with other values."""
    content = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(content | values))


def test_manifests_of_others_and_of_other_versions(tmp_path: Path) -> None:
    """A file of another program is none, another version is refused, and so is a file's name that leads away."""
    run(small(tmp_path))
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None and read_manifest(tmp_path) is None
    require_sizes(tmp_path / "out", manifest)
    file = manifest.files[0]
    with pytest.raises(DataError, match=f"its manifest requires {file.bytes + 1}"):
        require_sizes(tmp_path / "out", replace(manifest, files=(replace(file, bytes=file.bytes + 1),)))
    changed(tmp_path / "out", {"format": "another"})
    assert read_manifest(tmp_path / "out") is None
    changed(tmp_path / "out", {"format": manifest.format, "format_version": FORMAT_VERSION + 1})
    with pytest.raises(DataError, match=f"only {FORMAT_VERSION} can be read"):
        read_manifest(tmp_path / "out")
    write_manifest(tmp_path / "out", replace(manifest, files=(replace(file, name="../a.jsonl"),)))
    with pytest.raises(DataError, match="must be one beside the manifest"):
        read_manifest(tmp_path / "out")
