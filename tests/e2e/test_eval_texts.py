"""`cptron eval --data` on JSONL: both kinds of model, groups, bits per byte; against a count by brute force."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from tiny_world import SEQ_LENGTH, World, command

LOSS = "loss_nats_per_token"
FILES = ("mixed.jsonl", "mixed.jsonl.gz", "mixed.jsonl.zst")
Sums = dict[str, list[float]]


@pytest.fixture(scope="module")
def mixed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of three domains, plain and compressed: long documents, short and empty ones, beyond ASCII."""
    root = tmp_path_factory.mktemp("mixed")
    texts = [json.loads(line)["text"] for line in world.corpus("domain_valid").read_text().splitlines()]
    long = " ".join(texts[:3])
    documents = [("db", long), ("été", "Größe: 3 µm, 漢字 😀"), ("db", ""), ("été", texts[3]), ("empty", "")]
    documents += [
        (("db", "été", "x")[number % 3], text[: 7 * number]) for number, text in enumerate(texts[4:12])
    ]
    lines = [
        json.dumps({"body": text, "domain": domain}, ensure_ascii=number % 2 == 0) + "\n"
        for number, (domain, text) in enumerate(documents)
    ]
    data = "".join(lines).encode()
    (root / FILES[0]).write_bytes(data)
    (root / FILES[1]).write_bytes(gzip.compress(data))
    (root / FILES[2]).write_bytes(zstandard.compress(data))
    return root


