"""The committed page is the one the schema gives, and no field goes undocumented."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from cptron.config import schema
from cptron.config.document import document, field_docstrings

ROOT = Path(__file__).parents[2]
SECTIONS = [
    part for part in vars(schema).values() if isinstance(part, type) and dataclasses.is_dataclass(part)
]


def test_the_committed_page_is_current() -> None:
    command = "python -m cptron.config.document > docs/configuration.md"
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == document(), f"run `{command}`"


@pytest.mark.parametrize("section", [part for part in SECTIONS if part is not schema.Config])
def test_every_field_has_a_docstring_and_a_row(section: type) -> None:
    names = {field.name for field in dataclasses.fields(section)}
    assert set(field_docstrings(section)) == names
    page = document()
    for name in names:
        assert f"| `{name}` |" in page
    assert section.__doc__ and section.__doc__ in page


def test_configuration_imports_neither_torch_nor_megatron() -> None:
    code = (
        "import sys, cptron.config.load, cptron.config.check, cptron.config.document\n"
        "sys.exit(any(name.split('.')[0] in ('torch', 'megatron') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
