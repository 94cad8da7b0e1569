"""The training batches of one data parallel rank.

Place in the flow: blend + ledger -> micro-batches for the step. Invariant: which samples make up a global
batch depends on neither the number of ranks nor the micro-batch size, and every rank advances the same
ledger by the whole global batch.

Shapes: B sequences of a micro-batch, S tokens predicted in a sequence.
"""

from __future__ import annotations

import numpy as np

from cptron.data.batch import MicroBatch
from cptron.data.blend import Blend
from cptron.data.ledger import Ledger


class TrainLoader:
    """Hands out this rank's share of one global batch after another."""

    def __init__(
        self,
        blend: Blend,
        ledger: Ledger,
        global_batch_size: int,
        micro_batch_size: int,
        dp_rank: int,
        dp_size: int,
    ) -> None:
        assert global_batch_size % (micro_batch_size * dp_size) == 0, "the configuration check refuses this"
        self._blend = blend
        self._ledger = ledger
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._dp_rank = dp_rank
        self._dp_size = dp_size

    def next_step(self) -> list[MicroBatch]:
        """This rank's micro-batches of the next global batch; the ledger moves on by all of it.

        Sample j of the global batch is row j % B of micro-batch j // (B * dp_size) on rank j // B % dp_size.
        """
        drawn = self._draw()
        per_round = self._micro_batch_size * self._dp_size
        first = self._dp_rank * self._micro_batch_size
        return [
            self._micro_batch(drawn[start : start + self._micro_batch_size])
            for start in range(first, self._global_batch_size, per_round)
        ]

    def _draw(self) -> list[tuple[int, int]]:
        """(source, cursor) of every sample of the next global batch."""
        entries = [self._ledger.entries[source.name] for source in self._blend.sources]
        chosen, counts = self._blend.draw([entry.since_mix for entry in entries], self._global_batch_size)
        drawn = []
        for index in chosen.tolist():
            drawn.append((index, entries[index].cursor))
            entries[index].cursor += 1
        for entry, source, count in zip(entries, self._blend.sources, counts, strict=True):
            entry.since_mix = count
            entry.epochs = entry.cursor / source.samples_per_epoch
            entry.tokens = entry.cursor * (source.tokens_per_epoch // source.samples_per_epoch)
        return drawn

    def _micro_batch(self, drawn: list[tuple[int, int]]) -> MicroBatch:
        samples = np.stack([self._blend.sources[index].sample(cursor) for index, cursor in drawn])
        return MicroBatch(
            tokens_BS=samples[:, :-1].copy(),
            labels_BS=samples[:, 1:].copy(),
            loss_mask_BS=np.ones((len(drawn), samples.shape[1] - 1), dtype=np.float32),
            source_B=np.array([index for index, _ in drawn], dtype=np.int64),
        )
