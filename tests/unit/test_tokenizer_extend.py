"""Continued BPE: cut as the real library cuts, no old id moves, nothing is unreachable, no text becomes longer."""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from extension_world import DOMAIN, ENGLISH, KINDS, blocks, make_base
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from cptron.errors import DataError
from cptron.tokenizer import word_counts
from cptron.tokenizer.base import Base, open_base
from cptron.tokenizer.extend import ExtendOptions, break_even, extend, learn
from cptron.tokenizer.extended import extended_content, require_old_ids, write_extended
from cptron.tokenizer.merge_loop import Learned, MergeLoop
from cptron.tokenizer.reach import unreachable
from cptron.tokenizer.texts import Corpus
from cptron.tokenizer.word_counts import count_words

NEW = 150
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=60)
NEAR_DOMAIN = st.lists(
    st.sampled_from([*"".join(DOMAIN[:4]).split(), " ", "\n", "aaa", "đ", "ि", "the", "'s"]), max_size=12
).map("".join)


@functools.cache
def extended(kind: str) -> tuple[Base, Base, Learned, Path]:
    """A base, its extension, what was learned and the directory. Nobody changes them."""
    root = Path(tempfile.mkdtemp(prefix="cptron-extend-"))
    base = open_base(make_base(root / "base", kind))
    learned = learn(base, count_words(base, blocks(DOMAIN)), NEW, 2)
    (root / "new").mkdir()
    content = extended_content(base, learned.new_tokens, learned.merges)
    return base, write_extended(base, content, root / "new"), learned, root


@pytest.mark.parametrize("kind", KINDS)
def test_new_tokens_are_reached_and_old_ids_stay(kind: str) -> None:
    """Every new token is found in a real encoding; ids go on after the last, added tokens included."""
    base, new, learned, _ = extended(kind)
    size = base.tokenizer.vocab_size
    assert list(learned.new_tokens.values()) == list(range(size, size + NEW))
    assert new.tokenizer.vocab_size == size + NEW
    require_old_ids(base, new)
    assert unreachable(base, new, learned.new_tokens, learned.witness) == []
    assert new.ignores_merges == (kind == "llama3")
    assert new.tokenizer.eos_id == base.tokenizer.eos_id
    if kind in ("llama3", "qwen"):  # a loader would number it after the vocabulary
        assert base.tokenizer.encode("x<|pad|>")[-1] == new.tokenizer.encode("x<|pad|>")[-1] < size


@pytest.mark.parametrize("kind", KINDS)
def test_domain_is_shorter_and_nothing_is_longer(kind: str) -> None:
    """The extension does what it is for."""
    base, new, _, _ = extended(kind)
    before, after = base.tokenizer.encode_batch(DOMAIN[:4]), new.tokenizer.encode_batch(DOMAIN[:4])
    assert sum(map(len, after)) < 0.6 * sum(map(len, before))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(text=st.one_of(TEXTS, NEAR_DOMAIN))
def test_any_text_comes_back_and_is_not_longer(kind: str, text: str) -> None:
    """What the extended tokenizer decodes is what the base decodes, from no more tokens."""
    base, new, _, _ = extended(kind)
    old_ids, new_ids = base.tokenizer.encode(text), new.tokenizer.encode(text)
    assert len(new_ids) <= len(old_ids)
    assert new.tokenizer.decode(new_ids) == base.tokenizer.decode(old_ids)
    if kind in ("gpt2", "llama3"):
        assert new.tokenizer.decode(new_ids) == text


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen"])
def test_words_are_cut_as_the_library_cuts_them(kind: str) -> None:
    """The loop's words after all merges are those of real encoding: its counts were real."""
    base, _, _, _ = extended(kind)
    counts = count_words(base, blocks(DOMAIN + ENGLISH))
    loop = loop_of(base, counts.words)
    learned = loop.learn(NEW, 2)
    content = extended_content(base, learned.new_tokens, learned.merges)
    model = Backend.from_str(json.dumps(content)).model
    for word, cut in zip(counts.words, loop.words, strict=True):
        token = "".join(base.tokens[number] for number in word)
        assert [piece.id for piece in model.tokenize(token)] == cut


