"""The snaptokens engine: byte-pair encoding with a cache of words, for tokenizers that gigatoken does not know.

Place in the flow: `engine.choose_engine` loads it and compares it with the reference before it is used.
Invariant: a text that snaptokens refuses is encoded by the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from cptron.tokens.engine_reference import Ids, Lengths, ReferenceEngine, encode_halves
from cptron.tokens.tokenizer import Tokenizer


class SnaptokensEngine:
    """snaptokens for a Hugging Face tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Load. Raises ImportError without the package, ValueError for a tokenizer that it does not know."""
        import snaptokens

        text = tokenizer.definition("tokenizer.json")
        if text is None:
            raise ValueError("it reads tokenizer.json only")
        self.name = f"snaptokens {version('snaptokens')}"
        self._reference = ReferenceEngine(tokenizer)
        self._backend: Any = snaptokens.Tokenizer.from_json_str(text.decode("utf-8"))

    def encode(self, texts: Sequence[bytes]) -> tuple[Ids, Lengths]:
        """Ids and lengths, see `Engine.encode`."""
        try:
            ids, offsets = self._backend.encode_batch_flat([text.decode("utf-8") for text in texts])
        except ValueError:  # such as a byte that the vocabulary lacks; it does not say in which text
            if len(texts) == 1:
                return self._reference.encode(texts)
            return encode_halves(self.encode, texts)
        return np.frombuffer(ids, dtype="<u4"), np.diff(np.frombuffer(offsets, dtype="<i8"))
