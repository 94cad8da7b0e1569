"""Turns documents into questions with answers, or instructions, that a language model writes about them.

Place in the flow: a map step, on clean documents; deduplication belongs behind it. It makes one document of each pair,
with the pair as `messages`, where it came from, and who wrote it. Invariant: every answer of the model is in the cache
before it is looked at; so what comes out is a function of documents, settings and cache, and nothing is asked twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cptron.corpus.document import Document, Dropped, Rejected, Result, draw
from cptron.corpus.language_engines import ENGINES
from cptron.corpus.language_engines import PACKAGES as LANGUAGE_PACKAGES
from cptron.corpus.load import DECIDES
from cptron.corpus.step import MapStep, Tally
from cptron.corpus.synthesis.answer import Model, Request
from cptron.corpus.synthesis.ask import Asker
from cptron.corpus.synthesis.budget import read_spent
from cptron.corpus.synthesis.cache import Cache, entries
from cptron.corpus.synthesis.checks import MENTIONS, REFUSALS, Bounds, read_list
from cptron.corpus.synthesis.endpoint import Endpoint
from cptron.corpus.synthesis.local_model import PACKAGES, LocalModel, model_files
from cptron.corpus.synthesis.make import Maker, Part
from cptron.corpus.synthesis.passages import passages_of
from cptron.corpus.synthesis.prompt import KINDS, read_prompt, shipped_path
from cptron.corpus.synthesis.settings import EndpointSettings, LocalSettings, endpoint_problem, local_problem
from cptron.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Config:
    """Who writes, what is asked for, and what is kept of it."""

    local: LocalSettings = field(default_factory=LocalSettings)
    """A model on this machine; either this or an endpoint."""
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)
    """A server to ask. Nothing is sent anywhere unless its url is here."""
    kinds: tuple[str, ...] = KINDS
    """Prompts to use for each passage: the shipped ones, `factual`, `reasoning`, `summary`, or names in `prompts`."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Templates of your own: name -> text file. A shipped one of the same name is replaced."""
    questions: int = 3
    """Pairs to ask for in each prompt."""
    share: float = 1.0
    """Of the documents, drawn by their names; a larger share has those of a smaller one."""
    passage_characters: int = 6000
    """Longest part of a document that is asked about at once."""
    max_passages: int = 8
    """Of a document, from its beginning; 0 for all."""
    temperature: float = 0.0
    """0 is greedy. Negative leaves it, and top_p, to an endpoint; some models refuse it."""
    top_p: float = 1.0
    """Of the probability, from which words are drawn."""
    answer_tokens: int = 1024
    """Most that a model may write at once."""
    min_question_characters: int = 10
    """Shorter ones are rejected."""
    max_question_characters: int = 2000
    """Longer ones are rejected; 0 for no bound."""
    min_answer_characters: int = 1
    """Shorter ones are rejected."""
    max_answer_characters: int = 8000
    """Longer ones are rejected; 0 for no bound."""
    grounded: Mapping[str, float] = field(default_factory=dict)
    """Least share of an answer's words that must be in the passage, by prompt; else what the template's head says."""
    max_copied: float = 0.5
    """Most of the passage that an answer may repeat word for word."""
    refusals: tuple[str, ...] = ()
    """Further beginnings of answers that are refusals."""
    self_contained: bool = True
    """Reject questions that speak of "the text" or its author, which who is asked does not see."""
    language: Literal["script", "py3langid", "lingua", "none"] = "script"
    """Who checks that the passage's language is kept; `script` compares the script of most letters."""
    text: str = "{question}\n{answer}"
    """The document's text, for training without chats."""
    meta_keys: tuple[str, ...] = ("language",)
    """Of the document's metadata, that its pairs keep; `*` for all."""
    id_key: str = ""
    """Metadata that names the document for `cptron interleave`; empty for its id in this curation."""
    keep_document: bool = False
    """Let the document itself through too, right behind its pairs."""
    cached_only: bool = False
    """Ask nothing: passages whose answers are not cached are counted as `not_asked`."""
    cache: str = field(default=".cache/synthesis", metadata={DECIDES: False})
    """Directory of answers and of what was spent; several runs may share it."""
    batch_documents: int = field(default=32, metadata={DECIDES: False})
    """Documents whose passages an endpoint is asked about together; more keep a quick one busy."""


