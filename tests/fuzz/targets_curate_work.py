"""Targets: what `curate` keeps between two runs, what it leaves for other commands, and the file that it is told by.

Seeds come from the product's writers. The work of a curation is damaged file by file, where a run has to read it again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
import zstandard
from corpus_world import STEPS, config_of, lines_of, text_of
from fuzz_bytes import mutate_bytes
from fuzz_json import mutate_json
from fuzz_target import Seed, Target
from fuzz_yaml import mutate_yaml, planted_yaml
from targets_curate import mutate_shard

from cptron.corpus.executor import LocalExecutor
from cptron.corpus.load import load_curation
from cptron.corpus.manifest import read_manifest
from cptron.corpus.run import curate, prepare
from cptron.tokens.curated import read_corpora, write_corpora

WORK_STEPS: list[dict[str, Any]] = [
    *STEPS[:2],
    {"step": "near_duplicates", "shingle_size": 3, "threshold": 0.7},
    {"step": "quantile", "key": "number", "highest": 0.8, "by": "source"},
    *STEPS[2:],
]


def make_work(root: Path) -> list[Seed]:
    """A finished curation whose output has to be made again: one world for each kind of file in `.work`."""
    whole = root / "whole"
    (whole / "raw").mkdir(parents=True)
    web = lines_of([text_of(number % 9) for number in range(12)] + [text_of(3)[:-9] + " otherwise."])
    (whole / "raw" / "a.jsonl").write_bytes(web + b"{\n")
    (whole / "raw" / "b.jsonl").write_bytes(lines_of([text_of(number) for number in range(20, 26)]))
    _curated(whole)
    work = whole / "out" / ".work"
    kept = {str(path.relative_to(whole)) for path in work.rglob("*") if path.is_file()}
    last = max(path.name for path in work.iterdir() if path.name[0].isdecimal())
    seeds: list[Seed] = []
    seen: set[str] = set()
    for number, name in enumerate(sorted(kept)):
        place = Path(name)
        if place.name == "lock" or place.name[:5] not in ("00000", "decis", "chain", "figur"):
            continue
        if place.name in seen and place.suffix != ".features":
            continue  # one of each kind, but features are of three
        seen.add(place.name)
        directory = root / f"{number:03d}"
        shutil.copytree(whole, directory)
        for path in directory.rglob("*.jsonl"):
            shutil.copystat(whole / path.relative_to(directory), path)
        if last not in place.parts:
            shutil.rmtree(directory / "out" / ".work" / last)
            # The stage that reads the file has to be done again.
            stage = int(place.parts[2].split("-")[0]) if place.parts[2][0].isdecimal() else 99
            for later in (directory / "out" / ".work").iterdir():
                if later.name[0].isdecimal() and int(later.name.split("-")[0]) > stage:
                    shutil.rmtree(later)
            if "decision" not in place.parts:
                for decision in (directory / "out" / ".work").glob(f"{stage}-decided-*/decision"):
                    shutil.rmtree(decision)
        seeds.append(Seed(directory, name))
    shutil.rmtree(whole)
    return seeds


def _curated(directory: Path) -> Any:
    inputs = {"web": [str(directory / "raw" / "a.jsonl")], "book": [str(directory / "raw" / "b.jsonl")]}
    path = directory / "c.yaml"
    path.write_text(yaml.safe_dump(config_of(directory / "out", inputs, WORK_STEPS, shard_bytes=4096)))
    with (
        patch.object(os, "fsync", lambda _: None),  # nobody cuts the power here
        LocalExecutor(1, progress=False) as executor,
    ):
        return curate(prepare(load_curation(path)), executor, 1)


def read_work(directory: Path) -> Any:
    """The manifest and the number of documents, of a copy: a run changes what is there."""
    copy = directory.with_suffix(".copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy)
    try:
        manifest = _curated(copy)
        return asdict(manifest), sum(_lines(path) for path in (copy / "out").glob("*.jsonl.zst"))
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _lines(path: Path) -> int:
    return zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read().count(b"\n")


def check_work(_: Path, value: Any) -> str | None:
    """What is counted is what is there, and a damaged file has not made documents fail."""
    manifest, documents = value
    if (
        manifest["documents"] != documents
        or sum(file["documents"] for file in manifest["files"]) != documents
    ):
        return f"wrong counts: {manifest['documents']} documents of {documents}"
    for step in manifest["steps"]:
        gone = sum(step["dropped"].values())
        if step["documents_in"] + step["documents_made"] != step["documents_out"] + gone:
            return f"lost documents: step {step['name']}"
        if "step_failed" in step["dropped"]:
            return f"documents failed: step {step['name']}"
    return None


def mutate_work(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """By what the file is."""
    if content[:4] == b"\x28\xb5\x2f\xfd":
        return mutate_shard(draw, content, ())
    if content[:1] in b"{[" and b"\n" in content[-2:]:
        return mutate_json(draw, content, [other for other in others if other[:1] == b"{"][:3])
    return mutate_bytes(draw, content, others)


def make_manifests(root: Path) -> list[Seed]:
    """Of a curation; beside the corpus, and beside token files."""
    seeds = make_work(root / "work")
    for seed in seeds[1:]:
        shutil.rmtree(seed.directory, ignore_errors=True)
    directory = seeds[0].directory
    _curated(directory)
    shutil.rmtree(directory / "out" / ".work")
    manifest = read_manifest(directory / "out")
    assert manifest is not None
    write_corpora(directory / "out" / "t", [manifest, manifest])
    return [Seed(directory / "out", "manifest.json"), Seed(directory / "out", "t.corpus.json")]


def read_manifests(directory: Path) -> Any:
    """Both, and the inputs that the first leads to."""
    manifest = read_manifest(directory)
    return manifest and asdict(manifest), [asdict(one) for one in read_corpora(directory / "t")]


def check_manifests(directory: Path, value: Any) -> str | None:
    """The values of the JSON."""
    manifest, corpora = json.loads(json.dumps(value))
    for read, name in ((manifest, "manifest.json"), (corpora, "t.corpus.json")):
        if read is None:
            continue
        found = json.loads((directory / name).read_bytes())
        if json.dumps(found, sort_keys=True) != json.dumps(read, sort_keys=True):
            return f"other values than the JSON has: {name}"
    return None


def make_curations(root: Path) -> list[Seed]:
    """Curation files, written by hand and by a program."""
    written = """\
