"""Targets: what the corpus-wide steps keep: features and indexes of near-duplicates, arrays, models, answers.

Seeds come from the product's writers. Damage is also made below the check sums, as another version or program would.
"""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from corpus_world import text_of
from fuzz_bytes import EDGES, mutate_bytes, put_number
from fuzz_json import mutate_json
from fuzz_target import Seed, Target

from cptron.corpus.dedup.cluster import Sources, cluster
from cptron.corpus.dedup.feature_file import FeatureFile, write_features
from cptron.corpus.dedup.index import open_index, publish_index
from cptron.corpus.dedup.keep import decide, names_of
from cptron.corpus.dedup.scheme import Scheme
from cptron.corpus.document import Document
from cptron.corpus.select.array_file import load_arrays, save_arrays
from cptron.corpus.select.kneser_ney import NgramModel
from cptron.corpus.select.linear import LinearClassifier
from cptron.corpus.select.promise import Quality
from cptron.corpus.synthesis.answer import Answer, Request
from cptron.corpus.synthesis.ask import Asker
from cptron.corpus.synthesis.budget import SPENT, Budget, read_spent
from cptron.corpus.synthesis.cache import Cache
from cptron.corpus.synthesis.completion import BadCompletionError, read_completion, read_error
from cptron.corpus.synthesis.parse import parse_answer
from cptron.corpus.synthesis.prompt import KINDS, read_prompt, shipped_path
from cptron.errors import DataError

SCHEME = Scheme(shingle_size=2, bands=6, rows=2)
FEATURES = ("00000.features", "00001.features")


def make_features(root: Path) -> list[Seed]:
    """Two shards with near-duplicates within and across them, and an empty one."""
    texts = [text_of(number) for number in range(6)] + [text_of(2)[:-12] + " otherwise.", "...", ""]
    (root / "a").mkdir()
    for number, name in enumerate((*FEATURES, "00002.features")):
        mine = [Document(text, f"x/{number}#{place}", "x") for place, text in enumerate(texts)][
            : (9, 7, 0)[number]
        ]
        write_features(mine, root / "a" / name, SCHEME, ["y"])
    return [Seed(root / "a", name) for name in FEATURES]


def make_index(root: Path) -> list[Seed]:
    """The same as an index of an earlier corpus."""
    make_features(root)
    publish_index(sorted((root / "a").glob("*.features")), root / "index")
    return [Seed(root / "index", "index.json")]


def _decided(files: Sequence[FeatureFile], earlier: int) -> Any:
    clusters = cluster(Sources(files, earlier, SCHEME), 0.6, most_comparisons=50, keep_edges=True)
    found = []
    for decision in decide(clusters, "longest"):
        named = names_of(clusters, decision.originals)
        names = [named[number] for number in decision.originals.tolist()]
        found.append((decision.file, decision.codes.tolist(), names))
    return found, sorted(clusters.counts.items())


def read_features(directory: Path) -> Any:
    """Clusters and decisions of all files."""
    files: list[FeatureFile] = []
    try:
        for path in sorted(directory.glob("*.features")):
            files.append(FeatureFile(path))
        return _decided(files, 0)
    finally:
        for file in files:
            file.close()


def read_index(directory: Path) -> Any:
    """The same, where the files are those of an index."""
    files = open_index(directory)
    try:
        return _decided(files, min(1, len(files)))
    finally:
        for file in files:
            file.close()


