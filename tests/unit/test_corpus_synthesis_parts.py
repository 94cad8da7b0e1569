"""What synthesis is made of: reading answers, cutting documents, checking pairs, prompts, a local model, locks."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthesis_world import document, synthesis, tiny_model

from cptron.corpus.document import Document, Rejected
from cptron.corpus.language_engines import ENGINES
from cptron.corpus.step import Tally
from cptron.corpus.steps.synthesise import Config, Step
from cptron.corpus.synthesis.answer import Answer, Request
from cptron.corpus.synthesis.ask import Asker
from cptron.corpus.synthesis.cache import Cache
from cptron.corpus.synthesis.checks import MENTIONS, REFUSALS, Bounds, PassageChecks, read_list
from cptron.corpus.synthesis.grounding import grounded_share, numbers_of, units_of
from cptron.corpus.synthesis.make import _filled
from cptron.corpus.synthesis.parse import Pair, Problem, parse_answer
from cptron.corpus.synthesis.passages import passages_of
from cptron.corpus.synthesis.prompt import KINDS, Prompt, read_prompt, shipped_path
from cptron.corpus.synthesis.settings import LocalSettings
from cptron.errors import ConfigError, DataError

PAIR = {"question": "What is it?", "answer": 'It is {a} "thing".'}
ONE = Pair(PAIR["question"], PAIR["answer"])


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([PAIR]),
        json.dumps({"pairs": [PAIR]}),
        json.dumps(PAIR),
        f"<think>A list like [{{}}], I think.</think> Here:\n```json\n[{json.dumps(PAIR, indent=2)}]\n```\nDone.",
        json.dumps({"Instruction": PAIR["question"], "Response": PAIR["answer"]}),
        f"Q: {PAIR['question']}\nA: {PAIR['answer']}",
        f"1. **Question 1:** {PAIR['question']}\n   **Answer:** {PAIR['answer']}",
    ],
)
def test_forms_of_answers(text: str) -> None:
    """All of them say the same."""
    assert parse_answer(text, False) == [ONE]


def test_cut_off_answers_give_what_is_whole() -> None:
    """In both forms, with a word about the rest."""
    lines = f"Q: a?\nA: {PAIR['answer']}\nQ: b?\nA: It is"
    for text in (json.dumps([PAIR, PAIR])[:-20], json.dumps([PAIR])[:-1] + ",", lines):
        found = parse_answer(text, True)
        assert isinstance(found[0], Pair) and len(found) == 2
        assert isinstance(found[1], Problem) and found[1].why.reason == "cut_off"
    assert parse_answer(json.dumps([PAIR]), True) == [ONE]


def test_broken_pairs_are_counted() -> None:
    """Each that stands between whole ones, and one that stops although the model says that it was done."""
    whole, broken = json.dumps(PAIR), '{"question": "a?", "answer": "He said "no"."}'
    found = parse_answer(f"[{broken}, {whole}, {broken}, {broken}, {whole}]", False)
    assert [one.why.reason if isinstance(one, Problem) else "" for one in found] == [
        "unreadable", "", "unreadable", "unreadable", ""
    ]  # fmt: skip
    for cut_off in (True, False):
        pair, rest = parse_answer(json.dumps([PAIR, PAIR])[:-12], cut_off)
        assert pair == ONE and isinstance(rest, Problem) and "What is it" in rest.text
        assert rest.why.reason == ("cut_off" if cut_off else "unreadable")
    assert parse_answer(f"It may be {whole[:20]}}}. </think>[{whole}]", False) == [ONE]


@settings(max_examples=40)
@given(st.text(alphabet=st.sampled_from('QA:{}[]",\\\n aé\ud800\0'), max_size=60), st.booleans())
def test_no_answer_is_lost(text: str, cut_off: bool) -> None:
    """Something always comes out, that UTF-8 can hold."""
    found = parse_answer(text.encode("utf-8", "replace").decode(), cut_off)
    assert found
    for one in found:
        parts = (one.question, one.answer) if isinstance(one, Pair) else (one.text,)
        assert all(part.encode() is not None for part in parts)


@pytest.mark.parametrize(
    "text", ["{" * 200_000, "[" * 200_000, '{"a":' * 40_000, "Q:" * 90_000, "Q: a\n" * 40_000]
)
def test_hostile_answers_are_read_quickly(text: str) -> None:
    """No blow-up."""
    started = time.process_time()
    assert parse_answer(text, False)
    assert time.process_time() - started < 5


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from(["ab cd. ", "ab\n\n", "x" * 15, " ", "\n", "é! "]), max_size=30),
    st.integers(3, 20),
)
def test_passages_are_the_document(parts: list[str], most: int) -> None:
    """In order, within bounds, nothing but white space between them."""
    text = "".join(parts)
    spans = passages_of(text, most)
    assert all(0 < stop - start <= most for start, stop in spans)
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    assert edges == sorted(edges)
    assert "".join(text[start:stop] for start, stop in spans).split() == [] or "".join(
        "".join(text[start:stop].split()) for start, stop in spans
    ) == "".join(text.split())


def test_passages_end_where_paragraphs_and_sentences_do() -> None:
    """As few as possible."""
    text = "One is here. Two is there.\n\nThree.\n\nFour is the last of them."
    assert [text[a:b] for a, b in passages_of(text, 36)] == [
        "One is here. Two is there.\n\nThree.", "Four is the last of them."
    ]  # fmt: skip
    assert [text[a:b] for a, b in passages_of(text, 14)][:2] == ["One is here.", "Two is there."]


def test_grounding() -> None:
    """By words in English, Hindi and Chinese, by numbers in whatever form."""
    assert grounded_share("The boiler explodes.", units_of("a boiler")) == 0.5
    assert grounded_share("पानी की कीमत", units_of("पानी की कीमत बढ़ी है।")) == 1.0
    assert grounded_share("水的价格上涨", units_of("今年水的价格上涨了")) == 1.0
    assert grounded_share("鯨魚在海裡", units_of("今年水的价格上涨了")) == 0.0
    assert numbers_of("1,200 and 3.5, 1.200") == {"1200", "3.5"}


BOUNDS = Bounds(5, 200, 1, 400, 0.5, read_list(REFUSALS), read_list(MENTIONS))
FREE = replace(BOUNDS, mentions=())
PASSAGE = (
    "The engine was built in 1802 by the river, and its boiler holds 900 litres of water for the whole town."
)


def checks(prompt: str = "factual", **more: Any) -> PassageChecks:
    """Of one passage."""
    template = read_prompt(prompt, shipped_path(prompt))
    values = {
        "passage": PASSAGE,
        "grounded": template.grounded,
        "bounds": BOUNDS,
        "label": ENGINES["script"]("x", "").label,
        **more,
    }
    return PassageChecks(prompt=template, seen=set(), **values)


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("When was the engine built?", "The engine was built in 1802.", ""),
        ("What?", "!", "answer_too_short"),
        ("a", "In 1802.", "question_too_short"),
        ("When was it built?", "1802 " * 100, "answer_too_long"),
        ("When was it built?", "I’m sorry, I don't know.", "refusal"),
        ("When was it built?", "It names what it is about, and never says the text.", "repeats_prompt"),
        ("When was it built?", "when was it built?", "repeats_question"),
        ("Was it built in 1802 or in 1803?", "In 1802.", "answer_in_question"),
        ("Was it built in 1802?", "Yes, in 1802.", ""),
        ("According to the text, when was it built?", "In 1802.", "mentions_text"),
        ("When was the engine in the textile mill built?", "In 1802.", ""),
        ("When was it built?", "the engine of the engine " * 12, "loops"),
        ("Когда был построен двигатель?", "Двигатель построен у реки в городе.", "other_language"),
        ("When was it built?", "In the year of 1802 it was built by the river. " * 4, "loops"),
        ("When was it built? " * 10, "In 1802.", "loops"),
        ("什么时候建造的？", "蒸汽机在河边，" * 8, "loops"),
        ("When was it built?", PASSAGE[:80], "copies_document"),
        ("When was it built?", f"It says: {PASSAGE[4:]} So it is.", "copies_document"),
        (f"{PASSAGE[:90]}: for whom?", "For the whole town.", "copies_document"),
        ("When was it built?", "The engine was built in 1803.", "unknown_number"),
        ("When was it built?", "Whales swim below glaciers.", "not_grounded"),
    ],
)  # fmt: skip
def test_checks_have_their_reasons(question: str, answer: str, reason: str) -> None:
    """One pair for each."""
    found = checks().problem(Pair(question, answer))
    assert (found.reason if found else "") == reason


def test_repeated_question_and_own_thresholds() -> None:
    """The second of a document goes; reasoning may use other words and numbers."""
    one = checks()
    assert one.problem(Pair("Who built it?", "The river.")) is None
    found = one.problem(Pair("WHO  built it?", "The engine."))
    assert found and found.reason == "repeated"
    spoken = Pair("What does the engine in the text do?", "It heats water.")
    assert checks(grounded=0.0, passage="It stands in the text of a law.").problem(spoken) is None
    assert checks(grounded=0.0).problem(spoken) and not checks(grounded=0.0, bounds=FREE).problem(spoken)
    assert (
        checks("reasoning").problem(Pair("Why is it?", "With 2 engines the boiler holds 1800 litres."))
        is None
    )


def test_prompts(tmp_path: Path) -> None:
    """The shipped ones are whole; a document cannot take a place; a file that is none is refused in one line."""
    for kind in KINDS:
        prompt = read_prompt(kind, shipped_path(kind))
        request = prompt.request("It has {count} {document}.", 4, "vi")
        assert (
            "It has {count} {document}." in request.user
            and "Write 4 " in request.user
            and "(vi)" in request.user
        )
        assert prompt.version == 1 and 0 < prompt.grounded < 1 and "{" not in prompt.system
    assert _filled("{answer} <- {question}", Pair("{answer}", "{question}")) == "{question} <- {answer}"
    for content, message in (
        ("no sections", "--- user"),
        ("--- user\nhello", "{document}"),
        ("colour: 3\n--- user\n{document}", "colour"),
        ("grounded: 3\n--- user\n{document}", "0"),
    ):
        (tmp_path / "x.txt").write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_prompt("x", tmp_path / "x.txt")


class Counting:
    """A model that answers in a new way each time, and says how often it was asked."""

    group_size = 2
    concurrency = 4

    def __init__(self) -> None:
        self.identity: Any = {"name": "counting"}
        self.parameters: Any = {}
        self.asked: list[int] = []

    def answers(self, requests: Any) -> list[Answer]:
        """See `Model`."""
        time.sleep(0.02)
        self.asked.append(len(requests))
        return [Answer(f"{time.monotonic_ns()}", "stop", 1, 1) for _ in requests]

    def stop(self) -> None:
        """Waits for nothing."""


def test_equal_questions_at_the_same_time_are_asked_once(tmp_path: Path) -> None:
    """By threads with caches of their own, as processes have them; groups are one, a damaged file is named."""
    model = Counting()
    requests = [Request("", user) for user in "abcabc"]
    found: list[Any] = []

    def ask() -> None:
        found.append(Asker(model, Cache(tmp_path), cached_only=False).ask(requests))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.asked == [2, 2, 2] and all(one == found[0] for one in found) and len(found) == 4
    assert Asker(model, Cache(tmp_path), cached_only=True).ask([Request("", "z")]) == [None]
    path = next(tmp_path.glob("???/*.json"))
    path.write_text(path.read_text()[:20])
    with pytest.raises(DataError, match="damaged"):
        Asker(model, Cache(tmp_path), cached_only=True).ask(requests)


@pytest.fixture(scope="module")
def local_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with random weights, and a tokenizer of bytes."""
    pytest.importorskip("torch")
    return tiny_model(tmp_path_factory.mktemp("local"))


