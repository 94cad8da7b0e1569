"""One tool's deduplication of a JSONL file, whole process: read, find, write what is kept.

Usage: python -m benchmarks.curate.sides TOOL INPUT.jsonl KEPT.jsonl WORK_DIR
Prints one JSON object: documents, kept, seconds from the first line read to the last written, CPU seconds.

Place in the flow: `rows_dedup` runs it once a round and tool. Invariant: all tools get the same documents, threshold,
five words a shingle and about as many permutations; one process, one thread.

The peers' words are those of cptron (runs of letters and digits in lower case), so that all tools answer the same
question. datatrove and text-dedup bring their own front end: the former is given a tokenizer at white space, its
default needs a model.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

THRESHOLD = 0.8
PERMUTATIONS = 128
SHINGLE_WORDS = 5
SHARD_BYTES = 32 << 20
_ALONE = r"\u3005-\u3007\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f"
WORD = re.compile(rf"[{_ALONE}]|[^\W_{_ALONE}]+")
"""A word; of Chinese and Japanese one character."""
UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")


def documents(path: Path) -> Iterator[dict[str, Any]]:
    """Records of the input."""
    import orjson

    with path.open("rb") as stream:
        for line in stream:
            yield orjson.loads(line)


def shingles(text: str) -> set[str]:
    """Shingles as any user of a MinHash library makes them."""
    words = WORD.findall(UNSEEN.sub("", text).lower())
    size = min(SHINGLE_WORDS, len(words))
    return {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)} if words else set()


def write_kept(source: Path, target: Path, keep: Callable[[int], bool]) -> int:
    """Copy the lines that stay."""
    kept = 0
    with source.open("rb") as stream, target.open("wb") as out:
        for number, line in enumerate(stream):
            if keep(number):
                out.write(line)
                kept += 1
    return kept


def cptron(source: Path, target: Path, work: Path) -> int:
    """cptron.corpus.dedup as the step `near_duplicates` uses it."""
    import numpy as np

    from cptron.corpus.dedup.cluster import Sources, cluster
    from cptron.corpus.dedup.feature_file import FeatureFile, write_features
    from cptron.corpus.dedup.keep import decide
    from cptron.corpus.dedup.scheme import Scheme
    from cptron.corpus.document import Document

    scheme = Scheme.of(THRESHOLD, permutations=PERMUTATIONS)
    files = []
    reader = (Document(r["text"], r["id"], "corpus") for r in documents(source))
    for number, shard in enumerate(_shards(reader)):
        path = work / f"{number:05d}.features"
        write_features(shard, path, scheme)
        files.append(FeatureFile(path))
    clusters = cluster(Sources(files, 0, scheme), THRESHOLD)
    codes = np.concatenate([decision.codes for decision in decide(clusters, "first")])
    print(dict(clusters.counts), file=sys.stderr)
    return write_kept(source, target, lambda number: not codes[number])


def _shards(reader: Iterator[Any]) -> Iterator[Iterator[Any]]:
    for first in reader:
        yield _until_full(first, reader)


def _until_full(first: Any, reader: Iterator[Any]) -> Iterator[Any]:
    size = len(first.text)
    yield first
    while size < SHARD_BYTES:
        following = next(reader, None)
        if following is None:
            return
        size += len(following.text)
        yield following


def datasketch(source: Path, target: Path, work: Path, params: tuple[int, int] | None = None) -> int:
    """MinHash and MinHashLSH as its documentation uses them; what a query finds is joined."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS, params=params)
    parents: list[int] = []
    for number, record in enumerate(documents(source)):
        parents.append(number)
        tokens = shingles(record["text"])
        if not tokens:
            continue
        minhash = MinHash(num_perm=PERMUTATIONS)
        minhash.update_batch([token.encode() for token in tokens])
        for other in index.query(minhash):
            _join(parents, other, number)
        index.insert(number, minhash, check_duplication=False)
    return write_kept(source, target, lambda number: parents[number] == number)


def datasketch_same_bands(source: Path, target: Path, work: Path) -> int:
    """The same with the bands and rows that cptron chooses."""
    return datasketch(source, target, work, (21, 6))


