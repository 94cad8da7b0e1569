"""A job script made from a template: a batch script that also runs as it stands.

Place in the flow: `submit` fills one in. Two kinds of lines are filled in: `#SBATCH --option=value` of the head, and
`name=value` between the two marks. What is not given stays as the template has it. Invariant: a value is one word to
bash and to sbatch, whatever is in it; a name that is not known, or needed and not there, stops with file and line.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cptron.errors import ConfigError

BEGIN, END = "# >>> variables", "# <<< variables"
REQUIRED = ("command", "job_dir")
VARIABLES = (
    *REQUIRED,
    "venv",
    "container",
    "container_mounts",
    "setup",
    "environment",
    "chain",
    "retries",
)
"""All that `cptron submit` can fill in."""

Value = str | Sequence[str]
"""Of a shell variable: a text, or the words of an array."""

_HERE = Path(__file__).parent
_OPTION = re.compile(r"#SBATCH\s+--([a-z][a-z-]*)(?:=((?:\\.|\"[^\"]*\"|'[^']*'|[^\s#\\\"'])+))?(\s+#.*|\s*)")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")
_PLAIN = re.compile(r"[A-Za-z0-9_./:,@%+=-]+")


def templates_folder() -> Path:
    """Where the templates are: in an installed package beside this file, in a checkout at its top."""
    installed = _HERE / "templates"
    return installed if installed.is_dir() else _HERE.parents[1] / "launch"


@dataclass(frozen=True, slots=True)
class Template:
    """A template that has been read."""

    path: Path
    lines: tuple[str, ...]

    def rendered(self, options: Mapping[str, str | None], variables: Mapping[str, Value]) -> str:
        """The script with `options` of sbatch (None removes one, '' is a switch) and `variables`. Raises
        `ConfigError`."""
        head = self._head_length()
        start, end = self._section(head)
        lines = [*self._filled_head(head, options), *self.lines[head : start + 1]]
        lines += self._filled_section(start + 1, end, variables)
        return "\n".join([*lines, *self.lines[end:]]) + "\n"

    def option(self, name: str) -> str:
        """The value that the template's head gives to an option of sbatch; empty where it gives none."""
        matches = (_OPTION.fullmatch(line) for line in self.lines[: self._head_length()])
        return next((match[2] or "" for match in matches if match and match[1] == name), "")

    def _head_length(self) -> int:
        """Lines before the first one in which sbatch looks for no options any more."""
        code = (number for number, line in enumerate(self.lines) if line and not line.startswith("#"))
        return min(self._marks(BEGIN)[:1] or [next(code, len(self.lines))])

    def _marks(self, mark: str) -> list[int]:
        return [number for number, line in enumerate(self.lines) if line.startswith(mark)]

    def _section(self, head: int) -> tuple[int, int]:
        begins, ends = self._marks(BEGIN), self._marks(END)
        if len(begins) != 1 or len(ends) != 1 or not head <= begins[0] < ends[0]:
            raise ConfigError(
                f"{self.path} has {len(begins)} lines `{BEGIN}` and {len(ends)} lines `{END}`, a template must have "
                f"one of each, in this order; see {templates_folder() / 'train.sbatch'}"
            )
        return begins[0], ends[0]

    def _filled_head(self, length: int, options: Mapping[str, str | None]) -> list[str]:
        found: list[str] = []
        seen: set[str] = set()
        last = 0
        for number, line in enumerate(self.lines[:length]):
            if not line.startswith("#SBATCH"):
                found.append(line)
                continue
            match = _OPTION.fullmatch(line)
            if match is None:
                raise ConfigError(
                    f"{self.path}:{number + 1}: {line.strip()} cannot be read; write #SBATCH --option=value"
                )
            name, comment = match[1], match[3].strip()
            if name not in options:
                found.append(line)
            elif (value := options[name]) is not None and name not in seen:
                column = line.index(comment) if comment else 0
                found.append(f"{_sbatch_line(name, value).ljust(column - 2)}  {comment}".rstrip())
            seen.add(name)
            last = len(found)
        more = {name: value for name, value in options.items() if name not in seen and value is not None}
        return [*found[:last], *(_sbatch_line(*one) for one in more.items()), *found[last:]]

    def _filled_section(self, start: int, end: int, variables: Mapping[str, Value]) -> list[str]:
        found: list[str] = []
        seen: set[str] = set()
        for number in range(start, end):
            line = self.lines[number]
            if not line.strip() or line.startswith("#"):
                found.append(line)
                continue
            match = _ASSIGNMENT.fullmatch(line)
            if match is None or match[1] not in VARIABLES:
                raise ConfigError(
                    f"{self.path}:{number + 1}: {line.strip()} sets no variable that cptron submit fills in; they are "
                    f"{', '.join(VARIABLES)}; move the line below `{END}`"
                )
            name = match[1]
            seen.add(name)
            found.append(f"{name}={shell_value(variables[name])}" if name in variables else line)
        missing = [name for name in (*REQUIRED, *variables) if name not in seen]
        if missing:
            raise ConfigError(
                f"{self.path} lacks the variable {missing[0]}; add a line {missing[0]}= between `{BEGIN}` and `{END}`"
            )
        return found


def read_template(name: str, given: Path | None = None) -> Template:
    """The template `given` by the user, else the one of this `name`. Raises `ConfigError`."""
    path = given or templates_folder() / f"{name}.sbatch"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"template {path} cannot be read ({error}); give a copy of one in {templates_folder()}"
        ) from None
    return Template(path, tuple(text.splitlines()))


def shell_value(value: Value) -> str:
    """As bash reads it back: one word, or an array of words; nothing in it is expanded."""
    if isinstance(value, str):
        return shlex.quote(value)
    return f"({' '.join(map(shlex.quote, value))})"


def sbatch_value(name: str, value: str) -> str:
    """As sbatch reads it back: between double quotes, in which a backslash makes any character an ordinary one. Raises
    `ConfigError`."""
    if not value.isprintable():
        raise ConfigError(f"--{name}={value!r} must be one line of printable characters; correct it")
    if _PLAIN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _sbatch_line(name: str, value: str) -> str:
    return f"#SBATCH --{name}={sbatch_value(name, value)}" if value else f"#SBATCH --{name}"
