"""An asynchronous save of tensors on the GPU: the same files as a synchronous one, from page-locked memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cptron.checkpoint.background import BackgroundWriter
from cptron.checkpoint.block_writer import BlockSpec, write_blocks
from cptron.checkpoint.checksum import checksum
from cptron.checkpoint.tensor_bytes import bytes_of

pytestmark = pytest.mark.gpu


def test_a_copy_beside_the_next_step(tmp_path: Path) -> None:
    """Begun while the GPU still computes what is saved; changed only after `copied`; twice, in the same memory."""
    writer = BackgroundWriter()
    try:
        for number in range(2):
            weight = torch.randn(4096, 1024, device="cuda")
            for _ in range(20):
                weight = weight @ torch.eye(1024, device="cuda")
            moment = torch.randn(1 << 20, device="cuda", dtype=torch.bfloat16)
            matrix = (4096, 1024)
            blocks = [
                (BlockSpec("a", (0, 0), matrix, "float32", parameter="a", matrix=matrix), weight),
                (BlockSpec("b", (0,), (1 << 20,), "bfloat16"), moment),
            ]
            (tmp_path / f"there{number}").mkdir()
            (tmp_path / f"here{number}").mkdir()
            writer.start(tmp_path / f"there{number}", 0, blocks)
            expected = write_blocks(
                tmp_path / f"here{number}", 0, [(spec, bytes_of(t)) for spec, t in blocks]
            )
            kernel = checksum(weight)
            writer.copied()
            weight.zero_()
            found = writer.result()
            assert found == expected and found.checksums == {"a": kernel}
    finally:
        writer.close()
