"""Writes `docs/configuration.md` from the schema.

Place in the flow: none at run time; run `python -m cptron.config.document > docs/configuration.md` after a
change of the schema.
Invariant: every field of every section appears once, with the docstring that stands below it.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cptron.config.schema import Config

HEADER = """# Configuration

A run is one YAML file, and overrides on the command line: `train.steps=2000`,
`data.sources.manual.token_share=0.3` (elements of a list go by name or position). Keys that no section has,
repeated keys and values of another type stop the load with file, line and remedy. The resolved file, with all
defaults filled in, is kept with the run.

Written from `cptron/config/schema.py` by `python -m cptron.config.document > docs/configuration.md`.
"""


def field_docstrings(cls: type) -> dict[str, str]:
    """The string literal below each field of a dataclass, by field name; fields without one are absent."""
    (class_def,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(class_def, ast.ClassDef)
    documented: dict[str, str] = {}
    for statement, below in zip(class_def.body, class_def.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            documented[statement.target.id] = " ".join(str(below.value.value).split())
    return documented


def document() -> str:
    """The whole page in Markdown."""
    sections = _sections(Config, "")
    index = "".join(f"- [`{title}`](#{_anchor(title)})\n" for title, _ in sections)
    return "\n".join([HEADER, index, *(_section_page(title, cls) for title, cls in sections)])


def _sections(cls: Any, prefix: str) -> list[tuple[str, Any]]:
    """Every section below `cls` in order: `data`, then its lists as `data.sources[]`."""
    found: list[tuple[str, Any]] = []
    for name, hint in get_type_hints(cls).items():
        element = get_args(hint)[0] if get_origin(hint) is tuple else None
        if is_dataclass(hint):
            found += [(prefix + name, hint), *_sections(hint, f"{prefix}{name}.")]
        elif is_dataclass(element):
            found += [(f"{prefix}{name}[]", element), *_sections(element, f"{prefix}{name}[].")]
    return found


def _section_page(title: str, cls: type) -> str:
    docs, hints = field_docstrings(cls), get_type_hints(cls)
    lines = [f"## `{title}`", "", inspect.cleandoc(cls.__doc__ or ""), ""]
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in fields(cls):
        cells = [f"`{field.name}`", _type_name(hints[field.name]), _default(field), _cell(docs[field.name])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _anchor(title: str) -> str:
    """The link target that Markdown renderers give a heading."""
    return "".join(c for c in title.lower() if c.isalnum() or c in "-_")


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return "list of sections"
    if is_dataclass(hint):
        return "section"
    if get_origin(hint) is Mapping:
        return "numbers by name"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[hint]


def _default(field: Field[Any]) -> str:
    if field.default_factory is not MISSING:
        return "empty" if field.default_factory is dict else "its own"
    if field.default is MISSING:
        return "required"
    value = field.default
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    return {"": "empty", (): "empty"}.get(value) or f"`{value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(document())