output: out
seed: 3
shard_bytes: 1_000_000
inputs:
  - {name: web, paths: [raw/*.jsonl], meta_keys: ["*"]}
  - name: book
    paths: ["raw"]
steps:
  - step: length
    min_words: 5
  - {step: near_duplicates, name: near, threshold: 0.8, keep: longest}
  - step: pii
    sources: [book]
    kinds: [email, card]
  - {step: synthesise, endpoint: {url: "https://host/v1", model: m, extra: {a: "1"}}, kinds: [factual]}
"""
    made = yaml.safe_dump(config_of(Path("out"), {"a": ["x"], "book": ["y"]}, WORK_STEPS))
    seeds = []
    for name, text in (("written", written), ("made", made)):
        (root / name).mkdir()
        (root / name / "c.yaml").write_text(text)
        seeds.append(Seed(root / name, "c.yaml"))
    return seeds


TARGETS = [
    Target(
        format="work of a curation",
        name="curate-work",
        reader="cptron.corpus.run, cptron.corpus.work, cptron.corpus.summary, cptron.corpus.publish",
        make=make_work,
        read=read_work,
        mutate=mutate_work,
        check=check_work,
        memory_bytes=128 << 20,
        address_bytes=6 << 30,
        budget=2,
    ),
    Target(
        format="corpus manifest",
        name="corpus-manifest",
        reader="cptron.corpus.manifest, cptron.tokens.curated",
        make=make_manifests,
        read=read_manifests,
        mutate=mutate_json,
        check=check_manifests,
    ),
    Target(
        format="curation file",
        name="curation-file",
        reader="cptron.corpus.load",
        make=make_curations,
        read=lambda directory: repr(load_curation(directory / "c.yaml")),
        mutate=mutate_yaml,
        planted=planted_yaml,
    ),
]
