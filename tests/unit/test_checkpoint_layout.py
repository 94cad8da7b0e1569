"""Checkpoint directories: complete under their name or not there; damage is noticed, and nothing good is deleted."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_files import sign
from small_arch import SMALL

from cptron.checkpoint import layout
from cptron.checkpoint.hashing import hash_file
from cptron.durable import begin_directory
from cptron.errors import CheckpointError
from cptron.model.architecture import RopeScaling
from cptron.train.proof import older_checkpoint

ARCH = replace(
    SMALL,
    rope_scaling=RopeScaling(
        factor=2.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8
    ),
)
SHARD = Path(layout.SHARDS) / "__0_0.distcp"


def manifest(step: int) -> layout.Manifest:
    """What a trainer would say of the checkpoint."""
    return layout.Manifest(
        kind="training",
        step=step,
        tokens_total=100 * step,
        architecture=ARCH.to_dict(),
        hugging_face_model="tiny",
        tokenizer_fingerprint="f" * 64,
        weights_fingerprint="e" * 64,
        probe=layout.Probe(token_ids=[1, 2, 3], loss_nats_per_token=2.5),
        versions={"torch": "1"},
    )


def fill(working: Path) -> None:
    """Files as a save leaves them."""
    (working / layout.SHARDS).mkdir()
    (working / SHARD).write_bytes(bytes(range(200)))
    (working / layout.SHARDS / ".metadata").write_bytes(b"index")
    (working / layout.HUGGING_FACE).mkdir()
    (working / layout.HUGGING_FACE / "config.json").write_text("{}")
    (working / layout.STATE).write_text('{"step": 1}')


def save(checkpoints: Path, step: int) -> Path:
    """A published checkpoint."""
    final = layout.step_directory(checkpoints, step)
    working = begin_directory(final)
    fill(working)
    layout.publish(final, manifest(step))
    return final


def test_published_manifest_is_read_again(tmp_path: Path) -> None:
    """All of it, with size and hash of every file but its own."""
    final = layout.step_directory(tmp_path, 3)
    working = begin_directory(final)
    fill(working)
    published = layout.publish(final, manifest(3))
    found = layout.read_manifest(final)
    assert found == published
    assert found.arch == ARCH
    assert {name: record.size for name, record in found.files.items()} == {
        "shards/__0_0.distcp": 200,
        "shards/.metadata": 5,
        "hugging_face/config.json": 2,
        "state.json": 11,
    }
    assert all(hash_file(final / name) == record for name, record in found.files.items())
    assert {**vars(found), "files": {}} == vars(manifest(3))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]


def test_nothing_is_listed_before_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither while it is written nor when the writer dies in the last moment; its remains are cleared away."""
    final = layout.step_directory(tmp_path, 1)
    working = begin_directory(final)
    fill(working)
    assert layout.list_checkpoints(tmp_path) == []

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.rename", die)
        layout.publish(final, manifest(1))
    assert (working / layout.MANIFEST).is_file()
    assert layout.list_checkpoints(tmp_path) == []
    assert layout.newest_complete(tmp_path) == (None, [])
    assert begin_directory(final) == working
    assert list(working.iterdir()) == []


