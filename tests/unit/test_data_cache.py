"""The directory of index files: one truth for any number of processes, and damage costs only time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_world import SEQ, sample_labels, write_tokens

from cptron.data import cache as cache_module
from cptron.data.cache import IndexCache
from cptron.data.source import TokenSource
from cptron.errors import DataError

BUILD = """
import sys, time, numpy as np
from cptron.data.cache import IndexCache
def build():
    time.sleep(0.3)
    print("built", flush=True)
    return np.arange(1000, dtype=np.int64) * 3
found = IndexCache(sys.argv[1]).get("key", build)
assert (found == np.arange(1000) * 3).all()
"""


def numbers() -> np.ndarray:
    """What a key stands for."""
    return np.arange(50, dtype=np.int64) ** 2


def never() -> np.ndarray:
    """For a key that must be there."""
    raise AssertionError("built again")


def test_sixteen_processes_at_once(tmp_path: Path) -> None:
    """All get the same numbers, one of them does the work, and nothing half-written stays."""
    words = [sys.executable, "-c", BUILD, str(tmp_path)]
    processes = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(16)]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 16
    assert sum(output.count("built") for output in outputs) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key.index", "key.lock"]


def test_found_again_and_kept_apart(tmp_path: Path) -> None:
    """By another object as well; another key is another file."""
    assert (IndexCache(tmp_path).get("a", numbers) == numbers()).all()
    found = IndexCache(tmp_path).get("a", never)
    assert (found == numbers()).all() and found.flags.aligned and not found.flags.writeable
    assert IndexCache(tmp_path).get("b", lambda: np.array([7], np.int64)).tolist() == [7]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "longer", "header"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    """Never read as something else."""
    IndexCache(tmp_path).get("a", numbers)
    path = tmp_path / "a.index"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[{"flip": 200, "header": 3}.get(damage, 0)] ^= 1
    changed = {"truncate": whole[:-8], "flip": bytes(flipped), "empty": b"", "longer": whole + b"12345678"}
    path.write_bytes(changed.get(damage, bytes(flipped)))
    assert (IndexCache(tmp_path).get("a", numbers) == numbers()).all()
    assert path.read_bytes() == whole


def test_a_lock_that_is_held_costs_work_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that hangs with the lock in hand: the others wait a while and do without."""
    monkeypatch.setattr(cache_module, "_WAIT_S", 0.3)
    holder = (
        "import fcntl, sys, time\n"
        "lock = open(sys.argv[1], 'w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "time.sleep(60)"
    )
    words = [sys.executable, "-c", holder, str(tmp_path / "a.lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        started_s = time.monotonic()
        assert (IndexCache(tmp_path).get("a", numbers) == numbers()).all()
        assert time.monotonic() - started_s < 20
        process.kill()
    assert (IndexCache(tmp_path).get("a", never) == numbers()).all()


def test_a_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """One line with the key of the configuration."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache_dir="):
        IndexCache(tmp_path / "file" / "below")


def test_sources_with_and_without_a_cache_are_the_same(tmp_path: Path) -> None:
    """And a second one makes nothing, whatever its epochs."""
    write_tokens(tmp_path / "s", np.random.default_rng(1).integers(1, 60, 300).tolist())
    prefix = str(tmp_path / "s")
    for packing in ("joined", "best_fit"):
        plain = TokenSource("s", prefix, SEQ, 1, packing=packing)
        for _ in range(2):
            cached = TokenSource("s", prefix, SEQ, 1, packing=packing, cache=IndexCache(tmp_path / "cache"))
            cached.prepare(3)
            n = plain.samples_per_epoch
            assert all(sample_labels(plain, i) == sample_labels(cached, i) for i in (0, 1, n, 2 * n + 5))
    assert len(list((tmp_path / "cache").glob("*.index"))) == 3 + 1


def test_another_seq_length_is_another_packing(tmp_path: Path) -> None:
    """Two runs over the same files share a directory and not their numbers."""
    write_tokens(tmp_path / "s", np.random.default_rng(1).integers(1, 60, 300).tolist())
    prefix, cache = str(tmp_path / "s"), IndexCache(tmp_path / "cache")
    for seq_length in (SEQ, 2 * SEQ, SEQ):
        plain = TokenSource("s", prefix, seq_length, 1, packing="best_fit")
        cached = TokenSource("s", prefix, seq_length, 1, packing="best_fit", cache=cache)
        assert cached.samples_per_epoch == plain.samples_per_epoch
        assert all(sample_labels(plain, i) == sample_labels(cached, i) for i in range(20))
    assert len(list((tmp_path / "cache").glob("*.index"))) == 2
