"""Tokens per byte of the same documents under two tokenizers.

Place in the flow: the report of `extend`. Invariant: both tokenizers encode the same documents, with their own
libraries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cptron.errors import DataError
from cptron.tokenizer.texts import Text
from cptron.tokens.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What was counted."""

    documents: int
    num_bytes: int
    tokens_before: int
    tokens_after: int
    longer: int
    """Documents that have more tokens after than before."""
    cut_otherwise: int
    """Documents whose ids have changed."""
    used: frozenset[int]
    """Ids that occur after."""

    @property
    def before(self) -> float:
        """Tokens per byte."""
        return self.tokens_before / self.num_bytes

    @property
    def after(self) -> float:
        """Tokens per byte."""
        return self.tokens_after / self.num_bytes

    def facts(self) -> dict[str, float | int]:
        """For the report."""
        return {
            "documents": self.documents,
            "bytes": self.num_bytes,
            "tokens_per_byte_before": self.before,
            "tokens_per_byte_after": self.after,
            "tokens_change": self.tokens_after / self.tokens_before - 1,
            "documents_with_more_tokens": self.longer,
            "documents_cut_otherwise": self.cut_otherwise,
        }


def measure(before: Tokenizer, after: Tokenizer, blocks: Iterable[list[Text]], what: str) -> Efficiency:
    """Encode all documents twice. Raises DataError where there are none; `what` names them."""
    documents = num_bytes = longer = otherwise = 0
    totals = np.zeros(2, np.int64)
    used: set[int] = set()
    for texts in blocks:
        batch = [text.text for text in texts]
        for text, old, new in zip(texts, before.encode_batch(batch), after.encode_batch(batch), strict=True):
            documents += 1
            num_bytes += text.num_bytes
            totals += (len(old), len(new))
            longer += len(new) > len(old)
            otherwise += old != new
            used.update(new)
    if not totals[0]:
        raise DataError(f"the {what} holds no token to measure with; name files with more text")
    return Efficiency(
        documents, num_bytes, int(totals[0]), int(totals[1]), longer, otherwise, frozenset(used)
    )
