"""Every engine gives the reference's ids, or is passed over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.errors import DataError
from cptron.tokens import engine as engines
from cptron.tokens import engine_gigatoken
from cptron.tokens.engine import Engine, choose_engine, first_difference, verify
from cptron.tokens.engine_gigatoken import GigatokenEngine
from cptron.tokens.engine_reference import ReferenceEngine, replace_texts
from cptron.tokens.engine_samples import adversarial_texts
from cptron.tokens.engine_snaptokens import SnaptokensEngine
from cptron.tokens.tokenizer import Tokenizer, load_tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog; dogs don't mind, THEY'LL run 1234 miles.",
    "Die Übung macht den Meister, 1234 Jahre und ２ Wochen.",
    "def main(argv):\n    return 0\n\n\t# naïve café",
    "Xin chào thế giới, đây là tiếng Việt. 日本語の文章。",
] * 3
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<tool>"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SMOLLM2 = Path(__file__).parents[2] / ".cache/smollm2-135m"


def byte_level(*, whole_alphabet: bool = True, normalizer: Any = None) -> Any:
    """Llama 3's kind, small."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if whole_alphabet else []
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return backend


def metaspace() -> Any:
    """Llama 2's kind: a normalizer puts `▁` before every piece of text, unknown characters become bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, show_progress=False, max_token_length=8
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in ("<s>", "</s>")])
    return backend


def nfc() -> Any:
    """Qwen's kind."""
    from tokenizers import normalizers

    return byte_level(normalizer=normalizers.NFC())


def lacking_bytes() -> Any:
    """SmolLM2's kind: bytes that were not in the training text have no token, and are dropped."""
    return byte_level(whole_alphabet=False)


KINDS = [byte_level, metaspace, nfc, lacking_bytes]
TEXTS = st.lists(
    st.sampled_from(
        [*SPECIAL, "<|im_", "start|>", "'LL", " ", "\n", "\xa0", "e\u0301", "\x00", "\x04", "12345"]
    )
    | st.text(max_size=12),
    max_size=8,
).map(lambda parts: "".join(parts).encode())


