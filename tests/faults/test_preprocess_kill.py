"""Preprocessing that is killed at any moment goes on with the same command, to the bytes of an undisturbed run."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call, kill_group, started
from tokens_world import save_byte_tokenizer

from cptron.tokens.manifest import verify

# A checkpoint twenty times a second: a corpus that is made in a test is too small for one every five seconds.
PROGRAM = """
import sys
from cptron.tokens import checkpointer
from cptron.cli import main
checkpointer._INTERVAL_S = 0.05
sys.exit(main(["preprocess", *sys.argv[1:]]))
"""
NUM_DOCUMENTS = 5000
JOURNAL = "x.preprocess.journal.json"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some MB of text with a damaged record in every thousand, and a tokenizer that is slow on it."""
    root = save_byte_tokenizer(tmp_path_factory.mktemp("corpus"))
    draw = random.Random(5)
    with (root / "a.jsonl").open("w") as stream:
        for number in range(NUM_DOCUMENTS):
            words = [f"w{draw.randrange(10**6)}" for _ in range(draw.randrange(400))]
            stream.write("{\n" if number % 1000 == 999 else json.dumps({"text": " ".join(words)}) + "\n")
    return root


def words(corpus: Path, directory: Path) -> list[str | Path]:
    """The command."""
    return [
        sys.executable, "-c", PROGRAM, "--input", corpus / "a.jsonl", "--output-prefix", directory / "x",
        "--tokenizer-model", corpus, "--engine", "reference", "--on-error", "quarantine",
    ]  # fmt: skip


def files_in(directory: Path) -> dict[str, bytes]:
    """Content of every file."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an undisturbed run."""
    directory = tmp_path_factory.mktemp("whole")
    done = call(words(corpus, directory), 120)
    assert done.returncode == 0, done.stderr
    return files_in(directory)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Whether `condition` came true before the process ended."""
    deadline = time.monotonic() + 240
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.002)
    return True


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.more) for seed in (1, 2, 3))])
def test_sigkill_at_any_moment(seed: int, corpus: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Killed again and again, at random moments after each new checkpoint; every run goes on from the last one."""
    draw = random.Random(seed)
    journal = tmp_path / JOURNAL
    kills = 0
    for _ in range(8):
        before = journal.read_bytes() if journal.exists() else b""

        def has_got_on(before: bytes = before) -> bool:
            return journal.exists() and journal.read_bytes() != before

        with started(words(corpus, tmp_path)) as process:
            if wait_for(has_got_on, process):
                time.sleep(draw.random() * 0.1)
            if process.poll() is not None:
                break
            kill_group(process)
            process.wait(timeout=120)
            kills += 1
        if not journal.exists():
            break  # it came to its end before the signal came
    assert kills >= 2, "the run was too short to be killed"
    if journal.exists() or not list(tmp_path.glob("*.manifest.json")):
        done = call(words(corpus, tmp_path), 120)
        assert done.returncode == 0, done.stderr
    assert files_in(tmp_path) == whole
    verify(tmp_path / "x_text_document")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_polite_signal_saves_and_ends_in_one_line(
    number: int, status: int, corpus: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """What batch systems send first; the next run goes on after what was done."""
    with started(words(corpus, tmp_path)) as process:
        assert wait_for((tmp_path / JOURNAL).exists, process)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == status
    assert stderr.splitlines()[-1] == "stopped: run the same command again to go on"
    assert "Traceback" not in stderr
    assert json.loads((tmp_path / JOURNAL).read_bytes())["checkpoint"]["records_read"] > 0
    done = call(words(corpus, tmp_path), 120)
    assert done.returncode == 0 and "going on after" in done.stderr
    assert files_in(tmp_path) == whole


def test_a_second_process_is_kept_off(corpus: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """While the first one runs; the lock of one that was killed is free."""
    with started(words(corpus, tmp_path)) as process:
        assert wait_for((tmp_path / JOURNAL).exists, process)
        second = call(words(corpus, tmp_path), 240)
        assert process.poll() is None, "the run was too short"
        kill_group(process)
        process.wait(timeout=120)
    assert second.returncode == 2 and "locked by another process" in second.stderr
    assert call(words(corpus, tmp_path), 120).returncode == 0
    assert files_in(tmp_path) == whole
