"""What each step does, against the library it comes from or an independent count."""

from __future__ import annotations

import hashlib
import inspect
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_world import text_of
from hypothesis import given
from hypothesis import strategies as st

from cptron.corpus.document import Document, Dropped, Result, draw
from cptron.corpus.registry import STEPS, config_class, step_class
from cptron.corpus.step import ShardFeatures, Tally, read_verdicts
from cptron.corpus.steps import exact_dedup
from cptron.corpus.words import prose_of, sentence_ends, tokens_of
from cptron.errors import ConfigError, DataError

PROSE = "The engine and the house of stone have water. They lie by the river that is great, with light. " * 6
HINDI = "पानी की कीमत बढ़ी है। यह के लिए है।"


def made(name: str, **settings: Any) -> Any:
    """An opened step."""
    config = config_class(name)(**settings)
    assert not step_class(name).problem(config)
    step = step_class(name)(name, config, 0)
    step.open()
    return step


def apply(name: str, text: str, **settings: Any) -> Result:
    """What the step makes of a text."""
    result: Result = made(name, **settings).apply(Document(text, "x", "x"), Tally())
    return result


@pytest.mark.parametrize("name", sorted(STEPS))
def test_every_setting_is_explained(name: str) -> None:
    """A docstring for the class, and one behind each field: counted in the source."""
    config = config_class(name)
    source = Path(str(__import__(config.__module__, fromlist=["x"]).__file__)).read_text()
    body = source[source.index("class Config") : source.index("class Step")]
    assert body.count('"""') >= 2 * (len(config.__dataclass_fields__) + 1) - 2 * (name == "length")


@given(st.text(max_size=80), st.integers(0, 20), st.integers(0, 40))
def test_length(text: str, least: int, most: int) -> None:
    """Characters without white space at the ends."""
    step = made("length", min_characters=min(least, most), max_characters=most)
    inside = min(least, most) <= len(text.strip()) and (not most or len(text.strip()) <= most)
    assert isinstance(step.apply(Document(text, "x", "x"), Tally()), Document) == inside
    step = made("length", min_words=min(least, most), max_words=most)
    for words in (least, most, len(text.split())):
        inside = min(least, most) <= words and (not most or words <= most)
        found = step.apply(Document(" ".join(["w"] * words), "x", "x"), Tally())
        assert isinstance(found, Document) == inside


TEXTS = st.text(alphabet=st.sampled_from("ab &<;\n\t\x07é\u00a0âœ”ã\x83\x84#39x"), max_size=60)


@given(TEXTS)
def test_repair_is_that_of_ftfy(text: str) -> None:
    """On lines that are not shown to ftfy too."""
    ftfy = pytest.importorskip("ftfy")
    config = ftfy.TextFixerConfig(
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        normalization=None,
    )
    expected = ftfy.fix_text(text, config)
    result = made("normalise", form="none", spaces=False).apply(Document(text, "x", "x"), Tally())
    assert result == (Document(expected, "x", "x") if expected else Dropped("nothing_left"))


def test_spaces_and_form() -> None:
    """Blanks, line ends, empty lines; indentation stays; NFC."""
    pytest.importorskip("ftfy")
    result = apply("normalise", " a  b\u00a0 c \r\n\n\n\n    e\u0301  x\t\n")
    assert result == Document("a b c\n\n    \u00e9 x", "x", "x")


def test_words_of_hindi_are_whole() -> None:
    """Vowel signs belong to their word."""
    assert tokens_of(HINDI)[:4] == ["पानी", "की", "कीमत", "बढ़ी"]
    assert len(sentence_ends(HINDI)) == 2
    assert tokens_of("don't stop.") == ["don't", "stop", "."]
    assert prose_of("1,234.5 of 12:30, v1.2... a--b 1.") == [
        *("1,234.5", "of", "12:30", ",", "v1.2", "...", "a", "--", "b", "1", ".")
    ]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("gopher_quality", "Short text.", "gopher_short_doc"),
        ("gopher_quality", "# " * 60 + PROSE, "gopher_too_many_hashes"),
        ("gopher_quality", "wort " * 60, "gopher_enough_stop_words"),
        ("gopher_repetition", "The same line of text.\n" * 30, "dup_line_frac"),
        ("c4_quality", "no end of a line\n" * 9, "too_few_sentences"),
        ("c4_quality", PROSE + " { }.", "curly_bracket"),
        ("fineweb_quality", "short\nlines\nare\nhere\n", "line_punct_ratio"),
        ("gopher_quality", " \n ", "empty"),
    ],
)
def test_quality_rules_drop_for_their_reasons(name: str, text: str, reason: str) -> None:
    """Reasons as datatrove names them."""
    pytest.importorskip("datatrove")
    result = apply(name, text)
    assert isinstance(result, Dropped) and result.reason == reason


