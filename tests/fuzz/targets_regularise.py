"""Targets: records beside Fisher information and beside a teacher's answers, of which every field may be changed."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_json import mutate_json
from fuzz_target import Seed, Target
from tokens_world import write_known

from cptron.checkpoint.hashing import hash_file
from cptron.data.content import open_content
from cptron.regularise import fisher_file, taught_file


def make_fisher(root: Path) -> list[Seed]:
    """A directory with one file of numbers."""
    directory = root / "fisher"
    (directory / fisher_file.SHARDS).mkdir(parents=True)
    (directory / fisher_file.SHARDS / "index.json").write_text("{}")
    record = fisher_file.FisherRecord(
        estimator="sequences",
        checkpoint="base",
        weights_fingerprint="ab" * 32,
        mean=0.5,
        elements=7,
        clipped=1,
    )
    fisher_file.write_record(directory, record, {})
    return [Seed(directory, fisher_file.RECORD)]


def read_fisher(directory: Path) -> Any:
    """The record after its digest was made anew: so every field reaches the reader."""
    content = (directory / fisher_file.RECORD).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    (directory / fisher_file.DIGEST).write_text(f"{digest}  {fisher_file.RECORD}\n")
    record = fisher_file.read_record(directory)
    return asdict(record), fisher_file.damaged_files(directory, record, (0, 1))


def make_taught(root: Path) -> list[Seed]:
    """Token files with answers for each of their 12 tokens."""
    prefix = str(root / "old")
    write_known(Path(prefix), [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11, 12]])
    np.zeros(12, taught_file.row_type(3)).tofile(taught_file.bin_file(prefix))
    file = hash_file(taught_file.bin_file(prefix))
    record = taught_file.TaughtRecord(
        top_k=3,
        tokens=12,
        seq_length=8,
        checkpoint="base",
        weights_fingerprint="ab" * 32,
        data=open_content(prefix).identity,
        bytes=file.size,
        sha256=file.sha256,
    )
    taught_file.write_record(prefix, record)
    return [Seed(root, taught_file.record_file(prefix).name)]


def read_taught(directory: Path) -> Any:
    """The record and the numbers."""
    prefix = str(directory / "old")
    found = taught_file.open_taught(prefix, open_content(prefix).identity, 2, verify=True)
    return asdict(found.record), found.rows["ids"].tolist(), found.starts.tolist()


TARGETS = [
    Target(
        format="Fisher information",
        name="fisher",
        reader="cptron.regularise.fisher_file",
        make=make_fisher,
        read=read_fisher,
        mutate=mutate_json,
    ),
    Target(
        format="teacher's answers",
        name="taught",
        reader="cptron.regularise.taught_file",
        make=make_taught,
        read=read_taught,
        mutate=mutate_json,
    ),
]
