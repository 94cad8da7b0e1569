"""Who may import what, and what may not be called anywhere: the seams of docs/architecture.md, read from
the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cptron"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = sorted(
    path for folder in ("tools", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)

ADAPTERS = {
    "checkpoint/parts.py",
    "model/adapter_layers.py",
    "model/attention.py",
    "model/build.py",
    "model/causal_lm.py",
    "model/linear_fp8.py",
    "model/norm.py",
    "model/specs_native.py",
    "model/specs_te.py",
    "optim/data_parallel.py",
    "optim/optimizer.py",
    "runtime/groups.py",
    "runtime/offloading.py",
    "runtime/pipeline.py",
    "trace/stand_ins.py",
    "train/megatron_order.py",
}
"""The files that hide megatron-core from the rest; a new one needs a reason."""

READY = "cptron.runtime.megatron_ready"
"""Imported before megatron by every adapter; the order is held by ruff (isort sections in pyproject.toml)."""

LIGHT_ROOMS = ("config", "corpus", "tokens", "data", "forgetting", "plan", "launch")
LIGHT_FILES = (
    "errors.py",
    "versions.py",
    "cli.py",
    "doctor.py",
    "advise/main.py",
    "checkpoint/archive.py",
    "checkpoint/block_file.py",
    "checkpoint/block_writer.py",
    "checkpoint/blocks.py",
    "checkpoint/boxes.py",
    "checkpoint/hashing.py",
    "checkpoint/layout.py",
    "checkpoint/listing.py",
    "checkpoint/main.py",
    "checkpoint/run_lock.py",
    "checkpoint/save_worker.py",
    "checkpoint/space.py",
    "checkpoint/verify.py",
    "health/checks.py",
    "health/disks.py",
    "health/main.py",
    "health/outliers.py",
    "mixture/main.py",
    "model/architecture.py",
    "regularise/fisher_file.py",
    "regularise/taught_file.py",
    "report/watch.py",
    "trace/ledger.py",
    "train/preflight.py",
)
HEAVY = ("torch", "megatron", "transformers")

HOOK_INTERFACE = "cptron.train.hooks"
"""What the rooms that watch a run implement; the rest of `train` is nobody's business."""

UNSAFE_CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "joblib.load",
}


def relative(path: Path) -> str:
    """`model/build.py` for a file of the package."""
    return path.relative_to(PACKAGE).as_posix()