def evaluated(world: World, kind: str, *words: str | Path) -> list[dict[str, Any]]:
    """Records that `cptron eval` prints of the tiny world's model."""
    model = world.base if kind == "checkpoint" else world.hugging_face
    done = command("eval", f"--{kind}", model, "--seq-length", str(SEQ_LENGTH), *words)
    assert done.error == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def brute_force(world: World, path: Path, max_tokens: int = 0) -> Sums:
    """(nats, tokens, bytes, documents) by group, one stretch of one document at a time through transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(world.hugging_face, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(world.hugging_face)
    sums: Sums = {}
    stream: list[tuple[int, int, str]] = []
    for number, line in enumerate(path.read_text().splitlines()):
        record = json.loads(line)
        if not record["body"]:
            continue
        of_group = sums.setdefault(record["domain"], [0.0, 0, 0, 0])
        of_group[2] += len(record["body"].encode("utf-8"))
        of_group[3] += 1
        ids = tokenizer(record["body"], add_special_tokens=False)["input_ids"] + [0]
        stream += [(token, number, record["domain"]) for token in ids]
    stream = stream[: max_tokens + 1] if max_tokens else stream
    for inputs, labels in stretches(stream):
        with torch.no_grad():
            losses = -model(torch.tensor([[token for token, *_ in inputs]])).logits[0].log_softmax(-1)
        for place, (token, _, group) in enumerate(labels):
            sums[group][0] += float(losses[place, token])
            sums[group][1] += 1
    return sums


def stretches(stream: list[tuple[int, int, str]]) -> Iterator[tuple[list[Any], list[Any]]]:
    """Inputs of one document in one window, and the tokens after each of them."""
    for start in range(0, len(stream) - 1, SEQ_LENGTH):
        window = range(start, min(start + SEQ_LENGTH, len(stream) - 1))
        for _, places in groupby(window, key=lambda place: stream[place][1]):
            found = list(places)
            yield [stream[place] for place in found], [stream[place + 1] for place in found]


def assert_is(record: dict[str, Any], nats: float, tokens: float, num_bytes: float, documents: float) -> None:
    """All that is printed follows from the sums."""
    assert (record["tokens"], record["documents"]) == (tokens, documents)
    assert record[LOSS] == pytest.approx(nats / tokens, abs=1e-4)
    assert record["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert record["bytes"] == num_bytes
    assert record["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, abs=1e-4)


@pytest.mark.parametrize("kind", ["checkpoint", "hugging-face"])
def test_groups_and_whole_equal_brute_force(world: World, mixed: Path, kind: str) -> None:
    """Every group, and their sum, from every kind of file."""
    expected = brute_force(world, mixed / FILES[0])
    words = ("--key", "body", "--by", "domain", "--micro-batch-size", "3")
    files = [f"set{number}={mixed / name}" for number, name in enumerate(FILES)]
    records = evaluated(world, kind, "--data", *files, *words)
    assert len(records) == 3 * (len(expected) + 1)
    for number in range(3):
        *groups, whole = [record for record in records if record["data"] == f"set{number}"]
        assert [record["group"] for record in groups] == ["db", "été", "x"], "in the order of the file"
        for record in groups:
            assert record["by"] == "domain"
            assert_is(record, *expected[record["group"]])
        assert "group" not in whole
        assert_is(whole, *(sum(column) for column in zip(*expected.values(), strict=True)))
    num_ids = sum(record["tokens"] for record in groups)
    assert num_ids > 4 * SEQ_LENGTH and whole["tokens"] == num_ids


def test_both_kinds_agree_without_mask_and_with_a_limit(world: World, mixed: Path) -> None:
    """Documents longer than a window; a limit cuts a document, whose bytes are then not known."""
    path = mixed / FILES[0]
    for flags in (
        ("--no-document-mask",),
        ("--max-tokens", "150"),
        ("--max-tokens", "150", "--by", "domain"),
    ):
        ours, theirs = (
            evaluated(world, kind, "--data", path, "--key", "body", *flags)
            for kind in ("checkpoint", "hugging-face")
        )
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            words = {key for key, value in other.items() if isinstance(value, str)}
            assert {key: mine[key] for key in words} == {key: other[key] for key in words}
            numbers = other.keys() - words
            assert {key: mine[key] for key in numbers} == pytest.approx(
                {key: other[key] for key in numbers}, rel=1e-4
            )
            assert mine.keys() == other.keys()
        if "--max-tokens" in flags:
            assert ours[-1]["tokens"] == 150
            assert "bytes" not in ours[-1] and "bits_per_byte" not in ours[-1]
    cut = brute_force(world, path, 150)
    assert {record["group"]: record["tokens"] for record in ours[:-1]} == {
        group: sums[1] for group, sums in cut.items() if sums[1]
    }


def test_jsonl_is_measured_as_its_token_files(world: World) -> None:
    """The same text by both ways: the same tokens and loss; token files do not know their bytes."""
    sets = [f"tokens={world.tokens('domain_valid')}", f"text={world.corpus('domain_valid')}"]
    tokens, text = evaluated(world, "checkpoint", "--data", *sets)
    assert (tokens["data"], text["data"]) == ("tokens", "text")
    assert tokens["tokens"] == text["tokens"]
    assert tokens[LOSS] == pytest.approx(text[LOSS], rel=1e-6)
    assert "bits_per_byte" in text and "bits_per_byte" not in tokens


BAD = {
    "not_a_string": ('{"text": "a", "domain": 3}', "3"),
    "no_text": ('{"body": "a"}', "text"),
    "no_json": ("{", ""),
}


@pytest.mark.parametrize("kind", ["checkpoint", "hugging-face"])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named(world: World, tmp_path: Path, kind: str, case: str) -> None:
    """File and line, whoever reads."""
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good", "domain": "d"}\n' + BAD[case][0] + "\n")
    model = world.base if kind == "checkpoint" else world.hugging_face
    error = command("eval", f"--{kind}", model, "--data", path, "--by", "domain").error
    assert error.startswith(f"DataError: {path}:2: ") and "\n" not in error


@pytest.mark.parametrize("kind", ["checkpoint", "hugging-face"])
def test_a_file_without_text_is_refused(world: World, tmp_path: Path, kind: str) -> None:
    """Nothing to predict."""
    path = tmp_path / "empty.jsonl"
    path.write_text('{"text": ""}\n')
    model = world.base if kind == "checkpoint" else world.hugging_face
    assert "has no token to predict" in command("eval", f"--{kind}", model, "--data", path).error
