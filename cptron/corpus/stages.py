"""The steps of a pipeline cut into stages, each with a fingerprint of all that decides what it makes.

Place in the flow: `run` carries out one stage after the other; `work` finds its files by the fingerprints.
Invariant: two runs with the same fingerprint of a stage make the same files there, byte for byte; whatever changes a
result changes the fingerprints of its stage and of all after it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import zstandard

from cptron.corpus.load import deciding_settings_of
from cptron.corpus.optional import remedy_of
from cptron.corpus.registry import AnyStep, step_class
from cptron.corpus.schema import CurateConfig, StepConfig
from cptron.corpus.shards import Corpus
from cptron.corpus.step import CorpusStep
from cptron.errors import DataError
from cptron.tokens.manifest import hash_file

FORMAT_VERSION = 2
"""Of what is in `.work`, and of how the runner calls steps."""
STAGE_LEVEL = 1
"""Of zstd between stages."""
_MOST_SHOWN = 3
"""Steps of a stage that are named one by one."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Map steps that a shard passes in one go, between two corpus steps."""

    number: int
    head: StepConfig | None
    """The corpus step whose decision is applied first; the tail of the stage before."""
    maps: tuple[StepConfig, ...]
    tail: StepConfig | None
    """The corpus step that looks at what comes out; None in the last stage."""
    name: str
    """Directory of the documents that come out, in `.work`."""
    decided: str
    """Directory of the tail's features and decision; empty in the last stage."""

    @property
    def shown(self) -> str:
        """For people; numbers as `--stage` has them."""
        return f"stage {self.number} ({self.shown_steps})"

    @property
    def shown_steps(self) -> str:
        """What is done to documents, in few words."""
        steps = [*([self.head.name] if self.head else []), *(step.name for step in self.maps)]
        few = steps if len(steps) <= _MOST_SHOWN else [steps[0], "...", steps[-1]]
        return ", ".join(few) or "reading"


def build_step(config: CurateConfig, step: StepConfig) -> AnyStep:
    """The step's object, not opened."""
    digest = hashlib.blake2b(f"{config.corpus.seed} {step.name}".encode(), digest_size=8).digest()
    return step_class(step.step)(step.name, step.settings, int.from_bytes(digest, "little"))


def identities(config: CurateConfig) -> list[dict[str, Any]]:
    """What decides the result of each step, as JSON. Raises DataError for a missing file or package."""
    return [_identity(config, step) for step in config.steps]


def cut_into_stages(
    config: CurateConfig, corpus: Corpus, steps: Sequence[Mapping[str, Any]], tokenizer: str
) -> list[Stage]:
    """The stages; `steps` are the `identities`, `tokenizer` the fingerprint of what counts tokens, or empty."""
    stages: list[Stage] = []
    chain = _hash(_of_inputs(config, corpus))
    maps: list[int] = []
    head: StepConfig | None = None
    for number, step in enumerate(config.steps):
        if not issubclass(step_class(step.step), CorpusStep):
            maps.append(number)
            continue
        made = _hash([chain, "maps", [steps[i] for i in maps]])
        chain = _hash([made, "decides", steps[number]])
        stages.append(_stage(len(stages), head, [config.steps[i] for i in maps], step, made, chain))
        maps, head = [], step
    last = ["output", config.corpus.compression_level, tokenizer]
    made = _hash([chain, "maps", [steps[i] for i in maps], last])
    stages.append(_stage(len(stages), head, [config.steps[i] for i in maps], None, made, ""))
    return stages


def _stage(
    number: int,
    head: StepConfig | None,
    maps: Sequence[StepConfig],
    tail: StepConfig | None,
    made: str,
    decided: str,
) -> Stage:
    decided_name = f"{number}-decided-{decided[:20]}" if decided else ""
    return Stage(number, head, tuple(maps), tail, f"{number}-{made[:20]}", decided_name)


def _of_inputs(config: CurateConfig, corpus: Corpus) -> Any:
    """Files by name, size and time: hashing them would take as long as reading them."""
    given = config.corpus
    return {
        "format_version": FORMAT_VERSION,
        "zstandard": [zstandard.__version__, *zstandard.ZSTD_VERSION],
        "orjson": orjson.__version__,
        "strict": given.strict,
        "max_document_bytes": given.max_document_bytes,
        "shard_bytes": given.shard_bytes,
        "seed": given.seed,
        "sources": [
            {
                "name": source.config.name,
                "text_key": source.text_key,
                "meta_keys": source.config.meta_keys,
                "files": [(name, size, changed) for name, _, size, changed in source.files],
            }
            for source in corpus.sources
        ],
    }


def _identity(config: CurateConfig, step: StepConfig) -> dict[str, Any]:
    built = build_step(config, step)
    return {
        "settings": deciding_settings_of(step),
        "version": built.version,
        "unicode": unicodedata.unidata_version,
        "packages": {name: package_version(name, step.name) for name in built.packages},
        "files": [_file_hash(path, step.name) for path in built.files()],
    }


def package_version(name: str, step: str) -> str:
    """Version of an installed distribution. Raises DataError where it is absent."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise DataError(f"step {step} needs {name}, must be installed; {remedy_of(name)}") from None


def _file_hash(path: Path, step: str) -> str:
    try:
        return hash_file(path).sha256
    except OSError as error:
        raise DataError(
            f"step {step} needs {path}, which cannot be read ({error.strerror}); correct it"
        ) from None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
