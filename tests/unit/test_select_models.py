"""Losses against transformers and a plain Kneser-Ney; a classifier, embeddings and entropy against direct formulas."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from select_world import decided, documents, made, program_texts, prose_texts, save_causal, write_texts

from cptron.corpus.document import Document, Dropped
from cptron.corpus.select.causal_lm import CausalScorer, batches_of, windows_of
from cptron.corpus.select.kneser_ney import BEGIN, END, NgramModel, lines_of
from cptron.corpus.select.linear import LinearClassifier
from cptron.corpus.select.tags import entropy_nats, shapes
from cptron.corpus.step import Tally
from cptron.errors import DataError

TEXTS = ["the thin cat, été", "x", "", "a much longer text with the thing " * 9, "ab"]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a token that begins texts."""
    return save_causal(tmp_path_factory.mktemp("causal"))


def scorer(directory: Path, **options: object) -> CausalScorer:
    """With small windows."""
    settings = {"device": "cpu", "dtype": "float32", "window": 64, "stride": 32, "most_windows": 0}
    return CausalScorer(directory, **{**settings, "batch_tokens": 100, "threads": 1, **options})  # type: ignore[arg-type]


@given(st.integers(0, 300), st.integers(2, 40), st.data())
def test_every_token_is_predicted_once(length: int, window: int, data: st.DataObject) -> None:
    """But the first; each with the context that the stride promises; no window is longer than allowed."""
    stride = data.draw(st.integers(1, window - 1))
    windows = windows_of(0, length, window, stride)
    assert [place for one in windows for place in range(one.first, one.stop)] == list(range(1, length))
    for one in windows:
        assert one.stop - one.start <= window and one.first - one.start >= min(one.first, window - stride)
    some = windows_of(0, length, window, stride, 3)
    assert len(some) == min(3, len(windows)) and set(some) <= set(windows)
    batches = list(batches_of(windows, 50))
    assert sorted((one for batch in batches for one in batch), key=lambda one: one.start) == windows
    assert all(
        len(batch) == 1 or len(batch) * max(w.stop - w.start for w in batch) <= 50 for batch in batches
    )


@pytest.mark.parametrize("bos", [True, False])
def test_loss_is_that_of_transformers(bos: bool, causal: Path, tmp_path: Path) -> None:
    """In one pass for what fits, batched with others or not; window by window for what does not."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = causal if bos else save_causal(tmp_path, bos=False)
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    scores = scorer(directory).scores(TEXTS)
    for text, score in zip(TEXTS, scores, strict=True):
        ids = ([tokenizer.bos_token_id] if bos else []) + tokenizer(text, add_special_tokens=False)[
            "input_ids"
        ]
        if len(ids) < 2:
            assert score is None
            continue
        assert score is not None and score.tokens == len(ids) - 1
        assert score.bytes == len(text.encode()) - (0 if bos else len(tokenizer.decode(ids[:1]).encode()))
        with torch.inference_mode():
            total = 0.0
            for one in windows_of(0, len(ids), 64, 32):
                row = torch.tensor([ids[one.start : one.stop]])
                labels = row.clone()
                labels[0, : one.first - one.start] = -100
                labels[0, 0] = -100
                predicted = one.stop - one.first
                total += float(model(row, labels=labels).loss) * predicted
        assert score.nats == pytest.approx(total, rel=1e-5)


def test_perplexity_looks_at_the_whole_document(causal: Path) -> None:
    """What differs behind the first 512 tokens is seen; limits drop by their measure; a sample passes the rest."""
    same = "the same words again " * 60
    step = made("perplexity", model=str(causal), window=64, stride=48)
    found = [
        step.apply(Document(same + end, "x", "x"), Tally()) for end in ("the end.", "\u2603\u2603\u2603")
    ]
    values = [one.meta["perplexity_nats_per_token"] for one in found if isinstance(one, Document)]
    assert len(values) == 2 and values[0] != values[1]
    limited = made("perplexity", model=str(causal), window=64, stride=48, most=values[0] - 0.01)
    low = limited.apply(Document(same + "the end.", "x", "x"), Tally())
    assert isinstance(low, Dropped) and low.reason == "too_surprising"
    assert step.apply(Document("", "x", "x"), Tally()) == Dropped("nothing_to_predict")
    sampled, tally = made("perplexity", model=str(causal), sample=0.5), Tally()
    given_documents = documents(["a b"] * 64)
    results = sampled.apply_batch(given_documents, tally)
    measured = [isinstance(one, Document) and "perplexity_bits_per_byte" in one.meta for one in results]
    assert 16 <= sum(measured) == 64 - tally["not_sampled"] <= 48
    assert sampled.apply_batch(given_documents[:5], Tally()) == results[:5]


Gram = tuple[int, ...]


def plain_kneser_ney(
    lines: list[list[int]], order: int, vocabulary: list[int]
) -> dict[Gram, dict[int, float]]:
    """Probabilities behind every context of up to `order` - 1 words: dictionaries and the formulas of the paper."""
    padded = [(BEGIN, *line) for line in lines]
    raw = [
        Counter(tuple(line[i : i + n]) for line in padded for i in range(len(line) - n + 1))
        for n in range(order + 1)
    ]
    before: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for n in range(2, order + 1):
        for gram in raw[n]:
            before[gram[1:]].add(gram[0])
    probabilities: dict[tuple[int, ...], dict[int, float]] = {}
    for n in range(1, order + 1):
        grams = [gram for gram in raw[n] if gram[-1] != BEGIN]
        counts = {
            gram: len(before[gram]) if n < order and gram[0] != BEGIN else raw[n][gram] for gram in grams
        }
        of = Counter(counts.values())
        if not of[1] or not of[2]:
            d = [0, 0.5, 0.5, 0.5]
        else:
            y = of[1] / (of[1] + 2 * of[2])
            exact = [k - (k + 1) * y * of[k + 1] / of[k] if of[k] else 0.5 for k in (1, 2, 3)]
            d = [0, *(min(max(value, 0.1), k - 0.1) for k, value in zip((1, 2, 3), exact, strict=True))]
        for context in {gram[:-1] for gram in grams}:
            mine = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == context}
            total = sum(mine.values())
            left = sum(d[min(count, 3)] for count in mine.values()) / total
            lower = probabilities.get(context[1:], {}) if n > 1 else {}
            probabilities[context] = {
                word: max(0, mine.get(word, 0) - d[min(mine.get(word, 0), 3)]) / total
                + left * lower.get(word, 1 / len(vocabulary))
                for word in vocabulary
            }
    return probabilities


def test_kneser_ney_against_the_formulas(tmp_path: Path) -> None:
    """On a text of few words, so that every count is met; behind each context the probabilities sum to one."""
    draw = random.Random(4)
    text = "\n".join(" ".join(draw.choices("abcdefgh", [30, 20, 9, 5, 3, 2, 1, 1], k=8)) for _ in range(30))
    model = NgramModel.train([text], 3, 2)
    lines = [model.ids_of(words) for words in lines_of(text)]
    vocabulary = [0, END, *sorted({word for line in lines for word in line} - {0, END})]
    plain = plain_kneser_ney(lines, 3, vocabulary)
    for context in [(), (3,), (BEGIN, 4), (3, 4), (4, 3), (7, 7), (0, 3)]:
        # The words of a context that no line begins with stand behind some other line's words.
        begins = context[:1] == (BEGIN,)
        before = list(context[1:] if begins else (5, 5, *context))
        found = [float(model.probabilities([[*before, word]])[-1]) for word in vocabulary]
        assert sum(found) == pytest.approx(1.0, abs=1e-9)
        known = tuple(context) if begins else tuple(before[-2:])
        while known not in plain:
            known = known[1:]
        assert found == pytest.approx([plain[known][word] for word in vocabulary], rel=1e-9)
    model.save(tmp_path / "m", {})
    loaded = NgramModel.load(tmp_path / "m", "x")
    assert loaded.score("a b zzz") == model.score("a b zzz")


def test_ngrams_tell_domains_apart(tmp_path: Path) -> None:
    """Of programs and prose, the reference's kind is cheaper for nearly all; garble is the dearest of all."""
    prose, programs = prose_texts(), program_texts()
    reference = write_texts(tmp_path / "r.jsonl", prose[::2])
    step = made("ngram_perplexity", reference=(reference,))
    noise = "".join(random.Random(1).choices("qxzjvkw 7", k=900))
    _, results, _ = decided(step, [documents(prose[1:80:2]), documents([*programs[:40], noise])], tmp_path)
    bits = np.array(
        [one.meta["ngram_perplexity_bits_per_byte"] for one in results if isinstance(one, Document)]
    )
    assert np.median(bits[:39]) < np.median(bits[40:80]) < bits[-1] and bits[-1] == bits.max()


