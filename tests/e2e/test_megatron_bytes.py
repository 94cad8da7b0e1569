"""Our preprocessing tool gives the bytes that Megatron's own tool gives.

Two ways: against hashes that Megatron's tool left (`tests/golden`, made by `benchmarks/data/make_golden.py`),
which needs the tokenizers only; and against the tool itself, where `make bench-peers` has brought it here.
"""

from __future__ import annotations

import filecmp
import json
import sys
from pathlib import Path

import pytest
from commands import ROOT, call

from benchmarks.data.get_peers import Megatron
from benchmarks.data.make_golden import FLAGS, GOLDEN, TOKENIZERS, real_documents, run_megatron, sha256

ODD_TEXTS = (
    "<|begin_of_text|>Special tokens<|end_of_text|> written out <|im_start|>in a text<|im_end|><|endoftext|>",
    " leading, trailing and   repeated   spaces \t\r\n\n\n ",
    "한국어 日本語 العربية हिन्दी tiếng Việt 🏳️‍🌈 e\u0301 \u00e9 \ufb01 \u200b \ufeff \u2028",
    "x" * 5_000 + " " * 300 + "0123456789" * 200,
    "a\u0001b\u007f\u0085",
    " ",
)
"""Beside real documents. None is empty (Megatron's index has an entry for it, ours has none), and none holds NUL,
which ours takes for damage."""


def tokenizer_of(name: str) -> Path:
    """Folder of a tokenizer; skips the test where it is not here."""
    folder = TOKENIZERS[name]
    if not (folder / "tokenizer.json").is_file():
        how = "make demo" if name == "smollm2" else "make bench-peers"
        pytest.skip(f"{folder.relative_to(ROOT)} is not here; `{how}` fetches it")
    return folder


def run_ours(text: Path, tokenizer: Path, prefix: Path) -> None:
    """Our tool, with the flags that Megatron's gets."""
    words: list[str | Path] = [sys.executable, ROOT / "tools" / "preprocess_data.py", "--input", text]
    done = call([*words, "--output-prefix", prefix, "--tokenizer-model", tokenizer, *FLAGS], 240)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", TOKENIZERS)
def test_bytes_are_those_megatron_left(name: str, tmp_path: Path) -> None:
    """The first documents of the quickstart corpora give the hashes on record."""
    tokenizer = tokenizer_of(name)
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    text = real_documents(tmp_path / "text.jsonl")
    assert sha256(text) == golden["input_sha256"], "the corpus has changed; run benchmarks.data.make_golden"
    run_ours(text, tokenizer, tmp_path / "ours")
    for kind in ("idx", "bin"):
        assert sha256(tmp_path / f"ours_text_document.{kind}") == golden["sha256"][name][kind], kind


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_bytes_are_those_of_megatrons_tool(name: str, tmp_path: Path) -> None:
    """Both tools, now, on real documents and odd ones."""
    megatron, tokenizer = Megatron(), tokenizer_of(name)
    if megatron.why_not:
        pytest.skip(megatron.why_not)
    text = real_documents(tmp_path / "text.jsonl")
    with text.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": odd}) + "\n" for odd in ODD_TEXTS)
    run_megatron(megatron, text, tokenizer, tmp_path / "megatron")
    run_ours(text, tokenizer, tmp_path / "ours")
    for kind in ("idx", "bin"):
        ours, theirs = (tmp_path / f"{side}_text_document.{kind}" for side in ("ours", "megatron"))
        assert filecmp.cmp(ours, theirs, shallow=False), f"{kind}: {ours} is not {theirs}"