_LOCAL_BATCH_DOCUMENTS = 32
"""Of a local model, whose prompts are answered in groups: which ones are in a group must not be a matter of speed."""


class Step(MapStep[Config]):
    """See the module."""

    version = 2

    def __init__(self, name: str, config: Config, seed: int) -> None:
        super().__init__(name, config, seed)
        local = max(_LOCAL_BATCH_DOCUMENTS, config.local.batch_size)
        self.batch_documents = local if config.local.folder else config.batch_documents  # type: ignore[misc]
        languages = () if config.language == "none" else LANGUAGE_PACKAGES[config.language]
        self.packages = (*(PACKAGES if config.local.folder else ()), *languages, "regex")  # type: ignore[misc]

    @classmethod
    def problem(cls, config: Config) -> str:
        """See `Step`."""
        local, endpoint = config.local, config.endpoint
        if bool(local.folder) == bool(endpoint.url):
            return (
                f"local.folder {local.folder!r} and endpoint.url {endpoint.url!r} must be one set, one empty; say "
                "which model is to be asked"
            )
        if found := local_problem(local) if local.folder else endpoint_problem(endpoint):
            return found
        if unknown := [kind for kind in config.kinds if kind not in (*KINDS, *config.prompts)]:
            return f"kinds has {unknown[0]}, must be of {', '.join(KINDS)} or in prompts; correct it"
        if not config.kinds or len(set(config.kinds)) < len(config.kinds):
            return f"kinds {list(config.kinds)} must name each prompt once, and one at least; correct it"
        if odd := [name for name in config.prompts if not name.replace("_", "").replace("-", "").isalnum()]:
            return f"the prompt's name {odd[0]!r} must be of letters, digits, _ and -; change it"
        if local.folder and config.temperature < 0:
            return f"temperature {config.temperature} must be 0 or more for a local model; raise it"
        return _numbers_problem(config)

    def files(self) -> Sequence[Path]:
        """See `Step`."""
        found = [*(self._prompt_path(kind) for kind in self.config.kinds), REFUSALS, MENTIONS]
        if self.config.local.folder:
            found += model_files(Path(self.config.local.folder))
        return found + (entries(Path(self.config.cache)) if self.config.cached_only else [])

    def open(self) -> None:
        """See `Step`. Raises a CptronError where the model, a prompt or the endpoint's key cannot be had."""
        config = self.config
        cache = Cache(Path(config.cache))
        model = self._model()
        self._asker = Asker(model, cache, cached_only=config.cached_only)
        label: Callable[[str], tuple[str, float]] | None = None
        if config.language != "none":
            label = ENGINES[config.language](self.name, "").label
        bounds = Bounds(
            config.min_question_characters, config.max_question_characters, config.min_answer_characters,
            config.max_answer_characters, config.max_copied,
            (*read_list(REFUSALS), *(" ".join(words.casefold().split()) for words in config.refusals)),
            read_list(MENTIONS) if config.self_contained else (),
        )  # fmt: skip
        self._prompts = [read_prompt(kind, self._prompt_path(kind)) for kind in config.kinds]
        completes = bool(config.endpoint.url) and config.endpoint.interface == "completions"
        if completes and (bare := [prompt.name for prompt in self._prompts if not prompt.completion]):
            raise ConfigError(
                f"prompt {bare[0]}: {self._prompt_path(bare[0])} has no `--- completion`, must have it for "
                "endpoint.interface completions; add it"
            )
        self._maker = Maker(
            bounds=bounds,
            label=label,
            grounded=config.grounded,
            text=config.text,
            meta_keys=config.meta_keys,
            id_key=config.id_key,
            model={**model.identity},
            parameters={**model.parameters, "questions": config.questions},
        )

    def said(self) -> str:
        """See `Step`."""
        if not self.config.endpoint.url:
            return ""
        spent = read_spent(Path(self.config.cache))
        return (
            f"{self.name}: {spent.requests:,} requests and {spent.tokens:,} tokens of the endpoint since "
            f"{self.config.cache} was begun"
        )

    def apply(self, document: Document, tally: Tally) -> Result:
        """See `MapStep`."""
        return self.apply_batch([document], tally)[0]

    def apply_batch(self, documents: Sequence[Document], tally: Tally) -> list[Result]:
        """See `MapStep`. Raises a CptronError where the endpoint fails or the budget is spent; the same run goes on."""
        parts: list[Part] = []
        requests: list[Request] = []
        for number, document in enumerate(documents):
            if self.config.share >= 1 or draw(document.id, self.seed) < self.config.share:
                for part, request in self._asked(number, document, tally):
                    parts.append(part)
                    requests.append(request)
        answers = self._asker.ask(requests)
        by_document: dict[int, list[tuple[Part, int]]] = {}
        for place, part in enumerate(parts):
            by_document.setdefault(part.document, []).append((part, place))
        results: list[Result] = []
        for number, document in enumerate(documents):
            mine = by_document.get(number, [])
            made = self._maker.make(document, [(part, answers[place]) for part, place in mine], tally)
            results.append(self._result(document, made, bool(mine)))
        return results

    def _result(self, document: Document, made: list[Document | Rejected], asked: bool) -> Result:
        if self.config.keep_document:
            return (*made, document)
        if made:
            return tuple(made)
        return Dropped("made_nothing" if asked else "not_drawn")

    def _asked(self, number: int, document: Document, tally: Tally) -> list[tuple[Part, Request]]:
        config = self.config
        spans = passages_of(document.text, config.passage_characters)
        if config.max_passages and len(spans) > config.max_passages:
            tally["passages left out"] += len(spans) - config.max_passages
            spans = spans[: config.max_passages]
        tally["passages"] += len(spans)
        language = str(document.meta.get("language", ""))
        return [
            (
                Part(number, prompt, place, span),
                prompt.request(document.text[span[0] : span[1]], config.questions, language),
            )
            for place, span in enumerate(spans)
            for prompt in self._prompts
        ]

    def _prompt_path(self, kind: str) -> Path:
        given = self.config.prompts.get(kind)
        return Path(given) if given else shipped_path(kind)

    def _model(self) -> Model:
        config, asks = self.config, not self.config.cached_only
        sampling = (config.temperature, config.top_p, config.answer_tokens)
        if config.local.folder:
            return LocalModel(config.local, *sampling, self.seed, asks=asks)
        return Endpoint(config.endpoint, *sampling, Path(config.cache), asks=asks)


def _numbers_problem(config: Config) -> str:
    for name in ("questions", "passage_characters", "answer_tokens", "batch_documents"):
        if getattr(config, name) < 1:
            return f"{name} {getattr(config, name)} must be at least 1; raise it"
    if not 0 < config.share <= 1 or not 0 < config.top_p <= 1 or config.max_passages < 0:
        return (
            f"share {config.share} and top_p {config.top_p} must be above 0 and at most 1, max_passages "
            f"{config.max_passages} 0 or more; correct it"
        )
    if "{question}" not in config.text or "{answer}" not in config.text:
        return f"text {config.text!r} must have {{question}} and {{answer}}; add them"
    if wrong := [
        name for name, share in config.grounded.items() if name not in config.kinds or not 0 <= share <= 1
    ]:
        return f"grounded has {wrong[0]}, must be one of kinds, with a share from 0 to 1; correct it"
    return ""
