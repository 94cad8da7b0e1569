"""Damage of a checkpoint is found, whatever it is; and what was proven once need not be read again."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cptron.checkpoint import layout, verify
from cptron.checkpoint.verify import Proven, damage
from cptron.durable import begin_directory

SMALL = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 4,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """One with files of several sizes."""
    from cptron.model.families import family_of

    final = layout.step_directory(tmp_path, 5)
    working = begin_directory(final)
    (working / "shards").mkdir()
    for number in range(5):
        (working / "shards" / f"{number}").write_bytes(os.urandom(1000 * number + 1))
    (working / "state.json").write_text("{}")
    arch = family_of("llama").read_config(SMALL).to_dict()
    manifest = layout.Manifest(
        kind="weights",
        step=5,
        tokens_total=0,
        architecture=arch,
        hugging_face_model="",
        tokenizer_fingerprint="",
        weights_fingerprint="",
        probe=layout.Probe(token_ids=[1, 2], loss_nats_per_token=1.0),
    )
    layout.publish(final, manifest)
    return final


def flip(path: Path, bit: int = 0) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << bit
    path.write_bytes(bytes(content))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of a shard": (lambda c: flip(c / "shards" / "3"), r"shards/3 has sha256 .*, expected"),
    "a bit of the state": (lambda c: flip(c / "state.json"), "state.json has sha256"),
    "a bit of the manifest": (lambda c: flip(c / "manifest.json"), "manifest.json is damaged"),
    "a bit of the manifest's digest": (lambda c: flip(c / "manifest.sha256"), "manifest.json is damaged"),
    "a shorter file": (lambda c: os.truncate(c / "shards" / "4", 10), "shards/4 has 10 bytes, expected 4001"),
    "a missing file": (lambda c: (c / "shards" / "1").unlink(), "shards/1 is missing"),
    "no manifest": (lambda c: (c / "manifest.json").unlink(), "is no checkpoint"),
    "no digest": (lambda c: (c / "manifest.sha256").unlink(), "manifest.json is damaged"),
    "two files exchanged": (
        lambda c: [
            shutil.move(c / "shards" / "1", c / "x"),
            shutil.move(c / "shards" / "2", c / "shards" / "1"),
            shutil.move(c / "x", c / "shards" / "2"),
        ],
        "shards/1 has 2001 bytes",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(case: str, checkpoint: Path) -> None:
    """The file, what it is and what it should be."""
    assert damage(checkpoint) == []
    do, words = DAMAGE[case]
    do(checkpoint)
    lines = damage(checkpoint)
    assert lines and re.search(words, lines[0]), lines


def test_a_renamed_checkpoint_is_not_another_step(checkpoint: Path) -> None:
    """Step 5 under the name of step 6 would repeat a step; under a name of its own it is what it was."""
    os.rename(checkpoint, checkpoint.with_name("step_00000006"))
    (line,) = damage(checkpoint.with_name("step_00000006"))
    assert "holds step 5: it was renamed" in line
    os.rename(checkpoint.with_name("step_00000006"), checkpoint.with_name("final"))
    assert damage(checkpoint.with_name("final")) == []


def test_ranks_divide_the_files(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is read by one of them, and damage is found by that one."""
    read: list[str] = []
    original = verify.hash_file
    monkeypatch.setattr(verify, "hash_file", lambda path: [read.append(path.name), original(path)][1])
    flip(checkpoint / "shards" / "2")
    found = [damage(checkpoint, (rank, 3)) for rank in range(3)]
    assert sorted(read) == ["0", "1", "2", "3", "4", "state.json"]
    assert sorted(len(lines) for lines in found) == [0, 0, 1]


def test_what_was_proven_is_read_again_only_when_it_changed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, inode, size and time of change, which no program sets back; a damaged record proves nothing."""
    record = tmp_path / "proven.json"
    Proven(record).add(checkpoint, list(layout.read_manifest(checkpoint).files))
    read: list[str] = []
    original = verify.hash_file
    monkeypatch.setattr(verify, "hash_file", lambda path: [read.append(path.name), original(path)][1])
    assert damage(checkpoint, known=Proven(record)) == [] and read == []
    before = (checkpoint / "shards" / "2").stat()
    flip(checkpoint / "shards" / "2")
    os.utime(checkpoint / "shards" / "2", ns=(before.st_atime_ns, before.st_mtime_ns))
    (line,) = damage(checkpoint, known=Proven(record))
    assert "shards/2" in line and read == ["2"]
    record.write_text("[{")
    assert len(damage(checkpoint, known=Proven(record))) == 1 and len(read) == 7


def test_the_record_of_what_was_proven_does_not_grow(checkpoint: Path, tmp_path: Path) -> None:
    """Files that were deleted are forgotten; and what was not there when it was entered is never taken for proven."""
    record, other = tmp_path / "proven.json", tmp_path / "other"
    other.mkdir()
    (other / "a").write_text("a")
    Proven(record).add(other, ["a", "absent"])
    assert Proven(record)(other / "a") and not Proven(record)(other / "absent")
    shutil.rmtree(other)
    files = list(layout.read_manifest(checkpoint).files)
    Proven(record).add(checkpoint, files)
    assert len(json.loads(record.read_text())) == len(files)
