"""Every reader on some damaged files; `make fuzz` has many more of them.

A process of its own runs a room of readers: what other tests have started in this one would not survive the forks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment
from fuzz_targets import ROOMS

INPUTS = {
    "tokens": 300,
    "config": 80,
    "corpus": 200,
    "tokenizer": 150,
    "weights": 250,
    "checkpoint": 250,
    "run": 120,
}
"""Mutated inputs; planted ones come on top."""
HERE = Path(__file__).parent


@pytest.mark.parametrize("room", ROOMS)
def test_damaged_files_are_an_error_of_one_line_or_are_read_right(room: str, tmp_path: Path) -> None:
    """No other exception, crash, hang, program, or memory beyond what the files' size allows."""
    rows = tmp_path / "rows.json"
    words = ["--room", room, "--inputs", str(INPUTS[room]), "--workers", "1", "--results", str(rows)]
    words += ["--kept", str(tmp_path / "kept")]
    env = environment(PYTHONPATH=f"{HERE.parents[1]}:{HERE.parent}:{HERE}")
    done = subprocess.run(
        [sys.executable, str(HERE / "fuzz_run.py"), *words],
        capture_output=True,
        text=True,
        env=env,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    result = json.loads(rows.read_text())
    assert result["inputs"] >= INPUTS[room] and result["findings"] == 0
    assert (
        sum(row["errors"] for row in result["rows"]) > 0 and sum(row["correct"] for row in result["rows"]) > 0
    )
