"""Steps with an engine that is installed apart, against that library called directly; skipped where it is absent."""

from __future__ import annotations

import importlib.util
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from select_world import decided, made

from cptron.corpus.document import Document, Dropped
from cptron.corpus.optional import remedy_of
from cptron.corpus.step import Tally
from cptron.errors import DataError

ARPA = """
\\data\\
ngram 1=5
ngram 2=2

\\1-grams:
-1.2\t<unk>\t0
0\t<s>\t-0.3
-0.9\t</s>\t0
-0.7\tcat\t-0.2
-0.8\tthe\t-0.4

\\2-grams:
-0.25\t<s> the
-0.15\tthe cat

\\end\\
"""


def write_fasttext(
    path: Path, words: Mapping[str, Sequence[float]], labels: Mapping[str, Sequence[float]]
) -> str:
    """A classifier in fastText's format: vectors of words and of labels, without n-grams; probabilities by softmax."""
    dim, softmax, supervised = len(next(iter(words.values()))), 3, 3
    head = [793712314, 12, dim, 5, 1, 1, 5, 1, softmax, supervised, 0, 0, 0, 100]
    content = struct.pack(f"<{len(head)}id", *head, 1e-4)
    names = [*words, *(f"__label__{label}" for label in labels)]
    content += struct.pack("<iiiqq", len(names), len(words), len(labels), 100, -1)
    for number, name in enumerate(names):
        content += name.encode() + struct.pack("<bqb", 0, 10 - number, number >= len(words))
    for rows in (words, labels):
        values = [value for row in rows.values() for value in row]
        content += struct.pack(f"<?qq{len(values)}f", False, len(rows), dim, *values)
    path.write_bytes(content)
    return str(path)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """Knows four words of two languages."""
    words = {"cat": [2.0, 0.0], "the": [1.0, 0.0], "katze": [0.0, 2.0], "die": [0.0, 1.0]}
    return write_fasttext(tmp_path / "model.bin", words, {"en": [1.0, -1.0], "de": [-1.0, 1.0]})


def softmax_of(logit: float, other: float) -> float:
    """Of two."""
    return 1 / (1 + math.exp(other - logit))


def test_fasttext(model: str, tmp_path: Path) -> None:
    """Language and classifier: the probability is the softmax over the mean vector, line ends are spaces."""
    pytest.importorskip("fasttext", reason="fasttext-predict is not installed")
    expected = softmax_of(1.5, -1.5)
    result = made("language", engine="fasttext", model=model).apply(Document("the\ncat", "x", "x"), Tally())
    assert result.meta["language"] == "en"
    assert result.meta["language_score"] == pytest.approx(expected, abs=2e-4)
    step = made("classifier", engine="fasttext", model=model, label="de", threshold=0.4)
    texts = ["die katze", "the cat", "the die"]
    shards = [[Document(text, str(number), "x") for number, text in enumerate(texts)]]
    kept, other, doubtful = decided(step, shards, tmp_path)[1]
    assert isinstance(other, Dropped) and other.reason == "other_domain"
    assert isinstance(kept, Document) and kept.meta["classifier_score"] == pytest.approx(expected, abs=2e-4)
    assert isinstance(doubtful, Document) and doubtful.meta["classifier_score"] == pytest.approx(
        0.5, abs=2e-4
    )


def test_kenlm(tmp_path: Path) -> None:
    """Words of a line, its end, and unknown words, in nats; a file that is no model is one line."""
    kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed: pip install kenlm")
    path = tmp_path / "model.arpa"
    path.write_text(ARPA)
    step = made("perplexity", engine="kenlm", model=str(path))
    result = step.apply(Document("The cat\n\nThe zebra", "x", "x"), Tally())
    log10 = (-0.25 - 0.15 + (-0.2 - 0.9)) + (-0.25 + (-0.4 - 1.2) - 0.9)
    assert result.meta["perplexity_nats_per_token"] == pytest.approx(-log10 * math.log(10) / 6, rel=1e-5)
    theirs = kenlm.Model(str(path))
    assert theirs.score("the cat") + theirs.score("the zebra") == pytest.approx(log10, rel=1e-5)
    assert step.apply(Document(" \n ", "x", "x"), Tally()) == Dropped("nothing_to_predict")
    path.write_text("no model")
    with pytest.raises(DataError, match="must be a KenLM model"):
        made("perplexity", engine="kenlm", model=str(path))


PEOPLE = "Angela Merkel met Emmanuel Macron in Berlin on Monday. The engine has a pump."


