"""Prompt templates: text files with a head and what is said to the model.

Place in the flow: `steps/synthesise` makes requests of passages with them; three are shipped in `prompts/`.
Invariant: a document is put into its place as it is; nothing in it is taken for a place of its own.

A template is lines `name: value` (`version`, `grounded`, `numbers`, `stop`), then `--- system` (may be left out) and
`--- user` with their texts, and `--- completion` (may be left out) for models without chats: examples, and the
beginning of an answer in its last line. `{document}`, `{count}` and `{language}` are replaced; other braces stay.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from cptron.corpus.synthesis.answer import Request
from cptron.errors import ConfigError

SHIPPED = Path(__file__).parent / "prompts"
KINDS = ("factual", "reasoning", "summary")
_MARK = re.compile(r"^--- (system|user|completion)[ \t]*$", re.MULTILINE)
_PLACE = re.compile(r"\{(document|count|language)\}")
_HEAD = ("version", "grounded", "numbers", "stop")
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Prompt:
    """A template, read."""

    name: str
    version: int
    """Its author's; the hash tells versions apart for certain."""
    sha256: str
    """Of the file, in hex."""
    grounded: float
    """Share of an answer's words that must be in the passage."""
    numbers: bool
    """Whether every number of an answer must be in the passage."""
    system: str
    user: str
    completion: str
    """For models without chats; may be empty."""
    stop: str
    """Line that ends an answer to `completion`; may be empty."""

    def request(self, passage: str, count: int, language: str) -> Request:
        """What is asked about `passage`; `language` is empty where it is not known."""
        values = {"document": passage, "count": str(count), "language": f" ({language})" if language else ""}
        system, user, completion = (
            _PLACE.sub(lambda place: values[place[1]], text)
            for text in (self.system, self.user, self.completion)
        )
        return Request(system, user, completion, f"\n{self.stop}" if self.completion and self.stop else "")

    @property
    def instructions(self) -> str:
        """All but the document: what answers should not repeat."""
        return _PLACE.sub(" ", f"{self.system}\n{self.user}\n{self.completion}")


def shipped_path(name: str) -> Path:
    """File of one of `KINDS`."""
    return SHIPPED / f"{name}.txt"


def read_prompt(name: str, path: Path) -> Prompt:
    """The template in `path`. Raises ConfigError where it is none."""
    try:
        content = path.read_bytes()[:_MOST_BYTES]
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompt {name}: {path} cannot be read as UTF-8 ({error}); correct it") from None
    head, *parts = _MARK.split(text)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    if len(sections) * 2 != len(parts) or "user" not in sections:
        raise ConfigError(
            f"{path} has {len(parts) // 2} sections, must have `--- user` once, `--- system` and `--- completion` at "
            "most once; correct it"
        )
    if bare := [
        name for name in ("user", "completion") if "{document}" not in sections.get(name, "{document}")
    ]:
        raise ConfigError(f"{path} has no {{document}} behind `--- {bare[0]}`, must have it; add it")
    values = _head(path, head)
    return Prompt(
        name=name,
        version=int(_number(path, "version", values.get("version", "1"))),
        sha256=hashlib.sha256(content).hexdigest(),
        grounded=_number(path, "grounded", values.get("grounded", "0")),
        numbers=values.get("numbers", "no") == "yes",
        system=sections.get("system", "").strip(),
        user=sections["user"].strip(),
        completion=sections.get("completion", "").strip(),
        stop=values.get("stop", ""),
    )


def _head(path: Path, head: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for line in filter(None, map(str.strip, head.splitlines())):
        name, colon, value = line.partition(":")
        if not colon or name not in _HEAD or name in values:
            raise ConfigError(
                f"{path} has the line {line[:60]!r} in its head, must have {', '.join(_HEAD)} once at most; correct it"
            )
        values[name] = value.strip()
    if values.get("numbers", "no") not in ("yes", "no"):
        raise ConfigError(f"{path} has numbers {values['numbers']!r}, must be yes or no; correct it")
    return values


def _number(path: Path, name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= (1 if name == "grounded" else 1e6):
        raise ConfigError(
            f"{path} has {name} {value!r}, must be a number from 0 (grounded: to 1); correct it"
        )
    return number