def make(directory: Path, backend: Any) -> Tokenizer:
    """A tokenizer from a directory with only `tokenizer.json`."""
    directory.mkdir(exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    return load_tokenizer(directory)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One tokenizer of each kind."""
    return make(tmp_path_factory.mktemp("tokenizer"), request.param())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The first kind, for tests that need one only."""
    return make(tmp_path_factory.mktemp("tokenizer"), byte_level())


def ids_of(engine: Engine, texts: Sequence[bytes]) -> list[list[int]]:
    """Ids of each text, after the promises about their layout were checked."""
    flat, lengths = engine.encode(texts)
    assert (flat.dtype, lengths.dtype) == (np.uint32, np.int64)
    assert len(lengths) == len(texts) and lengths.sum() == len(flat)
    return [part.tolist() for part in np.split(flat, np.cumsum(lengths)[:-1])] if texts else []


@pytest.fixture(scope="module")
def loaded(tokenizer: Tokenizer) -> list[Engine]:
    """The engines that know the tokenizer; gigatoken knows all kinds."""
    found: list[Engine] = [ReferenceEngine(tokenizer)]
    pytest.importorskip("gigatoken")
    found.append(GigatokenEngine(tokenizer))
    return found


@settings(deadline=None, max_examples=200)
@given(texts=st.lists(TEXTS, max_size=5))
def test_ids_are_those_of_the_tokenizer(
    tokenizer: Tokenizer, loaded: list[Engine], texts: list[bytes]
) -> None:
    """One text after another, whatever stands at their borders; empty texts and batches included."""
    expected = [tokenizer.encode(text.decode()) for text in texts]
    for engine in loaded:
        assert ids_of(engine, texts) == expected


def test_the_fastest_engine_is_chosen_for_every_kind(tokenizer: Tokenizer) -> None:
    """Without a note, and it is exact on all adversarial texts."""
    pytest.importorskip("gigatoken")
    engine, notes = choose_engine(tokenizer, [text.encode() for text in CORPUS])
    assert engine.name.startswith("gigatoken ") and notes == []
    assert first_difference(engine, tokenizer, adversarial_texts(tokenizer.added_tokens)) is None


def test_threads_share_an_engine(plain: Tokenizer) -> None:
    """The same ids from eight threads as from one."""
    engine, _ = choose_engine(plain, [])
    batches = [[text.encode() * (number + 1) for text in CORPUS] for number in range(32)]
    expected = [ids_of(engine, batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda batch: ids_of(engine, batch), batches)) == expected


def test_a_text_that_holds_the_separator_is_encoded_exactly(plain: Tokenizer) -> None:
    """gigatoken joins texts with a token of ours, which a text could hold."""
    pytest.importorskip("gigatoken")
    texts = [f"a{engine_gigatoken._SEPARATOR}b".encode(), b"c"]
    assert ids_of(GigatokenEngine(plain), texts) == [plain.encode(text.decode()) for text in texts]


@pytest.mark.parametrize("limit", [1, 40, 100])
def test_large_batches_and_texts_are_encoded_in_pieces(
    limit: int, tokenizer: Tokenizer, loaded: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the batch is parted, and for a text larger than a piece."""
    monkeypatch.setattr(engine_gigatoken, "_MAX_PIECE_BYTES", limit)
    texts = [b"", *(text.encode() for text in CORPUS), b"a\x04b", b""]
    assert ids_of(loaded[-1], texts) == [tokenizer.encode(text.decode()) for text in texts]


def test_gigatoken_is_loaded_anew_when_its_memory_grows(
    plain: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache has no limit; growth is looked at after every so many bytes of text."""
    pytest.importorskip("gigatoken")
    resident = [1000]
    monkeypatch.setattr(engine_gigatoken, "_resident_bytes", lambda: resident[0])
    monkeypatch.setattr(engine_gigatoken, "_CHECK_BYTES", 100)
    engine = GigatokenEngine(plain)
    first = engine._backend
    text = b"words and words " * 10
    before = ids_of(engine, [text])
    assert engine._backend is first
    resident[0] += engine_gigatoken._MAX_GROWTH_BYTES + 1
    assert ids_of(engine, [text]) == before and engine._backend is not first
    second = engine._backend
    assert ids_of(engine, [text]) == before and engine._backend is second


def test_snaptokens_leaves_what_it_refuses_to_the_reference(tmp_path: Path) -> None:
    """A byte without a token raises in it; the other texts of the batch keep their places."""
    pytest.importorskip("snaptokens")
    tokenizer = make(tmp_path, lacking_bytes())
    texts = [b"fox", b"\x04", b"", b"dog \x06 dog", b"lazy"]
    assert ids_of(SnaptokensEngine(tokenizer), texts) == [tokenizer.encode(text.decode()) for text in texts]


@given(
    texts=st.lists(st.binary(max_size=6), min_size=1, max_size=6),
    data=st.data(),
)
def test_replaced_texts_keep_their_places(texts: list[bytes], data: st.DataObject) -> None:
    """Against lists."""
    which = sorted(data.draw(st.sets(st.integers(0, len(texts) - 1), min_size=1)))

    class Doubling:
        name = "doubling"

        def encode(self, texts: Sequence[bytes]) -> Any:
            ids = [list(text) * 2 for text in texts]
            return np.array([*chain.from_iterable(ids)], dtype=np.uint32), np.array(
                [len(i) for i in ids], dtype=np.int64
            )

    ids, lengths = replace_texts(
        np.array(list(b"".join(texts)), dtype=np.uint32),
        np.array([len(text) for text in texts], dtype=np.int64),
        which,
        texts,
        Doubling(),
    )
    expected = [list(text) * (2 if number in which else 1) for number, text in enumerate(texts)]
    assert ids.tolist() == [*chain.from_iterable(expected)] and lengths.tolist() == [
        len(part) for part in expected
    ]


class Wrong:
    """An engine that gives another id where a text says `dog`."""

    name = "wrong 1.0"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._reference = ReferenceEngine(tokenizer)

    def encode(self, texts: Sequence[bytes]) -> Any:
        """The first id of such a text is off by one."""
        ids, lengths = self._reference.encode(texts)
        for number, end in enumerate(np.cumsum(lengths)):
            if b"dog" in texts[number]:
                ids[end - lengths[number]] += 1
        return ids, lengths


def panic(tokenizer: Tokenizer) -> Engine:
    """Fail as a Rust library does."""
    raise type("PanicException", (BaseException,), {})("index out\nof bounds")


def absent(tokenizer: Tokenizer) -> Engine:
    """A package that is not there."""
    raise ImportError("No module named gigatoken")


@pytest.mark.parametrize(
    ("candidate", "note"),
    [(Wrong, "ids differ .* 'hot dog'"), (panic, r"index out of bounds"), (absent, "pip install 'cptron")],
)
def test_an_engine_that_cannot_be_used_is_passed_over_with_a_note(
    candidate: Callable[[Tokenizer], Engine], note: str, plain: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is taken; asked for by name it is an error."""
    monkeypatch.setattr(engines, "_FAST", {"gigatoken": candidate, "snaptokens": ReferenceEngine})
    engine, notes = choose_engine(plain, [b"cats", b"hot dog"])
    assert isinstance(engine, ReferenceEngine) and len(notes) == 1
    with pytest.raises(DataError, match=f"engine gigatoken .*{note}") as caught:
        choose_engine(plain, [b"cats", b"hot dog"], "gigatoken")
    assert "\n" not in str(caught.value) + notes[0] and notes[0].startswith("gigatoken passed over: ")


def test_the_sample_is_compared_and_not_only_the_built_in_texts(
    plain: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dog` is in no built-in text; a sample beyond the first 64 KiB is not read."""
    monkeypatch.setattr(engines, "_FAST", {"gigatoken": Wrong})
    assert choose_engine(plain, [])[1] == []
    assert choose_engine(plain, ["é".encode() * (1 << 16), b"hot dog"])[1] == []
    assert choose_engine(plain, ["é".encode() * 1000, b"hot dog"])[1] != []


def test_special_tokens_cut_as_text_disqualify_engines_that_do_not(tmp_path: Path) -> None:
    """`split_special_tokens` is not stated in what the engines load."""
    (tmp_path / "tokenizer_config.json").write_text('{"split_special_tokens": true}')
    tokenizer = make(tmp_path, byte_level())
    engine, notes = choose_engine(tokenizer, [])
    assert isinstance(engine, ReferenceEngine) and len(notes) == 2
    assert ids_of(engine, [b"<tool>"]) == [tokenizer.encode("<tool>")] != [[tokenizer.vocab_size - 1]]


def test_verify_names_the_first_place(plain: Tokenizer) -> None:
    """The text's number and what stands there."""
    verify(Wrong(plain), plain, [b"cats", b"foxes"])
    with pytest.raises(DataError, match=r"wrong 1\.0 .* 'my dog' \(token 0 of text 1\).*--engine reference"):
        verify(Wrong(plain), plain, [b"cats", b"my dog", b"dog"])
    found = first_difference(Wrong(plain), plain, [b"cats", b"dog"])
    assert found is not None and (found.text, found.token) == (1, 0)


@pytest.mark.parametrize("lost", ["ids", "lengths", "both"])
def test_too_few_ids_or_lengths_are_a_difference(lost: str, plain: Tokenizer) -> None:
    """Not a crash."""

    class Short(ReferenceEngine):
        def encode(self, texts: Sequence[bytes]) -> Any:
            ids, lengths = super().encode(texts)
            return ids[: -1 if lost != "lengths" else None], lengths[: -1 if lost != "ids" else None]

    assert first_difference(Short(plain), plain, [b"cats", b"dogs"]) is not None


@pytest.mark.parametrize(
    ("options", "library"),
    [
        ({}, "gigatoken"),
        ({"add_dummy_prefix": False}, "gigatoken"),
        ({"user_defined_symbols": ["<x>", "<yy>"]}, "reference"),
    ],
)
def test_sentencepiece_models_have_an_exact_engine(
    options: dict[str, Any], library: str, tmp_path: Path
) -> None:
    """Llama 2's kind has the fast one, control pieces written in texts included; pieces that gigatoken reads
    otherwise are noticed."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("gigatoken")
    with (tmp_path / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_writer=file, vocab_size=400, byte_fallback=True, minloglevel=2,
            model_type="bpe", hard_vocab_limit=False, normalization_rule_name="identity",
            remove_extra_whitespaces=False, **options,
        )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path)
    engine, _ = choose_engine(tokenizer, [text.encode() for text in CORPUS])
    assert engine.name.startswith(library)
    verify(engine, tokenizer, [b"</s> in a text", b"", b" <x><yy>", *(text.encode() for text in CORPUS)])


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="SmolLM2 is not in the cache")
def test_smollm2_has_a_fast_exact_engine() -> None:
    """Its vocabulary lacks bytes, which gigatoken refuses as it is."""
    pytest.importorskip("gigatoken")
    tokenizer = load_tokenizer(SMOLLM2)
    engine, notes = choose_engine(tokenizer, [])
    assert engine.name.startswith("gigatoken") and notes == []
    verify(engine, tokenizer, [b"a\x04b", b"\x06", "đây là".encode(), b"plain"])


@pytest.mark.parametrize("part", [slice(None, -1), slice(1, None), slice(None, 1), slice(-1, None)])
def test_a_part_of_the_separator_in_a_text_moves_no_border(part: slice, plain: Tokenizer) -> None:
    """Were one of its beginnings one of its ends, the number of separators found would still be right."""
    pytest.importorskip("gigatoken")
    some = engine_gigatoken._SEPARATOR[part]
    texts = [text.encode() for text in (some, "hello", some, some, "a" + some, some + "b", "")]
    assert ids_of(GigatokenEngine(plain), texts) == [plain.encode(text.decode()) for text in texts]