def loop_of(base: Base, words: dict[tuple[int, ...], int]) -> MergeLoop:
    """The loop as `learn` makes it for a byte-level base."""
    return MergeLoop(
        words,
        tokens=base.tokens,
        merges=base.merges,
        closed=(),
        reserved=base.added,
        ignores_merges=base.ignores_merges,
        next_id=base.tokenizer.vocab_size,
    )


def toy(path: Path, tokens: list[str], merges: list[tuple[str, str]]) -> Base:
    """A byte-level base of given tokens beyond single bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*alphabet, *tokens])}
    backend = Backend(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    path.mkdir()
    backend.save(str(path / "tokenizer.json"))
    return open_base(path)


def test_a_merge_into_a_token_that_is_there_adds_none(tmp_path: Path) -> None:
    """`xyz` is in the vocabulary, made of `x` and `yz`, but `xy` comes first; and then `xyzxyz` is at once what the
    base's own merge of it makes, one place before the other."""
    merges = [("x", "y"), ("y", "z"), ("x", "yz"), ("xyz", "xy")]
    base = toy(tmp_path / "toy", ["xy", "yz", "xyz", "xyzxy"], merges)
    counts = count_words(base, blocks(["xyzxyz xyzxyz xyz"] * 9))
    learned = learn(base, counts, 3, 2)
    pairs = [(base.tokens.get(a), base.tokens.get(b)) for a, b in learned.merges]
    assert pairs[0] == ("xy", "z")
    assert len(learned.merges) > len(learned.new_tokens)
    assert not set(learned.new_tokens) & set(base.vocab)
    loop = loop_of(base, counts.words)
    loop.learn(3, 2)
    content = extended_content(base, learned.new_tokens, learned.merges)
    model = Backend.from_str(json.dumps(content)).model
    for word, cut in zip(counts.words, loop.words, strict=True):
        token = "".join(base.tokens[number] for number in word)
        assert [piece.id for piece in model.tokenize(token)] == cut


def test_long_texts_are_cut_where_words_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that memory is bounded and the counts are the same."""
    base, _, _, _ = extended("llama3")
    whole = count_words(base, blocks([" ".join(DOMAIN)]))
    monkeypatch.setattr(word_counts, "STRETCH", 25)
    assert count_words(base, blocks([" ".join(DOMAIN)])) == whole


def test_order_is_by_count_then_by_id(tmp_path: Path) -> None:
    """Known by hand: `ab` 5 times, then `cd` and `ef` 3 times each, the smaller ids first."""
    base = toy(tmp_path / "toy", [], [])
    learned = learn(base, count_words(base, blocks(["ab"] * 5 + ["ef"] * 3 + ["cd"] * 3 + ["gh"])), 9, 2)
    assert list(learned.new_tokens) == ["ab", "cd", "ef"]
    assert learned.exhausted


def test_no_merge_makes_the_text_of_an_added_token(tmp_path: Path) -> None:
    """Or ordinary text would become a special token."""
    base = toy(tmp_path / "toy", [], [])
    reserved = replace(base, content={**base.content, "added_tokens": [{"content": "ab", "id": 999}]})
    learned = learn(reserved, count_words(base, blocks(["abab"] * 5)), 1, 2)
    assert list(learned.new_tokens) == ["ba"]


def test_unreachable_is_seen() -> None:
    """A token without its merge is reported; so a report of none says something."""
    base, new, learned, root = extended("gpt2")
    content = extended_content(base, learned.new_tokens, learned.merges[:-1])
    (root / "broken").mkdir(exist_ok=True)
    broken = write_extended(base, content, root / "broken")
    assert unreachable(base, broken, learned.new_tokens, learned.witness) == [new.tokenizer.vocab_size - 1]


def corpus(path: Path, texts: list[str]) -> Corpus:
    """A JSONL file as a corpus."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Corpus(inputs=(str(path),))