def rensa(source: Path, target: Path, work: Path) -> int:
    """RMinHash and RMinHashLSH, used in the same way."""
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS, num_bands=16)
    parents: list[int] = []
    for number, record in enumerate(documents(source)):
        parents.append(number)
        tokens = shingles(record["text"])
        if not tokens:
            continue
        minhash = RMinHash(num_perm=PERMUTATIONS, seed=1)
        minhash.update(list(tokens))
        for other in index.query(minhash):
            _join(parents, other, number)
        index.insert(number, minhash)
    return write_kept(source, target, lambda number: parents[number] == number)


def datatrove(source: Path, target: Path, work: Path) -> int:
    """Its four stages, defaults but for the tokenizer."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.word_tokenizers import WordTokenizer
    from loguru import logger

    class AtSpaces(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            raise NotImplementedError

    logger.remove()
    config = MinhashConfig()
    inside = work / "input"
    inside.mkdir()
    (inside / source.name).symlink_to(source)
    reader = JsonlReader(str(inside), compression=None)
    signatures = MinhashDedupSignature(str(work / "signatures"), config, language=AtSpaces())
    buckets = MinhashDedupBuckets(str(work / "signatures"), str(work / "buckets"), config=config)
    clusters = MinhashDedupCluster(str(work / "buckets"), str(work / "remove"), config=config)
    kept = JsonlWriter(str(work / "kept"), compression=None)
    for pipeline, tasks in (
        ([reader, signatures], 1),
        ([buckets], config.num_buckets),
        ([clusters], 1),
        ([reader, MinhashDedupFilter(str(work / "remove")), kept], 1),
    ):
        LocalPipelineExecutor(
            pipeline=pipeline, tasks=tasks, workers=1, logging_dir=str(work / f"logs_{len(pipeline)}_{tasks}")
        ).run()
    written = sorted((work / "kept").glob("*.jsonl"))
    lines = [line for path in written for line in path.read_bytes().splitlines(keepends=True)]
    target.write_bytes(b"".join(lines))
    return len(lines)


def text_dedup(source: Path, target: Path, work: Path) -> int:
    """Its MinHash program."""
    from text_dedup.minhash import main
    from text_dedup.utils import IOArgs, MetaArgs, MinHashArgs

    output = work / "kept"
    main.callback(  # its own Union-Find and `datasets` do the rest
        io_args=IOArgs(path="json", data_files=str(source), split="train", output=str(output), num_proc=1,
                       cache_dir=str(work / "cache")),
        meta_args=MetaArgs(column="text"),
        minhash_args=MinHashArgs(ngram=SHINGLE_WORDS, min_length=1, num_perm=PERMUTATIONS, threshold=THRESHOLD),
    )  # fmt: skip
    from datasets import load_from_disk

    kept = set(load_from_disk(str(output))["id"])
    names = [record["id"] for record in documents(source)]
    return write_kept(source, target, lambda number: names[number] in kept)


def _join(parents: list[int], left: int, right: int) -> None:
    left, right = (_root(parents, document) for document in (left, right))
    parents[max(left, right)] = min(left, right)


def _root(parents: list[int], document: int) -> int:
    while parents[document] != document:
        parents[document] = parents[parents[document]]
        document = parents[document]
    return document


TOOLS: dict[str, Callable[[Path, Path, Path], int]] = {
    "cptron": cptron,
    "datasketch": datasketch,
    "datasketch, 21 x 6": datasketch_same_bands,
    "rensa": rensa,
    "datatrove": datatrove,
    "text-dedup": text_dedup,
}
_IMPORTS = {
    "cptron": "cptron.corpus.dedup.cluster",
    "datasketch, 21 x 6": "datasketch",
    "text-dedup": "text_dedup.minhash",
    "datatrove": "datatrove.pipeline.dedup.minhash",
}


def _cpu_s() -> float:
    """Of this process and of those it waited for."""
    return sum(os.times()[:4])


def main(words: list[str]) -> int:
    """Command line."""
    tool, source, target, work = words[0], *map(Path, words[1:])
    __import__(_IMPORTS.get(tool, tool))  # not part of the measurement
    work.mkdir(parents=True)
    wall_s, cpu_s = time.perf_counter(), _cpu_s()
    kept = TOOLS[tool](source.resolve(), target, work)
    wall_s, cpu_s = time.perf_counter() - wall_s, _cpu_s() - cpu_s
    with source.open("rb") as stream:
        count = sum(1 for _ in stream)
    print(json.dumps({"documents": count, "kept": kept, "wall_s": wall_s, "cpu_s": cpu_s}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
