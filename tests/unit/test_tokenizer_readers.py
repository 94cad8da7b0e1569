"""Extended tokenizers under independent readers: `transformers` with the class that models name, `sentencepiece` with
the model that a tokenizer was converted from."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from extension_world import DOMAIN, ENGLISH, blocks, make_base

from cptron.errors import DataError
from cptron.tokenizer.base import Base, open_base
from cptron.tokenizer.extend import learn
from cptron.tokenizer.extended import extended_content, write_extended
from cptron.tokenizer.reach import unreachable
from cptron.tokenizer.word_counts import count_words

TEXTS = [*DOMAIN[:4], *ENGLISH[:3], "x<|end|>y", "two  spaces\n\nand lines \t", "é ß 漢字 🔎︎ ا", ""]
"""None begins with a space: there `transformers` differs from `sentencepiece` already for the base."""


def extended(base: Base, target: Path, new_tokens: int) -> Base:
    """The base with tokens for the domain, all of them reached."""
    learned = learn(base, count_words(base, blocks(DOMAIN)), new_tokens, 2)
    target.mkdir()
    new = write_extended(base, extended_content(base, learned.new_tokens, learned.merges), target)
    assert unreachable(base, new, learned.new_tokens, learned.witness) == []
    return new


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("gpt2", "GPT2Tokenizer"),
        ("qwen", "Qwen2Tokenizer"),
        ("llama3", "PreTrainedTokenizerFast"),
        ("llama2", "LlamaTokenizer"),
    ],
)
def test_transformers_gives_the_same_ids(kind: str, name: str, tmp_path: Path) -> None:
    """Some of its classes build the tokenizer anew from vocabulary and merges; the text comes back as well."""
    from transformers import AutoTokenizer

    base = make_base(tmp_path / "base", kind)
    if kind == "qwen":  # the class has its own words: a number's digits are one each
        file = base / "tokenizer.json"
        file.write_text(file.read_text().replace(r"\\p{N}{1,3}", r"\\p{N}"))
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": name}))
    new = extended(open_base(base), tmp_path / "new", 60)
    reader = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert new.tokens.items() <= {number: token for token, number in reader.get_vocab().items()}.items()
    assert reader.eos_token_id == new.tokenizer.eos_id
    for text in TEXTS:
        ids = reader(text, add_special_tokens=False)["input_ids"]
        assert ids == new.tokenizer.encode(text)
        assert reader.decode(ids) == new.tokenizer.decode(ids)
    assert max(reader(DOMAIN[0])["input_ids"]) >= open_base(base).tokenizer.vocab_size


def sentencepiece_model(texts: list[str], vocab_size: int) -> bytes:
    """Trained here, as Llama-2's was: BPE, bytes for what is unknown."""
    import sentencepiece

    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=stream,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return stream.getvalue()


def test_a_sentencepiece_model(tmp_path: Path) -> None:
    """Alone it is refused with the way to go; saved once by `transformers` it is extended: the base has the ids of
    `sentencepiece`, which stay where no new token is, and every text comes back as `sentencepiece` gives it."""
    import sentencepiece
    from transformers import AutoTokenizer, LlamaTokenizer

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.model").write_bytes(sentencepiece_model(ENGLISH, 380))
    with pytest.raises(DataError, match=r"has no tokenizer\.json.*save_pretrained"):
        open_base(tmp_path / "model")
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": True}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    LlamaTokenizer.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "base")
    base = open_base(tmp_path / "base")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "model" / "tokenizer.model"))
    new = extended(base, tmp_path / "new", 120)
    reader = AutoTokenizer.from_pretrained(tmp_path / "new")
    for text in TEXTS:
        assert base.tokenizer.encode(text) == pieces.encode(text)
        ids = new.tokenizer.encode(text)
        assert reader(text, add_special_tokens=False)["input_ids"] == ids
        assert len(ids) <= len(pieces.encode(text))
        assert new.tokenizer.decode(ids) == text
        if max(ids, default=0) < base.tokenizer.vocab_size:
            assert ids == pieces.encode(text)
    assert len(new.tokenizer.encode(DOMAIN[0])) < 0.6 * len(pieces.encode(DOMAIN[0]))
