"""Words shared with evaluation sets: what is planted is found, and nothing else; what is then done about it."""

from __future__ import annotations

import gzip
import json
import random
import unicodedata
from collections import Counter
from pathlib import Path

import dedup_reference as reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.corpus import kernels
from cptron.corpus.dedup import contamination
from cptron.corpus.dedup.contamination import EvaluationIndex, without
from cptron.corpus.dedup.evaluation_items import read_items
from cptron.corpus.dedup.words import packed
from cptron.corpus.document import Document, Dropped
from cptron.corpus.steps import decontaminate
from cptron.errors import DataError

COLLISION = ((227128, 1195574, 1797437), (119323, 1044353, 1))
"""Two words, by the numbers of their letters, with the same hash: found by sorting 16 million."""
WORDS = ["The", "cat", "sat", "On", "mats", "việt", "और", "中", "文", "dog's"]


def runs(words: list[str], size: int) -> set[tuple[str, ...]]:
    """All runs of words."""
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join), min_size=1, max_size=4),
    st.lists(st.lists(st.sampled_from(WORDS), max_size=20).map(", ".join), min_size=1, max_size=3),
    st.integers(1, 4),
)
def test_spans_are_the_runs_of_words_that_are_shared(items: list[str], texts: list[str], size: int) -> None:
    """Against all runs of all items: a word is in a span if and only if it is in a shared run."""
    shortest = max(1, size - 1)
    index = EvaluationIndex([(str(number), item) for number, item in enumerate(items)], size, shortest)
    wanted: set[tuple[str, ...]] = set()
    for item in items:
        words = reference.words(item)
        wanted |= runs(words, min(size, len(words))) if len(words) >= shortest else set()
    assert index.num_items == len(items)
    for text, spans in zip(texts, index.find(texts), strict=True):
        words = reference.words(text)
        shared = [
            any(
                tuple(words[start : start + length]) in wanted
                for length in {shortest, size}
                for start in range(max(0, place - length + 1), min(place, len(words) - length) + 1)
            )
            for place in range(len(words))
        ]
        assert [text[span.begin : span.end].strip(", ") for span in spans] == [
            text[span.begin : span.end] for span in spans
        ]
        found = [word for span in spans for word in reference.words(text[span.begin : span.end])]
        assert Counter(found) == Counter(
            word for word, is_shared in zip(words, shared, strict=True) if is_shared
        )


