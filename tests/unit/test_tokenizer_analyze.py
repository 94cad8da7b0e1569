"""The costs of a corpus: what the library counts alone, by language and source, for two tokenizers side by side."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from corpus_world import config_of, run
from extension_world import DOMAIN, ENGLISH, blocks, make_base
from tokenizers import Tokenizer as Backend

from cptron.cli import main as cli
from cptron.errors import DataError
from cptron.tokenizer import fragmented
from cptron.tokenizer.base import open_base
from cptron.tokenizer.extend import learn
from cptron.tokenizer.extended import extended_content, write_extended
from cptron.tokenizer.fragmented import WordCounter
from cptron.tokenizer.texts import Corpus, script_of
from cptron.tokenizer.word_counts import count_words

ENGLISH_3, VIETNAMESE, HINDI = ENGLISH[:3], DOMAIN[0], DOMAIN[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two tokenizers, and a directory of two files."""
    root = tmp_path_factory.mktemp("analyze")
    base = open_base(make_base(root / "base", "gpt2"))
    learned = learn(base, count_words(base, blocks(DOMAIN)), 60, 2)
    (root / "new").mkdir()
    write_extended(base, extended_content(base, learned.new_tokens, learned.merges), root / "new")
    corpus = root / "corpus"
    corpus.mkdir()
    lines = [{"text": text, "lang": "en"} for text in ENGLISH_3] + [{"text": VIETNAMESE, "lang": "vi"}]
    (corpus / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{damaged\n")
    with gzip.open(corpus / "b.jsonl.gz", "wt") as stream:
        stream.write(json.dumps({"text": HINDI, "lang": "hi"}) + "\n")
    return root / "base", root / "new", corpus


def analyzed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    """What the command prints as JSON."""
    assert cli(["tokenizer", "analyze", *words, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_counts_are_the_librarys(world: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Each number from the texts and the ids, computed here."""
    base, new, corpus = world
    found: dict[str, dict[str, object]] = analyzed(  # type: ignore[assignment]
        capsys,
        str(base),
        "--compare",
        str(new),
        "--input",
        str(corpus),
        "--language-key",
        "lang",
        "--context",
        "40",
    )
    texts = [*ENGLISH_3, VIETNAMESE, HINDI]
    languages = ["en"] * 3 + ["vi", "hi"]
    assert found["corpus"] == {
        "documents": 5,
        "bytes": sum(len(text.encode()) for text in texts),
        "characters": sum(map(len, texts)),
        "words": sum(len(text.split()) for text in texts),
        "records_rejected": 1,
        "sample": 1.0,
    }
    lengths = {}
    for suffix, path in (("", base), ("_compared", new)):
        backend = Backend.from_file(str(path / "tokenizer.json"))
        lengths[suffix] = np.array([len(backend.encode(text).ids) for text in texts])
        facts = found[f"tokenizer{suffix}"]
        assert facts["tokens"] == lengths[suffix].sum()
        longer = lengths[suffix][lengths[suffix] > 40]
        assert facts["contexts"] == [
            {
                "context_tokens": 40,
                "documents_longer": len(longer),
                "share_of_documents": len(longer) / 5,
                "share_of_tokens_beyond": (longer - 40).sum() / lengths[suffix].sum(),
            }
        ]
    assert found["tokens_compared_to_first"] == lengths["_compared"].sum() / lengths[""].sum() < 1
    rows: list[dict[str, float]] = found["by_language"]  # type: ignore[assignment]
    assert [row["language"] for row in rows] == ["en", "hi", "vi"]
    for row in rows:
        chosen = [number for number, language in enumerate(languages) if language == row["language"]]
        words = sum(len(texts[number].split()) for number in chosen)
        assert row["tokens_per_word"] == lengths[""][chosen].sum() / words
        assert row["tokens_per_word_compared"] == lengths["_compared"][chosen].sum() / words
    sources: list[dict[str, object]] = found["by_source"]  # type: ignore[assignment]
    assert [(row["source"], row["documents"]) for row in sources] == [("a.jsonl", 4), ("b.jsonl.gz", 1)]


def test_a_curated_corpus_has_sources_and_languages(
    world: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of its documents, whatever its files are called; the script where no step told the language."""
    lines = [
        {"text": text, "lang": label}
        for text, label in ((ENGLISH_3[0], "en"), (VIETNAMESE, "vi"), (HINDI, ""))
    ]
    (tmp_path / "x.jsonl").write_text(
        "".join(json.dumps({"text": line["text"], "language": line["lang"] or None}) + "\n" for line in lines)
    )
    steps = [{"step": "length", "min_words": 1}]
    curation = config_of(
        tmp_path / "out", {"one": [str(tmp_path / "x.jsonl")], "two": [str(world[2])]}, steps
    )
    run({**curation, "shard_bytes": 1024})
    base = str(world[0])
    found: dict[str, list[dict[str, object]]]
    found = analyzed(capsys, base, "--input", str(tmp_path / "out"))  # type: ignore[assignment]
    assert [(row["source"], row["documents"]) for row in found["by_source"]] == [("one", 3), ("two", 5)]
    languages = {row["language"]: row["documents"] for row in found["by_language"]}
    assert languages == {"en": 1, "vi": 1, "Devanagari": 2, "Latin": 4}
    with_key = analyzed(capsys, base, "--input", str(tmp_path / "out"), "--source-key", "id")
    assert with_key["tokenizer"] == found["tokenizer"]


def test_script_is_the_language_without_a_key(
    world: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """By the letters; and what is printed for people has the same."""
    base, _, corpus = world
    found = analyzed(capsys, str(base), "--input", str(corpus))
    assert [row["language"] for row in found["by_language"]] == ["Devanagari", "Latin"]  # type: ignore[attr-defined]
    assert cli(["tokenizer", "analyze", str(base), "--input", str(corpus)]) == 0
    assert "Devanagari" in capsys.readouterr().out
    assert script_of("12 + 3") == "none"
    assert script_of("a" * 500 + "हिन्दी" * 500) == "Devanagari"


def test_tables_fit_a_terminal(
    world: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 80 columns, with two tokenizers, long words and a long name of a file; the JSON has them whole."""
    base, new, _ = world
    source = tmp_path / f"{'long' * 20}.jsonl"
    source.write_text(json.dumps({"text": "Donaudampfschifffahrtsgesellschaft " * 3 + HINDI}) + "\n")
    words = [str(base), "--compare", str(new), "--input", str(source)]
    assert cli(["tokenizer", "analyze", *words]) == 0
    tables = capsys.readouterr().out.partition("by_language")[2]
    assert "Donaudampfschif…" in tables
    assert "to_first" in tables
    assert max(map(len, tables.splitlines())) <= 80
    found = analyzed(capsys, *words)
    assert found["most_fragmented_words"][0]["word"] == "Donaudampfschifffahrtsgesellschaft"  # type: ignore[index]
    assert found["by_source"][0]["source"] == source.name  # type: ignore[index]


def test_a_sample_is_by_text(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Two parts make up the whole, copies stay together, and the share is about what was asked for."""
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {number % 1000}"}) + "\n" for number in range(2000)))
    parts = [
        [text.text for block in Corpus(inputs=(str(path),), part=part).blocks() for text in block]
        for part in ((0.0, 0.2), (0.2, 1.0))
    ]
    assert not set(parts[0]) & set(parts[1])
    assert len(parts[0]) + len(parts[1]) == 2000
    assert 300 < len(parts[0]) < 500


def test_most_fragmented_words(world: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is by pieces too many, times occurrences; rare words are forgotten when there are too many."""
    tokenizer = open_base(world[0]).tokenizer
    counter = WordCounter()
    counter.add(["Việt"] * 3 + ["the"] * 50 + ["हिन्दी"])
    rows = counter.most_fragmented([tokenizer], [""], 2)
    cost = {
        word: times * (len(tokenizer.encode(f" {word}")) - 1)
        for word, times in (("Việt", 3), ("the", 50), ("हिन्दी", 1))
    }
    assert [row["word"] for row in rows] == sorted(cost, key=lambda word: -cost[word])[:2]
    assert rows[0]["tokens"] == len(tokenizer.encode(f" {rows[0]['word']}"))
    monkeypatch.setattr(fragmented, "MAX_WORDS", 4)
    counter = WordCounter()
    counter.add(["a", "a", "b", "b", "c", "d", "e"])
    assert counter.forgotten == 3
    assert [row["occurrences"] for row in counter.most_fragmented([tokenizer], [""], 9)] == [2, 2]


def test_nothing_to_read(tmp_path: Path) -> None:
    """Records without the key are no documents."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"content": "a"}\n')
    with pytest.raises(DataError, match="holds 0 documents with the key 'text' \\(1 missing_key\\)"):
        list(Corpus(inputs=(str(path),)).blocks())