def local_results(folder: Path, cache: Path, documents: list[Document], **more: Any) -> list[list[str]]:
    """Raw answers about each document: those of a random model cannot be read, and so are all rejected."""
    local = LocalSettings(folder=str(folder), threads=1, batch_size=more.pop("batch_size", 1))
    config = Config(
        local=local, kinds=("summary",), answer_tokens=12, cache=str(cache), language="none", **more
    )
    assert not Step.problem(config)
    step = Step("synthesise", config, 7)
    step.open()
    found = []
    for result in step.apply_batch(documents, Tally()):
        assert isinstance(result, tuple)
        found.append([one.document.text for one in result if isinstance(one, Rejected)])
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_local_model_says_the_same_again(local_folder: Path, tmp_path: Path, temperature: float) -> None:
    """Greedy and sampled: alone, among others, in another order, by another object; from the cache without a model."""
    documents = [Document(document(number), f"d{number}", "x") for number in range(3)]
    found = local_results(local_folder, tmp_path / "a", documents, temperature=temperature)
    assert len({text for (text,) in found}) == 3 or temperature == 0
    again = local_results(local_folder, tmp_path / "b", documents[::-1], temperature=temperature)
    assert again[::-1] == found
    cached = local_results(local_folder, tmp_path / "a", documents, temperature=temperature, cached_only=True)
    assert cached == found
    batched = local_results(local_folder, tmp_path / "c", documents, temperature=temperature, batch_size=3)
    assert batched == local_results(
        local_folder, tmp_path / "d", documents, temperature=temperature, batch_size=3
    )


