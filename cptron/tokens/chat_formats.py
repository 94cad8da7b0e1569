"""Chats as they come in records, in one form: a list of messages with `role` and, as text, `content`.

Place in the flow: readers give what stands at a chat's key; `chat` renders what `read_chat` makes of it.
Invariant: what is read is complete. A part that cannot become text (an image, a tool's declaration, an unknown
role) rejects the record, never disappears from it.

Three formats are told apart by what the record holds:
- OpenAI: `[{"role": ..., "content": text or [{"type": "text", "text": ...}]}]`; other keys of a message
  (`tool_calls`, `name`, `reasoning_content`) are for the template and stay as they are;
- ShareGPT: `[{"from": "human", "value": ...}]`;
- Bedrock Converse: `[{"role": ..., "content": [{"text": ...}]}]`.
Around the list may be an object with `messages` or `conversations`, and `system`: text or Converse's blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from cptron.tokens.records import CHAT_LISTS, CHAT_NOT_RENDERED

LossMask = Literal["none", "assistant", "no_system"]
"""What is learned of a chat: all of it; what the assistant says; all but what the system says."""

Message = dict[str, Any]
"""`role` and, unless an assistant only calls tools, `content` (text); no value is None."""

BLOCK_SEPARATOR = "\n"
"""Between the text blocks of one content, so that words of two blocks do not run into one."""

OPENAI_ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))
CONVERSE_ROLES = frozenset(("user", "assistant"))
SHAREGPT_ROLES: Mapping[str, str] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "tool": "tool",
}


class ChatError(ValueError):
    """A record is no chat that can be rendered; the message is one line for people."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def read_chat(value: Sequence[Any] | Mapping[str, Any]) -> list[Message]:
    """Messages of `value`, a list of them or an object around one, in order and at least one.

    Roles need not alternate. Keys whose value is None count as absent, as tables fill what a row lacks with None.
    Raises ChatError.
    """
    items, system = _open(value)
    if not items:
        raise ChatError("the chat has 0 messages, must have at least 1")
    for number, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise ChatError(f"message {number} is {_kind(item)}, must be an object")
    present = [{key: part for key, part in item.items() if part is not None} for item in items]
    if all("from" in item and "role" not in item for item in present):
        messages = [_from_sharegpt(number, item) for number, item in enumerate(present)]
    else:
        converse = isinstance(system, Sequence) and not isinstance(system, str)
        converse = converse or any(_is_converse(item.get("content")) for item in present)
        messages = [_from_roles(number, item, converse) for number, item in enumerate(present)]
    return _with_system(system, messages)


def _open(value: Sequence[Any] | Mapping[str, Any]) -> tuple[Sequence[Any], Any]:
    """The list of messages, and `system` beside it or None."""
    items: Any = value
    system = None
    if isinstance(value, Mapping):
        found = [key for key in CHAT_LISTS if value.get(key) is not None]
        if len(found) != 1:
            raise ChatError(
                f"the object has {found or 'neither'} of {', '.join(CHAT_LISTS)}, must have exactly one"
            )
        for key in CHAT_NOT_RENDERED:
            if value.get(key):
                raise ChatError(f"the object has {key!r}, which cannot be rendered")
        items, system = value[found[0]], value.get("system")
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        raise ChatError(f"the chat is {_kind(items)}, must be a list of messages")
    return items, system


def _with_system(system: Any, messages: list[Message]) -> list[Message]:
    if system is None or (isinstance(system, Sequence) and not system):
        return messages
    if messages[0]["role"] in ("system", "developer"):
        raise ChatError("the chat has a system text twice, beside the messages and as the first of them")
    return [{"role": "system", "content": _text("system", system)}, *messages]


def _from_sharegpt(number: int, item: Mapping[str, Any]) -> Message:
    if not isinstance(item["from"], str) or item["from"] not in SHAREGPT_ROLES:
        raise ChatError(
            f"message {number} is from {item['from']!r}, must be from one of {', '.join(SHAREGPT_ROLES)}"
        )
    if not isinstance(item.get("value"), str):
        raise ChatError(f"message {number} has {_kind(item.get('value'))} as its value, must have a string")
    return {"role": SHAREGPT_ROLES[item["from"]], "content": item["value"]}


def _from_roles(number: int, item: Mapping[str, Any], converse: bool) -> Message:
    roles = CONVERSE_ROLES if converse else OPENAI_ROLES
    role = item.get("role")
    if not isinstance(role, str) or role not in roles:
        raise ChatError(f"message {number} has the role {role!r}, must be one of {', '.join(sorted(roles))}")
    if "content" in item:
        return {**item, "content": _text(f"content of message {number}", item["content"])}
    if role == "assistant" and (item.get("tool_calls") or item.get("function_call")):
        return dict(item)
    raise ChatError(f"message {number} ({role}) has no content, must have text")


def _is_converse(content: Any) -> bool:
    """Whether `content` is a list of blocks that are not OpenAI's, which state their type."""
    return (
        isinstance(content, Sequence)
        and not isinstance(content, str)
        and any(isinstance(block, Mapping) and block.get("type") is None for block in content)
    )


def _text(where: str, content: Any) -> str:
    """`content`, or the text of its blocks. Raises ChatError when it is neither, or a block is no text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes) or not content:
        raise ChatError(f"{where} is {_kind(content)}, must be a string or a list of text blocks")
    return BLOCK_SEPARATOR.join(_block_text(where, block) for block in content)


def _block_text(where: str, block: Any) -> str:
    if not isinstance(block, Mapping):
        raise ChatError(f"{where} has {_kind(block)} as a block, must have text blocks")
    present = {key: part for key, part in block.items() if part is not None}
    text = present.pop("text", None)
    others = sorted(present) if present.pop("type", "text") == "text" else [str(block["type"])]
    if not isinstance(text, str) or present:
        raise ChatError(f"{where} has a block of {', '.join(others) or 'no text'}, only text can be rendered")
    return text


def _kind(value: Any) -> str:
    if isinstance(value, Sequence) and not value and not isinstance(value, str | bytes):
        return "an empty list"
    return "nothing" if value is None else f"a {type(value).__name__}"
