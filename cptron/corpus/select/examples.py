"""Examples that a user gives to a step: files of the same kinds as the inputs of a curation.

Place in the flow: targets of DSIR and ETS, positive and negative documents of a classifier, references of a language
model. Invariant: an example that cannot be read is an error with file and line: a model must not rest on part of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cptron.corpus.read import read_documents
from cptron.corpus.schema import CorpusConfig, InputConfig
from cptron.corpus.shards import look_up
from cptron.errors import DataError
from cptron.tokens.inputs import expand_inputs
from cptron.tokens.records import Reject

_MAX_DOCUMENT_BYTES = 64 << 20


def example_files(paths: Sequence[str]) -> list[Path]:
    """The files that hold the examples, for a step's `files`. Raises DataError where there are none."""
    return list(dict.fromkeys(source.path for source in expand_inputs(paths, archives=True)))


def examples(paths: Sequence[str], text_key: str, what: str) -> Iterator[str]:
    """Texts, in order. Raises DataError for a damaged record, and where there is no text at all."""
    source = InputConfig(name=what, paths=tuple(paths), text_key=text_key, meta_keys=())
    corpus = look_up(CorpusConfig(output="", inputs=(source,)))
    count = 0
    for shard in corpus.shards:
        for found in read_documents(shard, corpus.sources[shard.source], _MAX_DOCUMENT_BYTES, []):
            if isinstance(found, Reject):
                raise DataError(
                    f"{found.path}:{found.record} is {found.reason} ({found.detail}), examples must be whole; mend it"
                )
            count += bool(found.text.strip())
            yield found.text
    if not count:
        raise DataError(f"{', '.join(paths)} hold {count} examples of {what}, must hold some; add them")
