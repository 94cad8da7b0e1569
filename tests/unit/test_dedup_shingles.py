"""Words, shingles and signatures: the compiled kernels against plain Python, datasketch and their promises."""

from __future__ import annotations

import unicodedata

import dedup_reference as reference
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cptron.corpus import kernels
from cptron.corpus.dedup.s_curve import best_bands, candidate_probability
from cptron.corpus.dedup.scheme import Scheme, describe, keys_of, permutations, shingles
from cptron.corpus.dedup.words import folding_table, packed

ALPHABETS = (
    "aB9 .-_'İßΣς\n",
    "xứÁ́đ ,",
    "क्षि दे‍श।1",
    "中文字、。abかナｶ",
    "ภาษาไทย ก็๑",
    "\u00ad\u200b\ufffd\U0001f600 z",
)
BROKEN = [b"\xe4", b"\xb8\xad", b"\xf0\x9f", b"\xc0\x80", b"a", b"\xed\xa0\x80"]
TEXTS = st.one_of(st.text(max_size=80), *(st.text(alphabet, max_size=60) for alphabet in ALPHABETS))


def sets_of(texts: list[str], unit: str = "words", size: int = 5) -> list[list[int]]:
    """Sets of the kernel as lists."""
    sets, starts, _ = shingles(texts, unit, size)  # type: ignore[arg-type]
    return [part.tolist() for part in np.split(sets, starts[1:-1])]


@settings(max_examples=80, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(1, 6))
@example(["", "İstanbul ΑΣ.", "e\u0301te\u0301 été"], 2)
def test_shingles_are_those_of_the_definition(texts: list[str], size: int) -> None:
    """Words and characters of any text, in any script, equal to the twin's."""
    assert sets_of(texts, "words", size) == [
        reference.shingle_set(reference.words(text), size) for text in texts
    ]
    assert sets_of(texts, "characters", size) == [
        reference.shingle_set(reference.characters(text), size) for text in texts
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't STOP – it's 5 o’clock_now", ["don", "t", "stop", "it", "s", "5", "o", "clock", "now"]),
        ("Tiếng Việt, được viết.", ["tiếng", "việt", "được", "viết"]),
        ("हिन्दी की क्षमता।", ["हिन्दी", "की", "क्षमता"]),
        ("中文abc字", ["中", "文", "abc", "字"]),
        ("ก็ดี", ["ก็", "ดี"]),
        ("co\u00adop zwj\u200dx", ["coop", "zwjx"]),
    ],
)
def test_words_are_what_a_reader_takes_for_words(text: str, words: list[str]) -> None:
    """By hand, so that kernel and twin cannot err together."""
    assert reference.words(text) == words
    assert sets_of([text], size=1) == [reference.shingle_set(words, 1)]


def test_scripts_without_spaces_have_a_word_for_each_character() -> None:
    """Two letters of each, and of some that have spaces."""
    first = "กข ກຂ ကခ ၐၑ កខ ᥐᥑ ᨠᨡ ⺀⺁ 々〆 〡〢 あい"
    second = "ㄅㄆ ㆠㆡ 㐀㐁 中文 ꀀꀁ ꦏꦐ ꪀꪁ 豈更 ｱｲ 𛀁𛀂 𠀀𠀁"
    without = f"{first} {second}".split()
    pairs = [pair for pair in without if pair.isalnum()]
    assert len(pairs) > 15
    assert shingles(pairs, "words", 1)[2].tolist() == [2] * len(pairs)
    assert shingles(["ab", "한국", "कख", "аб", "ሀለ"], "words", 1)[2].tolist() == [1] * 5


def test_case_punctuation_and_composition_do_not_count() -> None:
    """The same words, typed otherwise."""
    text = "Được viết bằng chữ Quốc ngữ, từ thế kỷ XVII."
    other = unicodedata.normalize("NFD", text.upper()).replace(" ", " -- ")
    assert sets_of([text], size=3) == sets_of([other], size=3)
    assert sets_of([text], size=3) != sets_of([text.replace("thế", "the")], size=3)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60) | st.lists(st.sampled_from(BROKEN)).map(b"".join))
def test_bytes_that_are_no_text_do_no_harm(data: bytes) -> None:
    """They are words of what can be read of them; as U+FFFD does, the rest separates."""
    text = np.frombuffer(data, np.uint8)
    starts = np.array([0, len(data)], np.int64)
    sets, _, _ = kernels.shingle_sets(text, starts, folding_table(), 1, False)
    readable = reference.words(data.decode("utf-8", "replace"))
    assert unicodedata.is_normalized("NFC", data.decode("utf-8", "replace")) is False or sets.tolist() == (
        reference.shingle_set(readable, 1)
    )


def test_short_documents_are_one_shingle_and_empty_ones_none() -> None:
    """Fewer words than a shingle has are compared as a whole."""
    assert [len(members) for members in sets_of(["a b", "A, b!", "a c", "...", ""])] == [1, 1, 1, 0, 0]
    assert sets_of(["a b"]) == sets_of(["A, b!"]) != sets_of(["a c"])


