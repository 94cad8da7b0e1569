"""FOCUS: new rows as sparse convex mixes of the rows of old tokens with similar word vectors (Dobler and de Melo 2023).

Place in the flow: `initial_rows` with `--init focus`. The vectors are the user's: fastText's text form, of words or of
the extended tokenizer's tokens. Invariant: weights of a mix are at least 0 and sum to one.

Shapes: K new tokens, V old tokens, M old tokens with a vector, D size of a vector, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cptron.errors import ConversionError
from cptron.tokenizer.base import SPACE, Base
from cptron.tokens.byte_lengths import ALPHABET

AT_ONCE = 256
"""New tokens compared with all old ones together."""

Vectors = dict[int, npt.NDArray[np.float32]]
"""Id -> unit vector [D]."""


def read_vectors(path: Path, base: Base, extended: Base) -> Vectors:
    """Vectors of the tokens that the file knows: by the token as the vocabulary writes it; in a file of plain words, in
    which none begins with the vocabulary's mark of a space, else by the text. Raises `ConversionError` where the file
    is no such file, or knows no new token or no old one."""
    names: dict[str, list[int]] = {}
    by_text: dict[str, list[int]] = {}
    for number, token in extended.tokens.items():
        if token not in extended.added:
            names.setdefault(token, []).append(number)
            text = extended.bytes_of(token).decode("utf-8", "replace").strip()
            by_text.setdefault(text, []).append(number)
    found: Vectors = {}
    from_text: Vectors = {}
    space = SPACE if extended.kind == "byte-fallback" else ALPHABET[ord(" ")]
    plain = True
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines):
                word, *values = line.rstrip().split(" ")
                if number == 0 and len(values) == 1:
                    continue  # how many vectors of which size
                if word in names or word in by_text:
                    vector_D = _unit(np.array(values, np.float32))
                    plain = plain and not (word in names and word.startswith(space))
                    found |= dict.fromkeys(names.get(word, ()), vector_D)
                    from_text |= dict.fromkeys(by_text.get(word, ()), vector_D)
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"{path} must be a text file of one word and its vector a line ({error}); give fastText's .vec"
        ) from None
    vectors = {**from_text, **found} if plain else found
    if len({len(vector_D) for vector_D in vectors.values()}) > 1:
        raise ConversionError(f"{path} has vectors of several sizes, must have one; write the file again")
    if not vectors.keys() & base.tokens.keys() or not vectors.keys() - base.tokens.keys():
        raise ConversionError(
            f"{path} has vectors of {len(vectors.keys() & base.tokens.keys())} old and "
            f"{len(vectors.keys() - base.tokens.keys())} new tokens, at least one of each is needed; give vectors of "
            "the domain's words"
        )
    return vectors


def mix_of_similar(
    matrix_VH: torch.Tensor, vectors: Vectors, new: Sequence[int], trained_V: torch.Tensor
) -> tuple[npt.NDArray[np.bool_], torch.Tensor]:
    """Which of the new ids have a vector, and their rows [K, H]; zeros for the others."""
    is_new = set(new)
    old = [i for i in sorted(vectors) if i not in is_new and i < len(trained_V) and trained_V[i]]
    old_MD = torch.from_numpy(np.stack([vectors[number] for number in old]))
    mixed = np.array([number in vectors for number in new], np.bool_)
    made_KH = torch.zeros(len(new), matrix_VH.size(1), dtype=torch.float64)
    places = np.flatnonzero(mixed)
    for start in range(0, len(places), AT_ONCE):
        group = places[start : start + AT_ONCE]
        similar_GM = torch.from_numpy(np.stack([vectors[new[place]] for place in group])) @ old_MD.T
        for place, weights_M in zip(group, sparsemax(similar_GM.double()), strict=True):
            used = weights_M.nonzero()[:, 0]
            rows_UH = matrix_VH[[old[int(number)] for number in used]].double()
            made_KH[place] = weights_M[used] @ rows_UH
    return mixed, made_KH


def sparsemax(scores_GM: torch.Tensor) -> torch.Tensor:
    """The point of the probability simplex nearest to each row (Martins and Astudillo 2016)."""
    sorted_GM = scores_GM.sort(dim=1, descending=True).values
    sums_GM = sorted_GM.cumsum(dim=1)
    counts_M = torch.arange(1, scores_GM.size(1) + 1, dtype=scores_GM.dtype)
    support_G = (1 + counts_M * sorted_GM > sums_GM).sum(dim=1, keepdim=True)
    threshold_G = (sums_GM.gather(1, support_G - 1) - 1) / support_G
    return (scores_GM - threshold_G).clamp(min=0)


def _unit(vector_D: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    norm = float(np.linalg.norm(vector_D))
    if not 0 < norm < np.inf:
        return np.zeros_like(vector_D)
    return (vector_D / norm).astype(np.float32)
