"""Any server with OpenAI's `/chat/completions`.

Place in the flow: a `Model`, behind the cache. Invariant: the key is in the header of requests and nowhere else; it is
cut out of everything that the server says before that is looked at.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from cptron.corpus.synthesis.answer import Answer, Request
from cptron.corpus.synthesis.budget import Budget
from cptron.corpus.synthesis.cache import LOCKS
from cptron.corpus.synthesis.completion import BadCompletionError, read_completion, read_error
from cptron.corpus.synthesis.http_post import ConnectionProblemError, Poster, Response
from cptron.corpus.synthesis.locks import wait_for
from cptron.corpus.synthesis.settings import EndpointSettings, extra_values
from cptron.errors import DataError

PATH = "/chat/completions"
_SLOTS = 1 << 61
_AGAIN = frozenset((408, 409, 429))
_OF_REQUEST = frozenset((400, 413, 422))
"""Something is wrong with this one question, such as its length."""
_MOST_IN_A_ROW = 20
"""Questions that are refused or fail one after the other: then it is not the questions."""
_TEMPLATE_TOKENS = 64
"""What a chat template adds to two messages, at most."""


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
        self._answer_tokens = answer_tokens
        self.identity: Mapping[str, Any] = {"endpoint_model": settings.model}
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
            raise DataError(
                f"the endpoint answered none of {_MOST_IN_A_ROW} questions in a row ({answer.text}); mend that and run "
                "the same command again"
            )
        return [answer]

    def _answer(self, request: Request) -> Answer:
        body = self._body(request)
        most_tokens = (
            len(request.system.encode()) + len(request.user.encode()) + _TEMPLATE_TOKENS + self._answer_tokens
        )
        tried, why = 0, ""
        while True:
            wait_s = self._backoff_s(tried)
            with self._slot():
                self._budget.reserve(most_tokens)
                try:
                    response = self._post(body)
                    if response.status == 200:
                        answer = read_completion(response.body)
                        answer = replace(answer, text=self._clean(answer.text))
                        if answer.tokens_in + answer.tokens_out:
                            self._budget.settle(most_tokens, answer.tokens_in + answer.tokens_out)
                        return answer
                    why = f"status {response.status}: {self._clean(read_error(response.body))}"
                    if response.status in _OF_REQUEST:
                        self._budget.settle(most_tokens, 0)
                        return Answer(why, "refused", 0, 0)
                    self._require_worth_it(response.status, why)
                    if response.status == 429:
                        self._budget.settle(most_tokens, 0)
                    wait_s = self._asked_wait_s(response, wait_s)
                except (ConnectionProblemError, BadCompletionError) as error:
                    why = self._clean(str(error))
                if tried == self._settings.retries:
                    return self._given_up(tried + 1, why)
                # With the slot: a server that is busy gets fewer requests.
                if self._stopped.wait(wait_s):
                    raise DataError(
                        f"stopped while the endpoint was tried again (last: {why}); run the command again"
                    )
            tried += 1

    def _body(self, request: Request) -> bytes:
        system = [{"role": "system", "content": request.system}] if request.system else []
        content = {
            "model": self._settings.model,
            "messages": [*system, {"role": "user", "content": request.user}],
            **self.parameters,
        }
        return json.dumps(content).encode()

    def _slot(self) -> AbstractContextManager[None]:
        return wait_for(self._locks, [_SLOTS + number for number in range(self.concurrency)])

    def _post(self, body: bytes) -> Response:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "cptron"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            poster = self._idle.pop()
        except IndexError:
            poster = Poster(self._settings.url, PATH, self._settings.timeout_s)
        try:
            return poster.post(body, headers)
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
        return text.replace(self._key, "API_KEY") if self._key else text


def _retry_after_s(value: str) -> float | None:
    """Seconds of a `Retry-After`, which may be a date; None where it says nothing."""
    if value.strip().isdecimal():
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