def test_everything_is_on_disk_before_the_name_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file and directory, whoever flushes it; and the name itself afterwards."""
    events: list[object] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.fstat(fd).st_ino), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda *names: (events.append("rename"), rename(*names)))
    checkpoints = tmp_path / "run" / "checkpoints"
    final = save(checkpoints, 1)
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    written = [final, *final.rglob("*")]
    assert len(written) == 9
    assert [path for path in written if path.stat().st_ino not in before] == []
    assert after == [checkpoints.stat().st_ino]
    above = (
        checkpoints.parent,
        tmp_path,
    )  # hold the names of directories that were made for the first of them
    assert [path for path in above if path.stat().st_ino not in before] == []


@pytest.mark.parametrize("what", ["absent", "shorter"])
def test_files_of_other_ranks_must_be_here(what: str, tmp_path: Path) -> None:
    """Written to a disk that this machine does not see: an error, not a checkpoint without them."""
    final = layout.step_directory(tmp_path, 3)
    working = begin_directory(final)
    fill(working)
    known = {"shards/__0_0.distcp": hash_file(working / "shards" / "__0_0.distcp")}
    if what == "absent":
        known["shards/__1_0.distcp"] = known["shards/__0_0.distcp"]
    else:
        os.truncate(working / "shards" / "__0_0.distcp", 10)
    with pytest.raises(CheckpointError, match=r"put run\.dir on a file system that all ranks share"):
        layout.publish(final, manifest(3), known)
    assert not final.exists()


def test_small_files_of_the_model_are_read_whole(tmp_path: Path) -> None:
    """By name; a model of random weights has none, and one that vanished is an error."""
    directory = save(tmp_path, 1)
    assert layout.read_hugging_face(directory) == {"config.json": b"{}"}
    config = directory / layout.HUGGING_FACE / "config.json"
    config.write_bytes(b"[]")
    with pytest.raises(CheckpointError, match="is not the file that was written"):
        layout.read_hugging_face(directory)
    config.write_bytes(b"{}")
    (config.parent / "planted.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"planted\.json is not the file that was written"):
        layout.read_hugging_face(directory)
    (config.parent / "planted.json").unlink()
    config.unlink()
    with pytest.raises(CheckpointError, match=r"hugging_face/config\.json is missing"):
        layout.read_hugging_face(directory)


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    """Also beyond eight digits; other names are no checkpoints."""
    for step in (100_000_000, 99_999_999, 7):
        save(tmp_path, step)
    for name in ("step_12", "step_00000009.bak", ".removing_step_00000005", "notes"):
        (tmp_path / name).mkdir()
    assert [step for step, _ in layout.list_checkpoints(tmp_path)] == [7, 99_999_999, 100_000_000]
    assert layout.list_checkpoints(tmp_path / "absent") == []
    for than, older in ((100_000_000, 99_999_999), (99_999_999, 7), (7, None)):
        expected = None if older is None else layout.step_directory(tmp_path, older)
        assert older_checkpoint(tmp_path, layout.step_directory(tmp_path, than)) == expected


def cut(name: str | Path) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / name
        path.write_bytes(path.read_bytes()[:-1])

    return damage


def change_manifest(**changes: object) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / layout.MANIFEST
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return damage


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (lambda d: (d / SHARD).unlink(), r"shards/__0_0\.distcp is missing, expected 200"),
    "short shard": (cut(SHARD), r"shards/__0_0\.distcp has 199 bytes, expected 200"),
    "longer shard": (lambda d: (d / SHARD).write_bytes(bytes(201)), "has 201 bytes, expected 200"),
    "missing state": (lambda d: (d / layout.STATE).unlink(), r"state\.json is missing"),
    "file that is a directory": (
        lambda d: ((d / layout.STATE).unlink(), (d / layout.STATE).mkdir()),
        "is missing",
    ),
    "no manifest": (lambda d: (d / layout.MANIFEST).unlink(), "is no checkpoint: it has no manifest.json"),
    "cut manifest": (cut(layout.MANIFEST), r"manifest\.json is damaged"),
    "binary manifest": (
        lambda d: (d / layout.MANIFEST).write_bytes(b"\xff\x00"),
        r"manifest\.json is damaged",
    ),
    "manifest that is a list": (
        lambda d: (d / layout.MANIFEST).write_text("[]"),
        r"manifest\.json is damaged",
    ),
    "missing field": (change_manifest(step=None), r"manifest\.json is damaged"),
    "unknown field": (change_manifest(colour=3), r"manifest\.json is damaged"),
    "files that are a list": (change_manifest(files=["a"]), r"manifest\.json is damaged"),
    "another format": (
        lambda d: sign(d, format_version=99),
        "format_version 99, this version reads 2; use the version",
    ),
    "format 1, which had no digest": (
        lambda d: ((d / layout.DIGEST).unlink(), change_manifest(format_version=1)(d)),
        "format_version 1, this version reads 2",
    ),
    "format by damage": (change_manifest(format_version=3), r"manifest\.json is damaged"),
    "no directory": (shutil.rmtree, "does not exist"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_noticed(case: str, tmp_path: Path) -> None:
    """With the file, what was found and what was expected, on one line."""
    damage, message = DAMAGE[case]
    directory = save(tmp_path, 1)
    damage(directory)
    with pytest.raises(CheckpointError, match=message) as error:
        layout.read_manifest(directory)
    assert "\n" not in str(error.value)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_manifest_cut_anywhere_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    """No prefix of it passes for the whole."""
    directory = layout.step_directory(tmp_path, 1)
    if not directory.exists():
        save(tmp_path, 1)
    path = directory / layout.MANIFEST
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        with pytest.raises(CheckpointError, match="damaged"):
            layout.read_manifest(directory)
    finally:
        path.write_bytes(whole)


def test_newest_complete_passes_over_damaged_ones(tmp_path: Path) -> None:
    """And says what is wrong with each of them."""
    for step in (10, 20, 30):
        save(tmp_path, step)
    assert layout.newest_complete(tmp_path) == (tmp_path / "step_00000030", [])
    cut(SHARD)(tmp_path / "step_00000030")
    (tmp_path / "step_00000020" / layout.MANIFEST).unlink()
    newest, problems = layout.newest_complete(tmp_path)
    assert newest == tmp_path / "step_00000010"
    assert [("step_00000030" in line, "step_00000020" in line) for line in problems] == [
        (True, False),
        (False, True),
    ]
    cut(layout.STATE)(tmp_path / "step_00000010")
    newest, problems = layout.newest_complete(tmp_path)
    assert newest is None
    assert len(problems) == 3


def test_a_newer_version_is_not_passed_over(tmp_path: Path) -> None:
    """It may be good: to go on from an older one would lose what was done since, and later replace it."""
    save(tmp_path, 10)
    sign(save(tmp_path, 20), format_version=99)
    with pytest.raises(layout.OtherFormat, match=r"step_00000020/manifest\.json has format_version 99"):
        layout.newest_complete(tmp_path)
    save(tmp_path, 30)
    assert layout.newest_complete(tmp_path) == (tmp_path / "step_00000030", [])


def test_a_disk_that_fails_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files whose size cannot even be asked for: the checkpoint before is used."""
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    stat = os.stat

    def failing(path: object, *words: object, **options: object) -> object:
        if str(path).startswith(str(second / layout.SHARDS)):
            raise OSError(5, "Input/output error", str(path))
        return stat(path, *words, **options)  # type: ignore[arg-type, call-overload]

    monkeypatch.setattr(os, "stat", failing)
    newest, problems = layout.newest_complete(tmp_path)
    assert newest == first
    assert [f"checkpoint {second} cannot be read" in line for line in problems] == [True]


