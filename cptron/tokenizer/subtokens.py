"""Which old tokens each new one consists of.

Place in the flow: `initial_rows` makes a row of a new token from the rows of these. Invariant: they are what the old
tokenizer cuts the new token's own bytes into, so that old and new say the same.
"""

from __future__ import annotations

from cptron.errors import DataError
from cptron.tokenizer.base import Base
from cptron.tokenizer.extended import require_old_ids


def subtokens(base: Base, extended: Base) -> dict[int, list[int]]:
    """New id -> old ids, in the order of new ids; none where the old tokenizer drops all of the token's bytes. Raises
    DataError where `extended` does not extend `base`."""
    require_old_ids(base, extended)
    model = base.backend.model
    found: dict[int, list[int]] = {}
    for number in sorted(extended.tokens.keys() - base.tokens.keys()):
        token = extended.tokens[number]
        # An added token is text; the others are written in the model's own alphabet.
        found[number] = (
            base.tokenizer.encode(token)
            if token in extended.added
            else [piece.id for piece in model.tokenize(token)]
        )
    if not found:
        raise DataError(
            f"tokenizer {extended.path} has no token that {base.path} lacks, and there is no row to make; use the "
            "model as it is"
        )
    return found
