"""What a budget buys, DSIR and DACP on real text, quantiles; all selecting steps in one curation: workers and kills."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_world import config_of, documents_of, files_of, run
from hypothesis import given
from hypothesis import strategies as st
from select_world import decided, documents, made, program_texts, prose_texts, save_causal, write_texts

from cptron.corpus import work
from cptron.corpus.document import Document, Dropped
from cptron.corpus.registry import config_class, step_class
from cptron.corpus.select.budget import choose, efraimidis_spirakis, gumbel, quantile_ranks
from cptron.corpus.select.ngrams import bucket_counts, mixed, word_hashes
from cptron.errors import DataError


def budget(**settings: Any) -> Any:
    """Settings of a step with a budget."""
    return config_class("dacp")(method="eta_diversity", **settings)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 9)), max_size=30), st.integers(1, 40))
def test_budget_takes_the_best_that_fit(items: list[tuple[int, int]], most: int) -> None:
    """Against a loop: by key, then place; those too long for any budget are passed over; the first that does not fit
    ends it."""
    keys = np.array([key for key, _ in items], np.float64)
    sizes = np.array([size for _, size in items], np.int64)
    codes, _ = choose(keys, sizes, budget(budget=most))
    left, kept = most, set()
    for place in sorted(range(len(items)), key=lambda place: (-keys[place], place)):
        if sizes[place] > most:
            continue
        if sizes[place] > left:
            break
        left -= sizes[place]
        kept.add(place)
    assert [int(code) for code in codes] == [
        0 if i in kept else 2 if sizes[i] > most else 1 for i in range(len(items))
    ]


@pytest.mark.parametrize("noise", ["gumbel", "efraimidis_spirakis"])
def test_soft_draws_go_by_weights(noise: str) -> None:
    """The share of draws in which each is first is its weight's."""
    weights = np.array([1.0, 2.0, 5.0, 0.0])
    uniform = np.random.default_rng(1).random((20_000, 4))
    with np.errstate(divide="ignore"):
        keys = (
            np.log(weights) + gumbel(uniform) if noise == "gumbel" else efraimidis_spirakis(uniform, weights)
        )
    shares = np.bincount(keys.argmax(axis=1), minlength=4) / len(uniform)
    assert shares == pytest.approx(weights / weights.sum(), abs=0.012)


def test_ngrams_are_counted_by_bucket() -> None:
    """Against Python's integers: words by CRC-32, runs of them mixed one by one."""
    words = [int(value) for value in word_hashes("To be, or not to be")]
    assert words[0] == words[5] != words[1] and len(words) == 7
    buckets, counts = bucket_counts("To be, or not to be", 1000, 2)
    zero = np.zeros(1, np.uint64)
    singles = [int(mixed(zero ^ np.uint64(word))[0]) for word in words]
    pairs = [
        int(mixed(np.array([one ^ word], np.uint64))[0])
        for one, word in zip(singles, words[1:], strict=False)
    ]
    expected = np.bincount([value % 1000 for value in singles + pairs], minlength=1000)
    assert dict(zip(buckets.tolist(), counts.tolist(), strict=True)) == {
        bucket: int(count) for bucket, count in enumerate(expected) if count
    }
    assert len(bucket_counts("", 1000, 2)[0]) == 0


@pytest.mark.parametrize(
    ("sampling", "weight"), [("hard", "sum"), ("soft", "sum"), ("soft", "mean"), ("hard", "mean")]
)
def test_dsir_finds_the_target(sampling: str, weight: str, tmp_path: Path) -> None:
    """Programs within prose, by other programs: 90 % of what is taken at least; the divergence falls."""
    prose, programs = prose_texts()[:300], program_texts()
    target = write_texts(tmp_path / "t.jsonl", programs[::2])
    mix = [documents(prose[:150] + programs[1:80:4]), documents(programs[3:80:4] + prose[150:])]
    step = made("dsir", target=(target,), budget=30, unit="documents", sampling=sampling, weight=weight)
    codes, results, _ = decided(step, mix, tmp_path)
    is_program = np.array([document.text in set(programs) for shard in mix for document in shard])
    assert (codes == 0).sum() == 30 and is_program[codes == 0].mean() >= 0.9
    assert all(
        isinstance(one, Document if code == 0 else Dropped) for one, code in zip(results, codes, strict=True)
    )
    figures = json.loads((tmp_path / "decided" / "figures.json").read_text())
    assert figures["kl_reduction_nats"] > 0.1 and figures["selected_documents"] == 30


