"""Any JSON value where a reader expects its own: hypothesis draws the value, and shrinks what fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cptron.checkpoint.blocks import read_index
from cptron.checkpoint.marks import read_marks
from cptron.convert.safetensors_io import ModelReader
from cptron.data.ledger import Ledger
from cptron.data.log import read_log
from cptron.errors import CptronError
from cptron.json_text import parse_json
from cptron.model.families import FAMILIES
from cptron.report.sinks import read_records
from cptron.tokens.inputs import expand_inputs
from cptron.tokens.journal import Journal
from cptron.tokens.manifest import parse_manifest
from cptron.tokens.tiktoken_tokenizer import read_tiktoken_config
from cptron.train.journal import read_journal
from cptron.train.resume import find_run
from cptron.train.state import read_state

WORDS = (
    "bin",
    "weight_map",
    "entries",
    "cursors",
    "step",
    "kind",
    "batch",
    "tensors",
    "blocks",
    "shape",
    "identity",
    "",
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(WORDS)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


def _all(directory: Path, reader: Callable[[Path], Any], name: str, value: Any, line_end: str = "") -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(json.dumps(value) + line_end)
    reader(directory)


def _model(directory: Path) -> None:
    (directory / "config.json").write_text("{}")
    ModelReader(directory)


READERS: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "blocks": ("index.json", "", read_index),
    "marks": ("marks.json", "", read_marks),
    "safetensors index": ("model.safetensors.index.json", "", _model),
    "state": ("state.json", "", lambda directory: read_state(directory / "state.json")),
    "ledger": ("l", "", lambda directory: Ledger.from_dict(parse_json((directory / "l").read_text()))),
    "data log": ("d", "\n", lambda directory: list(read_log(directory / "d"))),
    "metrics": ("m", "\n", lambda directory: read_records(directory / "m")),
    "token manifest": (
        "t",
        "",
        lambda directory: parse_manifest(directory, parse_json((directory / "t").read_text())),
    ),
    "journal": ("t.preprocess.journal.json", "", lambda directory: Journal(str(directory / "t")).load()),
    "guards' journal": ("j", "\n", lambda directory: read_journal(directory / "j")),
    "tiktoken": ("c", "", lambda directory: read_tiktoken_config(directory / "c")),
    "run": ("run.json", "", find_run),
    "dataset": ("state.json", "", lambda directory: expand_inputs([str(directory)])),
}


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES)
def test_any_value_is_refused_or_read(name: str, tmp_path: Path, value: Any) -> None:
    """No reader raises anything else than an error for users."""
    file, line_end, reader = READERS[name]
    (tmp_path / "dataset_info.json").write_text("{}")
    try:
        _all(tmp_path, reader, file, value, line_end)
    except CptronError as error:
        assert len(str(error).splitlines()) == 1


@settings(max_examples=80)
@given(family=st.sampled_from(sorted(FAMILIES)), key=st.integers(0, 40), value=VALUES)
def test_any_value_in_a_config_is_refused_or_read(family: str, key: int, value: Any) -> None:
    """Each field of a Hugging Face config in turn."""
    from targets_weights import OF_FAMILY, SIZES

    config = {"model_type": family, **SIZES, **OF_FAMILY[family]}
    config[sorted(config)[key % len(config)]] = value
    try:
        FAMILIES[family].read_config(config)
    except CptronError as error:
        assert len(str(error).splitlines()) == 1
