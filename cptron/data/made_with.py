"""Whether the token files of a run are whole, and were made with the tokenizer of its model.

Place in the flow: asked before a run starts, and before its job is submitted. Invariant: it only reads; what cannot be
proven is said.
"""

from __future__ import annotations

from cptron.config.schema import Config
from cptron.data.content import Content, open_content
from cptron.errors import DataError
from cptron.tokens.manifest import TokenizerRecord


def tokenizer_of_data(config: Config, tokenizer_of_base: str) -> str:
    """Fingerprint of the tokenizer that the data has to be made with; empty where it is not known."""
    if not config.data.tokenizer:
        return tokenizer_of_base
    from cptron.tokens.tokenizer import load_tokenizer

    return load_tokenizer(config.data.tokenizer).fingerprint


def check_data(config: Config, vocab_size: int, expected: str) -> tuple[tuple[str, ...], dict[str, Content]]:
    """A note for each token file of which it cannot be proven that the tokenizer `expected` made it, and each source's
    content. `vocab_size`: rows of the model's embedding. Raises `DataError` for a file that is not there, damaged, or
    of another tokenizer."""
    notes, contents = [], dict[str, Content]()
    for kind, named in (("source", config.data.sources), ("validation set", config.data.valid)):
        for item in named:
            where = f"{kind} {item.name} ({item.path})"
            content = open_content(item.path)
            if kind == "source":
                contents[item.name] = content
            if content.tokens.num_tokens < 2:
                raise DataError(f"{where} has {content.tokens.num_tokens} tokens; at least 2 are needed")
            if content.manifest is None:
                notes.append(f"{where} has no manifest: that the model's tokenizer made it is not proven")
            else:
                _check_tokenizer(where, content.manifest.tokenizer, vocab_size, expected)
    return tuple(notes), contents


def _check_tokenizer(where: str, made_with: TokenizerRecord, vocab_size: int, expected: str) -> None:
    if expected and made_with.fingerprint != expected:
        raise DataError(
            f"{where} was tokenized with {made_with.fingerprint[:12]}, but the model's tokenizer is "
            f"{expected[:12]}; run cptron preprocess with the model's tokenizer"
        )
    if made_with.vocab_size > vocab_size:
        raise DataError(
            f"{where} has a vocabulary of {made_with.vocab_size}, but the model has {vocab_size} embeddings; "
            "run cptron preprocess with the model's tokenizer"
        )
