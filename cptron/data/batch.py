"""What the model is fed: one micro-batch of one rank.

Place in the flow: made by the loaders, consumed by the pipeline schedule. Invariant: plain numpy, so the
data room needs no torch.

Shapes: B sequences of the micro-batch, S tokens predicted in a sequence.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class MicroBatch(NamedTuple):
    """Inputs, targets, which targets count, and which source each sequence is from."""

    tokens_BS: npt.NDArray[np.int64]
    labels_BS: npt.NDArray[np.int64]
    loss_mask_BS: npt.NDArray[np.float32]
    source_B: npt.NDArray[np.int64]
    documents_BS: npt.NDArray[np.int32]
    """Document of each input token, numbered from 0 in each row; places that hold no token are one more document."""
    on_first_tensor_rank: bool = False
    """Only tensor parallel rank 0 has read the arrays `[B, S]`; the pipeline hands them to the others."""
    sample_B: npt.NDArray[np.int64] | None = None
    """Number of each sequence in its source, where it is a sample of one."""
    teacher: Any = None
    """What a teacher says of the targets (`regularise.teacher.Said`), on ranks of the last stage; None without one."""
    weight_B: npt.NDArray[np.float32] | None = None
    """What the losses of each sequence are multiplied with in what is trained on; what is reported stays as it is."""

    def rows(self, start: int, stop: int) -> MicroBatch:
        """Views of some of its sequences."""
        return self._replace(
            tokens_BS=self.tokens_BS[start:stop],
            labels_BS=self.labels_BS[start:stop],
            loss_mask_BS=self.loss_mask_BS[start:stop],
            source_B=self.source_B[start:stop],
            documents_BS=self.documents_BS[start:stop],
            sample_B=None if self.sample_B is None else self.sample_B[start:stop],
            weight_B=None if self.weight_B is None else self.weight_B[start:stop],
        )
