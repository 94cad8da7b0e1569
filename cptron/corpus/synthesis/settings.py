"""Settings of the two kinds of model that `synthesise` can ask, and their rules.

Place in the flow: sections of the step's `Config`. Invariant: nothing secret is in them; what only says how an answer
is come by (patience, budgets, speed) is marked, and stays out of fingerprints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cptron.corpus.load import DECIDES
from cptron.corpus.synthesis.http_post import address_problem

_ASIDE = {DECIDES: False}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = ("model", "messages", "prompt", "stop", "stream", "n", "temperature", "top_p")


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """A Hugging Face causal language model on this machine."""

    folder: str = ""
    """Directory with config, tokenizer and safetensors; empty to ask an endpoint."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights in memory."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it runs; each worker has a copy of the model."""
    batch_size: int = 1
    """Prompts that are answered together. They are cached together, so that the answers do not depend on kills."""
    threads: int = 0
    """Of torch in each worker; 0 for its own choice. Other numbers may give other last bits, and so other words."""


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """A server with OpenAI's interface."""

    url: str = ""
    """Base address, such as https://HOST/v1, before `/chat/completions` or `/completions`; empty for a local model."""
    model: str = ""
    """Its name for the server."""
    api_key_variable: str = ""
    """Environment variable that holds the key; empty where none is needed. The key itself is never written."""
    interface: Literal["chat", "completions"] = "chat"
    """`completions` for a model without a chat template: it is shown examples, and goes on with them."""
    allow_http: bool = False
    """Send without encryption to other machines too."""
    max_tokens_key: str = "max_tokens"
    """What the server calls the limit of an answer; newer models of OpenAI want `max_completion_tokens`."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further keys of a request; a value that is JSON is sent as JSON."""
    timeout_s: float = field(default=120.0, metadata=_ASIDE)
    """For a whole answer."""
    retries: int = field(default=6, metadata=_ASIDE)
    """After the first try, where there was no whole answer, or status 408, 409, 429 or 5xx."""
    first_wait_s: float = field(default=1.0, metadata=_ASIDE)
    """Before the first retry, at most; doubled each time. The server's `Retry-After` is kept to."""
    longest_wait_s: float = field(default=60.0, metadata=_ASIDE)
    """Longest wait between two tries; a longer `Retry-After` ends the run."""
    concurrency: int = field(default=8, metadata=_ASIDE)
    """Requests under way at a time, of all workers on this machine that share the cache."""
    max_requests: int = field(default=0, metadata=_ASIDE)
    """Tries, of all runs that share the cache; 0 for no bound. The run stops before it sends more."""
    max_tokens: int = field(default=0, metadata=_ASIDE)
    """Tokens in and out, of all runs that share the cache; 0 for no bound. The run stops before it can spend more."""
    on_failure: Literal["stop", "drop"] = "stop"
    """When the tries are used up: `stop` the run, which can go on later, or `drop` what was to be made, and go on."""


def local_problem(local: LocalSettings) -> str:
    """What is wrong with it, or nothing."""
    if local.batch_size < 1 or local.threads < 0:
        return f"batch_size {local.batch_size} must be at least 1 and threads {local.threads} 0; correct it"
    return ""


def endpoint_problem(endpoint: EndpointSettings) -> str:
    """What is wrong with it, or nothing."""
    if not endpoint.model:
        return "endpoint.model is empty, must be the name of a model; add it"
    if endpoint.api_key_variable and not _VARIABLE.fullmatch(endpoint.api_key_variable):
        return "endpoint.api_key_variable must be the name of a variable, never the key itself; correct it"
    if taken := [key for key in endpoint.extra if key in (*_OURS, endpoint.max_tokens_key)]:
        return f"endpoint.extra has {taken[0]}, must not, as other settings say it; remove it"
    numbers = ("timeout_s", "first_wait_s", "longest_wait_s", "concurrency")
    if small := [name for name in numbers if getattr(endpoint, name) <= 0]:
        return f"endpoint.{small[0]} {getattr(endpoint, small[0])} must be above 0; raise it"
    if negative := [
        name for name in ("retries", "max_requests", "max_tokens") if getattr(endpoint, name) < 0
    ]:
        return f"endpoint.{negative[0]} {getattr(endpoint, negative[0])} must be 0 or more; raise it"
    return address_problem(endpoint.url, endpoint.allow_http)


def extra_values(endpoint: EndpointSettings) -> dict[str, Any]:
    """`extra` as it is sent."""
    return {key: _json_or_text(value) for key, value in endpoint.extra.items()}


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