def test_equal_hashes_do_not_condemn() -> None:
    """Two words of the same 64-bit hash: the run is found by its hash, and let go since the words differ."""
    folding = np.zeros(128, np.uint32)
    left, right = COLLISION
    folding[[ord(char) for char in "abcdef"]] = [*left, *right]
    hashes = [
        kernels.shingle_sets(*packed([text]), folding, 1, False)[0].tolist() for text in ("abc", "def", "abd")
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    index = kernels.Contamination(folding, 1, 1)
    index.add(*packed(["abc"]))
    with pytest.raises(ValueError, match="finish_adding comes before find"):
        index.find(*packed(["abc"]))
    index.finish_adding()
    assert index.find(*packed(["def", "abd", "abc", "x abc"]))[:, :3].tolist() == [[2, 0, 3], [3, 2, 5]]


def planted() -> tuple[list[dict[str, object]], list[Document], dict[int, str]]:
    """Evaluation records, documents of the same vocabulary, and which of them holds which item."""
    generator = random.Random(2)
    vocabulary = [f"word{number}" for number in range(300)]

    def words(count: int) -> list[str]:
        return generator.choices(vocabulary, k=count)

    records: list[dict[str, object]] = [
        {"question": " ".join(words(20)), "choices": [" ".join(words(9)), "yes"], "id": number}
        for number in range(30)
    ]
    documents, holds = [], {}
    for number in range(200):
        text = words(150)
        if number % 10 == 0:
            record = number // 10
            item = (
                str(records[record]["question"]).split()[3:16]
                if number % 20
                else str(records[record]["choices"][0]).split()
            )  # type: ignore[index]
            text[40:40] = [item[0].upper(), *(f"{word}," for word in item[1:])]
            holds[number] = f"eval.jsonl.gz#{record + 1} {'question' if number % 20 else 'choices'}"
        elif number % 10 == 5:
            text[40:40] = str(records[number // 10]["question"]).split()[:11]  # a word less than a run
        documents.append(Document(" ".join(text), f"c/f#{number}", "c"))
    return records, documents, holds


@pytest.mark.parametrize("action", ["drop", "cut"])
def test_planted_words_are_found_and_nothing_else(tmp_path: Path, action: str) -> None:
    """All of those planted, none of the others; the report names item and words."""
    records, documents, holds = planted()
    with gzip.open(tmp_path / "eval.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in records)
    config = decontaminate.Config(evaluation=(str(tmp_path / "eval.jsonl.gz"),), action=action)  # type: ignore[arg-type]
    step = decontaminate.Step("decontaminate", config, 0)
    assert decontaminate.Step.problem(config) == "" and step.files() == [tmp_path / "eval.jsonl.gz"]
    step.open()
    tally: Counter[str] = Counter()
    results = step.apply_batch(documents, tally)
    touched = {number for number, result in enumerate(results) if result is not documents[number]}
    assert touched == set(holds)
    assert tally["documents with words of eval.jsonl.gz"] == len(holds)
    for number, item in holds.items():
        result, before = results[number], documents[number].text.split()
        if action == "drop":
            assert isinstance(result, Dropped) and item in result.detail
        else:
            assert isinstance(result, Document) and result.meta["decontaminated"] == [item]
            planted_words = 13 if number % 20 else 9
            assert reference.words(result.text) == before[:40] + before[40 + planted_words :]


def test_what_is_left_of_a_cut_document() -> None:
    """Text before and after, apart; a rest without a letter is nothing."""
    index = EvaluationIndex([("e", "one two three")], 3, 3)
    texts = ["Before: one two, three! After.", "(one two three)", "é one two three one two three"]
    (first, second, third) = index.find(texts)
    assert without(texts[0], first) == "Before:\n\n! After."
    assert without(texts[1], second) == ""
    assert len(third) == 2 and without(texts[2], third) == "é"
    index = EvaluationIndex([("e", "一二")], 2, 2)
    (touching,) = index.find(["一二一二"])
    assert [(span.begin, span.end) for span in touching] == [(0, 4)]


def test_short_items_and_many_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short item within a long one is in its span; too short ones are left out and counted; batches do not matter."""
    monkeypatch.setattr(contamination, "_ITEMS_AT_ONCE", 2)
    texts = ["one two three four", "two three", "two", "five six seven eight nine", "ten eleven"]
    index = EvaluationIndex([(str(number), text) for number, text in enumerate(texts)], 4, 2)
    assert (index.num_items, index.num_left_out, index.num_runs) == (5, 1, 1 + 1 + 2 + 1)
    found = index.find(["one two three four", "two three", "x six seven eight nine", "ten eleven"])
    assert [[(span.begin, span.end, span.item) for span in spans] for spans in found] == [
        [(0, 18, "0")], [(0, 9, "1")], [(2, 22, "3")], [(0, 10, "4")],
    ]  # fmt: skip


def test_cuts_are_few_and_counted(tmp_path: Path) -> None:
    """More than `most_cuts` drop the document; letters that are typed in two parts are cut as those of one."""
    (tmp_path / "e.jsonl").write_text(json.dumps({"q": "été là bas"}) + "\n")
    config = decontaminate.Config(
        evaluation=(str(tmp_path / "e.jsonl"),), run_words=3, shortest_item_words=3, action="cut", most_cuts=2
    )
    step, tally = decontaminate.Step("d", config, 0), Counter[str]()
    step.open()
    item = unicodedata.normalize("NFD", "été là bas")
    texts = [f"{item} one {item} two", f"{item} one {item} two {item} three"]
    two, three = step.apply_batch([Document(text, "x", "x") for text in texts], tally)
    assert isinstance(two, Document) and two.text == "one\n\ntwo"
    assert isinstance(three, Dropped) and three.reason == "too_many_words_of_evaluation_set"
    assert tally["spans cut"] == 2


def test_evaluation_sets_must_be_readable(tmp_path: Path) -> None:
    """A damaged record, or keys that are nowhere, end the run instead of hiding contamination."""
    path = tmp_path / "e.jsonl"
    path.write_text('{"q": "a b", "n": 3, "more": {"x": ["c", 1]}}\n\n{"q": "d"}\n')
    assert list(read_items([str(path)], [])) == [
        ("e.jsonl#1 q", "a b"),
        ("e.jsonl#1 more", "c"),
        ("e.jsonl#3 q", "d"),
    ]
    with pytest.raises(DataError, match="record 3 has none of more"):
        list(read_items([str(path)], ["more"]))
    path.write_text('{"q": "a b"}\n{"q": \n')
    with pytest.raises(DataError, match="line 2"):
        list(read_items([str(path)], []))
    with pytest.raises(DataError, match="shortest_item_words"):
        config = decontaminate.Config(evaluation=(str(tmp_path / "*.jsonl"),))
        path.write_text('{"q": "a b"}\n')
        decontaminate.Step("d", config, 0).open()


def test_evaluation_sets_of_other_kinds(tmp_path: Path) -> None:
    """Rows of tables are counted from 1; a packed file that is cut off, and a text that is none, end the run."""
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.table({"q": ["a b", "c"], "more": [["d"], ["e", "f"]]}), tmp_path / "e.parquet"
    )
    assert [name for name, _ in read_items([str(tmp_path / "e.parquet")], [])] == [
        "e.parquet#1 q", "e.parquet#1 more", "e.parquet#2 q", "e.parquet#2 more", "e.parquet#2 more",
    ]  # fmt: skip
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(b'{"q": "a b"}\n' * 99)[:-9])
    with pytest.raises(DataError, match="has a record that cannot be read"):
        list(read_items([str(tmp_path / "e.jsonl.gz")], []))
    (tmp_path / "e.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="cannot be read"):
        list(read_items([str(tmp_path / "e.txt")], []))
