"""One source: what its identity holds, which order its content has, and what it says it leaves out."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import kernels_reference as reference
import numpy as np
import pytest
from test_data_stream import SEQ, make_blend, write_tokens

from cptron.data.blend import Blend
from cptron.data.ledger import Ledger
from cptron.data.source import TokenSource
from cptron.errors import ConfigError, DataError


def test_other_document_borders_over_the_same_tokens_are_refused(tmp_path: Path) -> None:
    """The `.bin` is the same, byte for byte; yet the cursor would go on in another order and repeat tokens."""
    for name, lengths in (("one", [7] * 30), ("other", [70, 70, 70])):
        write_tokens(tmp_path / name, lengths)
    one, other = (str(tmp_path / name) for name in ("one", "other"))
    assert Path(f"{one}.bin").read_bytes() == Path(f"{other}.bin").read_bytes()
    saved = json.loads(json.dumps(Ledger.start(make_blend({"s": one}, {"s": 1.0})).to_dict()))
    Ledger.resume(saved, make_blend({"s": one}, {"s": 1.0}))
    with pytest.raises(DataError, match="source s has changed"):
        Ledger.resume(saved, make_blend({"s": other}, {"s": 1.0}))


@pytest.mark.parametrize("num_tokens", range(SEQ + 1, 3 * SEQ + 2))
def test_dropped_tokens_are_those_that_no_sample_reads(tmp_path: Path, num_tokens: int) -> None:
    """Counted by reading: 0 when the samples end with the stream, never a whole sample."""
    write_tokens(tmp_path / "s", [num_tokens])
    source = TokenSource("s", str(tmp_path / "s"), SEQ, seed=1)
    read = {token for i in range(source.samples_per_epoch) for token in source.sample(i).tolist()}
    assert source.tokens_dropped_per_epoch == num_tokens - len(read) < SEQ


def test_order_is_the_documented_one(tmp_path: Path) -> None:
    """Two epochs by plain Python from SHA-256 keys: another order would break every run that is resumed."""
    lengths, seed = [3, 1, 30, 8, 8, 17, 2, 40], 11
    stream = write_tokens(tmp_path / "s", lengths)
    content = hashlib.sha256(Path(f"{tmp_path / 's'}.bin").read_bytes()).hexdigest()
    source = TokenSource("s", str(tmp_path / "s"), SEQ, seed)
    documents = np.split(stream, np.cumsum(lengths)[:-1])
    expected = []
    for epoch in range(2):

        def shuffled(n: int, purpose: str, epoch: int = epoch) -> list[int]:
            digest = hashlib.sha256(f"{seed}|{content}|{epoch}|{purpose}".encode()).digest()
            return reference.shuffle(n, int.from_bytes(digest[:8], "little"))

        joined = np.concatenate([documents[i] for i in shuffled(len(lengths), "documents")])
        for i in shuffled((len(stream) - 1) // SEQ, "samples"):
            expected.append(joined[i * SEQ : (i + 1) * SEQ + 1].tolist())
    assert [source.sample(cursor).tolist() for cursor in range(len(expected))] == expected


def test_splitmix64_gives_its_published_numbers() -> None:
    """The first draws from key 0, as in the authors' implementation; kernel and twin could err together.

    Fisher-Yates over 2 things takes the high bit of the first draw.
    """
    draws = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
    order = [0, 1, 2, 3]
    for i, draw in zip((3, 2, 1), draws, strict=True):
        j = draw * (i + 1) >> 64
        order[i], order[j] = order[j], order[i]
    assert reference.shuffle(4, 0) == order


@pytest.mark.parametrize("shares", [[float("nan"), 1.0], [1.0, float("nan")], [float("inf")], [1e308, 1e308]])
def test_shares_without_a_finite_sum_are_refused(tmp_path: Path, shares: list[float]) -> None:
    """A sum that overflows would make every share 0."""
    write_tokens(tmp_path / "s", [50])
    source = TokenSource("s", str(tmp_path / "s"), SEQ, 1)
    with pytest.raises(ConfigError, match="finite sum"):
        Blend([source] * len(shares), shares)


def test_missing_kernels_are_one_clear_error() -> None:
    """No slow substitute: the import names the remedy."""
    program = (
        "import sys; sys.modules['cptron._kernels'] = None\n"
        "from cptron.errors import DataError\n"
        "try:\n    import cptron.data.kernels\n"
        "except DataError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert "pip install ." in line and "_kernels" in line
