"""tiktoken files give the ids of tiktoken and of Megatron's TikTokenizer."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.errors import DataError
from cptron.tokens.tiktoken_tokenizer import (
    MEGATRON_SPECIAL_TOKENS,
    PATTERNS,
    TiktokenConfig,
    TiktokenTokenizer,
    megatron_config,
)
from cptron.tokens.tokenizer import load_tokenizer

tiktoken = pytest.importorskip("tiktoken")

MERGES = [b"th", b"he", b"the", b" t", b" the", b"in", b"ing", b"\xc3\xa9", b"12"]
RANKS = {token: rank for rank, token in enumerate([*(bytes([b]) for b in range(256)), *MERGES])}
SPECIAL = {"<|end|>": 300, "<|begin|>": 301}
CONFIG = {"pattern": "v2", "special_tokens": SPECIAL, "eos_token": "<|end|>", "bos_token": "<|begin|>"}
TEXTS = st.lists(st.sampled_from([*SPECIAL, "</s>", " the", "THEthe", "12", "\n"]) | st.text(max_size=9)).map(
    "".join
)


def write(directory: Path, config: Any = CONFIG, ranks: dict[bytes, int] = RANKS) -> Path:
    """A directory with a file of ranks and what belongs to it."""
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    directory.mkdir(exist_ok=True)
    (directory / "words.tiktoken").write_text("".join(lines))
    (directory / "tiktoken_config.json").write_text(json.dumps(config))
    return directory


@settings(deadline=None, max_examples=100)
@given(text=TEXTS)
def test_ids_are_those_of_tiktoken(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Special tokens inside texts become their ids; decoding gives the text back."""
    ours = load_tokenizer(write(tmp_path_factory.getbasetemp() / "ranks"))
    theirs = tiktoken.Encoding("x", pat_str=PATTERNS["v2"], mergeable_ranks=RANKS, special_tokens=SPECIAL)
    assert ours.encode(text) == theirs.encode(text, allowed_special="all")
    assert ours.encode_batch([text, "the"]) == [ours.encode(text), ours.encode("the")]
    assert ours.decode(ours.encode(text)) == text
    assert (ours.eos_id, ours.bos_id, ours.vocab_size) == (300, 301, 302)


def write_megatron(path: Path) -> Path:
    """Megatron's own file: a JSON list."""
    entries = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": repr(token)}
        for token, rank in RANKS.items()
    ]
    path.write_text(json.dumps(entries))
    return path


@pytest.mark.parametrize("pattern", ["v1", "v2"])
def test_ids_are_those_of_megatron(pattern: str, tmp_path: Path) -> None:
    """Special tokens first, fillers, ranks shifted and cut off at the vocabulary's size."""
    library = pytest.importorskip("megatron.core.tokenizers.text.libraries.tiktoken_tokenizer")
    path = write_megatron(tmp_path / "vocab.json")
    theirs = library.TikTokenTokenizer(str(path), num_special_tokens=20, pattern=pattern, vocab_size=280)
    ours = TiktokenTokenizer(path, megatron_config(pattern, 20, vocab_size=280))
    for text in ["the thing", "</s>the\n\n 12 é", "<SPECIAL_19>x<SPECIAL_20>", "HTTPServer/", "  \n a"]:
        assert ours.encode(text) == theirs.text_to_ids(text)
    assert (ours.eos_id, ours.bos_id, ours.vocab_size) == (theirs.eos_id, theirs.bos_id, theirs.vocab_size)
    flags = {"pattern": pattern, "num_special_tokens": 20, "vocab_size": 280}
    (tmp_path / "tiktoken_config.json").write_text(json.dumps(flags))
    assert load_tokenizer(path, "tiktoken").fingerprint == ours.fingerprint


def test_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    """Order of lines and place do not matter; pattern, ranks and special tokens do."""
    base = load_tokenizer(write(tmp_path / "a")).fingerprint
    other_order = write(tmp_path / "b", ranks=dict(reversed(RANKS.items())))
    assert load_tokenizer(other_order / "words.tiktoken").fingerprint == base
    swapped = RANKS | {b"th": RANKS[b"he"], b"he": RANKS[b"th"]}
    changed = [
        write(tmp_path / "c", CONFIG | {"pattern": "v1"}),
        write(tmp_path / "d", CONFIG | {"special_tokens": SPECIAL | {"<x>": 400}}),
        write(tmp_path / "e", CONFIG | {"eos_token": "<|begin|>"}),
        write(tmp_path / "f", ranks=swapped),
    ]
    assert len({base, *(load_tokenizer(path).fingerprint for path in changed)}) == 5


