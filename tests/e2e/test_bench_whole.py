"""The benchmark of a whole corpus, on a small one: raw to tokens, killed and started again, to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from corpus_world import lines_of, text_of
from tokens_world import save_byte_tokenizer

from benchmarks.curate import whole


@pytest.mark.more
def test_rows_of_a_small_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both rows are made, and their goals met; bytes that differ are an error, never a row."""
    pytest.importorskip("datatrove")
    pytest.importorskip("py3langid")
    corpus = tmp_path / "raw.jsonl"
    corpus.write_bytes(lines_of([text_of(number % 250, 120) for number in range(300)]))
    raw = whole.Raw(
        tmp_path / "work", corpus, save_byte_tokenizer(tmp_path, ["</s>"], eos_token="</s>"), 20_000
    )
    monkeypatch.setattr(whole, "_KILLS", 2)
    speed, kills = whole.rows(raw, "-", seed=1)
    assert speed.met and speed.ours > 0 and "near_duplicates" in speed.note and "300 documents" in speed.input
    assert kills.ours >= 1 and json.loads(json.dumps(kills.note)).count("equal") == 1
    seen = iter([{"x": "1"}, {"x": "2"}])
    monkeypatch.setattr(whole.Raw, "left", lambda self: next(seen))
    monkeypatch.setattr(whole, "killed_and_ended", lambda words, wall_s, draw: whole.run_process(words) and 1)
    with pytest.raises(whole.BenchmarkError, match="x differ"):
        whole.rows(raw, "-")
