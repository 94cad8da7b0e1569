"""The README's commands from raw text to a model with a fitted tokenizer, run as they stand there."""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
from pathlib import Path

import pytest
from commands import call, cptron

ROOT = Path(__file__).parents[2]
HEADING = "## From raw text to clean text, and a tokenizer that fits it"


def commands_of_the_readme() -> list[list[str]]:
    """Words of each command of the block below the heading."""
    block = re.search(rf"^{HEADING}\n.*?^```bash\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


def test_commands_of_the_readme(tmp_path: Path) -> None:
    """One behind the other in a directory of their own; the last leaves a checkpoint with rows for the new tokens."""
    for package in ("datatrove", "ftfy", "py3langid"):
        pytest.importorskip(package)
    model = ROOT / ".cache" / "smollm2-135m"
    assert model.is_dir(), f"{model} is not there; `make demo` or `make test` fetches it"
    (tmp_path / "models").mkdir()
    os.symlink(model, tmp_path / "models" / "base")
    os.symlink(ROOT / "examples", tmp_path / "examples")
    found = commands_of_the_readme()
    assert [words[1] for words in found] == ["curate", "tokenizer", "tokenizer", "convert"]
    for program, *words in found:
        assert program == "cptron"
        # A shell would put the files in place of a pattern.
        words = [
            name for word in words for name in (glob.glob(word, root_dir=tmp_path) if "*" in word else [word])
        ]
        done = call(cptron(*words), 300, cwd=tmp_path, PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stderr
    curated = json.loads((tmp_path / ".cache/curate/quickstart/manifest.json").read_text())
    extension = json.loads((tmp_path / "models/tokenizer/extension.json").read_text())
    assert curated["documents"] > 2000
    assert extension["unreachable"] == 0 and extension["new_tokens"] > 300
    assert extension["domain"]["tokens_change"] < -0.02 and extension["general"]["tokens_change"] <= 0
    assert (tmp_path / "checkpoints/wide").is_dir()
