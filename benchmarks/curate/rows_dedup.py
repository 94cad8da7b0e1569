"""Rows of near-duplicates: speed, memory, recall and precision of cptron and its peers on the same real documents.

Place in the flow: `run` puts them on record. Invariant: the tools take turns within a round; recall and precision are
judged by exact pairs that no tool had a part in.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.curate.sides import PERMUTATIONS, THRESHOLD, documents
from benchmarks.curate.truth import Pair, Worth, worth
from benchmarks.data.measure import Rounds, run_process
from benchmarks.data.results import Row
from cptron.corpus.dedup.scheme import Scheme

GOAL = 10.0


@dataclass(frozen=True)
class Settings:
    """What the rows need."""

    work_dir: Path
    peers: Path
    """Directory of the peers' packages."""
    corpus: Path
    """JSONL of real documents."""
    model: Path
    """A Hugging Face causal model, of the rows `whole`, `select` and `tokenizer`."""
    domains: Path
    """Directory of the domains of `select`."""
    rounds: int
    documents: int
    """Of the large row."""
    few_documents: int
    """Of the row with all peers."""
    scale_documents: int
    """Of the larger row with made documents."""
    command: str


def all_peers(settings: Settings) -> list[Row]:
    """Row 1: every tool, on few documents."""
    peers = ("datasketch", "datasketch, 21 x 6", "rensa", "datatrove", "text-dedup")
    return _rows("1", settings, settings.few_documents, peers)


def large(settings: Settings) -> list[Row]:
    """Row 2: 100,000 documents, beside datasketch and the faster peers."""
    return _rows("2", settings, settings.documents, ("datasketch", "rensa"))


def _rows(name: str, settings: Settings, count: int, peers: Sequence[str]) -> list[Row]:
    source = settings.work_dir / f"first_{count}.jsonl"
    count = _first(settings.corpus, source, count)
    pairs = known_pairs(source)
    answers: dict[str, list[dict[str, Any]]] = {tool: [] for tool in ("cptron", *peers)}
    worths: dict[str, Worth] = {}
    for number in range(settings.rounds):
        for tool, answered in answers.items():
            answer, kept = _measure(settings, tool, source)
            answered.append(answer)
            worths[tool] = worth(kept, pairs)
            print(f"  {tool}: {answer} {worths[tool]}", file=sys.stderr, flush=True)
        print(f"  round {number + 1} of {settings.rounds}", file=sys.stderr, flush=True)
    about = (
        f"{count} documents, {source.stat().st_size / 1e6:.0f} MB of JSONL, {len(pairs)} pairs >= {THRESHOLD}"
    )
    return [
        _row(f"{name}{chr(ord('a') + i)}", settings, about, count, tool, answers, worths)
        for i, tool in enumerate(peers)
    ]


def _row(
    name: str,
    settings: Settings,
    about: str,
    count: int,
    peer: str,
    answers: dict[str, list[dict[str, Any]]],
    worths: dict[str, Worth],
) -> Row:
    rates = {
        side: Rounds(tuple(count / answer["wall_s"] for answer in answers[tool]))
        for side, tool in (("ours", "cptron"), ("peer", peer))
    }
    cpu = {tool: count / Rounds.of(answers[tool], "cpu_s").median for tool in ("cptron", peer)}
    ours, theirs = worths["cptron"], worths[peer]
    ratio = rates["ours"].median / rates["peer"].median
    is_goal = peer == "datasketch"
    scheme = Scheme.of(THRESHOLD, permutations=PERMUTATIONS)
    return Row(
        row=f"dedup {name}",
        work="near-duplicates, from JSONL to JSONL, one thread",
        peer=peer,
        unit="documents/s",
        ours=rates["ours"].median,
        peer_value=rates["peer"].median,
        ratio=ratio,
        goal=f">= {GOAL:.0f}x, recall and precision at least as good" if is_goal else "none",
        met=ratio >= GOAL and ours.recall >= theirs.recall and ours.precision >= theirs.precision
        if is_goal
        else None,
        input=about,
        rounds=settings.rounds,
        spread={side: rounds.spread for side, rounds in rates.items()},
        memory={
            "ours": max(answer["peak_bytes"] for answer in answers["cptron"]),
            "peer": max(answer["peak_bytes"] for answer in answers[peer]),
        },
        peer_versions=_version(settings, peer),
        note=(
            f"recall {ours.recall:.4f} and {theirs.recall:.4f}, "
            f"precision {ours.precision:.4f} and {theirs.precision:.4f}, "
            f"dropped {ours.dropped} and {theirs.dropped}; "
            f"documents per CPU second {cpu['cptron']:.0f} and {cpu[peer]:.0f} ({cpu['cptron'] / cpu[peer]:.1f}x); "
            f"ours {scheme.bands} bands x {scheme.rows} rows, verified"
        ),
        command=settings.command,
    )


def _version(settings: Settings, peer: str) -> dict[str, str]:
    name = peer.split(",")[0]
    places = [str(settings.peers), *sys.path]
    found = next(iter(distributions(name=name, path=places)), None)
    return {name: found.version} if found else {}


def _measure(settings: Settings, tool: str, source: Path) -> tuple[dict[str, Any], np.ndarray]:
    work = settings.work_dir / "one"
    shutil.rmtree(work, ignore_errors=True)
    kept = settings.work_dir / "kept.jsonl"
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.curate.sides", tool, source, kept, work]
    paths = os.pathsep.join(filter(None, [str(settings.peers), os.environ.get("PYTHONPATH", "")]))
    done = run_process(words, {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    answer = {**json.loads(done.stdout.splitlines()[-1]), "peak_bytes": done.peak_bytes}
    names = {record["id"] for record in documents(kept)}
    left = np.array([record["id"] in names for record in documents(source)])
    shutil.rmtree(work)
    kept.unlink()
    return answer, left


def _first(corpus: Path, target: Path, count: int) -> int:
    """Write the first documents of the corpus, unless that was done; returns how many there are."""
    if not target.is_file() or target.stat().st_mtime < corpus.stat().st_mtime:
        with corpus.open("rb") as stream, target.open("wb") as out:
            out.writelines(islice(stream, count))
    with target.open("rb") as stream:
        return sum(1 for _ in stream)


def known_pairs(source: Path) -> list[Pair]:
    """Similar pairs of a file, kept beside it: they take minutes."""
    stored = source.with_suffix(f".pairs_{THRESHOLD}.npy")
    if not stored.is_file() or stored.stat().st_mtime < source.stat().st_mtime:
        words = ["-m", "benchmarks.curate.truth", source, stored, str(THRESHOLD)]
        run_process([sys.executable, *words])
    return [tuple(pair) for pair in np.load(stored, allow_pickle=False).tolist()]
