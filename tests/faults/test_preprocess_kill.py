"""Preprocessing that is killed at any moment goes on with the same command, to the bytes of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from commands import call, cptron, kill_group, started
from self_signal import struck
from tokens_world import save_byte_tokenizer

from cptron.tokens.manifest import verify

# A checkpoint twenty times a second: a corpus that is made in a test is too small for one every five seconds.
OFTEN = "from cptron.tokens import checkpointer; checkpointer._INTERVAL_S = 0.05"
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
    """The command's words."""
    return [
        "preprocess", "--input", corpus / "a.jsonl", "--output-prefix", directory / "x", "--tokenizer-model", corpus,
        "--engine", "reference", "--on-error", "quarantine",
    ]  # fmt: skip


def files_in(directory: Path) -> dict[str, bytes]:
    """Content of every file."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an undisturbed run."""
    directory = tmp_path_factory.mktemp("whole")
    done = call(cptron(*words(corpus, directory)), 240)
    assert done.returncode == 0, done.stderr
    return files_in(directory)


def struck_at(corpus: Path, directory: Path, number: signal.Signals, **how: Any) -> list[str | Path]:
    """The command, which gets the signal once it has written a new checkpoint."""
    return struck(words(corpus, directory), number, directory, JOURNAL, setup=OFTEN, **how)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.more) for seed in (1, 2, 3))])
def test_sigkill_at_any_moment(seed: int, corpus: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Killed again and again, at random moments after each new checkpoint; every run goes on from the last one."""
    draw = random.Random(seed)
    kills = 0
    for _ in range(8):
        delay_s = draw.random() * (0.1 if kills > 1 else 0.01)  # two are early: all takes a second or two
        command = struck_at(corpus, tmp_path, signal.SIGKILL, whom="group", delay_s=delay_s)
        done = call(command, 240)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        kills += done.returncode != 0
        if not (tmp_path / JOURNAL).exists():
            break  # it came to its end before the signal came
    assert kills >= 2, "the run was too short to be killed"
    if (tmp_path / JOURNAL).exists() or not list(tmp_path.glob("*.manifest.json")):
        done = call(cptron(*words(corpus, tmp_path)), 240)
        assert done.returncode == 0, done.stderr
    left = files_in(tmp_path)
    left.pop("x.preprocess.lock", None)  # of one that was killed in its very last moment; it holds nobody up
    assert left == whole
    verify(tmp_path / "x_text_document")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_polite_signal_saves_and_ends_in_one_line(
    number: signal.Signals, status: int, corpus: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """What batch systems send first; the next run goes on after what was done."""
    stopped = call(struck_at(corpus, tmp_path, number), 240)
    assert stopped.returncode == status, stopped.stderr
    assert stopped.stderr.splitlines()[-1] == "stopped: run the same command again to go on"
    assert "Traceback" not in stopped.stderr
    assert json.loads((tmp_path / JOURNAL).read_bytes())["checkpoint"]["records_read"] > 0
    done = call(cptron(*words(corpus, tmp_path)), 240)
    assert done.returncode == 0 and "going on after" in done.stderr
    assert files_in(tmp_path) == whole


def test_a_second_process_is_kept_off(corpus: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """While the first one lives; the lock of one that was killed is free."""
    with started(struck_at(corpus, tmp_path, signal.SIGSTOP)) as process:
        _, stopped = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(stopped), "the run was too short"
        second = call(cptron(*words(corpus, tmp_path)), 240)
        kill_group(process)
        process.wait(timeout=120)
    assert second.returncode == 2 and "locked by another process" in second.stderr
    assert call(cptron(*words(corpus, tmp_path)), 240).returncode == 0
    assert files_in(tmp_path) == whole