def test_dsir_weights_are_those_of_the_formula(tmp_path: Path) -> None:
    """Sum of log ratios of smoothed shares, over words; hash collisions apart."""
    target = write_texts(tmp_path / "t.jsonl", ["a a b"])
    step = made(
        "dsir", target=(target,), longest=1, buckets=1000, weight="sum", sampling="hard", budget_share=1.0
    )
    _, results, _ = decided(step, [documents(["a b", "c c c c", ""])], tmp_path)
    p = {"a": 3 / 1003, "b": 2 / 1003, "c": 1 / 1003}
    q = {"a": 2 / 1006, "b": 2 / 1006, "c": 5 / 1006}
    expected = [sum(math.log(p[word] / q[word]) for word in text.split()) for text in ("a b", "c c c c", "")]
    assert [one.meta["dsir_score"] for one in results if isinstance(one, Document)] == pytest.approx(
        expected, abs=1e-4
    )


def test_budget_in_tokens(tmp_path: Path) -> None:
    """Counted by the tokenizer."""
    from transformers import AutoTokenizer

    model = save_causal(tmp_path / "m")
    texts = ["the thing", "th th", "abc", "xyz xyz xyz"]
    lengths = [len(AutoTokenizer.from_pretrained(model)(text)["input_ids"]) for text in texts]
    step = made("dacp", method="eta_diversity", budget=sum(lengths) - 1, unit="tokens", tokenizer=str(model))
    codes, _, _ = decided(step, [documents(texts)], tmp_path)
    assert sum(codes) == 1
    figures = json.loads((tmp_path / "decided" / "figures.json").read_text())
    assert figures["selected_tokens"] == sum(n for n, code in zip(lengths, codes, strict=True) if not code)


def test_ets_is_the_cosine_of_tfidf(tmp_path: Path) -> None:
    """Against the formulas, over words."""
    corpus, task = ["a a b", "b c", "d", ""], ["a b", "a"]
    step = made("dacp", method="ets", task=(write_texts(tmp_path / "t.jsonl", task),), budget_share=1.0)
    _, results, _ = decided(step, [documents(corpus[:2]), documents(corpus[2:])], tmp_path)
    words = "abcd"
    frequency = np.array([sum(word in text for text in corpus) for word in words])
    inverse = np.log((1 + len(corpus)) / (1 + frequency)) + 1

    def vector(text: str) -> Any:
        counts = np.array([text.count(word) for word in words], float)
        weights = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * inverse
        return weights / max(1e-12, np.linalg.norm(weights))

    mean = np.mean([vector(text) for text in task], axis=0)
    expected = [float(vector(text) @ mean / np.linalg.norm(mean)) for text in corpus]
    assert [one.meta["dacp_score"] for one in results if isinstance(one, Document)] == pytest.approx(
        expected, abs=1e-4
    )


