"""The curation of the quickstart's data, by the command that the page shows, on the beginnings of its files."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest
from commands import ROOT, call, cptron

DATA = ROOT / "examples/quickstart/data"
RECORDS = {"postgresql_docs_en": 50, "wikipedia_vital_en": 150}


def test_quickstart_curation(tmp_path: Path) -> None:
    """Real text through every step: each lets most of it through, counts fit, and preprocessing's input is there."""
    for package in ("datatrove", "ftfy", "py3langid"):
        pytest.importorskip(package)
    for name, most in RECORDS.items():
        with gzip.open(DATA / f"{name}.train.jsonl.gz") as file:
            (tmp_path / f"{name}.jsonl").write_bytes(b"".join(itertools.islice(file, most)))
    words = cptron(
        "curate", "examples/curate/quickstart.yaml", "--workers", "1", f"output={tmp_path / 'out'}",
        f"inputs.domain.paths=[{tmp_path}/postgresql_docs_en.jsonl]",
        f"inputs.general.paths=[{tmp_path}/wikipedia_vital_en.jsonl]",
    )  # fmt: skip
    done = call(words, 240)
    assert done.returncode == 0, done.stderr
    assert "documents" in done.stdout and str(tmp_path / "out/report.md") in done.stdout
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["records_rejected"] == {} and manifest["records_read"] == sum(RECORDS.values())
    kept = {file["source"]: file["documents"] for file in manifest["files"]}
    assert kept["domain"] >= 45 and kept["general"] >= 120
    assert "step_failed" not in str(manifest["steps"])
    report = json.loads((tmp_path / "out/report.json").read_text())
    (cut,) = [
        step["tally"].get("spans cut", 0) for step in report["steps"] if step["name"] == "decontaminate"
    ]
    assert cut > 0, "the manual's pages share sentences with its held-out pages"
