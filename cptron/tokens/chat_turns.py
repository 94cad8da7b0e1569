"""Where the assistant speaks in a rendered chat.

Place in the flow: `chat` makes loss masks of these spans, for a template without `{% generation %}` blocks.
Invariant: a span begins where the model would be asked to go on (the generation prompt of the messages before it) and
ends with the token that ends its turn; where that cannot be proven of a chat, it is rejected.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from cptron.errors import DataError
from cptron.tokens.chat_formats import ChatError, Message
from cptron.tokens.chat_template import ChatTemplate

Span = tuple[int, int]
"""First character, and the one after the last."""

_PROBE: list[Message] = [
    {"role": "user", "content": "Probe1"},
    {"role": "assistant", "content": "Probe2"},
    {"role": "user", "content": "Probe3"},
    {"role": "assistant", "content": "Probe4"},
]
_REMEDY = "put {% generation %} blocks around what the assistant says in it, or leave the loss mask out"


def any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    """Matches the longest of `tokens` that stands at a place; nothing if there are none."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def check_renders_content(template: ChatTemplate) -> None:
    """Raise DataError when the template leaves out contents that are text, as one for images may."""
    try:
        text = template.render(_PROBE)
    except ChatError:
        return  # it may demand a system text or the like; records tell
    if not all(message["content"] in text for message in _PROBE):
        raise DataError(
            f"the chat template {template.path} leaves out contents that are text (a probe gave {text[:60]!r}), must "
            "render them; take a template for text"
        )


class AssistantTurns:
    """Finds the assistant's spans, with what a chat between two tells of the template."""

    def __init__(self, template: ChatTemplate, added_tokens: Sequence[str]) -> None:
        """Raises DataError when the template does not tell the turns apart by `added_tokens`."""
        self._template = template
        try:
            text = template.render(_PROBE)
            prompts = [template.render(_PROBE[:1], add_generation_prompt=prompt) for prompt in (False, True)]
        except ChatError as error:
            raise DataError(
                f"the chat template {template.path} must render a user and an assistant in turn ({error}); {_REMEDY}"
            ) from error
        tokens = any_of(added_tokens)
        after = [text.find(str(message["content"])) + len(str(message["content"])) for message in _PROBE]
        # Without a prompt of its own, the template may open a turn right after every end.
        most = 1 if prompts[0] == prompts[1] else len(text)
        self.end_tokens = _common(_run(tokens, text, after[1])[:most], _run(tokens, text, after[3])[:most])
        """Tokens that end a turn of the assistant, one right after the other."""
        self._end = "".join(self.end_tokens)
        if not self._end:
            shown = [text[after[number] :][:30] for number in (1, 3)]
            raise DataError(
                f"the chat template {template.path} ends the assistant's turns with {shown}, must do so with the same "
                f"special token to make a loss mask; {_REMEDY}"
            )
        ends = [text.find(self._end, after[number]) + len(self._end) for number in (1, 3)]
        self._tail = text[ends[1] :]
        headers = text[after[0] : len(prompts[1])] + text[ends[0] : after[2]]
        self._headers = any_of([token for token in tokens.findall(headers) if token not in self.end_tokens])
        try:
            self.spans(_PROBE, text)
        except ChatError as error:
            raise DataError(
                f"the chat template {template.path} gives no loss mask (of a probe, {error}); {_REMEDY}"
            ) from error

    @property
    def writes_open_header(self) -> bool:
        """Whether the template writes an assistant's header after the last turn, though nothing follows."""
        return self._headers.search(self._tail) is not None

    def spans(self, messages: Sequence[Message], text: str) -> list[Span]:
        """What the assistant says in `text`, the rendered `messages`, with each turn's last token, in order.

        `messages` must hold none of `end_tokens`. Raises ChatError where a span is not certain.
        """
        spans: list[Span] = []
        before = 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._template.render(messages[:number], add_generation_prompt=True)
            start = len(prompt)
            found = text.find(self._end, start)
            end = found + len(self._end)
            if not text.startswith(prompt) or start < before:
                raise ChatError(f"the text before message {number} changes with what follows it")
            if found < 0 or self._headers.search(text, start, end):
                raise ChatError(f"message {number} does not end with {self._end}")
            if number == len(messages) - 1 and text[end:] != self._tail:
                raise ChatError(f"message {number} ends with {self._end} too early")
            spans.append((start, end))
            before = end
        return spans


def _run(tokens: re.Pattern[str], text: str, start: int) -> list[str]:
    """The tokens that follow one another in `text` from `start`, after white space."""
    found = []
    match = tokens.match(text, start + len(text[start:]) - len(text[start:].lstrip()))
    while match:
        found.append(match[0])
        match = tokens.match(text, match.end())
    return found


def _common(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """What both begin with."""
    pairs = zip(first, second, strict=False)
    return [one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
