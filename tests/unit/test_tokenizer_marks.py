"""Marks joined to their letters: merges reach over vowel signs, words without marks are cut as before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from extension_world import DOMAIN, ENGLISH, make_base
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from cptron.errors import DataError
from cptron.tokenizer.base import Base, open_base
from cptron.tokenizer.extend import ExtendOptions, extend
from cptron.tokenizer.extended import extended_content, write_extended
from cptron.tokenizer.marks import join_marks
from cptron.tokenizer.reach import unreachable
from cptron.tokenizer.texts import Corpus
from cptron.tokens.byte_lengths import ALPHABET

HINDI = DOMAIN[1]
WITHOUT_MARKS = st.text(st.characters(exclude_categories=("Cs", "Mn", "Mc", "Me")), max_size=40)
AFTER_OTHERS = "❤️ 1️⃣ ति-ति 's ति's 100ति !ि"
"""Marks behind symbols, digits and spaces too: those stay where they were."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    """One of each way to cut words."""
    root = tmp_path_factory.mktemp("bases")
    return {kind: open_base(make_base(root / kind, kind)) for kind in ("gpt2", "llama3", "qwen")}


def words(base: Base, text: str) -> list[str]:
    """As the pre-tokenizer cuts them."""
    cut = base.backend.pre_tokenizer.pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in cut]


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen"])
def test_words_keep_their_marks(kind: str, bases: dict[str, Base]) -> None:
    """And symbols and digits are cut as before."""
    base, joined = bases[kind], join_marks(bases[kind])
    assert [word.strip() for word in words(joined, "हिन्दी में")] == ["हिन्दी", "में"]
    assert len(words(base, "हिन्दी में")) > 4
    assert words(joined, "❤️ 1️⃣ x") == words(base, "❤️ 1️⃣ x")


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen"])
@settings(max_examples=60)
@given(text=WITHOUT_MARKS)
def test_text_without_marks_is_cut_as_before(kind: str, bases: dict[str, Base], text: str) -> None:
    """Into the same words, whatever it is."""
    assert words(join_marks(bases[kind]), text) == words(bases[kind], text)


def extended(base: Path, output: Path, *, joined: bool) -> dict[str, object]:
    """The report of an extension for Hindi."""
    for name, texts in (("hindi", [HINDI] * 12), ("english", ENGLISH[:3])):
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (output.parent / f"{name}.jsonl").write_text("".join(lines))
    hindi = Corpus(inputs=(str(output.parent / "hindi.jsonl"),))
    options = ExtendOptions(
        model=base,
        output=output,
        domain=hindi,
        held_out=hindi,
        general=Corpus(inputs=(str(output.parent / "english.jsonl"),)),
        num_tokens=60,
        min_count=2,
        join_marks=joined,
    )
    return extend(options)


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_extension_over_marks(name: str, tmp_path: Path) -> None:
    """Far fewer tokens, all reached, texts come back, English as it was; and `transformers`, whose own classes make
    their own pre-tokenizer, cuts as the file says."""
    from transformers import AutoTokenizer

    base = make_base(tmp_path / "base", "gpt2" if name == "GPT2Tokenizer" else "qwen")
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": name}))
    plain = extended(base, tmp_path / "plain", joined=False)
    report = extended(base, tmp_path / "joined", joined=True)
    assert report["marks_joined"] is True
    assert plain["marks_joined"] is False
    after, before = (one["domain"]["tokens_per_byte_after"] for one in (report, plain))  # type: ignore[index]
    assert after < 0.8 * before
    assert report["general"]["documents_cut_otherwise"] == plain["general"]["documents_cut_otherwise"] == 0  # type: ignore[index]
    backend = Backend.from_file(str(tmp_path / "joined" / "tokenizer.json"))
    reader = AutoTokenizer.from_pretrained(tmp_path / "joined")
    for text in (HINDI, AFTER_OTHERS, *ENGLISH[:3]):
        ids = backend.encode(text, add_special_tokens=False).ids
        assert reader(text, add_special_tokens=False)["input_ids"] == ids
        assert backend.decode(ids) == text
    assert max(backend.encode(HINDI).ids) >= report["vocab_size_before"]  # type: ignore[operator]


def test_nothing_to_join(tmp_path: Path, bases: dict[str, Base]) -> None:
    """SentencePiece has no such words, and a pre-tokenizer that knows marks needs no change."""
    with pytest.raises(DataError, match="no mark to join to them; remove --join-marks"):
        join_marks(open_base(make_base(tmp_path / "base", "llama2")))
    with pytest.raises(DataError, match="remove --join-marks"):
        join_marks(join_marks(bases["llama3"]))


def test_a_part_of_a_character_behind_a_mark_is_reached(tmp_path: Path) -> None:
    """A sign, a letter and the first bytes of what follows, which in the word it was learned in became more: another
    letter shows it, behind the same consonant, for no word begins with a sign."""
    (tmp_path / "base").mkdir()
    backend = Backend(models.BPE({character: i for i, character in enumerate(ALPHABET.values())}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    backend.save(str(tmp_path / "base" / "tokenizer.json"))
    base = join_marks(open_base(tmp_path / "base"))
    lead, sign, ta = (
        "".join(ALPHABET[byte] for byte in text) for text in (b"\xe0\xa4", "ि".encode(), "त".encode())
    )
    pairs = [(lead[0], lead[1]), (lead, sign[2]), (lead, ta[2]), (sign, ta), (sign + ta, lead)]
    pairs.append((sign + ta + lead, ALPHABET["द".encode()[2]]))
    new = {left + right: 256 + number for number, (left, right) in enumerate(pairs)}
    ids = {**base.vocab, **new}
    merges = [(ids[left], ids[right]) for left, right in pairs]
    word = tuple(base.vocab[ALPHABET[byte]] for byte in "कितद".encode())
    (tmp_path / "new").mkdir()
    extended = write_extended(base, extended_content(base, new, merges), tmp_path / "new")
    assert new[sign + ta + lead] not in extended.tokenizer.encode("कितद")
    assert unreachable(base, extended, new, dict.fromkeys(new.values(), word)) == []
