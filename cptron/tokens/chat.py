"""Chats -> token ids, and a mask of what is learned of them.

Place in the flow: the pipeline gives what stands at a chat's key; without a mask it takes `render` and its own engine,
with one it takes `encode`.
Invariant: the ids are those of the whole rendered text, as transformers' `apply_chat_template` gives them, and special
tokens in it come from the template alone: a chat whose own strings hold one is rejected, since they would end a turn
or open another where nobody spoke.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
from tokenizers import Tokenizer as Backend

from cptron.errors import DataError
from cptron.tokens.chat_formats import ChatError, LossMask, Message, read_chat
from cptron.tokens.chat_system import SYSTEM_ROLES, SystemTexts
from cptron.tokens.chat_template import MARK, ChatTemplate
from cptron.tokens.chat_turns import AssistantTurns, Span, check_renders_content
from cptron.tokens.tokenizer import Tokenizer

Chat = Sequence[Any] | Mapping[str, Any]


class EncodedChat(NamedTuple):
    """One chat as a document, without an EOD."""

    ids: npt.NDArray[np.uint32]
    """[tokens]"""
    mask: npt.NDArray[np.uint8] | None
    """[tokens]: 1 for what is learned, as the assistant's words and the end of its turn, 0 elsewhere; None if not asked
    for."""
    eod_mask: int
    """What an EOD appended to the document gets: 1 if what it ends is learned, else 0."""


class ChatEncoder:
    """Renders and encodes chats; any thread may call it."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, *, loss_mask: LossMask) -> None:
        """Raises DataError when the tokenizer does not know special tokens in a text, or the template does not tell
        what `loss_mask` needs; also when the template leaves out what is said."""
        self._template = template
        self._tokenizer = tokenizer
        self._loss_mask = loss_mask
        self._backend, special = _backend(tokenizer)
        check_renders_content(template)
        self._turns: AssistantTurns | None = None
        self._system = SystemTexts(template) if loss_mask == "no_system" else None
        if loss_mask == "assistant" and not template.has_generation:
            self._turns = AssistantTurns(template, tokenizer.added_tokens)
            special = [*special, *self._turns.end_tokens]
        self._special: dict[str, list[str]] = {}
        """By their first two characters: most texts have none of those, and looking for them is quick."""
        for token in dict.fromkeys(special):
            self._special.setdefault(token[:2], []).append(token)
        self.notes = _notes(template, self._turns)
        """What people should know of the template, one line each."""

    def render(self, chat: Chat) -> bytes:
        """Text of `chat`, special tokens written out; BOS too where the template has it. Raises ChatError."""
        return self._template.render(self._read(chat)).encode("utf-8")

    def encode(self, chat: Chat) -> EncodedChat:
        """Ids and mask of `chat`. No BOS or EOD is added to what the template writes. Raises ChatError."""
        messages = self._read(chat)
        text = self._template.render(messages)
        spans = self._spans(messages, text) if self._loss_mask != "none" else None
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, np.uint32)
        mask = None if spans is None else _mask(encoding.offsets, spans)
        last = messages[-1]["role"]
        is_learned = last not in SYSTEM_ROLES if self._loss_mask == "no_system" else last == "assistant"
        return EncodedChat(ids, mask, int(is_learned))

    def encode_text(self, text: str) -> EncodedChat:
        """Ids of a document that is no chat, as the tokenizer gives them; all of it is learned."""
        ids = np.array(self._tokenizer.encode(text), np.uint32)
        return EncodedChat(ids, np.ones(len(ids), np.uint8), 1)

    def _read(self, chat: Chat) -> list[Message]:
        messages = read_chat(chat)
        for number, message in enumerate(messages):
            for text in _strings(message):
                for token in self._special_in(text):
                    raise ChatError(f"message {number} contains the special token {token}")
        return messages

    def _special_in(self, text: str) -> Iterator[str]:
        for head, tokens in self._special.items():
            if head in text:
                yield from (token for token in tokens if token in text)

    def _spans(self, messages: Sequence[Message], text: str) -> list[Span]:
        for number, message in enumerate(messages):
            # OpenAI's way to learn only some turns.
            if message.get("weight", 1) != 1:
                raise ChatError(f"message {number} has weight {message['weight']!r}, only 1 can be masked")
        if self._system is not None:
            return self._system.others(messages, text)
        if self._turns is not None:
            return self._turns.spans(messages, text)
        return _marked_spans(self._template.render_marked(messages), text)


def _marked_spans(marked: str, text: str) -> list[Span]:
    """Spans between the marks of `marked`, in `text`, which is rendered without. Raises ChatError."""
    parts = marked.split(MARK)
    if "".join(parts) != text or len(parts) % 2 == 0:
        raise ChatError("the text changes with the marks of its generation blocks")
    ends = np.cumsum([len(part) for part in parts]).tolist()
    return [(ends[i - 1], ends[i]) for i in range(1, len(parts), 2) if ends[i] > ends[i - 1]]


def _mask(offsets: Sequence[Span], spans: Sequence[Span]) -> npt.NDArray[np.uint8]:
    """1 for each token that has a character in one of `spans`. A token on an edge is learned, as its last character
    is what the assistant says first, or the other way round."""
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    learned = np.zeros(len(starts), np.bool_)
    for start, end in spans:
        learned |= (starts < end) & (ends > start)
    return learned.astype(np.uint8)


def _backend(tokenizer: Tokenizer) -> tuple[Any, list[str]]:
    """The library's tokenizer with exact offsets, and the texts of its special tokens."""
    definition = tokenizer.definition("tokenizer.json")
    if definition is None:
        raise DataError(
            f"tokenizer {tokenizer.name!r} is of {tokenizer.library}, chats need a tokenizer.json, which knows special "
            "tokens in a text; convert it with transformers"
        )
    # A post-processor adds special tokens and cuts white space off the offsets; it does not change other ids.
    backend: Any = Backend.from_str(
        orjson.dumps(orjson.loads(definition) | {"post_processor": None}).decode()
    )
    added = backend.get_added_tokens_decoder()
    special = {token.content: token_id for token_id, token in added.items() if token.special}
    for token, token_id in special.items():
        if list(tokenizer.encode(token)) != [token_id]:
            raise DataError(
                f"tokenizer {tokenizer.name!r} cuts the special token {token} into pieces, must keep it whole for a "
                "chat template; set split_special_tokens to false in tokenizer_config.json"
            )
    return backend, list(special)


def _notes(template: ChatTemplate, turns: AssistantTurns | None) -> list[str]:
    if turns is None or not turns.writes_open_header:
        return []
    return [f"the chat template {template.path} opens a turn of the assistant at the end of every chat"]


def _strings(value: Any) -> Iterator[str]:
    """All texts of a message, also those of tool calls and their keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _strings(key)
            yield from _strings(part)
    elif isinstance(value, Sequence):
        for part in value:
            yield from _strings(part)
