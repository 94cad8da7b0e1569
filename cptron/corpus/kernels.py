"""The compiled kernels of this room, or one clear error.

Place in the flow: below everything in `dedup`, the rules for prose and a language identifier.
Invariant: there is no slow substitute.
"""

from __future__ import annotations

from cptron.errors import DataError

try:
    from cptron._kernels import (
        Automaton,
        Clusters,
        Contamination,
        ProseCounter,
        band_keys,
        broken_rule,
        shingle_sets,
        signature_variants,
        signatures,
    )
except ImportError as error:
    raise DataError(
        f"the compiled kernels cannot be loaded ({error}); run `pip install .` with a C++ compiler"
    ) from error

__all__ = [
    "Automaton",
    "Clusters",
    "Contamination",
    "ProseCounter",
    "band_keys",
    "broken_rule",
    "shingle_sets",
    "signature_variants",
    "signatures",
]
