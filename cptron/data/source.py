"""One corpus as an endless stream of samples that can be entered anywhere.

Place in the flow: token files -> samples; below `blend`. Invariant: sample number `cursor` is always the
same tokens, and each epoch holds every sample exactly once.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from cptron.data.order import EpochOrder, samples_in
from cptron.errors import DataError
from cptron.tokens.indexed import IndexedTokens
from cptron.tokens.manifest import load_manifest


class TokenSource:
    """Samples of `seq_length + 1` tokens from the files `PREFIX.bin` and `PREFIX.idx`.

    An epoch is all documents in a new order; the last tokens, too few for a sample, are left out of that
    epoch (`tokens_dropped_per_epoch`), and are others in the next.
    """

    def __init__(self, name: str, prefix: str, seq_length: int, seed: int) -> None:
        self.name = name
        self._tokens = IndexedTokens(prefix)
        self._seq_length = seq_length
        self._seed = seed
        files = load_manifest(prefix).files
        self._content = files["bin"].sha256
        # A cursor counts in tokens and in the documents they are cut into: both files are the identity.
        self.identity = hashlib.sha256(f"{self._content}|{files['idx'].sha256}".encode()).hexdigest()
        self.samples_per_epoch = samples_in(self._tokens.num_tokens, seq_length)
        self.tokens_per_epoch = self.samples_per_epoch * seq_length
        self.tokens_dropped_per_epoch = self._tokens.num_tokens - 1 - self.tokens_per_epoch
        if self.samples_per_epoch == 0:
            raise DataError(
                f"source {name} ({prefix}) has {self._tokens.num_tokens} tokens, fewer than one sample of "
                f"data.seq_length={seq_length} + 1; add text or lower data.seq_length"
            )
        self._orders: dict[int, EpochOrder] = {}

    def sample(self, cursor: int) -> npt.NDArray[np.int64]:
        """Tokens `[seq_length + 1]` of the `cursor`-th sample since the start of the run."""
        epoch, sample = divmod(cursor, self.samples_per_epoch)
        spans = self._order(epoch).locate(sample)
        return np.concatenate([self._tokens.read(s.document, s.offset, s.length) for s in spans]).astype(
            np.int64
        )

    def _order(self, epoch: int) -> EpochOrder:
        """The order of an epoch; two are kept, since a batch can straddle the turn of an epoch."""
        if epoch not in self._orders:
            while len(self._orders) > 1:
                del self._orders[min(self._orders)]
            self._orders[epoch] = EpochOrder(
                self._tokens.lengths_tokens, self._seq_length, self._seed, self._content, epoch
            )
        return self._orders[epoch]