@pytest.mark.parametrize(
    ("config", "ranks", "message"),
    [
        ({"special_tokens": {}}, RANKS, "with a pattern"),
        (CONFIG | {"patern": "v1"}, RANKS, "no keys but"),
        ([], RANKS, "JSON object"),
        (CONFIG | {"pattern": "("}, RANKS, "must be a tiktoken encoding"),
        (CONFIG | {"eos_token": "<eos>"}, RANKS, "'<eos>' is no special token"),
        (CONFIG | {"special_tokens": {"<|end|>": 3, "<|begin|>": 301}}, RANKS, "rank twice"),
        (CONFIG, {b"a": 0}, "lacks 255 of 256 bytes"),
        (CONFIG, RANKS | {b"xy": 5}, "rank twice"),
        ({"pattern": "v2", "special_tokens": ["<s>"]}, RANKS, "must be distinct and hold"),
        ({"pattern": "v2", "num_special_tokens": 3}, RANKS, "is 3, must be at least"),
        (
            {"pattern": "v2", "num_special_tokens": "10"},
            RANKS,
            "has num_special_tokens '10', must be a whole",
        ),
        ({"pattern": "v2", "vocab_size": True}, RANKS, "has vocab_size True, must be a whole"),
        ({"pattern": 5}, RANKS, "has pattern 5, must be v1"),
        ({"pattern": None}, RANKS, "has pattern None, must be v1"),
        (CONFIG | {"special_tokens": {"a": "300"}}, RANKS, "special_tokens {'a': '300'}, must be an object"),
        (CONFIG | {"special_tokens": {"a": -1}}, RANKS, "must be an object of texts and ids"),
        (CONFIG | {"special_tokens": [1]}, RANKS, "or a list of texts"),
        (CONFIG | {"eos_token": {"x": 1}}, RANKS, "eos_token {'x': 1}, must be one of"),
        (CONFIG | {"num_special_tokens": 10}, RANKS, "keep one of the two forms"),
        (CONFIG | {"vocab_size": 2000}, RANKS, "keep one of the two forms"),
        ({"pattern": "v2", "num_special_tokens": 10, "eos_token": "<s>"}, RANKS, "keep one of the two"),
        ({"pattern": "v2", "num_special_tokens": 10, "special_tokens": {"a": 1}}, RANKS, "keep one of the"),
        (
            {"pattern": "v2", "special_tokens": [*MEGATRON_SPECIAL_TOKENS], "bos_token": "<s>"},
            RANKS,
            "keep one",
        ),
    ],
)
def test_what_does_not_fit_is_refused_on_one_line(
    config: Any, ranks: dict[bytes, int], message: str, tmp_path: Path
) -> None:
    """In the configuration or in the ranks."""
    with pytest.raises(DataError, match=message) as caught:
        load_tokenizer(write(tmp_path, config, ranks))
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    """Each with its own remedy."""
    write(tmp_path)
    shutil.copy(tmp_path / "words.tiktoken", tmp_path / "more.tiktoken")
    with pytest.raises(DataError, match=r"2 \.tiktoken files"):
        load_tokenizer(tmp_path)
    (tmp_path / "more.tiktoken").write_text("not base64\n")
    with pytest.raises(DataError, match="base64 and rank"):
        load_tokenizer(tmp_path / "more.tiktoken")
    (tmp_path / "tiktoken_config.json").write_text("{")
    with pytest.raises(DataError, match="must be JSON"):
        load_tokenizer(tmp_path / "words.tiktoken")
    (tmp_path / "tiktoken_config.json").unlink()
    with pytest.raises(DataError, match="must state the pattern"):
        load_tokenizer(tmp_path / "words.tiktoken")
    with pytest.raises(DataError, match="check the path"):
        load_tokenizer(tmp_path / "none", "tiktoken")


def test_a_whole_configuration_can_be_given_in_code(tmp_path: Path) -> None:
    """A pattern of one's own, no special tokens: no EOS."""
    ours = TiktokenTokenizer(write(tmp_path) / "words.tiktoken", TiktokenConfig(r"\w+|\W+", {}))
    assert (ours.eos_id, ours.added_tokens) == (None, []) and ours.encode("the") == [RANKS[b"the"]]


def test_a_vocabulary_size_alone_states_megatrons_flags(tmp_path: Path) -> None:
    """Its thousand special tokens are its default, whatever else is left out."""
    ours = load_tokenizer(write(tmp_path, {"pattern": "v1", "vocab_size": 2000, "eos_token": None}))
    config = megatron_config("v1", vocab_size=2000)
    assert ours.fingerprint == TiktokenTokenizer(tmp_path / "words.tiktoken", config).fingerprint
    assert (ours.eos_id, ours.encode("a")) == (2, [1000 + RANKS[b"a"]])


def test_a_text_that_the_pattern_cannot_cut_is_an_error(tmp_path: Path) -> None:
    """Its size and the way out, not a traceback."""
    with pytest.raises(DataError, match=r"a text of 1000000 bytes, .*--max-document-bytes") as caught:
        load_tokenizer(write(tmp_path)).encode(" " * 1_000_000)
    assert "\n" not in str(caught.value)
