"""The compiled kernels, or one clear error.

Place in the flow: everything that loops over documents, samples or the bits of weights goes through here.
Invariant: there is no slow substitute that a cluster could run on for hours without knowing.
"""

from __future__ import annotations

from cptron.errors import DataError

try:
    from cptron._kernels import (
        Blend,
        JoinedEpoch,
        PackedEpoch,
        Permutation,
        Tokens,
        checksum,
        joined_starts,
        packed_starts,
    )
except ImportError as error:
    raise DataError(
        f"the compiled kernels cannot be loaded ({error}); run `pip install .` with a C++ compiler"
    ) from error

__all__ = [
    "Blend",
    "JoinedEpoch",
    "PackedEpoch",
    "Permutation",
    "Tokens",
    "checksum",
    "joined_starts",
    "packed_starts",
]
