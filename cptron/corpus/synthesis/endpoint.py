"""Any server with OpenAI's `/chat/completions`, or `/completions` for models without chats.

Place in the flow: a `Model`, behind the cache. Invariant: the key is in the header of requests and nowhere else; it is
cut out of everything that the server says before that is looked at.
"""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from cptron.corpus.synthesis.answer import Answer, NoneAnsweredError, Request
from cptron.corpus.synthesis.budget import Budget
from cptron.corpus.synthesis.cache import LOCKS
from cptron.corpus.synthesis.completion import BadCompletionError, read_completion, read_error
from cptron.corpus.synthesis.http_post import (
    ConnectionProblemError,
    NotSentError,
    Poster,
    Response,
    UntrustedError,
)
from cptron.corpus.synthesis.locks import wait_for
from cptron.corpus.synthesis.settings import EndpointSettings, extra_values
from cptron.errors import DataError

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
_SLOTS = 1 << 61
_AGAIN = frozenset((408, 409, 429))
_OF_REQUEST = frozenset((400, 413, 422))
"""Something is wrong with this one question, such as its length."""
_MOST_IN_A_ROW = 20
"""Questions that are refused or fail one after the other: then it is not the questions."""
_LEAST_SECRET = 8
"""Characters of a key that is cut out of what a server says: shorter ones, such as `EMPTY`, are no secret but words."""
_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]*)?")
_TEMPLATE_TOKENS = 64
"""What a chat template adds to two messages, at most."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """A try that may go better next time."""

    why: str
    wait_s: float


class Endpoint:
    """Answers by asking a server. Raises DataError where the key is missing."""

    group_size = 1

    def __init__(
        self,
        settings: EndpointSettings,
        temperature: float,
        top_p: float,
        answer_tokens: int,
        cache: Path,
        *,
        asks: bool = True,
    ) -> None:
        self._settings = settings
        self._key = _key(settings.api_key_variable) if asks else ""
        self._secret = self._key if len(self._key) >= _LEAST_SECRET else ""
        self._answer_tokens = answer_tokens
        self._chats = settings.interface == "chat"
        self.identity: Mapping[str, Any] = {"endpoint_model": settings.model}
        if not self._chats:
            self.identity = {**self.identity, "interface": settings.interface}
        sampling = {"temperature": temperature, "top_p": top_p} if temperature >= 0 else {}
        self.parameters: Mapping[str, Any] = {
            **sampling, settings.max_tokens_key: answer_tokens, **extra_values(settings)
        }  # fmt: skip
        self.concurrency = settings.concurrency
        self._budget = Budget(cache, settings.max_requests, settings.max_tokens)
        self._locks = cache / LOCKS
        self._idle: list[Poster] = []
        self._bad_in_a_row = 0
        self._stopped = threading.Event()

    def stop(self) -> None:
        """See `Model`."""
        self._stopped.set()

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """See `Model`."""
        answer = self._answer(requests[0])
        if answer.end not in ("refused", "failed"):
            self._bad_in_a_row = 0
            return [answer]
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= _MOST_IN_A_ROW:
            raise NoneAnsweredError(
                f"the endpoint answered none of {_MOST_IN_A_ROW} questions in a row ({answer.text}); mend that and run "
                "the same command again"
            )
        return [answer]

    def _answer(self, request: Request) -> Answer:
        tried = 0
        while True:
            with self._slot():
                found = self._try(request, self._backoff_s(tried))
                if isinstance(found, Answer):
                    return found
                if tried == self._settings.retries:
                    return self._given_up(tried + 1, found.why)
                # With the slot: a server that is busy gets fewer requests.
                if self._stopped.wait(found.wait_s):
                    raise DataError(
                        f"stopped while the endpoint was tried again (last: {found.why}); run the command again"
                    )
            tried += 1

    def _try(self, request: Request, wait_s: float) -> Answer | _Failed:
        """One time. Raises DataError where there is no use in another one, or no budget."""
        most_tokens = self._most_tokens(request)
        self._budget.reserve(most_tokens)
        try:
            response = self._post(self._body(request))
            if response.status == 200:
                answer = self._read(response.body, request)
                if answer.tokens_in + answer.tokens_out:
                    self._budget.settle(most_tokens, answer.tokens_in + answer.tokens_out)
                return answer
        except UntrustedError as error:
            self._budget.settle(most_tokens, 0)
            raise DataError(
                f"the endpoint {self._settings.url} has no certificate that this machine trusts ({error}), must have "
                "one; correct url, or name the file of its authority in the environment variable SSL_CERT_FILE"
            ) from None
        except (ConnectionProblemError, BadCompletionError) as error:
            if isinstance(error, NotSentError):
                self._budget.settle(most_tokens, 0)
            return _Failed(self._clean(str(error)), wait_s)
        if response.status < 500:  # it did nothing for us
            self._budget.settle(most_tokens, 0)
        why = f"status {response.status}: {self._clean(read_error(response.body))}"
        if response.status in _OF_REQUEST:
            return Answer(why, "refused", 0, 0)
        self._require_worth_it(response.status, why)
        return _Failed(why, self._asked_wait_s(response, wait_s))

    def _most_tokens(self, request: Request) -> int:
        """That a try can cost: a token has a byte at least."""
        if self._chats:
            prompt = len(request.system.encode()) + len(request.user.encode()) + _TEMPLATE_TOKENS
        else:
            prompt = len(request.completion.encode()) + 1
        return prompt + self._answer_tokens

    def _body(self, request: Request) -> bytes:
        content: dict[str, Any] = {"model": self._settings.model, **self.parameters, "stream": False}
        if self._chats:
            system = [{"role": "system", "content": request.system}] if request.system else []
            content["messages"] = [*system, {"role": "user", "content": request.user}]
        else:
            content["prompt"] = request.completion
            content |= {"stop": [request.stop]} if request.stop else {}
        return json.dumps(content).encode()

    def _read(self, body: bytes, request: Request) -> Answer:
        answer = read_completion(body, self._chats)
        text, end = self._clean(answer.text), answer.end
        if not self._chats and end != "refused":
            text, stopped = request.completed(text)
            end = "stop" if stopped else end
        return replace(answer, text=text, end=end)

    def _slot(self) -> AbstractContextManager[None]:
        return wait_for(self._locks, [_SLOTS + number for number in range(self.concurrency)])

    def _post(self, body: bytes) -> Response:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "cptron"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            poster = self._idle.pop()
        except IndexError:
            poster = Poster(self._settings.url, PATHS[self._settings.interface], self._settings.timeout_s)
        try:
            response = poster.post(body, headers)
            # Before a message is shortened, which could leave half of a key.
            return (
                replace(response, body=response.body.replace(self._secret.encode(), b"API_KEY"))
                if (self._secret)
                else response
            )
        finally:
            self._idle.append(poster)

    def _backoff_s(self, tried: int) -> float:
        most_s = min(self._settings.longest_wait_s, self._settings.first_wait_s * 2.0 ** min(tried, 30))
        return random.uniform(most_s / 2, most_s)

    def _asked_wait_s(self, response: Response, wait_s: float) -> float:
        """At least what `Retry-After` says. Raises DataError where that is too long to wait for."""
        asked_s = _retry_after_s(response.headers.get("retry-after", ""))
        if asked_s is None:
            return wait_s
        if asked_s > self._settings.longest_wait_s:
            raise DataError(
                f"the endpoint asks to wait {asked_s:g} s (status {response.status}), longest_wait_s is "
                f"{self._settings.longest_wait_s:g}; run the same command again after that, it goes on"
            )
        return max(wait_s, asked_s)

    def _require_worth_it(self, status: int, why: str) -> None:
        if status < 500 and status not in _AGAIN:
            raise DataError(
                f"the endpoint {self._settings.url} refuses ({why}), must answer with status 200; correct url, model "
                "or the key's variable"
            )

    def _given_up(self, tries: int, why: str) -> Answer:
        if self._settings.on_failure == "drop":
            return Answer(f"{tries} tries, last: {why}", "failed", 0, 0)
        raise DataError(
            f"the endpoint gave no answer in {tries} tries (last: {why}), must give one; run the same command again "
            "later, it goes on"
        )

    def _clean(self, text: str) -> str:
        """Without the key, which some servers repeat."""
        return text.replace(self._secret, "API_KEY") if self._secret else text


def _retry_after_s(value: str) -> float | None:
    """Seconds of a `Retry-After`, which may be a date; None where it says nothing."""
    if _SECONDS.fullmatch(value.strip()):
        return float(value.strip()[:9])
    try:
        then = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, then.timestamp() - time.time())


def _key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise DataError(f"the environment variable {variable} is empty, must hold the endpoint's key; set it")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise DataError(
            f"the environment variable {variable} holds what cannot be sent in a header, must be one word of ASCII; "
            "set it to the key"
        )
    return key
