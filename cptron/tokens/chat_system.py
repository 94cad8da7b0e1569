"""What is not learned of a chat when all but the system's words is: system messages, and what a template puts there.

Place in the flow: `chat` makes loss masks of what lies between these spans.
Invariant: every system text of a chat lies in a span, also the one that a template writes where a chat has none; where
that cannot be proven of a template it is refused, and of a chat it is rejected.
"""

from __future__ import annotations

from collections.abc import Sequence

from cptron.errors import DataError
from cptron.tokens.chat_formats import ChatError, Message
from cptron.tokens.chat_template import ChatTemplate
from cptron.tokens.chat_turns import Span

SYSTEM_ROLES = frozenset(("system", "developer"))
_SYSTEM: Message = {"role": "system", "content": "Probe0"}
_USER: Message = {"role": "user", "content": "Probe1"}


class SystemTexts:
    """Finds the spans, with what two short chats tell of the template."""

    def __init__(self, template: ChatTemplate) -> None:
        """Raises DataError when the template does not set what the system says apart from the messages after it."""
        self._template = template
        try:
            system, both, user = (template.render(chat) for chat in ([_SYSTEM], [_SYSTEM, _USER], [_USER]))
        except ChatError as error:
            raise _refused(template, str(error)) from error
        if not both.startswith(system) or "Probe0" not in system:
            raise _refused(template, f"of a probe it makes {both[:60]!r}")
        header = both[len(system) : both.find("Probe1")]
        before = user[: user.find("Probe1")]
        if not header or not before.endswith(header):
            raise _refused(template, f"it opens a chat without one with {before[:60]!r}")
        self._preamble = before.removesuffix(header)
        self._opening = before

    def others(self, messages: Sequence[Message], text: str) -> list[Span]:
        """The spans of `text`, the rendered `messages`, that are learned: all but the system's. Raises ChatError."""
        left_out = self._left_out(messages, text)
        starts = [0, *(end for _, end in left_out)]
        ends = [*(start for start, _ in left_out), len(text)]
        return [(start, end) for start, end in zip(starts, ends, strict=True) if start < end]

    def _left_out(self, messages: Sequence[Message], text: str) -> list[Span]:
        spans: list[Span] = []
        first = messages[0]["role"]
        if first not in SYSTEM_ROLES:
            opening = self._opening if first == "user" else self._preamble
            if not text.startswith(opening):
                raise ChatError(f"the chat does not begin as others do, with {opening[:60]!r}")
            spans.append((0, len(self._preamble)))
        for number, message in enumerate(messages):
            if message["role"] in SYSTEM_ROLES:
                spans.append(self._of_message(messages, number, text))
        return spans

    def _of_message(self, messages: Sequence[Message], number: int, text: str) -> Span:
        before = self._template.render(messages[:number]) if number else ""
        until = self._template.render(messages[: number + 1])
        content = str(messages[number]["content"]).strip()
        if not (text.startswith(until) and until.startswith(before) and content in until[len(before) :]):
            raise ChatError(f"the text of message {number} (system) is not apart from what follows it")
        return len(before), len(until)


def _refused(template: ChatTemplate, why: str) -> DataError:
    return DataError(
        f"the chat template {template.path} does not set the system's words apart ({why}), must do so for --loss-mask "
        "no_system; use --loss-mask assistant, or leave the loss mask out"
    )
