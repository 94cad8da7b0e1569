"""What a teacher, the model as it started, says of the tokens of replay sources.

Place in the flow: `regulariser` has it attached to a step's batches; `pipeline` hands it to the model, whose loss pulls
the model's probabilities towards it (distillation: learning without forgetting, Li and Hoiem 2016). Invariant: only
sequences of replay sources are asked about; on every rank the targets belong to the tokens that the rank computes.

Shapes: B sequences of a micro-batch, S tokens of a sequence on this context rank, K tokens of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from cptron.data.batch import MicroBatch
from cptron.data.source import TokenSource
from cptron.model.top_targets import TopTargets
from cptron.regularise.projection import split_rows
from cptron.regularise.taught_file import Taught
from cptron.runtime.groups import is_last_stage
from cptron.runtime.pipeline import here, top_tokens_of


class Said(NamedTuple):
    """Of one micro-batch, on the last stage."""

    ids_BSK: torch.Tensor
    probabilities_BSK: torch.Tensor
    weights_BS: torch.Tensor
    """Of the divergence; 0 where the teacher was not asked."""

    def targets(self, mask_BS: torch.Tensor) -> TopTargets:
        """For the model, where the loss counts."""
        return TopTargets(self.ids_BSK, self.probabilities_BSK, self.weights_BS * mask_BS)


class Teacher(Protocol):
    """Says of replay rows what the model should keep."""

    def attach(self, batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """The batches of a step, each with what is said of it (None on ranks that do not need it)."""


class LiveTeacher:
    """The starting weights in memory once more, asked in every step: a forward pass of the replay rows."""

    def __init__(
        self, chunks: Sequence[Any], is_replay: Sequence[bool], weight: float, device: torch.device
    ) -> None:
        self._chunks = chunks
        self._is_replay = np.array(is_replay)
        self._weight = weight
        self._device = device

    def attach(self, batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """As `Teacher`; collective over the ranks of one copy of the model."""
        replay_B = np.concatenate([self._is_replay[batch.source_B] for batch in batches])
        if not replay_B.any():
            return list(batches)
        asked, _ = split_rows(batches, self._is_replay)
        answers = top_tokens_of(self._chunks, asked, self._device)
        if not is_last_stage():
            return list(batches)
        ids_BSK, probabilities_BSK = (torch.cat([answer[place] for answer in answers]) for place in (0, 1))
        places_B = np.where(replay_B, np.cumsum(replay_B) - 1, 0)
        rows = len(batches[0].source_B)
        return [
            batch._replace(
                teacher=self._said(
                    ids_BSK, probabilities_BSK, places_B[first : first + rows], replay_B[first : first + rows]
                )
            )
            for first, batch in zip(range(0, len(replay_B), rows), batches, strict=True)
        ]

    def _said(
        self,
        ids_BSK: torch.Tensor,
        probabilities_BSK: torch.Tensor,
        places_B: npt.NDArray[np.int64],
        replay_B: npt.NDArray[np.bool_],
    ) -> Said:
        chosen_B = torch.from_numpy(places_B).to(self._device)
        weights_B = self._weight * torch.from_numpy(replay_B).to(self._device, torch.float32)
        ids_BSK = ids_BSK[chosen_B]
        weights_BS = weights_B[:, None].expand(ids_BSK.shape[:2])
        return Said(ids_BSK, probabilities_BSK[chosen_B], weights_BS)


class CachedTeacher:
    """What the starting weights said of the replay sources' token files, each document read from its beginning."""

    def __init__(
        self,
        sources: Sequence[TokenSource],
        taught: Mapping[int, Taught],
        weight: float,
        top_k: int,
        device: torch.device,
        *,
        packed: bool,
    ) -> None:
        """`taught` by the number of the replay source. `packed`: each piece of a sample ends in a token that is a label
        only."""
        self._sources = sources
        self._taught = taught
        self._weight = weight
        self._top_k = top_k
        self._device = device
        self._packed = packed

    def attach(self, batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """As `Teacher`; nothing is sent."""
        if not is_last_stage():
            return list(batches)
        return [batch._replace(teacher=self._said(batch)) for batch in batches]

    def _said(self, batch: MicroBatch) -> Said | None:
        asked = [row for row, source in enumerate(batch.source_B.tolist()) if source in self._taught]
        if not asked:
            return None
        assert batch.sample_B is not None, "checked with the configuration"
        shape, top_k = batch.tokens_BS.shape, self._top_k
        # the divergence wants different ids, also where it is not asked for
        ids_BSK = np.broadcast_to(np.arange(top_k), (*shape, top_k)).copy()
        probabilities_BSK = np.zeros((*shape, top_k), np.float32)
        weights_BS = np.zeros(shape, np.float32)
        for row in asked:
            number = int(batch.source_B[row])
            places_S = self._places(number, int(batch.sample_B[row]))
            found = self._taught[number].rows[places_S]
            count = len(places_S)
            ids_BSK[row, :count] = found["ids"][:, :top_k]
            probabilities_BSK[row, :count] = np.exp(found["logs"][:, :top_k].astype(np.float32))
            weights_BS[row, :count] = self._weight
        arrays = (ids_BSK, probabilities_BSK, weights_BS)
        return Said(*(here(array, self._device) for array in arrays))

    def _places(self, number: int, cursor: int) -> npt.NDArray[np.int64]:
        """Numbers in the token files of a sample's input tokens."""
        spans = self._sources[number].spans(cursor)
        counts = [span.length - (self._packed or span is spans[-1]) for span in spans]
        starts = self._taught[number].starts
        return np.concatenate(
            [starts[s.document] + s.offset + np.arange(count) for s, count in zip(spans, counts, strict=True)]
        )