@pytest.fixture(scope="module")
def analyzer() -> Any:
    """Presidio with the small English model, set up as its own pages say."""
    presidio = pytest.importorskip("presidio_analyzer", reason="presidio-analyzer is not installed")
    pytest.importorskip("en_core_web_sm", reason="the spaCy model en_core_web_sm is not installed")
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    models = [{"lang_code": "en", "model_name": "en_core_web_sm"}]
    engine = NlpEngineProvider(
        nlp_configuration={"nlp_engine_name": "spacy", "models": models}
    ).create_engine()
    return presidio.AnalyzerEngine(nlp_engine=engine)


def test_presidio_with_a_model(analyzer: Any) -> None:
    """Names and places as the library finds them, and nothing else; the model is part of what decides the result."""
    step = made("presidio", spacy_model="en_core_web_sm")
    tally = Tally()
    result = step.apply(Document(PEOPLE, "x", "x"), tally)
    found = analyzer.analyze(PEOPLE, language="en", entities=["PERSON", "LOCATION"], score_threshold=0.5)
    expected = PEOPLE
    for hit in sorted(found, key=lambda hit: -hit.start):
        expected = expected[: hit.start] + f"<{hit.entity_type}>" + expected[hit.end :]
    assert result.text == expected
    assert "Merkel" not in result.text and "Berlin" not in result.text and "has a pump" in result.text
    assert tally.total() == len(found) >= 3
    assert [path.name for path in step.files()] == ["meta.json"]


def test_presidio_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its check of the domains of addresses takes the list of suffixes that is in the package."""
    pytest.importorskip("presidio_analyzer", reason="presidio-analyzer is not installed")
    requests = pytest.importorskip("requests")

    def refuse(*args: Any, **more: Any) -> None:
        raise AssertionError(f"a request {args}")

    monkeypatch.setattr(requests.Session, "send", refuse)
    step = made("presidio", entities=("EMAIL_ADDRESS",))
    result = step.apply(Document("Write to ann@example.co.uk, not to x@y.", "x", "x"), Tally())
    assert result.text == "Write to <EMAIL_ADDRESS>, not to x@y."


def test_spacy_tags() -> None:
    """The parts of speech are the model's."""
    pytest.importorskip("en_core_web_sm", reason="the spaCy model en_core_web_sm is not installed")
    from cptron.corpus.select.tags import open_tagger

    spacy = pytest.importorskip("spacy")
    tags = open_tagger("spacy", "en_core_web_sm", "dacp")(PEOPLE)
    assert tags == [token.tag_ for token in spacy.load("en_core_web_sm")(PEOPLE)]
    assert tags[:3] == ["NNP", "NNP", "VBD"]


@pytest.mark.more
def test_nltk_without_its_data() -> None:
    """One line that names the data."""
    nltk = pytest.importorskip("nltk", reason="nltk is not installed")
    try:
        nltk.data.find("taggers/averaged_perceptron_tagger_eng/")
    except LookupError:
        from cptron.corpus.select.tags import open_tagger

        with pytest.raises(DataError, match="install averaged_perceptron_tagger_eng"):
            open_tagger("nltk", "", "dacp")
    else:
        pytest.skip("the data of nltk's tagger is installed")


def test_words_of_datatrove() -> None:
    """The quality rules by datatrove's own tokenizer give what its filter gives."""
    pytest.importorskip("spacy", reason="spaCy is not installed")
    filters = pytest.importorskip("datatrove.pipeline.filters", reason="datatrove is not installed")
    from datatrove.data import Document as Theirs

    texts = ["It isn't the U.S.A. that has the engine. " * 12, "the and of to " * 30, "word " * 60]
    step = made("gopher_quality", words="datatrove", language="eng")
    theirs = filters.GopherQualityFilter(language="eng")
    for text in texts:
        result = step.apply(Document(text, "x", "x"), Tally())
        verdict = theirs.filter(Theirs(text, "x"))
        assert isinstance(result, Document) == (verdict is True), (text, verdict)


def test_words_that_datatrove_cannot_cut() -> None:
    """One line before the first document: of a language it does not know, and without spaCy."""
    pytest.importorskip("datatrove", reason="datatrove is not installed")
    languages = ["zz_nothing"] if importlib.util.find_spec("spacy") else ["zz_nothing", "eng"]
    for language in languages:
        with pytest.raises(DataError, match=f"words of '{language}' cannot be cut"):
            made("gopher_quality", words="datatrove", language=language)


def test_what_to_type() -> None:
    """What the extra does not install is named by itself."""
    assert remedy_of("ftfy") == "pip install 'cptron[curate]'"
    assert remedy_of("presidio-analyzer and spacy") == "pip install presidio-analyzer spacy"
    assert remedy_of("the spaCy model en_core_web_sm") == "python -m spacy download en_core_web_sm"
    if not importlib.util.find_spec("kenlm"):
        with pytest.raises(DataError, match=r"pip install kenlm$"):
            made("perplexity", engine="kenlm", model="x")
