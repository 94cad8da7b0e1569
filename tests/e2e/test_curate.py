"""The curation of the quickstart's data, by the command that the page shows, on the smaller half of its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import call, cptron

DATA = "examples/quickstart/data"


def test_quickstart_curation(tmp_path: Path) -> None:
    """Real text through every step: each lets most of it through, counts fit, and preprocessing's input is there."""
    for package in ("datatrove", "ftfy", "py3langid"):
        pytest.importorskip(package)
    words = cptron(
        "curate", "examples/curate/quickstart.yaml", "--workers", "1", f"output={tmp_path / 'out'}",
        f"inputs.domain.paths=[{DATA}/postgresql_docs_en.valid.jsonl.gz]",
        f"inputs.general.paths=[{DATA}/wikipedia_vital_en.valid.jsonl.gz]",
    )  # fmt: skip
    done = call(words, 240)
    assert done.returncode == 0, done.stderr
    assert "documents" in done.stdout and str(tmp_path / "out/report.md") in done.stdout
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["records_rejected"] == {} and len(manifest["files"]) == 2
    assert manifest["documents"] > 0.6 * manifest["records_read"] > 100
    assert "step_failed" not in str(manifest["steps"])
