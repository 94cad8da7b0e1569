"""Documents packed into a row are as if each stood alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from document_calls import token_losses

from cptron.runtime.topology import Layout
from cptron.testing import run_ranks

WIDTH = 48
LENGTHS = [(31, 17), (1, 47), (16, 32)]
"""Two documents in each row: cut anywhere, at a chunk's edge, after one token."""


@pytest.mark.parametrize(
    "layout",
    [
        Layout(cp=2),
        pytest.param(Layout(cp=2, tp=2, sequence_parallel=True), marks=pytest.mark.core_ranks),
        *(pytest.param(cut, marks=pytest.mark.more) for cut in (Layout(), Layout(cp=4))),
    ],
    ids=str,
)
def test_two_documents_in_a_row_lose_what_they_lose_alone(
    layout: Layout, checkpoints: dict[str, Path]
) -> None:
    """Losses token by token, to 1e-5 of the largest; and without the mask they would differ. The separate forward
    passes are one process's; positions go on in the second document, as they do in training."""
    draw = np.random.default_rng(3)
    stream_BW1 = draw.integers(0, 300, (len(LENGTHS), WIDTH + 1))
    tokens_BW, labels_BW = stream_BW1[:, :-1].copy(), stream_BW1[:, 1:].copy()
    documents_BW = np.stack([np.repeat([0, 1], lengths) for lengths in LENGTHS]).astype(np.int32)
    checkpoint = str(checkpoints["untied"])
    packed_BW = run_ranks(token_losses, layout.ranks, checkpoint, tokens_BW, labels_BW, documents_BW, layout)[
        0
    ]

    for row, (first, _) in enumerate(LENGTHS):
        for part in (slice(0, first), slice(first, WIDTH)):
            # rotary attention depends on distances alone, so a document may be moved to the start of a row
            alone = (tokens_BW[row : row + 1, part], labels_BW[row : row + 1, part])
            nothing_else = np.zeros(alone[0].shape, np.int32)
            alone_BW = run_ranks(token_losses, 1, checkpoint, *alone, nothing_else, Layout())[0]
            np.testing.assert_allclose(packed_BW[row, part], alone_BW[0], rtol=0, atol=1e-5 * alone_BW.max())
    whole = np.zeros_like(documents_BW)
    crossing_BW = run_ranks(token_losses, layout.ranks, checkpoint, tokens_BW, labels_BW, whole, layout)[0]
    assert np.abs(crossing_BW - packed_BW).max() > 0.1, "a mask that changes nothing was no mask"