def test_classifier(tmp_path: Path) -> None:
    """Precision on unseen text is what training promises, about; equal examples, an equal model; a
    saved one is the same; labels that say nothing are refused."""
    prose, programs = prose_texts(), program_texts()
    files = {
        "positive": (write_texts(tmp_path / "p.jsonl", programs[:90]),),
        "negative": (write_texts(tmp_path / "n.jsonl", prose[:150]),),
    }
    asked = {"held_out": 0.4, "min_precision": 0.8}
    saved = tmp_path / "saved" / "c.model"
    step = made("classifier", **files, save=str(saved), buckets=20_000, **asked)
    _, results, tally = decided(step, [documents(programs[90:140] + prose[150:250])], tmp_path)
    right = sum(isinstance(one, Document) for one in results[:50])
    wrong = sum(isinstance(one, Document) for one in results[50:])
    assert right >= 25 and right / (right + wrong) >= 0.75
    assert tally["positive"] == right + wrong
    other = made("classifier", model=str(saved))
    (tmp_path / "again").mkdir()
    _, same, _ = decided(other, [documents(programs[90:140] + prose[150:250])], tmp_path / "again")
    assert same == results
    first = saved.read_bytes()
    (tmp_path / "third").mkdir()
    decided(made("classifier", **files, save=str(saved), buckets=20_000, **asked), [[]], tmp_path / "third")
    assert saved.read_bytes() == first
    mixed_up = write_texts(tmp_path / "m.jsonl", [*prose[:60:2], *programs[:60:2]])
    other_half = write_texts(tmp_path / "o.jsonl", [*prose[1:60:2], *programs[1:60:2]])
    hopeless = made(
        "classifier", positive=(mixed_up,), negative=(other_half,), min_precision=0.7, held_out=0.5
    )
    (tmp_path / "fourth").mkdir()
    with pytest.raises(
        DataError, match=r"precision is 0\.\d+ .* on held-out examples, so that 0\.\d+ can be promised"
    ):
        decided(hopeless, [[]], tmp_path / "fourth")
    saved.write_bytes(b"no model\n")
    with pytest.raises(DataError, match="train it again"):
        LinearClassifier.load(saved, "train it again")


def test_entropy_of_classes() -> None:
    """Natural logarithms; classes as they are described."""
    assert entropy_nats([]) == 0 and entropy_nats(["a"] * 5) == 0
    assert entropy_nats(["a", "b", "c", "c"]) == pytest.approx(2 * 0.25 * math.log(4) + 0.5 * math.log(2))
    assert shapes("The NATO of 1949, b2b walking.") == ["Aa", "AA", "of", "0", ",", "a0", "-ng", "."]
