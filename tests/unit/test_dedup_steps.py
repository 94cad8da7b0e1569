"""The steps `near_duplicates` and `decontaminate` in a curation: the same bytes whatever the workers, all counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from corpus_world import config_of, documents_of, files_of, lines_of, run, text_of

from cptron.corpus.load import load_curation
from cptron.errors import CptronError

NUM_WORDS = 60


def near(number: int) -> str:
    """A text in which one word at the end is another: a near-duplicate."""
    return text_of(number, NUM_WORDS).rsplit(" ", 2)[0] + f" otherwise {number}."


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, list[str]]:
    """`web`, with near-duplicates of its own, and `book`, with near-duplicates of `web`."""
    web = [text_of(n, NUM_WORDS) for n in range(40)] + [near(n) for n in range(10)]
    book = [near(n) for n in range(20, 25)] + [text_of(n, NUM_WORDS) for n in range(100, 120)]
    (tmp_path / "web.jsonl").write_bytes(lines_of(web))
    (tmp_path / "book.jsonl").write_bytes(lines_of(book))
    return {"web": [str(tmp_path / "web.jsonl")], "book": [str(tmp_path / "book.jsonl")]}


def dropped(output: Path, step: str) -> Any:
    """Counts of what a step dropped, by reason."""
    (found,) = [s for s in json.loads((output / "manifest.json").read_text())["steps"] if s["name"] == step]
    return found["dropped"]


def test_near_duplicates_within_and_across_inputs(tmp_path: Path, inputs: dict[str, list[str]]) -> None:
    """The first stays, or those of a preferred input; workers do not matter; the index serves a later corpus."""
    steps: list[dict[str, Any]] = [{"step": "near_duplicates", "save_index": str(tmp_path / "index")}]
    run(config_of(tmp_path / "one", inputs, steps))
    run(config_of(tmp_path / "two", inputs, steps), workers=2)
    assert dropped(tmp_path / "one", "near_duplicates") == {"near_duplicate": 15}
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    kept = {document["text"] for document in documents_of(tmp_path / "one")}
    assert kept == {text_of(n, NUM_WORDS) for n in [*range(40), *range(100, 120)]}

    run(config_of(tmp_path / "book", inputs, [{"step": "near_duplicates", "prefer_sources": ["book"]}]))
    kept = {document["text"] for document in documents_of(tmp_path / "book")}
    assert near(20) in kept and text_of(20, NUM_WORDS) not in kept

    later = {"book": [str(tmp_path / "later.jsonl")]}
    (tmp_path / "later.jsonl").write_bytes(lines_of([near(30), text_of(500, NUM_WORDS), near(500)]))
    run(
        config_of(
            tmp_path / "later", later, [{"step": "near_duplicates", "earlier": [str(tmp_path / "index")]}]
        )
    )
    assert dropped(tmp_path / "later", "near_duplicates") == {
        "near_duplicate": 1, "near_duplicate_of_earlier_corpus": 1
    }  # fmt: skip
    assert [document["text"] for document in documents_of(tmp_path / "later")] == [text_of(500, NUM_WORDS)]


def test_a_dropped_document_names_the_one_that_stays(tmp_path: Path, inputs: dict[str, list[str]]) -> None:
    """In the samples of the report."""
    run(config_of(tmp_path / "out", inputs, [{"step": "near_duplicates"}]))
    samples = "".join(
        path.read_text()
        for path in (tmp_path / "out").iterdir()
        if path.suffix in {".json", ".jsonl", ".md", ".txt"}
    )
    assert "of web/web.jsonl#0" in samples


def test_decontaminate_in_a_curation(tmp_path: Path, inputs: dict[str, list[str]]) -> None:
    """Documents with words of an evaluation set are dropped under their reason; a changed set starts the step again."""
    (tmp_path / "eval.jsonl").write_text(json.dumps({"q": text_of(3, NUM_WORDS)[30:150]}) + "\n")
    steps = [{"step": "decontaminate", "evaluation": [str(tmp_path / "eval.jsonl")]}]
    run(config_of(tmp_path / "out", inputs, steps))
    assert dropped(tmp_path / "out", "decontaminate") == {
        "words_of_evaluation_set": 2
    }  # it and its near-duplicate
    (tmp_path / "eval.jsonl").write_text(json.dumps({"q": text_of(33, NUM_WORDS)[30:150]}) + "\n")
    run(config_of(tmp_path / "out", inputs, steps))
    assert dropped(tmp_path / "out", "decontaminate") == {"words_of_evaluation_set": 1}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"step": "near_duplicates", "threshold": 1.5}, "threshold is 1.5"),
        ({"step": "near_duplicates", "bands": 4}, "bands 4 and rows 0"),
        ({"step": "near_duplicates", "permutations": 0}, "0 permutations"),
        ({"step": "near_duplicates", "shingle_size": 0}, "shingle_size is 0"),
        ({"step": "near_duplicates", "most_comparisons": 0}, "most_comparisons is 0"),
        (
            {"step": "near_duplicates", "earlier": ["a/b"], "save_index": "a/./b"},
            "save_index a/./b is one of earlier",
        ),
        ({"step": "decontaminate"}, "evaluation names nothing"),
        (
            {"step": "decontaminate", "evaluation": ["x"], "shortest_item_words": 13},
            "shortest_item_words is 13",
        ),
        ({"step": "decontaminate", "evaluation": ["x"], "run_words": 0}, "run_words is 0"),
    ],
)
def test_wrong_settings_are_refused(
    tmp_path: Path, inputs: dict[str, list[str]], step: dict[str, Any], message: str
) -> None:
    """When the file is read, with the value."""
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(config_of(tmp_path / "out", inputs, [step])))
    with pytest.raises(CptronError, match=message):
        load_curation(path)
