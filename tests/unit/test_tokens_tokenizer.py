"""Ids are those of transformers and sentencepiece, and equal fingerprints mean equal ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.errors import DataError
from cptron.tokens.tokenizer import Tokenizer, load_tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog; dogs don't mind.",
    "Die Übung macht den Meister, 1234 Jahre und ２ Wochen.",
    "def main(argv):\n    return 0\n\n\t# naïve café",
    "Xin chào thế giới, đây là tiếng Việt.",
] * 3
SPECIAL = ["<|endoftext|>", "<s>", "</s>", "<pad>", "<image>"]
PIECES = [
    "<|endof",
    "text|>",
    " ",
    "\n",
    "\u00a0",
    "\u200d",
    "e\u0301",
    "\x00",
    "\U0001f469\u200d\U0001f4bb",
    "▁",
    "Ġ",
]
TEXTS = st.lists(st.sampled_from([*SPECIAL, *PIECES]) | st.text(max_size=12), max_size=8).map("".join)


def byte_level() -> Any:
    """GPT-2's kind: byte-level BPE without a normalizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def metaspace() -> Any:
    """Llama's kind: a normalizer, `▁` for spaces, unknown characters as bytes, a token before every text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", backend.token_to_id("<unk>"))]
    )
    return backend


def save(directory: Path, backend: Any, **special: Any) -> Path:
    """Save as transformers does, special tokens added to the vocabulary."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(directory)
    return directory


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to a JSON file, which is made if it is not there."""
    content = json.loads(path.read_text()) if path.exists() else {}
    change(content)
    path.write_text(json.dumps(content))


def reference(directory: Path) -> Any:
    """The tokenizer as transformers loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


def plain(directory: Path) -> Path:
    """EOS, BOS and PAD are in `tokenizer.json`."""
    return save(directory, byte_level(), eos_token="<|endoftext|>", bos_token="<s>", pad_token="<pad>")