def test_a_damaged_checkpoint_is_replaced_by_a_new_one(tmp_path: Path) -> None:
    """A run that went back to an older one arrives at the same step again."""
    directory = save(tmp_path, 1)
    cut(SHARD)(directory)
    (directory / "stray").write_text("")
    save(tmp_path, 1)
    layout.read_manifest(directory)
    assert not (directory / "stray").exists()


def test_resolve(tmp_path: Path) -> None:
    """A checkpoint is itself; a run is its newest complete one; anything else is refused."""
    run = tmp_path / "run"
    first, second = save(run / "checkpoints", 1), save(run / "checkpoints", 2)
    assert layout.resolve(str(first)) == first
    assert layout.resolve(str(run)) == second
    cut(SHARD)(second)
    told: list[str] = []
    assert layout.resolve(str(run), told.append) == first
    assert [(str(second) in note, str(first) in note) for note in told] == [(True, True)]
    cut(SHARD)(first)
    with pytest.raises(
        CheckpointError, match=r"no complete checkpoint; .*step_00000002.*step_00000001"
    ) as error:
        layout.resolve(str(run))
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="absent does not exist"):
        layout.resolve(str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        layout.resolve(str(tmp_path))
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no complete checkpoint; none was saved"):
        layout.resolve(str(tmp_path / "new"))