def test_local_model_is_greedy_and_refuses_what_does_not_fit(local_folder: Path, tmp_path: Path) -> None:
    """Against a loop of arg-max by hand; a prompt beyond the context has its own reason."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompt: Prompt = read_prompt("summary", shipped_path("summary"))
    request = prompt.request(document(0), 3, "")
    tokenizer = AutoTokenizer.from_pretrained(local_folder)
    model = AutoModelForCausalLM.from_pretrained(local_folder).eval()
    ids = tokenizer(request.completion)["input_ids"]
    made: list[int] = []
    with torch.no_grad():
        while len(made) < 12 and (not made or made[-1] != tokenizer.eos_token_id):
            made.append(int(model(torch.tensor([ids + made])).logits[0, -1].argmax()))
    expected = "Q:" + tokenizer.decode(made, skip_special_tokens=True).replace("\0", "")
    one = Document(document(0), "d0", "x")
    found = parse_answer(expected, True)
    assert local_results(local_folder, tmp_path / "a", [one]) == [
        [getattr(part, "text", "") for part in found]
    ]
    long = Document("Water. " * 600, "long", "x")
    config = Config(
        local=LocalSettings(folder=str(local_folder)),
        kinds=("summary",),
        cache=str(tmp_path / "b"),
        language="none",
    )
    step = Step("synthesise", config, 7)
    step.open()
    result = step.apply(long, Tally())
    assert isinstance(result, tuple) and isinstance(result[0], Rejected)
    assert result[0].why.reason == "model_refused" and "tokens" in result[0].why.detail


def test_no_model_in_the_folder(tmp_path: Path) -> None:
    """Said in one line, before work begins."""
    config = Config(local=LocalSettings(folder=str(tmp_path)))
    with pytest.raises(DataError, match=r"config\.json"):
        Step("synthesise", config, 0).files()


def test_share_is_nested_and_documents_can_stay(tmp_path: Path) -> None:
    """Which documents are asked about: more of them with a larger share, never others."""
    drawn = []
    for share in (0.3, 0.6):
        values = synthesis(tmp_path, "http://127.0.0.1:9/v1")["steps"][0]["endpoint"]
        from cptron.corpus.synthesis.settings import EndpointSettings

        config = Config(
            endpoint=EndpointSettings(**values),
            share=share,
            cached_only=True,
            keep_document=True,
            cache=str(tmp_path / "c"),
        )
        step = Step("synthesise", config, 0)
        step.open()
        documents = [Document(document(number), f"d{number}", "x") for number in range(60)]
        results = step.apply_batch(documents, Tally())
        assert all(
            isinstance(result, tuple) and result[-1] is one
            for result, one in zip(results, documents, strict=True)
        )
        drawn.append(
            {number for number, result in enumerate(results) if isinstance(result, tuple) and len(result) > 1}
        )
    assert drawn[0] < drawn[1] and 8 <= len(drawn[0]) <= 28