def normalized(directory: Path) -> Path:
    """A tokenizer that changes text before it cuts it."""
    return save(directory, metaspace(), eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def only_configured(directory: Path) -> Path:
    """Special tokens that only `tokenizer_config.json` knows: named, extra, and of the model's own role."""
    save(directory, byte_level())
    names = {"eos_token": "</s>", "image_token": "<image>", "extra_special_tokens": ["<pad>"]}
    edit(directory / "tokenizer_config.json", lambda config: config.update(names))
    return directory


def listed_by_id(directory: Path) -> Path:
    """Added tokens stated with their ids, the older way; one is an ordinary word that strips spaces."""
    save(directory, byte_level())
    first = reference(directory).vocab_size
    off = {"single_word": False, "normalized": False, "rstrip": False}
    stated = {
        str(first): {"content": "<|endoftext|>", "lstrip": False, "special": True, **off},
        str(first + 1): {"content": "quick", "lstrip": True, "special": False, **off},
    }
    names = {"added_tokens_decoder": stated, "eos_token": "<|endoftext|>"}
    edit(directory / "tokenizer_config.json", lambda config: config.update(names))
    return directory


def in_special_tokens_map(directory: Path) -> Path:
    """Special tokens in `special_tokens_map.json`, the oldest way; one strips the space after it."""
    save(directory, byte_level())
    eos = {"content": "</s>", "lstrip": False, "rstrip": True, "normalized": False, "single_word": False}
    edit(directory / "special_tokens_map.json", lambda names: names.update(eos_token=eos, bos_token="<s>"))
    return directory


def listed_differently(directory: Path) -> Path:
    """Tokens of `tokenizer.json` that strip spaces; the configuration repeats two of them, one without."""
    save(
        directory, byte_level(), eos_token="</s>", bos_token="<s>", extra_special_tokens=["<image>", "<pad>"]
    )

    def strip_spaces(content: dict[str, Any]) -> None:
        for token in content["added_tokens"]:
            token.update(lstrip=True, rstrip=True)

    def repeat(config: dict[str, Any]) -> None:
        ids = reference(directory).get_vocab()
        config["added_tokens_decoder"] = {
            str(ids["<image>"]): {"content": "<image>", "lstrip": False, "special": True},
            str(ids["</s>"]): {"content": "</s>", "lstrip": True, "rstrip": True, "special": False},
        }

    edit(directory / "tokenizer.json", strip_spaces)
    edit(directory / "tokenizer_config.json", repeat)
    return directory


def special_as_text(directory: Path) -> Path:
    """`split_special_tokens`: special tokens written in a text are cut like other text."""
    plain(directory)
    edit(directory / "tokenizer_config.json", lambda config: config.update(split_special_tokens=True))
    return directory


KINDS = [
    plain,
    normalized,
    only_configured,
    listed_by_id,
    in_special_tokens_map,
    listed_differently,
    special_as_text,
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """A tokenizer of ours and the reference for it, from the same directory."""
    directory = request.param(tmp_path_factory.mktemp("tokenizer"))
    return load_tokenizer(directory), reference(directory)


@settings(deadline=None, max_examples=150)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_ids_and_text_are_those_of_transformers(pair: tuple[Tokenizer, Any], texts: list[str]) -> None:
    """One by one and in batches, special tokens inside texts included."""
    ours, theirs = pair
    expected = [theirs.encode(text, add_special_tokens=False) for text in texts]
    assert ours.encode_batch(texts) == expected
    assert [ours.encode(text) for text in texts] == expected
    for ids in expected:
        assert ours.decode(ids) == theirs.backend_tokenizer.decode(ids, skip_special_tokens=False)


def test_special_ids_and_vocabulary_are_those_of_transformers(pair: tuple[Tokenizer, Any]) -> None:
    """EOS, BOS, and an embedding row for every id."""
    ours, theirs = pair
    assert ours.eos_id == theirs.eos_token_id
    assert ours.bos_id == theirs.bos_token_id
    assert ours.vocab_size == max(theirs.get_vocab().values()) + 1


def test_truncation_and_padding_in_the_file_do_not_touch_documents(tmp_path: Path) -> None:
    """Both are settings for training batches of another program, and are no part of the identity."""
    tokenizer = load_tokenizer(plain(tmp_path / "t"))
    backend = byte_level()
    backend.add_special_tokens(["<|endoftext|>", "<s>", "<pad>"])
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    (tmp_path / "cut").mkdir()
    backend.save(str(tmp_path / "cut/tokenizer.json"))
    cut = load_tokenizer(tmp_path / "cut")
    assert cut.encode_batch(CORPUS) == tokenizer.encode_batch(CORPUS)


def test_fingerprint_is_that_of_the_content_not_of_the_files(
    pair: tuple[Tokenizer, Any], tmp_path: Path
) -> None:
    """Equal after transformers saved it again, after a copy, after JSON was laid out anew."""
    ours, theirs = pair
    theirs.save_pretrained(tmp_path / "again")
    edit(tmp_path / "again/tokenizer.json", lambda content: content.update(padding=None))
    shutil.copytree(tmp_path / "again", tmp_path / "copy")
    assert load_tokenizer(tmp_path / "again").fingerprint == ours.fingerprint
    assert load_tokenizer(tmp_path / "copy/tokenizer.json").fingerprint == ours.fingerprint


def _drop_merge(content: dict[str, Any]) -> object:
    return content["model"]["merges"].pop()


def _swap_ids(content: dict[str, Any]) -> object:
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    return vocab


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer.json", _drop_merge),
        ("tokenizer.json", _swap_ids),
        ("tokenizer.json", lambda content: content.update(normalizer={"type": "NFC"})),
        ("tokenizer.json", lambda content: content["pre_tokenizer"].update(add_prefix_space=True)),
        ("tokenizer.json", lambda content: content["added_tokens"][0].update(lstrip=True)),
        ("tokenizer_config.json", lambda config: config.update(eos_token="<pad>")),
        ("tokenizer_config.json", lambda config: config.update(bos_token="<pad>")),
        ("tokenizer_config.json", lambda config: config.update(image_token="<image>")),
        ("tokenizer_config.json", lambda config: config.update(split_special_tokens=True)),
    ],
)
def test_fingerprint_differs_when_ids_could_differ(
    file: str, change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    """Any change of vocabulary, merges, normalizer, added tokens, EOS or BOS."""
    before = load_tokenizer(plain(tmp_path)).fingerprint
    edit(tmp_path / file, change)
    assert load_tokenizer(tmp_path).fingerprint != before


@pytest.mark.parametrize(
    ("stated", "expected"), [(3, 3), ([3], None), ([3, 4], None), (10**6, None), (None, None)]
)
def test_the_models_own_configuration_names_eos_where_the_tokenizer_does_not(
    stated: int | Sequence[int] | None, expected: int | None, tmp_path: Path
) -> None:
    """A list says when to stop generating, which is something else; so is an id beyond the vocabulary."""
    save(tmp_path, byte_level())
    edit(tmp_path / "config.json", lambda config: config.update(eos_token_id=stated))
    assert load_tokenizer(tmp_path).eos_id == expected


def test_vocab_size_covers_ids_beyond_a_gap(tmp_path: Path) -> None:
    """The largest id counts, not the number of tokens."""
    save(tmp_path, byte_level())
    edit(tmp_path / "tokenizer.json", lambda content: content["model"]["vocab"].update(unused=5000))
    assert load_tokenizer(tmp_path).vocab_size == 5001


@pytest.mark.parametrize("model", ["BPE", "WordLevel", "Unigram", "empty"])
def test_every_model_has_a_size_and_an_identity_beside_the_vocabulary(model: str, tmp_path: Path) -> None:
    """Only BPE is read without parsing all; words that look like its keys do not mislead."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    words = {'"vocab":{': 0, '},"merges":[': 1, '"model":{"type":"BPE"': 2, "a": 7}
    made: dict[str, Any] = {
        "BPE": models.BPE(words, []),
        "WordLevel": models.WordLevel(words, unk_token="a"),
        "Unigram": models.Unigram([(word, -1.0) for word in words], unk_id=0, byte_fallback=False),
        "empty": models.BPE(),
    }
    backend = Backend(made[model])
    backend.add_special_tokens([*words, "<b>"])
    (tmp_path / "tokenizer.json").write_text(backend.to_str(pretty=True))
    before = load_tokenizer(tmp_path)
    assert before.vocab_size == max(backend.get_vocab().values()) + 1
    edit(tmp_path / "tokenizer.json", lambda content: content["added_tokens"][-1].update(lstrip=True))
    assert load_tokenizer(tmp_path).fingerprint != before.fingerprint


@pytest.fixture(scope="module")
def piece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small SentencePiece model."""
    import sentencepiece

    directory = tmp_path_factory.mktemp("pieces")
    with (directory / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_writer=file, vocab_size=340, byte_fallback=True, minloglevel=2,
            model_type="bpe", hard_vocab_limit=False,
        )  # fmt: skip
    return directory


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_sentencepiece_ids_are_those_of_its_library(piece_model: Path, texts: list[str]) -> None:
    """In batches and one by one; EOS and BOS are the model's."""
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_file=str(piece_model / "tokenizer.model"))
    ours = load_tokenizer(piece_model)
    assert ours.encode_batch(texts) == [ours.encode(text) for text in texts] == theirs.encode(texts)
    assert (ours.eos_id, ours.bos_id) == (theirs.eos_id(), theirs.bos_id())
    assert ours.vocab_size == theirs.get_piece_size()
    assert [ours.decode(ids) for ids in theirs.encode(texts)] == theirs.decode(theirs.encode(texts))


