"""Bytes of token ids: exact for byte-level vocabularies, and not given for any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_world import save_tokenizer, tokenize, write_corpus
from tokens_world import save_byte_tokenizer

from cptron.data.valid import ValidSet
from cptron.tokens.byte_lengths import token_bytes
from cptron.tokens.tokenizer import load_tokenizer

TEXTS = ["größer, été\n\n  12", "日本語 🙂 <|user|> a", "", "\u0000\u00ad\u00a0ÿ x" * 3]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSONL with a byte-level BPE trained on it beside it."""
    root = tmp_path_factory.mktemp("bytes")
    path = write_corpus(root / "text.jsonl", ["größer", "été", "winter", "日本語"], 20, 1)
    save_tokenizer(root / "tokenizer", [path], 330)
    return path


def lengths_of(directory: Path) -> np.ndarray:
    """By the tokenizer's file."""
    found = token_bytes((directory / "tokenizer.json").read_bytes())
    assert found is not None
    return found


def test_ids_of_any_text_have_its_bytes(corpus: Path, tmp_path: Path) -> None:
    """Of bytes alone with a special token, and of a trained vocabulary; also as the tokenizer is kept in memory."""
    for directory in (save_byte_tokenizer(tmp_path, ["<|user|>"]), corpus.parent / "tokenizer"):
        tokenizer, lengths_V = load_tokenizer(directory), lengths_of(directory)
        assert len(lengths_V) == tokenizer.vocab_size
        for text in TEXTS:
            assert lengths_V[tokenizer.encode(text)].sum() == len(text.encode())
        definition = tokenizer.definition("tokenizer.json")
        assert definition is not None and (token_bytes(definition) == lengths_V).all()


@pytest.mark.parametrize("max_tokens", [0, 100])
@pytest.mark.parametrize("window", [1, 7, 64])
def test_bytes_of_a_validation_set(corpus: Path, window: int, max_tokens: int) -> None:
    """All of the text but its first token, which is not predicted; ends of documents are no text. By window, as they
    add up."""
    prefix = corpus.with_name("text_text_document")
    if not prefix.with_suffix(".bin").exists():
        tokenize(corpus, corpus.parent / "tokenizer", "--append-eod")
    tokenizer, lengths_V = (
        load_tokenizer(corpus.parent / "tokenizer"),
        lengths_of(corpus.parent / "tokenizer"),
    )
    found = ValidSet("v", str(prefix), window, max_tokens, 2, 0, 1).bytes_by_window(lengths_V)
    ids = []
    for line in corpus.read_text().splitlines():
        encoded = tokenizer.encode(json.loads(line)["text"])
        ids += [*encoded, tokenizer.eos_id] if encoded else []
    labels = ids[1 : max_tokens + 1] if max_tokens else ids[1:]
    sizes = [0 if token == tokenizer.eos_id else int(lengths_V[token]) for token in labels]
    expected = [sum(sizes[start : start + window]) for start in range(0, len(sizes), window)]
    assert found is not None and found.tolist() == expected
    assert ValidSet("v", str(prefix), window, max_tokens, 2, 0, 1).bytes_by_window(lengths_V[:200]) is None


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a normaliser": lambda content: content.update(normalizer={"type": "NFC"}),
    "a space put before": lambda content: content["pre_tokenizer"].update(add_prefix_space=True),
    "no byte level": lambda content: content.update(pre_tokenizer=None),
    "what is cut at is removed": lambda content: content.update(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [{"type": "Split", "behavior": "Removed"}, content["pre_tokenizer"]],
        }
    ),
    "a byte without a token": lambda content: content["model"]["vocab"].pop("a"),
    "another model": lambda content: content["model"].update(type="Unigram"),
    "a piece that is no bytes": lambda content: content["model"]["vocab"].update({"▁": 999}),
    "nothing": lambda content: content.clear(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_not_known_is_not_given(name: str, tmp_path: Path) -> None:
    content = json.loads((save_byte_tokenizer(tmp_path) / "tokenizer.json").read_bytes())
    assert token_bytes(json.dumps(content).encode()) is not None
    CHANGES[name](content)
    assert token_bytes(json.dumps(content).encode()) is None


def test_tokens_that_swallow_spaces_have_no_length(tmp_path: Path) -> None:
    """The others have theirs."""
    content = json.loads((save_byte_tokenizer(tmp_path, ["<s>"]) / "tokenizer.json").read_bytes())
    (added,) = content["added_tokens"]
    added["lstrip"] = True
    lengths_V = token_bytes(json.dumps(content).encode())
    assert (
        lengths_V is not None
        and lengths_V[added["id"]] == -1
        and (np.delete(lengths_V, added["id"]) == 1).all()
    )
