"""Questions come before their document: in the file, in the token files, and in the order in which a run reads them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokens_world import save_byte_tokenizer

from cptron.cli import main
from cptron.data.ledger import Ledger
from cptron.data.mix import Mix
from cptron.data.order import Arrangement, Packing
from cptron.data.source import TokenSource
from cptron.data.stages import Stage
from cptron.data.stream import SampleStream
from cptron.errors import DataError
from cptron.tokens.indexed import IndexedTokens
from cptron.tokens.interleave import Counts, Order, interleave
from cptron.tokens.tokenizer import load_tokenizer

IDS = st.integers(0, 9) | st.sampled_from(["3", "a", "ü"])


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> str:
    """JSONL; gzip where the name says so."""
    data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def read(path: Path) -> list[Any]:
    """What each record of the output holds."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(set(record) == {"messages"} for record in records)
    return [record["messages"] for record in records]


@settings(max_examples=25)
@given(
    documents=st.lists(IDS, unique_by=str, max_size=8),
    questions=st.lists(IDS, max_size=20),
    order=st.sampled_from(["qa_first", "doc_first"]),
)
def test_every_question_stands_right_beside_its_document(
    documents: list[Any], questions: list[Any], order: Order, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """All documents and all their questions, each once, each in its order; 3 and "3" are one id."""
    root = tmp_path_factory.mktemp("run")
    texts = write(root / "d.jsonl", [{"id": name, "text": f"d {name}"} for name in documents])
    asked = [{"id": name, "question": f"q {n}", "answer": "a"} for n, name in enumerate(questions)]
    counts = interleave(
        [texts], [write(root / "q.jsonl.gz", asked)], root / "out", order=order, unpaired="drop"
    )
    expected: list[Any] = []
    for name in documents:
        own = [
            [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": "a"}]
            for n, of in enumerate(questions)
            if str(of) == str(name)
        ]
        expected += [*own, f"d {name}"] if order == "qa_first" else [f"d {name}", *own]
    assert read(root / "out") == expected
    known = {str(name) for name in documents}
    paired = [name for name in questions if str(name) in known]
    assert counts == Counts(
        len(documents), len({*map(str, paired)}), len(paired), len(questions) - len(paired)
    )


def test_forms_of_questions(tmp_path: Path) -> None:
    """A chat stays as it is, with the system text beside it; a text too; keys may have other names."""
    chat = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
    asked = [
        {"doc": 1, "conversations": chat, "system": "s"},
        {"doc": 1, "messages": chat},
        {"doc": 1, "body": "Q: x A: y"},
        {"doc": 1, "q": "x", "a": "y", "messages": None},
    ]
    paths = [write(tmp_path / "d.jsonl", [{"doc": 1, "body": "b"}]), write(tmp_path / "q.jsonl", asked)]
    words = [
        "interleave",
        "--documents",
        paths[0],
        "--questions",
        paths[1],
        "--output",
        str(tmp_path / "o.jsonl"),
    ]
    words += ["--id-key", "doc", "--text-key", "body", "--question-key", "q", "--answer-key", "a"]
    assert main(words) == 0
    assert read(tmp_path / "o.jsonl") == [
        {"conversations": chat, "system": "s"},
        chat,
        "Q: x A: y",
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
        "b",
    ]
    assert main(words) == 2, "an output that exists is never replaced"


GOOD = {"id": 1, "text": "x"}
ASKED = {"id": 1, "question": "x", "answer": "y"}
BAD: dict[str, tuple[list[Any], list[Any], str]] = {
    "two documents of one id": ([GOOD, GOOD], [], r"d\.jsonl:2 has the id '1' of an earlier"),
    "no id": ([{"text": "x"}], [], r"d\.jsonl:1 has None as its id"),
    "an id that is no name": ([{**GOOD, "id": True}], [], "has True as its id"),
    "no text": ([{"id": 1}], [], "NoneType at 'text'"),
    "no question": ([GOOD], [{"id": 1}], r"q\.jsonl:1 has the keys \['id'\]"),
    "no answer": ([GOOD], [{"id": 1, "question": "x"}], "NoneType at 'answer'"),
    "a question about nothing": ([GOOD], [ASKED, {**ASKED, "id": 7}], r"1 question\(s\) have an id .*'7'"),
    "no object": ([[1]], [], "must be an object"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str, tmp_path: Path) -> None:
    """With one line, and without any output."""
    documents, asked, message = BAD[name]
    paths = [write(tmp_path / "d.jsonl", documents)], [write(tmp_path / "q.jsonl", asked)]
    with pytest.raises(DataError, match=message) as caught:
        interleave(*paths, tmp_path / "out.jsonl")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl", "q.jsonl"]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions alone, and 40 documents behind 0 to 3 questions each, as token files: `qa` and `mixed`."""
    root = tmp_path_factory.mktemp("corpora")
    template = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '</s>' }}{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    special = ["</s>", "<|user|>", "<|assistant|>"]
    save_byte_tokenizer(root, special, eos_token="</s>", chat_template=template)
    draw = np.random.default_rng(0)
    documents = [{"id": n, "text": f"d{n} " + "x" * int(draw.integers(1, 60))} for n in range(40)]
    asked = [{"id": n, "question": f"q{n}", "answer": "y" * 5} for n in range(40) for _ in range(n % 4)]
    paths = [write(root / "d.jsonl", documents), write(root / "q.jsonl", asked)]
    chats = [{"messages": [{"role": "user", "content": r["question"]}]} for r in asked]
    write(root / "qa.jsonl", chats)
    words = ["--documents", paths[0], "--questions", paths[1], "--output", str(root / "mixed.jsonl")]
    assert main(["interleave", *words]) == 0
    for name, flag in (("qa", "--chat"), ("mixed", "--chat-and-text")):
        words = ["--input", str(root / f"{name}.jsonl"), "--output-prefix", str(root / name)]
        words += ["--tokenizer-model", str(root), "--loss-mask", "assistant" if name == "mixed" else "none"]
        assert main(["preprocess", *words, flag]) == 0
    return root


def drawn(root: Path, packing: Packing, arrangement: Arrangement) -> list[tuple[int, int, str]]:
    """Stage, pass over its source, and text of each document's beginning, as PIT++ reads them."""
    sources = [
        TokenSource(
            name, str(root / f"{name}_messages_document"), 64, 7, packing=packing, arrangement=arrangement
        )
        for name in ("qa", "mixed")
    ]
    stages = (Stage((1.0, 0.0), 64, 4, until_tokens=500), Stage((0.0, 1.0), 64, 4))
    stream = SampleStream(sources, Mix((1.0, 1.0), (0.0, 0.0), "warn", stages), Ledger())
    files = [IndexedTokens(root / f"{name}_messages_document") for name in ("qa", "mixed")]
    tokenizer = load_tokenizer(root)
    found, seen = [], set()
    for _ in range(30):
        for source, cursor in stream.draw(4):
            for span in sources[source].spans(cursor):
                epoch = cursor // sources[source].samples_per_epoch
                if span.offset == 0 and (source, epoch, span.document) not in seen:
                    seen.add((source, epoch, span.document))
                    ids = files[source].read(span.document).tolist()
                    found.append((stream.stage_number, epoch, tokenizer.decode(ids)))
    return found


def is_qa_first(found: list[tuple[int, int, str]]) -> bool:
    """Whether in each pass of the second stage all questions about a document came before it began."""
    for epoch in {epoch for stage, epoch, _ in found if stage == 2}:
        texts = [text for stage, at, text in found if (stage, at) == (2, epoch)]
        for place, text in enumerate(texts):
            if text.startswith("d"):
                number = int(text.split()[0][1:])
                asked = [other.startswith(f"<|user|>q{number}</s>") for other in texts]
                if sum(asked[:place]) != number % 4:
                    return False
    return True


@pytest.mark.parametrize("packing", ["joined", "best_fit"])
def test_a_run_reads_questions_first(packing: Packing, corpora: Path) -> None:
    """Questions alone for a stage, then each document behind its questions, in every pass; the order of the files is
    needed for that."""
    found = drawn(corpora, packing, "given")
    stages = [stage for stage, _, _ in found]
    assert stages == sorted(stages) and set(stages) == {1, 2}
    assert all(text.startswith("<|user|>") for stage, _, text in found if stage == 1)
    assert {text.split()[0] for stage, _, text in found if stage == 2 and text[0] == "d"} == {
        f"d{n}" for n in range(40)
    }
    if packing == "joined":
        assert is_qa_first(found)
    assert not is_qa_first(drawn(corpora, packing, "shuffled"))
