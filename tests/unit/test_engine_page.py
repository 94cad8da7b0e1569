"""The table of proven layouts on docs/engine.md is that of `tests/ranks/test_composition.py`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/engine.md"
HEAD = "| layout | embeddings | documents | recompute | test id |"


def proven_cases() -> list[Any]:
    """`CASES`, from its file: the tests beside it import megatron-core, this process does not."""
    path = ROOT / "tests/ranks/composition_cases.py"
    spec = importlib.util.spec_from_file_location("composition_cases", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.CASES)


def row(case: Any) -> str:
    """A case as the page has it."""
    layout = f"{case.layout.describe()}_dp{case.world_size // case.layout.ranks}"
    documents = "masked" if case.documents else "seen across"
    cells = [
        layout,
        "tied" if case.tied else "untied",
        documents + (", positions from 0" if case.reset else ""),
        case.recompute,
        f"`{case.id}`",
    ]
    return f"| {' | '.join(cells)} |"


def rows_of_the_page() -> list[str]:
    """Rows under the head of the table."""
    lines = PAGE.read_text().splitlines()
    start = lines.index(HEAD) + 2
    return lines[start : lines.index("", start)]


def test_page_lists_the_proven_layouts() -> None:
    """All of them, in their order, and no other."""
    expected = [row(case) for case in proven_cases()]
    assert rows_of_the_page() == expected, "the table should be:\n" + "\n".join([HEAD, "", *expected])


def test_page_says_how_many() -> None:
    """The number in its text."""
    assert f"{len(proven_cases())} layouts" in PAGE.read_text()