RULES = ("GopherQualityFilter", "GopherRepetitionFilter", "FineWebQualityFilter", "C4QualityFilter")
OTHERS = {
    "top_n_grams": ((0.5, 0.0, 0.4), ((2, 0.5), (4, 0.4))),
    "dup_n_grams": ((0.5, 0.4), ((5, 0.5), (6, 0.4))),
    "stop_words": (("und",), {"und"}),
}


@pytest.mark.parametrize("name", ["gopher_quality", "gopher_repetition", "fineweb_quality", "c4_quality"])
def test_settings_reach_the_rules(name: str) -> None:
    """What is not set is datatrove's own default; each that is set arrives in its filter, and no other changes."""
    filters = pytest.importorskip("datatrove.pipeline.filters")
    base, given_defaults = made(name).make_filter(filters, "eng")
    (rule,) = [one for one in base.__mro__ if one.__name__ in RULES]
    theirs = {key: one.default for key, one in inspect.signature(rule.__init__).parameters.items()}
    theirs["stop_words"] = ["the", "be", "to", "of", "and", "that", "have", "with"]
    assert given_defaults == {key: theirs[key] for key in given_defaults}
    fields = [key for key in config_class(name).__dataclass_fields__ if key not in ("words", "language")]
    assert given_defaults.keys() == {*fields, "language"}
    plain = vars(made(name)._filter)
    for number, key in enumerate(fields, start=101):
        old = getattr(config_class(name)(), key)
        value, wanted = OTHERS.get(key, (not old, not old) if isinstance(old, bool) else (number, number))
        other = vars(made(name, **{key: value})._filter)
        if key.endswith("n_grams"):
            changed = [new for new, old in zip(other["_rules"], plain["_rules"], strict=True) if new != old]
            assert changed == [list(wanted)]
            continue
        kinds = bool | int | float | tuple | set
        settings = [one for one in plain if one[0] != "_" and isinstance(plain[one], kinds)]
        assert [other[one] for one in settings if other[one] != plain[one]] == [wanted]


@pytest.mark.parametrize("name", ["gopher_quality", "fineweb_quality", "c4_quality"])
def test_prose_passes(name: str) -> None:
    """Good text is let through."""
    pytest.importorskip("datatrove")
    text = " ".join(text_of(number) for number in range(8))
    assert apply(name, text) == Document(text, "x", "x")


def test_c4_counts_the_lines_it_removes() -> None:
    """In its tally, by reason."""
    pytest.importorskip("datatrove")
    tally = Tally()
    result = made("c4_quality").apply(
        Document(PROSE + "\nno end\nWe use Javascript for all of it.", "x", "x"), tally
    )
    assert isinstance(result, Document) and result.text == PROSE.strip()
    assert tally["line-filter-javascript"] == 1 and tally["line-filter-no_terminal_punc"] == 1


@pytest.mark.parametrize(
    ("engine", "package", "labels"),
    [("script", "numpy", ("Latn", "Deva", "Grek")), ("py3langid", "py3langid", ("en", "hi", "el"))],
)
def test_languages(engine: str, package: str, labels: tuple[str, str, str]) -> None:
    """The label and score are kept; others are dropped by label, doubtful ones by score. A label that the engine never
    says would keep nothing, and is refused."""
    pytest.importorskip(package)
    for text, label in zip((PROSE, HINDI * 4), labels[:2], strict=True):
        result = apply("language", text, engine=engine, keep=labels[:2])
        assert isinstance(result, Document) and result.meta["language"] == label
        assert result.meta["language_score"] > 0.65
    assert isinstance(other := apply("language", PROSE, engine=engine, keep=labels[2:]), Dropped)
    assert other.reason == "other_language"
    strange = labels[0].swapcase()
    with pytest.raises(ConfigError, match=f"keep has {strange}, must be labels of {engine}: .*{labels[0]}"):
        apply("language", PROSE, engine=engine, keep=(labels[0], strange))
    low = apply("language", "123 456", engine=engine, threshold=0.999)
    assert isinstance(low, Dropped) and low.reason == "score_too_low"


def test_language_by_lingua() -> None:
    """Its models are in the package."""
    pytest.importorskip("lingua")
    result = apply("language", PROSE[:200], engine="lingua", threshold=0.1)
    assert isinstance(result, Document) and result.meta["language"] == "en"


