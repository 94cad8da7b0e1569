"""Splitting loses no document and gives none twice, whatever the way of splitting."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokens_world import Document, write_by_megatron, write_known

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.datasets.indexed_dataset import IndexedDataset

from cptron.cli import main
from cptron.errors import CptronError, DataError
from cptron.tokens import split as split_module
from cptron.tokens import token_files
from cptron.tokens.index_layout import bin_path, idx_path, loss_mask_path
from cptron.tokens.manifest import (
    hash_file,
    manifest_path,
    verify,
)
from cptron.tokens.merge import merge
from cptron.tokens.split import split
from cptron.tokens.split_plan import LEFT_OUT, Contiguous, by_fractions, by_max_tokens, by_range
from cptron.tokens.token_files import TokenFiles

DOCUMENTS = st.lists(st.lists(st.lists(st.integers(0, 99), max_size=6), max_size=4), min_size=1, max_size=14)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few documents and blocks of a few tokens: some documents are longer than a block."""
    monkeypatch.setattr(token_files, "DOCUMENTS_AT_ONCE", 3)
    monkeypatch.setattr(split_module, "BLOCK_TOKENS", 5)


def lowest_bits(documents: list[list[int]]) -> list[int]:
    """A loss mask that can be told from the tokens."""
    return [token % 2 for ids in documents for token in ids]


def documents_by_megatron(prefix: str) -> list[Document]:
    """Every document of a token file, as megatron-core reads it."""
    dataset = IndexedDataset(prefix)
    bounds = dataset.document_indices.tolist()
    return [[dataset[number].tolist() for number in range(first, stop)] for first, stop in pairwise(bounds)]


@pytest.mark.usefixtures("small_pieces")
@settings(deadline=None, max_examples=80)
@given(
    documents=DOCUMENTS,
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    seed=st.none() | st.integers(-5, 2**70),
)
def test_every_document_is_in_exactly_one_output(
    documents: list[Document], weights: list[int], seed: int | None
) -> None:
    """With all its sequences, in order; without a seed the outputs merge to the input's bytes."""
    fractions = [Fraction(weight, sum(weights)) for weight in weights]
    names = [f"n{number}" for number in range(len(weights))]
    with tempfile.TemporaryDirectory() as folder:
        write_by_megatron(f"{folder}/in", documents)
        files = TokenFiles(f"{folder}/in")
        try:
            plan = by_fractions(fractions, names, seed, len(documents))
            outputs = split(files, f"{folder}/out", plan)
        except DataError as error:
            assert " 0 tokens" in str(error) or "leave 0 of" in str(error)
            assert not list(Path(folder).glob("out*"))
            return
        found = [documents_by_megatron(output.prefix) for output in outputs]
        assigned = plan.assign(np.arange(len(documents)))
        assert found == [
            [document for document, at in zip(documents, assigned, strict=True) if at == number]
            for number in range(len(weights))
        ]
        assert sum(output.documents for output in outputs) == len(documents)
        assert sum(output.tokens for output in outputs) == files.num_tokens
        if seed is None:
            merge([output.prefix for output in outputs], f"{folder}/again")
            for path in (bin_path, idx_path):
                assert path(f"{folder}/again").read_bytes() == path(f"{folder}/in").read_bytes()


@pytest.mark.usefixtures("small_pieces")
@settings(deadline=None, max_examples=60)
@given(documents=DOCUMENTS, max_tokens=st.integers(1, 40))
def test_max_tokens_cuts_as_late_as_it_can(documents: list[Document], max_tokens: int) -> None:
    """Against a plain loop over the documents."""
    lengths = [sum(map(len, sequences)) for sequences in documents]
    with tempfile.TemporaryDirectory() as folder:
        write_by_megatron(f"{folder}/in", documents)
        files = TokenFiles(f"{folder}/in")
        if max(lengths) > max_tokens:
            with pytest.raises(DataError, match="must be at most --max-tokens"):
                by_max_tokens(files, max_tokens)
            return
        bounds, held = [0], 0
        for number, length in enumerate(lengths):
            if held + length > max_tokens:
                bounds.append(number)
                held = 0
            held += length
        plan = by_max_tokens(files, max_tokens)
        assert plan.bounds == (*bounds, len(documents))
        assert plan.names == tuple(f"_{i:05d}-of-{len(bounds):05d}" for i in range(len(bounds)))


@given(data=st.data(), num_documents=st.integers(1, 50))
def test_a_range_takes_what_a_slice_takes(data: st.DataObject, num_documents: int) -> None:
    """Either end may be left out."""
    start = data.draw(st.integers(0, num_documents - 1))
    stop = data.draw(st.integers(start + 1, num_documents))
    numbers = np.arange(num_documents)
    for text, expected in (
        (f"{start}:{stop}", numbers[start:stop]),
        (f":{stop}", numbers[:stop]),
        (":", numbers),
    ):
        assigned = by_range(text, num_documents).assign(numbers)
        assert numbers[assigned == 0].tolist() == expected.tolist()
        assert set(assigned.tolist()) <= {0, LEFT_OUT}


