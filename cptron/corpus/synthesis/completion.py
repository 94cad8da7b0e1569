"""What an endpoint's response says.

Place in the flow: `endpoint` reads bodies with it. Invariant: whatever is not exactly a completion is an error that is
tried again, never an empty answer.
"""

from __future__ import annotations

import json
from typing import Any

from cptron.corpus.synthesis.answer import Answer, End

_SHOWN_CHARACTERS = 200


class BadCompletionError(Exception):
    """Status 200, and no completion; one line why."""


def read_completion(body: bytes, chat: bool = True) -> Answer:
    """The first choice, of `/chat/completions` or else of `/completions`. Raises BadCompletionError."""
    try:
        content = json.loads(body.decode())
        choice = content["choices"][0]
        message, reason = (
            choice["message"] if chat else {"content": choice["text"]},
            choice.get("finish_reason"),
        )
        text, refusal = message.get("content"), message.get("refusal")
        usage = content.get("usage") or {}
        tokens = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise BadCompletionError(
            f"the body is no completion ({type(error).__name__}): {_shown(body)}"
        ) from None
    if reason == "content_filter" or (refusal and not text):
        return Answer(_storable(str(refusal or reason)), "refused", *tokens)
    if isinstance(text, list):  # parts of text, as some servers answer
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    if not isinstance(text, str) or (not text.strip() and reason != "length"):
        raise BadCompletionError(f"the message has no text (finish_reason {reason!r})")
    end: End = "length" if reason == "length" else "stop"
    return Answer(_storable(text), end, *tokens)


def read_error(body: bytes) -> str:
    """What a body says of an error, for people."""
    try:
        content = json.loads(body.decode())
        error: Any = next(content[key] for key in ("error", "detail", "message") if key in content)
        said = error.get("message", error) if isinstance(error, dict) else error
        return " ".join(str(said).split())[:_SHOWN_CHARACTERS]
    except (ValueError, TypeError, StopIteration, RecursionError):
        return _shown(body)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _storable(text: str) -> str:
    """Without halves of surrogate pairs, which JSON can spell and UTF-8 cannot, and NULs, which no text has."""
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def _shown(body: bytes) -> str:
    return " ".join(body[:_SHOWN_CHARACTERS].decode("utf-8", "replace").split())