def test_report(tmp_path: Path) -> None:
    """Its numbers are those of the libraries alone, and fewer tokens than asked for are said."""
    base = make_base(tmp_path / "base", "llama3")
    domain = [f"{text} {number}" for number, text in enumerate(DOMAIN)]
    options = ExtendOptions(
        model=base,
        output=tmp_path / "new",
        domain=corpus(tmp_path / "domain.jsonl", domain),
        held_out=corpus(tmp_path / "held_out.jsonl", DOMAIN[:4]),
        general=corpus(tmp_path / "general.jsonl", ENGLISH[:3]),
        num_tokens=10_000,
        min_count=12,
    )
    report = extend(options)
    assert report["stopped"].startswith("no pair is left that occurs 12 times: ")
    assert report["unreachable"] == 0
    assert json.loads((tmp_path / "new" / "extension.json").read_text()) == report
    backends = [Backend.from_file(str(path / "tokenizer.json")) for path in (base, tmp_path / "new")]
    for name, texts in (("domain", DOMAIN[:4]), ("general", ENGLISH[:3])):
        counts = [sum(len(e.ids) for e in backend.encode_batch(texts)) for backend in backends]
        num_bytes = sum(len(text.encode()) for text in texts)
        found = report[name]
        assert [found["tokens_per_byte_before"], found["tokens_per_byte_after"]] == [
            c / num_bytes for c in counts
        ]
        assert found["documents_with_more_tokens"] == 0
    ids = {i for e in backends[1].encode_batch(DOMAIN[:4]) for i in e.ids}
    unused = set(range(report["vocab_size_before"], report["vocab_size_after"])) - ids
    assert report["domain"]["new_tokens_unused"] == len(unused)
    with pytest.raises(Exception, match="already exists"):
        extend(options)


def test_break_even() -> None:
    """From so many bytes on, the tokens saved are those that the recovery cost."""
    from cptron.tokenizer.efficiency import Efficiency

    found = break_even(Efficiency(1, 1000, 400, 300, 0, 1, frozenset()), 1e6)
    assert found["domain_bytes"] == pytest.approx(1e7)
    before, after = found["domain_tokens_before"], found["domain_tokens_after"]
    assert before is not None and after is not None and before - after == pytest.approx(1e6)
    assert break_even(Efficiency(1, 1000, 400, 400, 0, 1, frozenset()), 1e6)["domain_bytes"] is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"), "is of type WordPiece, must be BPE"),
        (models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0), "is of type Unigram, must be BPE"),
        (models.BPE({"a": 0}, [], unk_token="a"), "without ByteLevel or byte_fallback"),
        (models.BPE({"a": 0, "b</w>": 1}, [], end_of_word_suffix="</w>"), "end_of_word_suffix '</w>'"),
        (models.BPE({"a": 0}, [], dropout=0.1), "has dropout 0.1"),
    ],
)
def test_other_kinds_are_refused(model: object, message: str, tmp_path: Path) -> None:
    """In one line that says what to do."""
    Backend(model).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=message) as refused:
        open_base(tmp_path)
    assert "\n" not in str(refused.value)


def test_nothing_frequent_enough(tmp_path: Path) -> None:
    """Is an error, and leaves nothing behind."""
    options = ExtendOptions(
        model=make_base(tmp_path / "base", "gpt2"),
        output=tmp_path / "new",
        domain=corpus(tmp_path / "domain.jsonl", [f"{number}" for number in range(100)]),
        min_count=1000,
    )
    with pytest.raises(DataError, match="so there is nothing to add"):
        extend(options)
    assert not (tmp_path / "new").exists()
