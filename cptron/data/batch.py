"""What the model is fed: one micro-batch of one rank.

Place in the flow: made by the loaders, consumed by the pipeline schedule. Invariant: plain numpy, so the
data room needs no torch.

Shapes: B sequences of the micro-batch, S tokens predicted in a sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class MicroBatch(NamedTuple):
    """Inputs, targets, which targets count, and which source each sequence is from."""

    tokens_BS: npt.NDArray[np.int64]
    labels_BS: npt.NDArray[np.int64]
    loss_mask_BS: npt.NDArray[np.float32]
    source_B: npt.NDArray[np.int64]
