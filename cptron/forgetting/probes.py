"""Probes of what a model does with its context, which the loss on text may not show.

Place in the flow: configuration -> here -> `evaluate.perplexity`, as validation sets are. Imports no torch. Invariant:
the same tokens for a seed, under every layout and whatever the tokenizer: they are random ids.

`induction`: random tokens, twice in a row. The second half can be copied, the first can not. `mapping`: pairs from a
random table, in rounds, each in an order of its own. After the first round an answer can be looked up by its key, in
the first it can not.

Every sequence is two windows with the same tokens: in the first those labels count that no context tells, in the second
those that it does. What a probe shows is the loss of the second minus that of the first: near 0 for a model that makes
nothing of its context, far below for one that does.

Shapes: P sequences, T tokens of one, B windows of a micro-batch, S places of a window (T - 1 and what fills up).
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from cptron.config.schema_forgetting import ForgettingConfig
from cptron.data.batch import MicroBatch
from cptron.data.windows import SetFacts, WindowSet

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class ProbeSet(WindowSet):
    """A probe's sequences, as one data parallel rank sees them."""

    def __init__(
        self,
        name: str,
        tokens_PT: Int64Array,
        counted_2T: BoolArray,
        identity: str,
        cut: tuple[int, int, int],
        sequence_unit: int,
    ) -> None:
        """`counted_2T`: which tokens count in the two windows of a sequence. `cut`: micro-batch size, data parallel
        rank and size. Windows are filled up to a multiple of `sequence_unit`."""
        super().__init__(*cut)
        self.name = name
        self.num_windows = 2 * len(tokens_PT)
        self.num_predicted_tokens = len(tokens_PT) * int(counted_2T.sum())
        self.facts = SetFacts(hashlib.sha256(identity.encode()).hexdigest())
        self._tokens_PT, self._counted_2T = tokens_PT, counted_2T
        places = tokens_PT.shape[1] - 1
        self._num_places, self._length = places, places + -places % sequence_unit

    def micro_batch(self, windows: range) -> MicroBatch:
        """These windows; what lies beyond the last one is masked."""
        shape = (len(windows), self._length)
        batch = MicroBatch(
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.float32),
            np.array(windows, np.int64),
            np.zeros(shape, np.int32),
        )
        for row, window in enumerate(windows):
            if window < self.num_windows:
                tokens_T = self._tokens_PT[window // 2]
                batch.tokens_BS[row, : self._num_places] = tokens_T[:-1]
                batch.labels_BS[row, : self._num_places] = tokens_T[1:]
                batch.loss_mask_BS[row, : self._num_places] = self._counted_2T[window % 2, 1:]
                batch.documents_BS[row, self._num_places :] = 1
        return batch


def probe_sets(
    config: ForgettingConfig, seed: int, vocab_size: int, cut: tuple[int, int, int], sequence_unit: int
) -> list[ProbeSet]:
    """The probes that are on."""
    found = []
    for name, sequences in (("induction", config.induction_sequences), ("mapping", config.mapping_sequences)):
        if sequences:
            identity = f"{name}|{seed}|{sequences}|{config.probe_tokens}|{config.mapping_pairs}|{vocab_size}"
            digest = hashlib.sha256(identity.encode()).digest()
            draw = np.random.default_rng(int.from_bytes(digest[:8], "little"))
            tokens_PT = np.stack([_sequence(name, config, vocab_size, draw) for _ in range(sequences)])
            counted_2T = _counted(name, config, tokens_PT.shape[1])
            found.append(ProbeSet(name, tokens_PT, counted_2T, identity, cut, sequence_unit))
    return found


def _sequence(name: str, config: ForgettingConfig, vocab_size: int, draw: np.random.Generator) -> Int64Array:
    half, pairs = config.probe_tokens // 2, config.mapping_pairs
    if name == "induction":
        return np.tile(draw.choice(vocab_size, half, replace=False), 2)
    table = draw.choice(vocab_size, (pairs, 2), replace=False)
    order = np.concatenate([draw.permutation(pairs) for _ in range(-(-half // pairs))])
    sequence: Int64Array = table[order[:half]].reshape(-1)
    return sequence


def _counted(name: str, config: ForgettingConfig, length: int) -> BoolArray:
    """Tokens that no context tells, and those that it does [2, T]."""
    place, half = np.arange(length), length // 2
    if name == "induction":  # the first token of the second half could be any
        return np.stack([(place > 0) & (place < half), place > half])
    is_answer, known = place % 2 == 1, place >= 2 * config.mapping_pairs
    return np.stack([is_answer & ~known, is_answer & known])
