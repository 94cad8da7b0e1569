"""Rows of the disk-backed index: time and memory to cluster one and ten million documents.

Place in the flow: `run` puts them on record. Invariant: each phase is a process of its own; a wrong number of found
copies is no row.
"""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

from benchmarks.curate.rows_dedup import Settings
from benchmarks.curate.scale import COPIES, SCHEME, SET_HASHES, SHARD_DOCUMENTS
from benchmarks.data.measure import BenchmarkError, run_process
from benchmarks.data.results import Row

GOAL_BYTES = 1 << 30
LEAST_FOUND = 0.999
_INDEX_OF_COPIES = "38/42"


def index(settings: Settings) -> list[Row]:
    """Row 3."""
    rows = []
    for part, total in (("a", settings.scale_documents // 10), ("b", settings.scale_documents)):
        found = {phase: _run(settings, phase, total) for phase in ("features", "decide")}
        decided = found["decide"]
        copies = total // COPIES
        if not LEAST_FOUND * copies <= decided["dropped"] <= copies:
            raise BenchmarkError(
                f"{decided['dropped']} copies were found of {copies}; the clusters are wrong"
            )
        rows.append(_row(f"dedup 3{part}", settings, total, found))
        shutil.rmtree(settings.work_dir / "scale")
    return rows


def _row(name: str, settings: Settings, total: int, found: dict[str, dict[str, Any]]) -> Row:
    decided, made = found["decide"], found["features"]
    return Row(
        row=name,
        work="clusters of made documents from features on disk",
        unit="documents/s",
        ours=total / decided["wall_s"],
        goal="<= 1 GiB of memory",
        met=decided["peak_bytes"] <= GOAL_BYTES,
        input=(
            f"{total} documents of {SET_HASHES} hashes, {decided['bytes'] / 1e9:.2f} GB of features in files of "
            f"{SHARD_DOCUMENTS}"
        ),
        rounds=1,
        memory={"ours": decided["peak_bytes"]},
        note=(
            f"{decided['wall_s']:.0f} s ({decided['cpu_s']:.0f} CPU s), {SCHEME.bands} bands x {SCHEME.rows} rows; "
            f"{decided['dropped']} of {total // COPIES} copies of index {_INDEX_OF_COPIES} found; making the features "
            f"{made['wall_s']:.0f} s ({made['cpu_s']:.0f} CPU s), {made['peak_bytes'] / 1e6:.0f} MB"
        ),
        command=settings.command,
    )


def _run(settings: Settings, phase: str, total: int) -> dict[str, Any]:
    directory = settings.work_dir / "scale"
    if phase == "features":
        shutil.rmtree(directory, ignore_errors=True)
    words = [sys.executable, "-m", "benchmarks.curate.scale", phase, directory, str(total)]
    done = run_process(words, {"OMP_NUM_THREADS": "1"})
    return {**json.loads(done.stdout.splitlines()[-1]), "peak_bytes": done.peak_bytes}
