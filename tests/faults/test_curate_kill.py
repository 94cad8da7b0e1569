"""A curation that is killed at any moment, or done twice at once, ends with the bytes of an undisturbed run."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commands import call, cptron, started
from corpus_world import STEPS, config_of, files_of, lines_of, run, text_of
from self_signal import struck

from cptron.corpus.executor import LocalExecutor
from cptron.corpus.load import load_curation
from cptron.corpus.run import do_part, prepare
from cptron.corpus.sealed import read_record

NUM_DOCUMENTS = 4000
DONE = ".work/[0-9]-*/*.json"
"""Shards that are done with some stage: those are many, so they are done by workers."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """A few hundred KB with damaged lines and duplicates."""
    root = tmp_path_factory.mktemp("raw")
    lines = lines_of([text_of(number % 3000) for number in range(NUM_DOCUMENTS)])
    (root / "a.jsonl").write_bytes(lines.replace(b'"text"', b'"txet"', 3))
    return {"web": [str(root / "a.jsonl")]}


@pytest.fixture(scope="module")
def whole(raw: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an undisturbed run."""
    output = tmp_path_factory.mktemp("whole") / "out"
    run(settings_of(output, raw))
    return files_of(output)


def settings_of(output: Path, raw: dict[str, list[str]]) -> dict[str, object]:
    """About forty shards."""
    return config_of(output, raw, STEPS[:4], shard_bytes=25_000) | {
        "steps": [STEPS[0], STEPS[1], STEPS[3], STEPS[4]]
    }


def alive(text: str) -> list[int]:
    """Processes whose command line holds `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll."""
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.more) for seed in (1, 2, 3))])
def test_sigkill_at_any_moment(
    seed: int, raw: dict[str, list[str]], whole: dict[str, bytes], tmp_path: Path
) -> None:
    """The parent alone is killed, at random moments; its workers end by themselves, and the next run goes on."""
    output, mark = tmp_path / "out", f"mark-{tmp_path.name}-{seed}"
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings_of(output, raw)))
    words: list[str | Path] = ["curate", tmp_path / "c.yaml", "--workers", "2"]
    draw = random.Random(seed)
    for _ in range(2):
        command = struck(words, signal.SIGKILL, output, DONE, delay_s=draw.random() * 0.05)
        with started(command, CURATE_MARK=mark) as process:
            assert process.wait(timeout=240) == -signal.SIGKILL, "the run was too short to be killed"
            wait_until(lambda: not alive(mark), "workers outlive their parent")
    done = call(cptron(*words), 240)
    assert done.returncode == 0, done.stderr
    assert files_of(output) == whole


def test_a_killed_worker_ends_the_run_with_one_line(
    raw: dict[str, list[str]], whole: dict[str, bytes], tmp_path: Path
) -> None:
    """As when memory runs out; the same command then goes on. A polite signal ends it in one line too."""
    output = tmp_path / "out"
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings_of(output, raw)))
    words: list[str | Path] = ["curate", tmp_path / "c.yaml", "--workers", "2"]
    killed = call(struck(words, signal.SIGKILL, output, DONE, whom="worker"), 240)
    assert killed.returncode == 2, killed.stderr
    assert "a worker was killed" in killed.stderr and "Traceback" not in killed.stderr
    stopped = call(struck(words, signal.SIGTERM, output, DONE), 240)
    assert stopped.returncode == 143, stopped.stderr
    assert stopped.stderr.splitlines()[-1] == "stopped: run the same command again to go on"
    assert call(cptron(*words), 240).returncode == 0
    assert files_of(output) == whole


def first_stage(config: Path, own: Path) -> None:
    """All of it, as a task of a job array does, from the moment on at which all three are there."""
    work = prepare(load_curation(config), alone=False)
    own.touch()
    wait_until(lambda: len(list(own.parent.iterdir())) == 3, "no other tasks")
    with LocalExecutor(1, progress=False) as executor:
        do_part(work, 0, (0, 1), executor)


def test_tasks_at_the_same_shards(raw: dict[str, list[str]], whole: dict[str, bytes], tmp_path: Path) -> None:
    """Three processes with the same task, as when a node is lost to the scheduler and lives on: one is killed, the
    others end well; each record tells of the shard that is there, and nothing else is left."""
    output, config = tmp_path / "out", tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(settings_of(output, raw)))
    (tmp_path / "ready").mkdir()
    places = [tmp_path / "ready" / str(number) for number in range(3)]
    context = multiprocessing.get_context("spawn")
    tasks = [context.Process(target=first_stage, args=(config, place), daemon=True) for place in places]
    for task in tasks:
        task.start()
    wait_until(lambda: any(output.glob(DONE)) or not all(task.is_alive() for task in tasks), "no unit")
    tasks[0].kill()
    for task in tasks:
        task.join(240)
    assert [task.exitcode for task in tasks[1:]] == [0, 0]
    records = [path for path in output.glob(".work/0-*/*.json") if "decided" not in path.parent.name]
    assert len(records) > 30
    for path in records:
        content = path.with_suffix(".jsonl.zst").read_bytes()
        assert read_record(path)["file"]["sha256"] == hashlib.sha256(content).hexdigest()
    run(settings_of(output, raw))
    assert files_of(output) == whole and not list(output.rglob("*.partial"))
