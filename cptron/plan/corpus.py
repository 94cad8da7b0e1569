"""The corpus of a recipe: how many tokens each source gives and how often it is seen.

Place in the flow: beside the layouts in a plan. Imports no torch. Invariant: counts are those of the token files where
they are on this machine; where not, what is not known is said to be unknown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cptron.config.schema import Config
from cptron.data.content import open_content
from cptron.plan.search import tokens_per_step, weighted_stages
from cptron.tokens.curated import read_corpora
from cptron.tokens.index_layout import idx_path


@dataclass(frozen=True, slots=True)
class CuratedPart:
    """What `cptron curate` wrote of one source of a corpus that token files were made of."""

    corpus: str
    """Fingerprint of the whole corpus."""
    source: str
    documents: int
    text_bytes: int
    """Of its texts, in UTF-8."""
    tokens: int | None
    """Without special tokens; None where the curation named no tokenizer."""


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """One training source."""

    name: str
    role: str
    share: float
    """Of the run's tokens, over all its stages."""
    drawn_tokens: float
    tokens: int | None
    """In its files; None where they are not on this machine."""
    epochs: float | None
    max_epochs: float
    """0: no limit."""
    curated: tuple[CuratedPart, ...]
    """Of the curated corpora behind the files: of the whole corpus, also where the files hold a part of it."""

    @property
    def is_exhausted(self) -> bool:
        """The run asks for more than the recipe allows."""
        return bool(self.epochs and self.max_epochs and self.epochs > self.max_epochs)


def corpus_of(config: Config) -> list[SourcePlan]:
    """Every source. Raises `DataError` where its files are damaged."""
    total = config.train.steps * tokens_per_step(config)
    shares = {source.name: 0.0 for source in config.data.sources}
    stages = config.data.stages or (None,)
    for stage, (_, part) in zip(stages, weighted_stages(config), strict=True):
        blend = dict(stage.shares) if stage is not None and stage.shares else {}
        blend = blend or {source.name: source.token_share for source in config.data.sources}
        whole = math.fsum(blend.values())
        for name, share in blend.items():
            shares[name] += part * share / whole
    found = []
    for source in config.data.sources:
        drawn = shares[source.name] * total
        is_here = idx_path(source.path).is_file()
        tokens = open_content(source.path).tokens.num_tokens if is_here else None
        found.append(
            SourcePlan(
                name=source.name,
                role=source.role,
                share=shares[source.name],
                drawn_tokens=drawn,
                tokens=tokens,
                epochs=drawn / tokens if tokens else None,
                max_epochs=source.max_epochs,
                curated=curated_parts(source.path) if is_here else (),
            )
        )
    return found


def curated_parts(prefix: str) -> tuple[CuratedPart, ...]:
    """The curated corpora that the token files `prefix` were made of, source by source; none where no corpus was
    curated. Raises `DataError` where their manifests are damaged."""
    found = []
    for corpus in read_corpora(prefix):
        for name in dict.fromkeys(file.source for file in corpus.files):
            files = [file for file in corpus.files if file.source == name]
            counted = [file.tokens for file in files if file.tokens is not None]
            found.append(
                CuratedPart(
                    corpus=corpus.fingerprint,
                    source=name,
                    documents=sum(file.documents for file in files),
                    text_bytes=sum(file.text_bytes for file in files),
                    tokens=sum(counted) if len(counted) == len(files) else None,
                )
            )
    return tuple(found)
