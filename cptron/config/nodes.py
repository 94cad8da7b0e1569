"""YAML text as nodes that remember their file and line, and overrides applied to them.

Place in the flow: below `load`, which gives the nodes their types. Invariant: nodes are never changed in
place and no object is constructed from a tag, so a file can neither run code nor reach through an alias.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cptron.errors import ConfigError

OVERRIDE = "override"
TAG = "tag:yaml.org,2002:"
MOST_BRACKETS = 64
"""Brackets that may be open at a time."""


class Loader(yaml.SafeLoader):
    """Refuses brackets within brackets beyond any use: PyYAML takes seconds for a few thousand of them."""

    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:
        if self.flow_level >= MOST_BRACKETS:
            raise yaml.scanner.ScannerError(problem="nested too deeply", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)


def read_text(path: Path) -> bytes:
    """The bytes of a configuration file. Raises `ConfigError` when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise ConfigError(f"{path}: cannot read the configuration: {reason}; name a YAML file") from None


def compose(text: bytes | str, name: str) -> yaml.Node | None:
    """The one document of `text` as nodes, which keep their lines; no object is ever constructed from it."""
    try:
        loader = Loader(text)
        loader.name = name
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        where = f"{name}:{error.problem_mark.line + 1}" if error.problem_mark and name != OVERRIDE else name
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(
            f"{where}: not valid YAML: {problem}; quote the value if it holds : # or @"
        ) from None
    except RecursionError:
        raise ConfigError(f"{name}: not valid YAML: nested too deeply; write plain sections") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(
            f"{name}: not valid YAML: {' '.join(str(error).split())}; save it as UTF-8 text"
        ) from None


def no_mark(name: str) -> yaml.Mark:
    """The place of a value that no text holds."""
    return yaml.Mark(name, 0, 0, 0, "", 0)


def empty_section(mark: Any) -> yaml.MappingNode:
    """A section in which every key is left to its default."""
    return yaml.MappingNode(TAG + "map", [], mark, mark)


def where(node: yaml.Node) -> str:
    """`run.yaml:12`, or `override`."""
    mark = node.start_mark
    return OVERRIDE if mark.name == OVERRIDE else f"{mark.name}:{mark.line + 1}"


def shown(node: yaml.Node) -> str:
    """The value as the user wrote it, in one line."""
    if isinstance(node, yaml.MappingNode):
        return "(a section)"
    if isinstance(node, yaml.SequenceNode):
        return "(a list)"
    assert isinstance(node, yaml.ScalarNode)
    text = " ".join(node.value.split())
    return repr(text) if node.style in ("'", '"') or not text else text


def apply_override(root: yaml.Node, override: str) -> yaml.Node:
    """A copy of `root` with `section.key=VALUE` applied. Raises `ConfigError` when the place cannot exist."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"override {override!r} is not of the form section.key=value; write e.g. train.steps=100"
        )
    value = compose(text, OVERRIDE)
    if value is None:
        mark = no_mark(OVERRIDE)
        value = yaml.ScalarNode(TAG + "str", "", mark, mark, style='"')
    return _with_value(root, parts, value, override)


def _with_value(node: yaml.Node, parts: list[str], value: yaml.Node, override: str) -> yaml.Node:
    """A copy of `node` in which the value at `parts` is `value`. Aliased nodes stay as they are elsewhere."""
    if not parts:
        return value
    head, rest = parts[0], parts[1:]
    if isinstance(node, yaml.SequenceNode):
        position = _element_position(node, head, override)
        items = list(node.value)
        items[position] = _with_value(items[position], rest, value, override)
        return yaml.SequenceNode(node.tag, items, node.start_mark, node.end_mark)
    if node.tag == TAG + "null":
        node = empty_section(value.start_mark)
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"override {override}: {shown(node)} has no key {head}; override the key above it")
    pairs = list(node.value)
    for i, (key_node, old) in enumerate(pairs):
        if key_node.value == head:
            pairs[i] = (key_node, _with_value(old, rest, value, override))
            break
    else:
        key_node = yaml.ScalarNode(TAG + "str", head, value.start_mark, value.end_mark)
        pairs.append((key_node, _with_value(empty_section(value.start_mark), rest, value, override)))
    return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark)


def _element_position(node: yaml.SequenceNode, wanted: str, override: str) -> int:
    names = [_name_of(item) for item in node.value]
    matches = {i for i, name in enumerate(names) if name == wanted}
    if wanted.isdecimal() and int(wanted) < len(names):
        matches.add(int(wanted))
    if len(matches) == 1:
        return matches.pop()
    listed = (
        ", ".join(f"{i} ({name})" if name else str(i) for i, name in enumerate(names))
        or "none, the list is empty"
    )
    problem = "fits several elements" if matches else "is no element"
    raise ConfigError(f"override {override}: {wanted} {problem}; the elements are {listed}")


def _name_of(item: yaml.Node) -> str:
    """A step of a curation is named by what it does unless it has a name."""
    pairs = item.value if isinstance(item, yaml.MappingNode) else []
    values = {key.value: str(value.value) for key, value in pairs if key.value in ("name", "step")}
    return values.get("name") or values.get("step", "")
