"""`cptron merge-weights` on models that are large beside its memory, and killed in the middle."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import call, cptron, kill_group, started
from weights_world import CONFIG

MAX_ANONYMOUS_BYTES = 300 * 10**6
ROWS, HIDDEN = 180_000, 1024
"""One tensor of 369 MB in bf16, a whole one of which is more than may be held."""

MEASURED = """
import sys, threading, time
from cptron.cli import main
peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.005):
        status = open("/proc/self/status").read()
        peak = max(peak, int(status.split("RssAnon:")[1].split()[0]) * 1024)
watcher = threading.Thread(target=watch)
watcher.start()
code = main(sys.argv[1:])
done.set()
watcher.join()
print("peak", peak)
sys.exit(code)
"""
"""Memory that is the process's own: mapped files are not counted, for they are given back when others need it."""


def synthetic(directory: Path, value: float) -> Path:
    """A model of 400 MB: one large matrix and 30 MB of small ones, written without a library."""
    directory.mkdir()
    shapes = {"lm_head.weight": (1, 7), "model.embed_tokens.weight": (ROWS, HIDDEN)}
    shapes |= {f"model.layers.{n}.mlp.up_proj.weight": (1024, 1024) for n in range(15)}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    bits = np.float32(value).view(np.uint32) >> 16
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        block = np.full(1 << 20, bits, dtype="<u2")
        for start in range(0, end // 2, len(block)):
            file.write(block[: end // 2 - start].data)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Models of ones and of threes."""
    root = tmp_path_factory.mktemp("large")
    return [synthetic(root / "ones", 1.0), synthetic(root / "threes", 3.0)]


@pytest.mark.more
def test_memory_is_that_of_blocks(two: list[Path], tmp_path: Path) -> None:
    """Two models of 400 MB and two results take less than a whole one would."""
    out = tmp_path / "w"
    words = ["merge-weights", "wise-ft", *two, "--alpha", "0.25,0.5", "--output-prefix", out]
    done = call([sys.executable, "-c", MEASURED, *words], 300)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split("peak ")[1])
    assert peak < MAX_ANONYMOUS_BYTES, f"{peak / 1e6:.0f} MB"
    print(f"peak anonymous memory {peak / 1e6:.0f} MB")
    for alpha, value in (("0.25", 1.5), ("0.5", 2.0)):
        path = Path(f"{out}_{alpha}") / "model.safetensors"
        size = path.stat().st_size
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little") + 8
        stored = np.memmap(path, dtype="<u2", mode="r", offset=header)
        assert size - header == 2 * (ROWS * HIDDEN + 7 + 15 * 2**20)
        assert (stored == np.float32(value).view(np.uint32) >> 16).all()


@pytest.mark.more
def test_a_kill_in_the_middle_leaves_nothing_that_looks_finished(two: list[Path], tmp_path: Path) -> None:
    """No directory under an output's name; the same command then does the whole work."""
    out = tmp_path / "out"
    command = cptron("merge-weights", "average", *two, "--output", out)
    working = tmp_path / ".writing_out/model.safetensors"
    with started(command) as process:
        deadline = time.monotonic() + 120
        while not (working.is_file() and working.stat().st_size > 50 * 10**6):
            assert process.poll() is None and time.monotonic() < deadline, "nothing to kill"
            time.sleep(0.005)
        kill_group(process)
        process.wait(timeout=30)
    assert not out.exists() and working.is_file()
    assert working.stat().st_size < (two[0] / "model.safetensors").stat().st_size
    done = call(command, 300)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((out / "merge.json").read_text())["recipe"] == "average"
    shutil.rmtree(out)