def test_shuffled_shares_are_near_and_repeatable() -> None:
    """Within five standard deviations; another seed gives another choice; pieces do not matter."""
    fractions, count = [Fraction("0.9"), Fraction("0.07"), Fraction("0.03")], 200_000
    numbers = np.arange(count)
    assigned = by_fractions(fractions, ["a", "b", "c"], 1, count).assign(numbers)
    for number, fraction in enumerate(fractions):
        spread = (count * float(fraction) * float(1 - fraction)) ** 0.5
        assert abs(int((assigned == number).sum()) - count * float(fraction)) < 5 * spread
    again = by_fractions(fractions, ["a", "b", "c"], 1, 5)
    assert (
        np.concatenate([again.assign(numbers[:777]), again.assign(numbers[777:])]).tolist()
        == assigned.tolist()
    )
    other = by_fractions(fractions, ["a", "b", "c"], 2, count).assign(numbers)
    assert 0.1 < float((other == 0)[assigned == 1].mean()) < 0.95
    # Neighbours are independent: held-out documents do not come in runs.
    held = assigned > 0
    assert abs(float((held[1:] & held[:-1]).mean()) - 0.01) < 0.002


@pytest.mark.usefixtures("small_pieces")
def test_manifest_and_mask_go_with_the_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts are the output's, the origin is named with its hash; the masks are those of the tokens."""
    documents = [[number] * (number % 4 + 1) for number in range(60)]
    prefix = write_known(tmp_path / "in", documents, lowest_bits(documents), append_eod=True, partition="2/8")
    words = ["split", "--input-prefix", str(prefix), "--output-prefix", str(tmp_path / "o" / "out")]
    assert main([*words, "--fractions", "0.4,0.3,0.3", "--shuffle-seed", "7"]) == 0
    assert "documents" in capsys.readouterr().out
    total = 0
    for name in ("train", "valid", "test"):
        manifest = verify(tmp_path / "o" / f"out_{name}")
        tokens = np.fromfile(bin_path(tmp_path / "o" / f"out_{name}"), np.uint16)
        mask = np.fromfile(loss_mask_path(tmp_path / "o" / f"out_{name}"), np.uint8)
        assert (tokens % 2 == mask).all() and len(tokens) == manifest.tokens
        assert manifest.records_read == manifest.documents == len(np.unique(tokens))
        assert (manifest.documents_empty_skipped, manifest.documents_rejected) == (0, {})
        assert (manifest.append_eod, manifest.partition) == (True, "")
        digest = hash_file(bin_path(prefix)).sha256
        assert manifest.options["split_from"] == f"in {digest}, partition 2/8"
        assert "--shuffle-seed 7" in manifest.options["split_by"]
        total += manifest.documents
    assert total == 60


@pytest.mark.parametrize("kind", ["bin", "idx", "loss_mask.bin"])
def test_damaged_input_gets_no_new_manifest(kind: str, tmp_path: Path) -> None:
    """A changed bit in the first output's part."""
    prefix = write_known(tmp_path / "in", [[1, 2], [3], [4]], [1, 0, 1, 0])
    path = Path(f"{prefix}.{kind}")
    content = bytearray(path.read_bytes())
    content[-16 if kind == "idx" else 0] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"SHA-256|must rise"):
        split(TokenFiles(prefix), str(tmp_path / "out"), Contiguous(("_a", "_b"), (0, 1, 3)))
    assert not list(tmp_path.glob("out*"))


def test_a_range_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One output, named as asked; Megatron's files have no manifest before or after."""
    write_by_megatron(str(tmp_path / "in"), [[[1]], [[2, 3], [4]], [], [[5]]])
    words = ["split", "--input-prefix", str(tmp_path / "in"), "--output-prefix", str(tmp_path / "out")]
    assert main([*words, "--documents", "1:3"]) == 0
    assert documents_by_megatron(str(tmp_path / "out")) == [[[2, 3], [4]], []]
    assert not manifest_path(tmp_path / "out").exists()
    assert "has no manifest" in capsys.readouterr().err
    assert main([*words, "--documents", "0:1"]) == 2
    assert "exists and must not be lost" in capsys.readouterr().err
    assert main([*words, "--documents", "0:1", "--overwrite"]) == 0
    assert documents_by_megatron(str(tmp_path / "out")) == [[[1]]]


@pytest.mark.parametrize(
    "flags",
    [
        ["--documents", "1"],
        ["--documents=-1:2"],
        ["--documents", "2:2"],
        ["--documents", "0:9"],
        ["--documents", "2:3"],  # the empty one
        ["--fractions", "0.5,0.4"],
        ["--fractions", "1.5,-0.5"],
        ["--fractions", "0.99,0.01"],  # of 4 documents
        ["--fractions", "a,b"],
        ["--fractions", "1/0"],
        ["--fractions", "0.25,0.25,0.25,0.25"],
        ["--fractions", "0.5,0.5", "--names", "a,a"],
        ["--fractions", "0.5,0.5", "--names", "a"],
        ["--max-tokens", "2"],
        ["--max-tokens", "0"],
        ["--max-tokens", "9", "--shuffle-seed", "1"],
        ["--documents", "0:1", "--names", "a"],
    ],
)
def test_what_cannot_be_done_is_one_line(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the flag's value or the documents, and nothing is written."""
    write_by_megatron(str(tmp_path / "in"), [[[1]], [[2, 3], [4]], [], [[5]]])
    words = ["split", "--input-prefix", str(tmp_path / "in"), "--output-prefix", str(tmp_path / "out")]
    assert main([*words, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cptron: error: ") and ";" in line
    assert not list(tmp_path.glob("out*"))


def test_the_input_is_never_an_output(tmp_path: Path) -> None:
    """Even with overwrite."""
    prefix = write_known(tmp_path / "in", [[1], [2]])
    with pytest.raises(CptronError, match="is the input"):
        split(TokenFiles(prefix), str(prefix), by_range("0:1", 2), overwrite=True)