def test_ets_by_an_encoder(tmp_path: Path) -> None:
    """Mean of the last hidden states of the whole document; the likest text is the example itself."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    directory = save_causal(tmp_path / "m")
    task = write_texts(tmp_path / "t.jsonl", ["the thing itself"])
    step = made(
        "dacp", method="ets", task=(task,), embedding="encoder", encoder=str(directory), budget_share=1.0
    )
    texts = ["the thing itself", "XYZ 123", "other words " * 3]
    _, results, _ = decided(step, [documents(texts)], tmp_path)
    model, tokenizer = AutoModel.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    with torch.inference_mode():
        vectors = [
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts
        ]
    expected = [float(torch.cosine_similarity(vectors[0], vector, dim=0)) for vector in vectors]
    assert [one.meta["dacp_score"] for one in results if isinstance(one, Document)] == pytest.approx(
        expected, abs=2e-4
    )
    long = step._encoder.vector("the same words again " * 40)
    assert np.isfinite(long).all()


def test_com_is_the_mean_of_quantile_ranks(tmp_path: Path) -> None:
    """Ranks with ties counted half; a document without its loss is refused."""
    assert quantile_ranks(np.array([3.0, 1.0, 1.0, 9.0])).tolist() == [0.625, 0.25, 0.25, 0.875]
    step = made("dacp", method="eta_com", novelty_key="loss", budget_share=1.0)
    given_documents = [
        Document(text, f"x#{number}", "x", {"loss": loss})
        for number, (text, loss) in enumerate([("a b c d", 1.0), ("a a", 3.0), ("a b", 2.0)])
    ]
    _, results, _ = decided(step, [given_documents], tmp_path)
    scores = [one.meta["dacp_score"] for one in results if isinstance(one, Document)]
    assert scores == pytest.approx([(1 / 6 + 5 / 6) / 2, (5 / 6 + 1 / 6) / 2, 0.5], abs=1e-4)
    with pytest.raises(DataError, match="must be a number"):
        step.features(iter(documents(["a"])), tmp_path / "f", None)


def test_quantiles_by_group(tmp_path: Path) -> None:
    """Each language by itself; buckets; documents without a number pass, or go."""
    shards = [
        [Document("x", f"{language}#{n}", "x", {"loss": n + more, "language": language}) for n in range(10)]
        for language, more in (("en", 0), ("hi", 100))
    ]
    shards.append(documents(["no number"]))
    step = made("quantile", key="loss", lowest=0.2, highest=0.9, by="language")
    codes, results, tally = decided(step, shards, tmp_path)
    assert codes.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 2] * 2 + [0]
    buckets = [one.meta.get("quantile_bucket") for one in results if isinstance(one, Document)]
    assert buckets == [*["head"], *["middle"] * 4, *["tail"] * 2] * 2 + [None]
    assert tally["no_number"] == 1
    (tmp_path / "drop").mkdir()
    codes, _, _ = decided(made("quantile", key="loss", missing="drop"), shards, tmp_path / "drop")
    assert codes.tolist() == [0] * 20 + [3]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="put the step that writes it before"):
        decided(made("quantile", key="gone"), shards, tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "settings", "what"),
    [
        ("dsir", {"target": ()}, "must name a file"),
        ("dsir", {"target": ("a",), "unit": "tokens"}, "tokenizer"),
        ("dsir", {"target": ("a",), "budget_share": 0.0}, "above 0"),
        ("dsir", {"target": ("a",), "buckets": 70_000}, "65536"),
        ("dacp", {"method": "ets"}, "task has 0"),
        ("dacp", {"method": "eta_com", "tagger": "spacy"}, "tagger_model"),
        ("quantile", {"key": "a", "lowest": 0.9, "highest": 0.1}, "below highest"),
        ("perplexity", {"model": "a", "stride": 2000}, "below window"),
        ("perplexity", {"model": "a", "least": 3.0, "most": 1.0}, "not below it"),
        ("ngram_perplexity", {"reference": ("a",), "order": 9}, "1 to 6"),
        ("classifier", {"positive": ("a",)}, "both kinds"),
        ("classifier", {"model": "a", "engine": "fasttext"}, "label and threshold"),
    ],
)
def test_settings_are_refused(name: str, settings: dict[str, Any], what: str) -> None:
    """In one line, with the rule."""
    problem = step_class(name).problem(config_class(name)(**settings))
    assert what in problem and "\n" not in problem


def pipeline(root: Path) -> dict[str, Any]:
    """Every selecting step but `perplexity`, one behind the other, over four shards."""
    prose, programs = prose_texts(), program_texts()
    inputs = {"web": [write_texts(root / "w.jsonl", [text[:300] for text in prose[:48] + programs[:16]])]}
    target = [write_texts(root / "t.jsonl", programs[60:90])]
    other = [write_texts(root / "o.jsonl", prose[48:88])]
    steps: list[dict[str, Any]] = [
        {"step": "ngram_perplexity", "reference": other},
        {"step": "quantile", "key": "ngram_perplexity_bits_per_byte", "highest": 0.95},
        {"step": "dsir", "target": target, "budget_share": 0.8},
        {
            "step": "dacp",
            "method": "ets_com",
            "novelty_key": "ngram_perplexity_nats_per_token",
            "task": target,
            "budget_share": 0.7,
            "sampling": "soft",
        },
        {"step": "classifier", "positive": target, "negative": other, "min_precision": 0.6, "action": "mark"},
    ]
    return config_of(root / "out", inputs, steps, shard_bytes=8000)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings of the pipeline, run undisturbed in one process."""
    config = pipeline(tmp_path_factory.mktemp("select"))
    run(config)
    return config