def test_sentencepiece_without_eos_has_none_and_another_fingerprint(
    piece_model: Path, tmp_path: Path
) -> None:
    """-1 is no id; equal files have equal fingerprints wherever they are."""
    import sentencepiece

    with (tmp_path / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_writer=file, vocab_size=60, eos_id=-1, bos_id=-1, minloglevel=2,
            model_type="char", hard_vocab_limit=False,
        )  # fmt: skip
    ours = load_tokenizer(tmp_path)
    assert (ours.eos_id, ours.bos_id) == (None, None)
    assert ours.fingerprint != load_tokenizer(piece_model).fingerprint
    shutil.copy(tmp_path / "tokenizer.model", tmp_path / "other.model")
    assert load_tokenizer(tmp_path / "other.model").fingerprint == ours.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "must be a tokenizer.json"),
        ("tokenizer.json", "{}", "must be a tokenizer.json"),
        ("tokenizer.model", "no model", "must be a SentencePiece model"),
        ("notes.txt", "", "must be a directory with tokenizer.json or tokenizer.model"),
    ],
)
def test_what_is_no_tokenizer_is_refused_on_one_line(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    """The message names the file and the remedy."""
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_or_foreign_configuration_is_refused(tmp_path: Path) -> None:
    """Bad JSON beside the tokenizer, or one that gives a token another id, must not be passed over."""
    plain(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    edit(config, lambda content: content.update(added_tokens_decoder={"7": {"content": "<s>"}}))
    with pytest.raises(DataError, match=r"'<s>' the id \d+, .* requires 7"):
        load_tokenizer(tmp_path)
    for text in ("{", "[]"):
        config.write_text(text)
        with pytest.raises(DataError, match=r"tokenizer_config\.json"):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": {"x": 1}},
        {"image_token": {"x": 1}},
        {"eos_token": False},
        {"added_tokens_decoder": {"abc": {"content": "<s>"}}},
        {"added_tokens_decoder": ["<s>"]},
        {"added_tokens_decoder": {"7": {"text": "<s>"}}},
        {"additional_special_tokens": "<s>"},
        {"extra_special_tokens": [3]},
    ],
)
def test_configuration_of_another_shape_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    """With the file and the value, on one line."""
    plain(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(
        DataError, match=r"tokenizer_config\.json has .*, must .*; copy the file again"
    ) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