def mutate_features(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage to the header's JSON, to numbers of one of the arrays, or to bytes."""
    size = int.from_bytes(content[:8], "little")
    kind = draw.random()
    if kind < 0.3:
        return mutate_bytes(draw, content, others)
    if kind < 0.6:
        header = mutate_json(draw, content[8 : 8 + size], [])
        if draw.random() < 0.5:
            header = header.ljust(size)[: max(size, len(header))]
        return struct.pack("<Q", len(header)) + header + content[8 + size :]
    entries = json.loads(content[8 : 8 + size])
    name = draw.choice([name for name in entries if name != "__metadata__"])
    begin, end = entries[name]["data_offsets"]
    width = int(entries[name]["dtype"][1:]) // 8
    for _ in range(draw.choice((1, 2, 8))):
        if end > begin:
            at = 8 + size + begin + width * draw.randrange((end - begin) // width)
            content = put_number(draw, content, at, width)
    return content


def make_arrays(root: Path) -> list[Seed]:
    """Features of a step, a classifier and a model of n-grams."""
    for name in ("arrays", "linear", "ngrams"):
        (root / name).mkdir()
    numbers = np.arange(12, dtype=np.int64)
    arrays: dict[str, Any] = {"sizes": numbers, "none": np.zeros(0), "table": np.ones((3, 2), np.float32)}
    save_arrays(root / "arrays" / "f", {"names": ["a", "b"]}, arrays)
    weights = np.linspace(-2, 2, 64, dtype=np.float32)
    LinearClassifier(weights, 0.25, 2, Quality(0.5, 1.0, 0.65, 0.95, 0.9, 7, 8)).save(root / "linear" / "f")
    texts = [text_of(number) for number in range(5)]
    NgramModel.train(texts, 3, 2).save(root / "ngrams" / "f", {"format": "cptron n-grams"})
    return [Seed(root / name, "f") for name in ("arrays", "linear", "ngrams")]


def read_arrays(directory: Path) -> Any:
    """What the file holds, and what it says of a text."""
    path, text = directory / "f", text_of(3)
    if directory.name == "linear":
        model = LinearClassifier.load(path, "train it again")
        return repr(model.quality), model.score(text), model.score("")
    if directory.name == "ngrams":
        loaded = NgramModel.load(path, "train it again")
        score = loaded.score(text)
        assert score is not None
        return loaded.num_ngrams, asdict(score)
    about, arrays = load_arrays(path, "make it again")
    return about, {name: (str(array.dtype), array.tolist()) for name, array in arrays.items()}


def check_arrays(directory: Path, value: Any) -> str | None:
    """A classifier's scores are probabilities."""
    if directory.name == "linear" and not all(0 <= score <= 1 for score in value[1:]):
        return f"no probability: {value}"
    return None


def mutate_arrays(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage with the check sum left as it was, or made right again."""
    if draw.random() < 0.3:
        return mutate_bytes(draw, content, others)
    line, _, data = content[:-4].partition(b"\n")
    if draw.random() < 0.8:
        line = mutate_json(draw, line, [other.partition(b"\n")[0] for other in others]).replace(b"\n", b" ")
    else:
        data = put_number(draw, data)
    whole = line + b"\n" + data
    return whole + zlib.crc32(whole).to_bytes(4, "little")


def planted_arrays(_: Path) -> Mapping[str, bytes]:
    """Shapes whose sizes overflow, or are those of no machine; a file of numpy with a pickle."""
    found = {}
    for number, shape in enumerate(
        ([2**62, 4], [2**40], [2**47, 2**47], [-1], [1, 1, 1], [2**31, 0], list(EDGES[:3]))
    ):
        line = json.dumps({"arrays": {"sizes": ["<f8", shape]}}).encode() + b"\n"
        found[f"shape {number}"] = line + zlib.crc32(line).to_bytes(4, "little")
    line = json.dumps({"arrays": {"sizes": ["|O", [1]]}}).encode() + b"\n" + bytes(8)
    return found | {"objects": line + zlib.crc32(line).to_bytes(4, "little")}


class Told:
    """A model of two answers at a time."""

    identity: Mapping[str, Any] = {"name": "told"}
    parameters: Mapping[str, Any] = {}
    group_size = 2
    concurrency = 1

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """Of the prompt's words."""
        return [Answer(f"Q: {one.user}?\nA: {one.user}.", "stop", 3, 4) for one in requests]

    def stop(self) -> None:
        """Nothing."""


REQUESTS = [Request("", "one"), Request("be brief", "two")]


def make_cache(root: Path) -> list[Seed]:
    """One group of answers, and what was spent."""
    Asker(Told(), Cache(root / "cache"), cached_only=False).ask(REQUESTS)
    Budget(root / "cache", 10, 10_000).reserve(100)
    (entry,) = (root / "cache").glob("???/*.json")
    return [Seed(root / "cache", str(entry.relative_to(root / "cache"))), Seed(root / "cache", SPENT)]


def read_cache(directory: Path) -> Any:
    """Answers, what becomes of them, and what is left of the budget."""
    spent = read_spent(directory)
    answers = Asker(Told(), Cache(directory), cached_only=True).ask(REQUESTS)
    assert len(answers) == len(REQUESTS)
    parsed = [repr(parse_answer(one.text, one.end == "length")) for one in answers if one]
    return asdict(spent), [one and asdict(one) for one in answers], "".join(parsed).encode()


BODY = json.dumps(
    {
        "choices": [
            {"message": {"content": '[{"question": "a b?", "answer": "c"}]'}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7},
        "error": {"message": "no"},
    }
).encode()


def make_bodies(root: Path) -> list[Seed]:
    """What a server answers, with a text and with parts of one."""
    parts = BODY.replace(b'"[{', b'[{"type": "text", "text": "[{').replace(b'}]"', b'}]"}]')
    seeds = []
    for name, content in (("text", BODY), ("parts", parts)):
        (root / name).mkdir()
        (root / name / "body").write_bytes(content)
        seeds.append(Seed(root / name, "body"))
    return seeds


def read_body(directory: Path) -> Any:
    """The answer, and its pairs."""
    content = (directory / "body").read_bytes()
    try:
        answer = read_completion(content)
    except BadCompletionError as error:
        raise DataError(f"{error}; try again") from None
    assert answer.text.encode() is not None and isinstance(answer.tokens_in, int)
    return asdict(answer), repr(parse_answer(answer.text, answer.end == "length")), read_error(content)


def make_prompts(root: Path) -> list[Seed]:
    """The shipped ones."""
    seeds = []
    for name in KINDS:
        (root / name).mkdir()
        (root / name / "p.txt").write_bytes(shipped_path(name).read_bytes())
        seeds.append(Seed(root / name, "p.txt"))
    return seeds


def read_template(directory: Path) -> Any:
    """A request made of it."""
    return asdict(read_prompt("p", directory / "p.txt").request("{document} {", 3, "vi"))


TARGETS = [
    Target(
        format="features of near-duplicates",
        name="features",
        reader="cptron.corpus.dedup.feature_file, cptron.corpus.dedup.cluster, cptron.corpus.dedup.keep, csrc",
        make=make_features,
        read=read_features,
        mutate=mutate_features,
        budget=3,
    ),
    Target(
        format="features of near-duplicates",
        name="feature-index",
        reader="cptron.corpus.dedup.index",
        make=make_index,
        read=read_index,
        mutate=mutate_json,
        budget=0.5,
    ),
    Target(
        format="arrays and models of selection",
        name="array-file",
        reader="cptron.corpus.select.array_file, cptron.corpus.select.linear, cptron.corpus.select.kneser_ney",
        make=make_arrays,
        read=read_arrays,
        mutate=mutate_arrays,
        check=check_arrays,
        planted=planted_arrays,
        budget=2,
    ),
    Target(
        format="answers of a model",
        name="synthesis-cache",
        reader="cptron.corpus.synthesis.cache, cptron.corpus.synthesis.budget, cptron.corpus.synthesis.parse",
        make=make_cache,
        read=read_cache,
        mutate=mutate_json,
    ),
    Target(
        format="answers of a model",
        name="completion",
        reader="cptron.corpus.synthesis.completion, cptron.corpus.synthesis.parse",
        make=make_bodies,
        read=read_body,
        mutate=mutate_json,
    ),
    Target(
        format="prompt template",
        name="prompt",
        reader="cptron.corpus.synthesis.prompt",
        make=make_prompts,
        read=read_template,
        mutate=mutate_bytes,
        budget=0.5,
    ),
]