def test_a_curation_of_all_selecting_steps(whole: dict[str, Any]) -> None:
    """Counts fit together, figures are in the report, scores in the documents."""
    output = Path(whole["output"])
    report = json.loads((output / "report.json").read_text())
    steps = {step["name"]: step for step in report["steps"]}
    assert (
        steps["dsir"]["figures"]["kl_reduction_nats"] != 0
        and "held_out_recall" in steps["classifier"]["figures"]
    )
    assert steps["dsir"]["samples"]["not_selected"][0]["detail"].startswith("score ")
    assert sum(steps["quantile"]["tally"].values()) == 64
    found = documents_of(output)
    assert 0 < len(found) == report["documents"] < 64
    assert all(
        {"dsir_score", "dacp_score", "classifier_score", "quantile_bucket"} <= set(one["meta"])
        for one in found
    )
    assert "kl_reduction_nats" in (output / "report.md").read_text().replace("\\", "")


def test_workers_do_not_matter_to_selection(whole: dict[str, Any], tmp_path: Path) -> None:
    """Byte for byte."""
    run({**whole, "output": str(tmp_path / "out")}, 2)
    assert files_of(tmp_path / "out") == files_of(Path(whole["output"]))


@pytest.mark.more
def test_workers_do_not_matter_to_perplexity(whole: dict[str, Any], tmp_path: Path) -> None:
    """Nor whether this process has torch and its threads already."""
    model = save_causal(tmp_path / "model")
    step = {"step": "perplexity", "model": str(model), "window": 64, "stride": 48, "max_windows": 2}
    for workers in (1, 2):
        run({**whole, "output": str(tmp_path / str(workers)), "steps": [step]}, workers)
    files = files_of(tmp_path / "1")
    assert files == files_of(tmp_path / "2")
    assert json.loads(files["report.json"])["steps"][0]["tally"]["tokens_measured"] > 0


class Cut(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("every", [5, pytest.param(3, marks=pytest.mark.more)])
def test_selection_cut_off_anywhere(
    every: int, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a unit, again and again, and in each decision once: the same bytes in the end."""
    config = {**whole, "output": str(tmp_path / "out")}
    calls, publish, replace = [0], run_module().own_directory, work.write_record
    seen: set[str] = set()

    def cut_units(path: Path, record: dict[str, Any]) -> None:
        calls[0] += 1
        if calls[0] % every == 0:
            raise Cut
        replace(path, record)

    @contextmanager
    def cut_decisions(path: Path) -> Iterator[Path]:
        with publish(path) as own:
            yield own
            if str(path) not in seen:
                seen.add(str(path))
                raise Cut

    monkeypatch.setattr(work, "write_record", cut_units)
    monkeypatch.setattr(run_module(), "own_directory", cut_decisions)
    cuts = 0
    while True:
        try:
            run(config)
            break
        except Cut:
            cuts += 1
            assert cuts < 60
    assert cuts > 8 and len(seen) == 5
    assert files_of(tmp_path / "out") == files_of(Path(whole["output"]))


def run_module() -> Any:
    """The module, not the function of `corpus_world`."""
    import cptron.corpus.run

    return cptron.corpus.run
