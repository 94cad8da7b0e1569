"""A curation on a real Ray cluster of this machine, with two workers: the bytes of the local one; dead workers."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from commands import call, cptron, error_lines
from corpus_world import config_of, files_of, lines_of, run, text_of

from cptron.corpus.load import load_curation
from cptron.corpus.ray_executor import RETRIES, RayExecutor
from cptron.corpus.run import curate, prepare
from cptron.corpus.work import Unit, Work, shard_path
from cptron.errors import DataError

pytestmark = pytest.mark.more
STEPS = [{"step": "length", "min_words": 5}, {"step": "near_duplicates"}]


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A cluster of two cores, which workers of all tests share."""
    module = pytest.importorskip("ray", reason="ray is not installed: pip install ray")
    module.init(num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    module.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    module.shutdown()


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """About a dozen shards with duplicates."""
    lines = lines_of([f"{text_of(number % 150, 80)} Copy {number // 150}." for number in range(200)])
    (tmp_path / "a.jsonl").write_bytes(lines)
    config = config_of(tmp_path / "out", {"web": [str(tmp_path / "a.jsonl")]}, STEPS, shard_bytes=10_000)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    return prepare(load_curation(tmp_path / "c.yaml"))


class KilledOnce(Work):
    """Its workers die at shard 3, as often as the file in `deaths` says."""

    def do(self, unit: Unit) -> None:
        """See `Work`."""
        file = self.directory / "deaths"
        if unit.number == 3 and unit.kind == "map" and (left := int(file.read_text())):
            file.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        super().do(unit)


def on_ray(work: Work) -> None:
    """The whole curation."""
    with RayExecutor(2) as executor:
        curate(work, executor, 1)


def local(work: Work) -> dict[str, bytes]:
    """The files of the same without Ray."""
    config = yaml.safe_load((work.directory.parents[1] / "c.yaml").read_text())
    run({**config, "output": str(work.directory.parents[1] / "local")})
    return files_of(work.directory.parents[1] / "local")


def test_the_command(work: Work) -> None:
    """Starts a cluster of this machine, and leaves none of its processes; where Ray is absent it says so."""
    root = work.directory.parents[1]
    words = cptron("curate", root / "c.yaml", "--executor", "ray", "--workers", "2")
    done = call(words, 400, RAY_USAGE_STATS_ENABLED="0", MARK=str(root))
    if not importlib.util.find_spec("ray"):
        assert done.returncode == 2 and error_lines(done.stderr) and "pip install ray" in done.stderr
        pytest.skip("ray is not installed: pip install ray")
    assert done.returncode == 0, done.stderr
    assert files_of(work.directory.parent) == local(work)
    end_s = time.monotonic() + 60
    while (left := marked(str(root))) and time.monotonic() < end_s:
        time.sleep(0.2)
    assert not left


def marked(mark: str) -> list[str]:
    """Processes that were started with this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("MARK") == mark:
                found.append(process.name())
    return found


@pytest.mark.usefixtures("ray")
def test_a_worker_that_dies_is_replaced(work: Work) -> None:
    """Killed once at a shard: done again, to the bytes of a local run."""
    (work.directory / "deaths").write_text("1")
    on_ray(KilledOnce(work.config, work.corpus, work.stages, work.directory))
    assert (work.directory / "deaths").read_text() == "0"
    assert files_of(work.directory.parent) == local(work)


@pytest.mark.usefixtures("ray")
def test_errors_are_one_line_and_the_run_goes_on_afterwards(work: Work) -> None:
    """Of a worker that dies again and again, and of a shard that cannot be written."""
    (work.directory / "deaths").write_text(str(RETRIES + 1))
    with pytest.raises(DataError, match=f"shard 3: its worker died {RETRIES + 1} times") as raised:
        on_ray(KilledOnce(work.config, work.corpus, work.stages, work.directory))
    assert "\n" not in str(raised.value)
    obstacle = shard_path(work.directory / work.stages[0].name, 3)
    obstacle.unlink(missing_ok=True)
    obstacle.mkdir()
    with pytest.raises(DataError, match="cannot be read or written \\(Is a directory\\)") as raised:
        on_ray(work)
    assert "\n" not in str(raised.value)
    obstacle.rmdir()
    on_ray(work)
    assert files_of(work.directory.parent) == local(work)
