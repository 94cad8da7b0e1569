"""What `cptron eval` makes of its arguments: names, kinds of data, and options that have no effect."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cptron.errors import ConfigError, DataError
from cptron.evaluate.data_sets import DataSet, data_sets
from cptron.evaluate.main import main
from cptron.evaluate.measure import Measure


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text, token files, and both under one name; their content is not read here."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "x=y.jsonl", "t.bin", "t.idx", "both", "both.idx", "half.bin"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.usefixtures("files")
def test_kind_and_name_follow_from_the_files() -> None:
    """`name=path`, unless there is a file of the whole name."""
    found = data_sets(["a.jsonl", "web=a.jsonl", "x=y.jsonl", "t", "half"], hugging_face=False)
    assert found == [
        DataSet("a.jsonl", "a.jsonl", "jsonl"),
        DataSet("web", "a.jsonl", "jsonl"),
        DataSet("x=y.jsonl", "x=y.jsonl", "jsonl"),
        DataSet("t", "t", "tokens"),
        DataSet("half", "half", "tokens"),
    ]


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("words", "hugging_face", "told"),
    [
        (["absent.jsonl"], False, "absent.jsonl must be a JSONL file or the prefix of token files"),
        (["web=absent"], False, "neither absent nor absent.idx exists"),
        (["both"], False, "both is a file and the prefix of both.idx"),
        (["t.bin"], False, "t.bin is one of two token files"),
        (["t"], True, "a Hugging Face model needs JSONL"),
        (["web=a.jsonl", "web=t"], False, "has the name web 2 times"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], hugging_face: bool, told: str) -> None:
    """With the value and the remedy."""
    with pytest.raises((ConfigError, DataError), match=told):
        data_sets(words, hugging_face=hugging_face)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data", "a.jsonl", "--limit", "3"], "--limit has no effect on --data"),
        (["--data", "a.jsonl", "--online"], "--online has no effect on --data"),
        (["--harness", "x", "--seq-length", "8"], "--seq-length has no effect on --harness"),
        (["--harness", "x", "--no-document-mask"], "--no-document-mask has no effect on --harness"),
        (["--harness", "x", "--limit", "0"], "--limit=0 must be at least 1"),
        (["--data", "a.jsonl", "--seq-length", "0"], "--seq-length=0 must be at least 1"),
        (["--data", "a.jsonl", "--max-tokens", "-1"], "--max-tokens=-1 must be at least 0"),
        (["--data", "t", "--by", "domain"], "--by=domain needs JSONL"),
        (["--data", "t", "--key", "body"], "--key=body needs JSONL"),
    ],
)
def test_options_without_effect_are_refused(words: list[str], told: str) -> None:
    """Before a model is opened: there is none."""
    with pytest.raises(ConfigError, match=told):
        main(["--checkpoint", "absent", *words])


def test_measure_adds_up() -> None:
    """Groups in order of appearance, their sum, and no bytes where a document was cut."""
    measure = Measure()
    assert [measure.add_document(group, 10, cut=group == "b") for group in "aba"] == [0, 1, 0]
    measure.add_losses(0, 6.0, 3)
    measure.add_losses(1, 1.0, 1)
    first, second, whole = measure.records("set", "domain")
    assert first == {
        "data": "set", "by": "domain", "group": "a", "loss_nats_per_token": 2.0, "perplexity": math.exp(2),
        "tokens": 3, "documents": 2, "bytes": 20, "bits_per_byte": 6 / math.log(2) / 20,
    }  # fmt: skip
    assert "bytes" not in second and "bits_per_byte" not in whole
    assert (whole["tokens"], whole["documents"], whole["loss_nats_per_token"]) == (4, 3, 7 / 4)