def module_name(path: Path) -> str:
    """`cptron.model.build` for a file of the package."""
    parts = ["cptron", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_by(node: ast.AST) -> list[str]:
    """Dotted names that an import statement may load; empty for other nodes."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide what is imported"
        module = str(node.module)
        return [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return []


def imports_anywhere(path: Path) -> set[str]:
    """Every name the file imports, also inside functions."""
    return {name for node in ast.walk(ast.parse(path.read_text())) for name in imported_by(node)}


def imports_on_import(path: Path) -> set[str]:
    """Names imported when the module itself is imported: not in functions, not under `if TYPE_CHECKING`."""
    body = ast.parse(path.read_text()).body
    return {name for node in executed(body, in_functions=False) for name in imported_by(node)}


def imports_at_run_time(path: Path) -> set[str]:
    """Names that are ever imported: also in functions, but not under `if TYPE_CHECKING`."""
    body = ast.parse(path.read_text()).body
    return {name for node in executed(body, in_functions=True) for name in imported_by(node)}


def executed(body: list[ast.stmt], *, in_functions: bool) -> Iterator[ast.stmt]:
    """All statements of a body and of the blocks in it, save those that only a type checker reads."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not in_functions:
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from executed(getattr(node, field, []), in_functions=in_functions)
        for handler in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
            yield from executed(handler.body, in_functions=in_functions)


def within(names: set[str], package: str) -> set[str]:
    """Those of `names` that are `package` or inside it."""
    return {name for name in names if name == package or name.startswith(f"{package}.")}


def light_modules() -> list[Path]:
    """Files that a laptop without torch can import."""
    rooms = [path for room in LIGHT_ROOMS for path in sorted((PACKAGE / room).rglob("*.py"))]
    return rooms + [PACKAGE / name for name in LIGHT_FILES]


def test_megatron_is_imported_in_adapters_only() -> None:
    """One adapter per subsystem of megatron-core, so that its version matters in few places."""
    users = {relative(path) for path in SOURCES if within(imports_anywhere(path), "megatron")}
    assert users == ADAPTERS, f"not adapters: {users - ADAPTERS}; no longer adapters: {ADAPTERS - users}"


def test_adapters_make_megatron_ready_first() -> None:
    """Where there is no CUDA the host adaptor must have run before megatron-core binds any torch symbol."""
    for path in SOURCES:
        if within(imports_on_import(path), "megatron"):
            assert READY in imports_on_import(path), f"{relative(path)} does not import {READY}"


def test_megatron_training_is_imported_nowhere() -> None:
    """Only `megatron.core` is a library; `megatron.training` is a program with global state."""
    for path in SOURCES:
        assert not within(imports_anywhere(path), "megatron.training"), relative(path)
        assert not within(imports_anywhere(path), "megatron.legacy"), relative(path)


@pytest.mark.parametrize("path", light_modules(), ids=relative)
def test_light_module_imports_nothing_heavy_itself(path: Path) -> None:
    """Names the file at fault; the next test catches what comes in by way of other modules."""
    for heavy in HEAVY:
        assert not within(imports_on_import(path), heavy), f"{relative(path)} imports {heavy}"


def test_importing_light_modules_loads_neither_torch_nor_megatron() -> None:
    """Proven by doing it, in a fresh interpreter."""
    names = [module_name(path) for path in light_modules()]
    program = "\n".join(
        [
            "import importlib, sys",
            f"for name in {names!r}:",
            "    importlib.import_module(name)",
            f"    heavy = sorted(set({HEAVY!r}) & set(sys.modules))",
            "    assert not heavy, f'importing {name} loads {heavy}'",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_but_the_front_door_imports_train_or_cli() -> None:
    """`train` may use every room; no room knows it, except for the interface that hooks implement."""
    for path in SOURCES:
        if relative(path).startswith("train/") or relative(path) == "cli.py":
            continue
        imports = imports_at_run_time(path)
        hooks = within(imports, HOOK_INTERFACE)
        beyond = within(imports, "cptron.train") - hooks - ({"cptron.train"} if hooks else set())
        assert not beyond and not within(imports, "cptron.cli"), f"{relative(path)} imports {sorted(beyond)}"


@pytest.mark.parametrize("path", SOURCES + PROGRAMS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_can_run_code_from_data(path: Path) -> None:
    """No unpickling of files, no shell, no evaluation of text: neither of our own making nor by a library's
    option."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            where = f"{path.name}:{node.lineno}: {name}"
            assert name not in UNSAFE_CALLS, where
            assert keywords.get("shell", "False") == "False", where
            assert keywords.get("allow_pickle", "False") == "False", where
            assert keywords.get("trust_remote_code", "False") == "False", where
            assert name != "torch.load" or keywords.get("weights_only") == "True", where
        elif any(name in ("marshal", "shelve", "dill", "cloudpickle") for name in imported_by(node)):
            raise AssertionError(f"{path.name}: {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom) and node.module == "pickle":
            raise AssertionError(f"{path.name}: write pickle.NAME, so that this test sees what is called")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn as nn", {"torch.nn"}),
        ("from torch import nn", {"torch", "torch.nn"}),
        ("def f():\n    import torch", set()),
        ("if TYPE_CHECKING:\n    import torch", set()),
        ("try:\n    import torch\nexcept ImportError:\n    import megatron", {"torch", "megatron"}),
        ("class A:\n    import torch", {"torch"}),
    ],
)
def test_reader_of_imports_sees_what_runs(source: str, expected: set[str], tmp_path: Path) -> None:
    """The rules above are worth what this reader is worth."""
    path = tmp_path / "module.py"
    path.write_text(source)
    assert imports_on_import(path) == expected
