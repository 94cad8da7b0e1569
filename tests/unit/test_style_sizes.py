"""What keeps the source readable and can be counted: sizes, error messages, docstrings, and what text must
not name."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "cptron").rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 120
MAX_FUNCTION_LINES_P90 = 45
MIN_RAISES_WITH_VALUE = 0.9
TEXT_SUFFIXES = {
    ".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".cpp", ".h", ".sh", ".sbatch", ".json", ".cfg", ".html", ""
}  # fmt: skip

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> list[Function]:
    """Every function and method of a file, nested ones too."""
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, Function)]


def num_lines(node: Function) -> int:
    """From `def` to the last line of the body."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def name_of(path: Path) -> str:
    """Path from the top of the repository."""
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_file_is_one_readable_concept(path: Path) -> None:
    """At most 400 lines, no function over 120, and a docstring that says where one is."""
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    assert {
        node.name: num_lines(node) for node in functions(path) if num_lines(node) > MAX_FUNCTION_LINES
    } == {}
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "no module docstring"


def test_functions_are_short() -> None:
    """Nine of ten functions fit on one screen."""
    lengths = sorted(num_lines(node) for path in SOURCES for node in functions(path))
    assert lengths[int(0.9 * len(lengths))] <= MAX_FUNCTION_LINES_P90


@pytest.mark.parametrize(
    ("file", "function", "limit"), [("loop.py", "train", 120), ("step.py", "train_step", 80)]
)
def test_the_loop_fits_on_two_screens(file: str, function: str, limit: int) -> None:
    """The product's face: `train` and `train_step` show what happens, not how."""
    (node,) = [node for node in functions(ROOT / "cptron" / "train" / file) if node.name == function]
    assert num_lines(node) <= limit


def user_errors() -> set[str]:
    """Names of the error classes whose messages users read."""
    module = ast.parse((ROOT / "cptron" / "errors.py").read_text())
    return {node.name for node in module.body if isinstance(node, ast.ClassDef)}


def carries_value(message: ast.expr) -> bool:
    """Whether a message is more than literal text."""
    return any(isinstance(node, ast.FormattedValue | ast.Name | ast.Call) for node in ast.walk(message))


def test_errors_name_the_value_at_fault() -> None:
    """At least 90 % of the errors raised for users carry a value; a message without one names no culprit."""
    with_value, without = 0, []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            if ast.unparse(node.exc.func).split(".")[-1] not in user_errors():
                continue
            assert node.exc.args, f"{name_of(path)}:{node.lineno}: an error without a message"
            if carries_value(node.exc.args[0]):
                with_value += 1
            else:
                without.append(f"{name_of(path)}:{node.lineno}")
    assert with_value >= MIN_RAISES_WITH_VALUE * (with_value + len(without)), without


def repository_texts() -> list[Path]:
    """Text files that are, or are about to be, tracked."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if path.suffix in TEXT_SUFFIXES and path.is_file()]


def test_text_names_no_machine_and_no_registry() -> None:
    """Nothing in the repository depends on one machine's folders or on one package registry's address."""
    machine = r"/(?:wor[k]|far[m]|roo[t]|hom[e])/|/tm[p]/bash_jobs|/\.librar[y]\b"
    registry = r"pyp[i]\.org|pythonhoste[d]|registry\.npmj[s]|deb\.debia[n]"
    forbidden = re.compile(f"{machine}|{registry}")
    found = [
        f"{name_of(path)}:{number}: {line.strip()[:80]}"
        for path in repository_texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if forbidden.search(line)
    ]
    assert found == []