def test_language_by_a_file_that_is_no_model(tmp_path: Path) -> None:
    """One line, and no crash."""
    pytest.importorskip("fasttext")
    (tmp_path / "lid.bin").write_bytes(b"no model at all")
    with pytest.raises(DataError, match="must be a fastText model"):
        apply("language", PROSE, engine="fasttext", model=str(tmp_path / "lid.bin"))


def test_blocklist(tmp_path: Path) -> None:
    """Whole words and phrases in any case; rates; inside of words where asked for."""
    (tmp_path / "list.txt").write_text("# comment\nbad\nVery  rude words\nvery wrong\n坏\n")
    files = (str(tmp_path / "list.txt"),)
    assert isinstance(apply("blocklist", "It is BAD.", files=files), Dropped)
    assert isinstance(apply("blocklist", "some very rude words", files=files), Dropped)
    assert isinstance(apply("blocklist", "something very wrong", files=files), Dropped)
    assert isinstance(apply("blocklist", "badly rude very words comment", files=files), Document)
    assert isinstance(apply("blocklist", "很坏的", files=files), Document)
    assert isinstance(apply("blocklist", "很坏的", files=files, within_words=True), Dropped)
    assert isinstance(
        apply("blocklist", "bad " + "x " * 999, files=files, min_hits_per_1000_words=1.5), Document
    )
    marked = apply("blocklist", "bad bad", files=files, action="mark")
    assert isinstance(marked, Document) and marked.meta == {"blocklist_hits": 2}


SAME = {
    "text": lambda text: text,
    "spaces": lambda text: " ".join(text.split()),
    "words": lambda text: " ".join(text.casefold().split()),
}


@pytest.mark.parametrize("same", sorted(SAME))
@pytest.mark.parametrize("at_once", [3, 1000])
def test_exact_duplicates_against_a_set(
    same: str, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first in the order of shards stays; the result does not depend on how many hashes are sorted together."""
    monkeypatch.setattr(exact_dedup, "_AT_ONCE", at_once)
    step = made("exact_dedup", same=same)
    choose = random.Random(1)
    texts = [[choose.choice(["a b", "a  b", "A b", "c", "d"]) for _ in range(7)] for _ in range(4)]
    shards = []
    for number, shard in enumerate(texts):
        documents = [Document(text, f"{number}#{place}", "x") for place, text in enumerate(shard)]
        step.features(iter(documents), tmp_path / f"{number}.features", Tally())
        shards.append(ShardFeatures(number, tmp_path / f"{number}.features", len(shard), lambda: iter(())))
    (tmp_path / "decided").mkdir()
    step.decide(shards, tmp_path / "decided", 1)
    seen: set[str] = set()
    for number, shard in enumerate(texts):
        keys = [SAME[same](text) for text in shard]
        expected = []
        for key in keys:
            expected.append(int(key in seen))
            seen.add(key)
        assert np.array_equal(read_verdicts(tmp_path / "decided", number), expected)
        verdict = step.applied(tmp_path / "decided", number)
        results = [verdict(Document(text, "x", "x"), Tally()) for text in shard]
        assert [isinstance(result, Dropped) for result in results] == expected
        with pytest.raises(DataError, match="has 7 verdicts, must have one a document"):
            verdict(Document("one more", "x", "x"), Tally())


def test_white_space_at_the_ends_has_no_length() -> None:
    """Two characters are within two."""
    assert isinstance(apply("length", " ab\n", max_characters=2), Document)


def test_half_a_hash_makes_no_duplicate(tmp_path: Path) -> None:
    """All 128 bits must be equal."""
    step, path = made("exact_dedup"), tmp_path / "f"
    hashes = np.array([(1, 1), (1, 1), (1, 2), (2, 1)], "<u8")  # sorted; of the documents 0, 3, 1, 2
    path.write_bytes(hashes.T.tobytes() + np.array([0, 3, 1, 2], "<u4").tobytes())
    step.decide([ShardFeatures(0, path, len(hashes), lambda: iter(()))], tmp_path, 1)
    assert read_verdicts(tmp_path, 0).tolist() == [0, 0, 0, 1]


def test_draw_is_uniform_and_its_own_for_each_seed() -> None:
    """And is a fixed number, so that no version draws another one unnoticed."""
    values = np.array([draw(str(number), 7) for number in range(4000)])
    assert abs(values.mean() - 0.5) < 0.03 and values.min() >= 0 and values.max() < 1
    assert draw("a", 1) != draw("a", 2)
    digest = hashlib.blake2b(b"a", digest_size=8, key=(1).to_bytes(8, "little")).digest()
    assert draw("a", 1) == int.from_bytes(digest, "little") / 2**64