def test_signatures_are_those_of_the_twin_in_every_variant() -> None:
    """Any number of permutations; sets of any size, none and one included."""
    generator = np.random.default_rng(3)
    sizes = [0, 1, 7, 40]
    sets = [np.unique(generator.integers(0, 2**32, size, dtype=np.uint32)) for size in sizes]
    data, starts = np.concatenate(sets), np.cumsum([0, *map(len, sets)])
    for count in (1, 31, 32, 33, 126):
        multipliers, addends = permutations(count, 1)
        wanted = [reference.signature(s.tolist(), multipliers.tolist(), addends.tolist()) for s in sets]
        for variant in kernels.signature_variants():
            assert kernels.signatures(data, starts, multipliers, addends, variant).tolist() == wanted
    scheme = Scheme(bands=2, rows=3)
    rows = np.array(
        [reference.signature(s.tolist(), *(p.tolist() for p in permutations(6, 1))) for s in sets]
    )
    assert keys_of(data, starts, scheme).T.tolist() == [
        [reference.band_key(row[3 * band : 3 * band + 3].tolist(), band) for band in range(2)] for row in rows
    ]


def test_signatures_are_those_of_datasketch() -> None:
    """Bit for bit, given the same hashes of shingles."""
    datasketch = pytest.importorskip("datasketch", minversion="2.0")
    sets, starts, _ = shingles(
        ["the quick brown fox jumps over the lazy dog", "a b c d e f", "một hai ba"], "words", 3
    )
    found = kernels.signatures(sets, starts, *permutations(128, 1))
    for members, row in zip(np.split(sets, starts[1:-1]), found, strict=True):
        theirs = datasketch.MinHash(num_perm=128, hashfunc=lambda value: value)
        theirs.update_batch(members.tolist())
        assert theirs.hashvalues.tolist() == row.tolist()


def pairs_of_sets(shared: int, each: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` pairs of random sets, as documents 2 i and 2 i + 1, and their starts."""
    generator = np.random.default_rng(shared)
    values = generator.integers(0, 2**32, (count, shared + 2 * each), dtype=np.uint32)
    left, right = values[:, : shared + each], np.delete(values, np.s_[shared : shared + each], axis=1)
    both = np.sort(np.stack([left, right], axis=1).reshape(2 * count, -1), axis=1)
    return both.ravel(), np.arange(2 * count + 1, dtype=np.int64) * (shared + each)


@pytest.mark.parametrize(("shared", "each"), [(50, 25), (60, 20), (70, 15), (80, 10), (90, 5)])
def test_candidates_follow_the_s_curve(shared: int, each: int) -> None:
    """Share of the pairs that meet in a band within five standard errors of 1 - (1 - j^r)^b, and estimates unbiased."""
    count, scheme = 4000, Scheme(bands=14, rows=8)
    sets, starts = pairs_of_sets(shared, each, count)
    jaccard = shared / (shared + 2 * each)
    signatures = kernels.signatures(sets, starts, *permutations(112, scheme.seed))
    estimates = (signatures[::2] == signatures[1::2]).mean(axis=1)
    assert abs(estimates.mean() - jaccard) < 5 * np.sqrt(jaccard * (1 - jaccard) / 112 / count)
    assert (
        0.8 < estimates.var() / (jaccard * (1 - jaccard) / 112) < 1.25
    )  # permutations are independent of each other
    keys = keys_of(sets, starts, scheme)
    met = (keys[:, ::2] == keys[:, 1::2]).any(axis=0).mean()
    wanted = float(candidate_probability(jaccard, 14, 8))
    assert abs(met - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / count) + 1e-3


def test_bands_and_rows_are_those_that_datasketch_would_choose() -> None:
    """For its weights and thresholds, as printed by datasketch 2.0; for ours few pairs are missed."""
    assert [best_bands(t, 128, 0.5) for t in (0.5, 0.7, 0.8, 0.9)] == [(25, 5), (14, 9), (9, 13), (5, 25)]
    scheme = Scheme.of(0.8)
    assert scheme.bands * scheme.rows <= 128
    assert candidate_probability([0.8, 0.9], scheme.bands, scheme.rows).min() > 0.995


def test_batches_do_not_matter() -> None:
    """A document's features are its own, whatever stands beside it; other dtypes and wrong bounds are refused."""
    texts = ["one two three four five six seven", "", "một hai ba bốn năm sáu bảy", "x"]
    scheme = Scheme(bands=3, rows=2)
    whole = describe(texts, scheme)
    alone = [describe([text], scheme) for text in texts]
    assert whole.sets.tolist() == np.concatenate([each.sets for each in alone]).tolist()
    assert whole.keys.tolist() == np.concatenate([each.keys for each in alone], axis=1).tolist()
    data, starts = packed(texts)
    with pytest.raises(ValueError, match="starts"):
        kernels.shingle_sets(data, starts[:-1], folding_table(), 5, False)
    with pytest.raises(TypeError):
        kernels.shingle_sets(data, starts.astype(np.int32), folding_table(), 5, False)
