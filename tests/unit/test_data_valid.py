"""Validation sets: what counts where the files have a loss mask, and which ids are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_world import numbered, within_documents, write_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from tokens_world import write_by_megatron

from cptron.data import valid as valid_module
from cptron.data.valid import ValidSet
from cptron.errors import DataError

LENGTHS = [7, 1, 30, 2, 60]
LEARNED = np.random.default_rng(4).integers(0, 2, sum(LENGTHS))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tokens 0 to 99, of which `LEARNED` are learned."""
    prefix = tmp_path_factory.mktemp("tokens") / "chat"
    write_tokens(prefix, LENGTHS, learned=LEARNED)
    return str(prefix)


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 120), st.integers(1, 40), st.integers(1, 50))
def test_only_what_is_learned_counts(
    masked: str, dp_size: int, micro: int, max_tokens: int, seq_length: int, at_once: int
) -> None:
    """Over all ranks the counted labels are the learned ones, each once; all tokens are read as inputs."""
    places = min(max_tokens, 99) if max_tokens else 99
    expected = [token for token in range(1, places + 1) if LEARNED[token]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(valid_module, "_TOKENS_AT_ONCE", at_once)
        if not expected:
            with pytest.raises(
                DataError, match=r"validation set v .* is empty: its loss mask leaves out all"
            ):
                ValidSet("v", masked, seq_length, max_tokens, micro, 0, dp_size)
            return
        sets = [
            ValidSet("v", masked, seq_length, max_tokens, micro, rank, dp_size) for rank in range(dp_size)
        ]
    inputs, counted = [], []
    for valid_set in sets:
        assert valid_set.num_predicted_tokens == len(expected)
        for batch in valid_set:
            inputs += batch.tokens_BS[(batch.tokens_BS > 0) | (batch.labels_BS > 0)].tolist()
            counted += batch.labels_BS[batch.loss_mask_BS == 1].tolist()
            assert set(batch.loss_mask_BS.ravel().tolist()) <= {0.0, 1.0}
    assert sorted(counted) == expected
    assert sorted(inputs) == list(range(places))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0, 0, 1, 2, 5, 9, 30]), min_size=1, max_size=20),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20)),
    st.integers(0, 120),
    st.booleans(),
    st.integers(1, 50),
)
def test_documents_and_their_ends(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    cut: tuple[int, int, int],
    max_tokens: int,
    has_mask: bool,
    at_once: int,
) -> None:
    """Windows walked token by token, up to the wholly padded ones; `eod_mask_loss` changes what counts alone."""
    if sum(lengths) < 2:
        return
    has_mask &= 0 not in lengths
    dp_size, micro, seq_length = cut
    prefix = tmp_path_factory.mktemp("tokens") / "v"
    learned = np.random.default_rng(1).integers(0, 2, sum(lengths)) if has_mask else np.ones(sum(lengths))
    stream = write_tokens(prefix, lengths, learned=learned if has_mask else None).tolist()
    places = min(max_tokens or len(stream), len(stream) - 1)
    for eod_mask_loss in (False, True):
        counts = [0.0, *learned[1 : places + 1].tolist()]
        if eod_mask_loss:
            counts = within_documents(lengths, stream[: places + 1], counts)
        for rank in range(dp_size):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(valid_module, "_TOKENS_AT_ONCE", at_once)
                arguments = "v", str(prefix), seq_length, max_tokens, micro, rank, dp_size
                if not sum(counts):
                    with pytest.raises(DataError, match=r"v .* is empty: .* leaves out all of"):
                        ValidSet(*arguments, eod_mask_loss=eod_mask_loss)
                    continue
                valid_set = ValidSet(*arguments, eod_mask_loss=eod_mask_loss)
            assert valid_set.num_predicted_tokens == sum(counts)
            for number, batch in enumerate(valid_set):
                for row in range(micro):
                    start = ((number * dp_size + rank) * micro + row) * seq_length
                    inputs = stream[:places][start : start + seq_length]
                    assert batch.documents_BS[row].tolist() == numbered(lengths, inputs, seq_length)
                    expected = counts[start + 1 : start + 1 + seq_length]
                    padding = [0.0] * (seq_length - len(expected))
                    assert batch.loss_mask_BS[row].tolist() == expected + padding
                    assert batch.tokens_BS[row, : len(inputs)].tolist() == inputs


def test_a_mask_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    """The mean over no tokens is no loss; the first token is never a label."""
    learned = np.zeros(20, np.int64)
    learned[0] = 1
    write_tokens(tmp_path / "v", [20], learned=learned)
    with pytest.raises(DataError, match=r"validation set v .* leaves out all of 19 tokens"):
        ValidSet("v", str(tmp_path / "v"), 8, 0, 1, 0, 1)
    write_tokens(tmp_path / "w", [1] * 20)
    with pytest.raises(DataError, match=r"validation set w .* eod_mask_loss leaves out all of 19 tokens"):
        ValidSet("w", str(tmp_path / "w"), 8, 0, 1, 0, 1, eod_mask_loss=True)


@pytest.mark.parametrize("learned", [None, np.ones(100, np.int64)])
def test_ids_beyond_the_vocabulary_are_refused_at_once(tmp_path: Path, learned: np.ndarray | None) -> None:
    """With the name of the set, before anything is evaluated; but not beyond `max_tokens`."""
    write_tokens(tmp_path / "v", LENGTHS, learned=learned)
    prefix = str(tmp_path / "v")
    ValidSet("v", prefix, 8, 0, 1, 0, 1, vocab_size=100)
    ValidSet("v", prefix, 8, 89, 1, 0, 1, vocab_size=90)
    for max_tokens, largest in ((0, 99), (90, 90)):
        with pytest.raises(
            DataError, match=rf"validation set v .* token id {largest} is outside the vocabulary of 90"
        ):
            ValidSet("v", prefix, 8, max_tokens, 1, 0, 1, vocab_size=90)


def test_negative_ids_are_refused(tmp_path: Path) -> None:
    """They would be read from the end of the embedding."""
    write_by_megatron(tmp_path / "v", [[[1, 2, -3, 4]]], "int32")
    with pytest.raises(DataError, match="token id -3 is outside the vocabulary of 10"):
        ValidSet("v", str(tmp_path / "v"), 8, 0, 1, 0, 1, vocab_size=10)
