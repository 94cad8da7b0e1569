"""What only a GPU would find, read from the source: a tensor that is made where the model runs says on which device."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "cptron"
ROOMS = ("model", "optim", "runtime", "train", "evaluate")
SOURCES = sorted(path for room in ROOMS for path in (PACKAGE / room).rglob("*.py"))

FACTORIES = {"arange", "as_tensor", "empty", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros"}

ON_THE_HOST = {
    "evaluate/reference.py": "transformers, on the CPU",
    "model/adapters.py": "random numbers are drawn on the CPU, the same everywhere",
    "model/rope.py": "the table is made on the CPU, as transformers makes it",
    "model/rotary.py": "the table before it is made",
    "runtime/device.py": "page-locked memory",
}
"""Files that make tensors on the CPU on purpose."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_new_tensors_name_their_device(path: Path) -> None:
    """On a CPU one that does not is as good as one that does; on a GPU the next operation stops the run."""
    if path.relative_to(PACKAGE).as_posix() in ON_THE_HOST:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if ast.unparse(node.func.value) == "torch" and node.func.attr in FACTORIES:
            named = {keyword.arg for keyword in node.keywords}
            assert named & {"device", None}, (
                f"{path}:{node.lineno} makes a tensor on the CPU: name its device"
            )
