"""The benchmark's vectors of tokens: what fastText reads is the new tokenizer's tokens, one document a line."""

from __future__ import annotations

from pathlib import Path

import pytest
from extension_world import make_base
from tokenizers import Tokenizer as Backend

from benchmarks.curate.token_vectors import main, write_tokens


def test_tokens_of_a_document_are_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever line ends it has, and no token is lost; a program that is not there is named."""
    base = make_base(tmp_path / "base", "gpt2", 300)
    backend = Backend.from_file(str(base / "tokenizer.json"))
    texts = ["the earth\nand\r\n the moon\u2028\u00a0day", "", "x \t y"]
    count = write_tokens(base, texts, tmp_path / "tokens")
    lines = (tmp_path / "tokens").read_text(encoding="utf-8").split("\n")
    assert [line.split() for line in lines[:-1]] == [backend.encode(text).tokens for text in texts]
    assert count == sum(len(backend.encode(text).ids) for text in texts) and lines[-1] == ""
    (tmp_path / "d.txt").write_text("the earth and the moon\n")
    words = [str(base), str(tmp_path / "d.txt"), "--fasttext", str(tmp_path / "none")]
    assert main([*words, "--output", str(tmp_path / "t.vec")]) == 2
    assert "apt-get install fasttext" in capsys.readouterr().err
