"""Chat templates: messages -> text, as transformers' `apply_chat_template` renders them, without transformers.

Place in the flow: `chat` renders each record's messages with the template beside the tokenizer.
Invariant: the text depends on the messages, the template's file, the special tokens' names and the given date only;
a template that would read the clock or roll dice is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from cptron.errors import DataError
from cptron.json_text import parse_json
from cptron.tokens.chat_formats import ChatError, Message
from cptron.tokens.chat_sandbox import sandbox

MARK = "\0"
"""Around every `{% generation %}` block where those are asked for; no text of a corpus holds a NUL."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A compiled template; any thread may render with it."""

    path: Path
    """File it comes from."""
    sha256: str
    """Hash, in hex, of its text, the special tokens it may name and the date; for the manifest."""
    source_sha256: str
    """Hash, in hex, of its text alone."""
    has_generation: bool
    """It marks what the assistant says with `{% generation %}` blocks."""
    _plain: Any
    _marked: Any
    _variables: dict[str, str]

    @classmethod
    def load(cls, tokenizer: str | Path, chat_date: date | None = None) -> ChatTemplate:
        """The template of `tokenizer`, a directory or a file in it; `chat_date` is what it takes for today.

        Raises DataError when there is none, it is damaged, jinja2 is missing, its text would depend on when it is
        rendered and `chat_date` is None, or it names a special token that the tokenizer's files do not settle.
        """
        directory = Path(tokenizer) if Path(tokenizer).is_dir() else Path(tokenizer).parent
        config = _read_config(directory / "tokenizer_config.json")
        path, source = _find(directory, config)
        names, has_generation = _inspect(path, source, chat_date)
        variables = _special_tokens(directory, config, names, path)
        identity = json.dumps([source, variables, str(chat_date) if "strftime_now" in names else None])
        return cls(
            path=path,
            sha256=hashlib.sha256(identity.encode()).hexdigest(),
            source_sha256=_hash(source),
            has_generation=has_generation,
            _plain=_compiled(path, source, sandbox(chat_date, mark="")),
            _marked=_compiled(path, source, sandbox(chat_date, mark=MARK)),
            _variables=variables,
        )

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Text of `messages`; with `add_generation_prompt` and the assistant's header after it. Raises ChatError
        when the template refuses them."""
        return self._render(self._plain, messages, add_generation_prompt)

    def render_marked(self, messages: Sequence[Message]) -> str:
        """Text of `messages` with a `MARK` before and after each `{% generation %}` block. Raises ChatError."""
        return self._render(self._marked, messages, False)

    def _render(self, template: Any, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            text: str = template.render(
                messages=[_with_reasoning(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            )
        except Exception as error:  # whatever a template's expressions may raise on these messages
            raise ChatError(f"the template cannot render it ({type(error).__name__}: {error})") from error
        return text


def source_sha256(directory: Path) -> str:
    """That of the template of a model's directory, without compiling it; empty where there is none. Raises DataError
    where its files are damaged."""
    config = _read_config(directory / "tokenizer_config.json")
    if not (directory / "chat_template.jinja").is_file() and not config.get("chat_template"):
        return ""
    return _hash(_find(directory, config)[1])


def _hash(source: str) -> str:
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def _with_reasoning(message: Message) -> Message:
    """`message` with its reasoning under the names that templates read, as transformers has it."""
    reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _find(directory: Path, config: dict[str, Any]) -> tuple[Path, str]:
    """The file of the template and its text; a file of its own wins over tokenizer_config.json."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            # As transformers opens it: line ends become \n.
            return path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} must be UTF-8 ({error.reason}); copy the file again") from error
    path = directory / "tokenizer_config.json"
    found = config.get("chat_template")
    if isinstance(found, list):
        try:
            named = {str(entry["name"]): entry["template"] for entry in found}
        except (TypeError, KeyError):
            raise DataError(
                f"chat_template of {path} must be a list of name and template; copy the file again"
            ) from None
        if "default" not in named:
            raise DataError(
                f"{path} has the chat templates {sorted(named)}, must have one named default; save the wanted one "
                f"as {directory / 'chat_template.jinja'}"
            )
        found = named["default"]
    if not isinstance(found, str):
        raise DataError(
            f"{directory} has no chat template in chat_template.jinja or tokenizer_config.json; take the tokenizer "
            "of the model's chat version, or write that file"
        )
    return path, found


def _compiled(path: Path, source: str, environment: Any) -> Any:
    """The template as a program. Raises DataError where what is written cannot be one."""
    from jinja2 import TemplateError

    try:
        return environment.from_string(source)
    except (TemplateError, SyntaxError, RecursionError, ValueError, ArithmeticError) as error:
        raise DataError(f"{path} must be a jinja2 chat template ({error}); copy the file again") from error


def _inspect(path: Path, source: str, chat_date: date | None) -> tuple[set[str], bool]:
    """Names the template reads, and whether it has generation blocks. Raises DataError when it is no template, or
    its text would change from one run to the next."""
    environment = sandbox(chat_date, mark="")
    from jinja2 import TemplateSyntaxError, nodes

    try:
        tree = environment.parse(source)
    except RecursionError:
        raise DataError(f"{path} is nested too deeply to be a chat template; copy the file again") from None
    except TemplateSyntaxError as error:
        raise DataError(
            f"{path} must be a jinja2 chat template (line {error.lineno}: {error.message}); copy the file again"
        ) from error
    names = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"}
    filters = {node.name for node in tree.find_all(nodes.Filter)}
    if "strftime_now" in names and chat_date is None:
        raise DataError(
            f"the chat template {path} writes today's date, must get a fixed one to give equal files every day; "
            "add --chat-date YYYY-MM-DD"
        )
    if "random" in filters or "lipsum" in names:
        raise DataError(
            f"the chat template {path} uses a random value, must give equal text every time; remove it there"
        )
    has_generation = any(
        isinstance(node.node, nodes.ExtensionAttribute) and node.node.name == "_generation"
        for node in tree.find_all(nodes.Call)
    )
    return names, has_generation


def _special_tokens(directory: Path, config: dict[str, Any], names: set[str], path: Path) -> dict[str, str]:
    """Variables such as `bos_token`. One that is null is undefined in the template, as with transformers; one that
    is not settled would get the default of a class of transformers, so it is refused."""
    if "added_tokens_decoder" not in config:
        config = {**config, **_read_config(directory / "special_tokens_map.json")}
    for name in _NAMED:
        if name in names and name not in config:
            raise DataError(
                f"the chat template {path} uses {name}, which tokenizer_config.json must name; add it there, or null"
            )
    tokens = {key: value for key, value in config.items() if key.endswith("_token")}
    if isinstance(config.get("extra_special_tokens"), dict):
        tokens |= config["extra_special_tokens"]
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in tokens.items()}
    unusable = [
        key for key, value in tokens.items() if isinstance(value, dict) and not isinstance(texts[key], str)
    ]
    if unusable:
        raise DataError(
            f"{directory} has {unusable[0]} {tokens[unusable[0]]}, must be a text; copy tokenizer_config.json again"
        )
    return {key: value for key, value in texts.items() if isinstance(value, str)}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise DataError(
            f"{path} must be JSON ({' '.join(str(error).split())}); copy the file again"
        ) from error
    return content if isinstance(content, dict) else {}
