"""What is asked of a model and what it answers, whatever the model is.

Place in the flow: `steps/synthesise` makes requests of documents and prompts; a `Model` answers; `ask` stands between
with the cache. Invariant: a request holds everything that decides its answer but the model and its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from cptron.errors import DataError

End = Literal["stop", "length", "refused", "failed"]
"""`stop`: whole; `length`: cut off; `refused`: the model will not answer it; `failed`: it could not, however often."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model."""

    system: str
    """What it is told before; may be empty."""
    user: str
    completion: str = ""
    """The same for a model without chats: a text with examples, which it goes on with; empty where there is none."""
    stop: str = ""
    """Where the answer to `completion` ends, if the model writes on; empty for nowhere."""

    @property
    def begun(self) -> str:
        """Last line of `completion`: the beginning of the answer."""
        return self.completion.rpartition("\n")[2]

    def completed(self, text: str) -> tuple[str, bool]:
        """The whole answer, where a model went on with `text`, and whether `stop` ended it."""
        text, stopped, _ = text.partition(self.stop) if self.stop else (text, "", "")
        return self.begun + text, bool(stopped)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    text: str
    """Of `refused` and `failed`: why, for people."""
    end: End
    tokens_in: int
    """As the model counts them; 0 where it does not say."""
    tokens_out: int


class NoneAnsweredError(DataError):
    """So many requests in a row were refused or failed that it is not the requests: what they got is no answer."""


class Model(Protocol):
    """Answers requests, in groups of a fixed size."""

    identity: Mapping[str, Any]
    """JSON: with the parameters it decides answers."""
    parameters: Mapping[str, Any]
    """JSON: of sampling."""
    group_size: int
    """Requests that one call of `answers` gets, and that are cached as one: together they decide the answers."""
    concurrency: int
    """Groups that are worth asking at the same time."""

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """One for each, in order. Raises a `CptronError` where there is no use in going on."""

    def stop(self) -> None:
        """The run ends: have calls of `answers` in other threads wait for nothing more than what they have sent."""
