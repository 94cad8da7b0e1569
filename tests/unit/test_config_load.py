"""Loading: values typed by their field, mistakes named with file and line, every config read back equal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cptron.config.load import config_to_dict, load_config, resolved_yaml
from cptron.config.schema import Config
from cptron.errors import ConfigError

MINIMAL = """\
run:
  dir: runs/a
data:
  seq_length: 64
  sources:
    - name: manual
      path: tokens/manual
      token_share: 0.7
    - {name: web, path: tokens/web, token_share: 3}
train:
  steps: 10
  global_batch_size: 8
optim:
  lr: 1e-4
"""

TEXT = st.text(max_size=12) | st.sampled_from(
    ["off", "null", "1e-4", "~", "- x", "a: b", "#", "true", "012", "<<"]
)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value that a type of the schema allows."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        parts = {name: values_of(part) for name, part in get_type_hints(hint).items()}
        return st.fixed_dictionaries(parts).map(lambda values: hint(**values))
    if get_origin(hint) is tuple:
        return st.lists(values_of(get_args(hint)[0]), max_size=3).map(tuple)
    if get_origin(hint) is Mapping:
        return st.dictionaries(TEXT, values_of(get_args(hint)[1]), max_size=3)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    return {str: TEXT, int: st.integers(-(10**15), 10**15), float: numbers, bool: st.booleans()}[hint]


def scalar_leaves(cls: Any, prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            leaves += scalar_leaves(hint, f"{prefix}{name}.")
        elif get_origin(hint) is not tuple:
            leaves.append((prefix + name, hint))
    return leaves


def with_value(section: Any, key: str, value: Any) -> Any:
    """A section with one key of it, or of one within, set."""
    name, _, rest = key.partition(".")
    return dataclasses.replace(
        section, **{name: with_value(getattr(section, name), rest, value) if rest else value}
    )


def as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_style='"').strip() if isinstance(value, str) else str(value)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def error_of(tmp_path: Path, text: str, *overrides: str) -> str:
    """The message, with the folder cut away; it must be one line."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), overrides)
    message = str(caught.value).replace(f"{tmp_path}/", "")
    assert "\n" not in message
    return message


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=values_of(Config))
def test_the_resolved_file_reads_back_equal(tmp_path: Path, config: Config) -> None:
    assert load_config(write(tmp_path, resolved_yaml(config))).config == config


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_an_override_sets_its_key_and_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    leaves = [leaf for leaf in scalar_leaves(Config) if leaf[0] != "optim.preset"]  # which sets others
    key, hint = data.draw(st.sampled_from(leaves))
    value = data.draw(values_of(hint))
    before = load_config(write(tmp_path, MINIMAL))
    after = load_config(write(tmp_path, MINIMAL), [f"{key}={as_yaml(value)}"])
    assert after.config == with_value(before.config, key, value)
    assert after.provenance == before.provenance | {key: "override"}


def test_values_are_read_by_the_type_of_their_field(tmp_path: Path) -> None:
    """The traps of YAML 1.1: 1e-4 is text to it, off a boolean, 1_000 and 1:30 integers."""
    text = MINIMAL + "  weight_decay: 1\nlog:\n  wandb: off\n  tensorboard: yes\nrun2: {}\n".replace(
        "run2: {}\n", ""
    )
    config = load_config(
        write(tmp_path, text), ["run.name=on", "optim.eps=.5E-9", "train.steps=1_000"]
    ).config
    assert (config.optim.lr, config.optim.weight_decay, config.optim.eps) == (1e-4, 1.0, 5e-10)
    assert all(type(v) is float for v in (config.optim.lr, config.optim.weight_decay))
    assert (config.log.wandb, config.log.tensorboard, config.run.name) == ("off", True, "on")
    assert config.train.steps == 1000
    assert config.data.sources[1].token_share == 3.0


def test_provenance_names_line_override_or_default(tmp_path: Path) -> None:
    loaded = load_config(write(tmp_path, MINIMAL), ["train.steps=20", "data.sources.web.token_share=1"])
    where = {key: place.replace(f"{tmp_path}/", "") for key, place in loaded.provenance.items()}
    assert where["optim.lr"] == "run.yaml:14"
    assert where["data.sources.0.token_share"] == "run.yaml:8"
    assert where["data.sources.1.path"] == "run.yaml:9"
    assert where["data.sources.1.token_share"] == where["train.steps"] == "override"
    assert where["data.valid"] == where["eval.at_start"] == "default"
    leaves = {key for key, _ in scalar_leaves(Config)}
    assert leaves <= set(where)


def test_every_line_in_provenance_holds_its_value(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL)).config
    path = write(tmp_path, resolved_yaml(config))
    lines = path.read_text().splitlines()
    for key, place in load_config(path).provenance.items():
        line, last = lines[int(place.rpartition(":")[2]) - 1], key.rpartition(".")[2]
        assert line.lstrip().startswith("- ") if last.isdecimal() else last in line


def test_list_elements_go_by_position_and_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    by_position = load_config(path, ["data.sources.0.token_share=0.5"]).config
    assert by_position == load_config(path, ["data.sources.manual.token_share=0.5"]).config
    assert [source.token_share for source in by_position.data.sources] == [0.5, 3.0]
    assert "the elements are 0 (manual), 1 (web)" in error_of(tmp_path, MINIMAL, "data.sources.2.path=x")
    twice = ["data.sources.1.name=0", "data.sources.0.path=x"]
    assert "0 fits several elements" in error_of(tmp_path, MINIMAL, *twice)


def test_overriding_one_use_of_an_alias_leaves_the_other(tmp_path: Path) -> None:
    text = (
        MINIMAL.replace("    - name: manual\n", "    - &m\n      name: manual\n")
        + "eval: &e {every_steps: 3}\n"
    )
    text += "checkpoint: *e\n"
    config = load_config(write(tmp_path, text), ["eval.every_steps=5"]).config
    assert (config.eval.every_steps, config.checkpoint.every_steps) == (5, 3)


WHOLE = "must be a whole number; write it in digits, as 1000"
FINITE = "must be a finite number; write it as 0.1 or 1e-4"
TEXTUAL = "must be text; write the text, or '' for an empty one"
LIST = "must be a list; write `- ` before each element, or [] for none"

MISTAKES = [
    (
        "batch_size",
        "batchsize",
        "12: unknown key train.global_batchsize; did you mean train.global_batch_size?",
    ),
    ("optim:\n", "optim:\n  steps: 3\n", "14: unknown key optim.steps; did you mean train.steps?"),
    ("train:", "trian:", "10: unknown key trian; did you mean train?"),
    ("path:", "pth:", "7: unknown key data.sources.0.pth; did you mean data.sources.0.path?"),
    ("  steps: 10\n", "  steps: 1\n" * 2, "12: train.steps is set twice, first at run.yaml:11; remove one"),
    ("  steps: 10\n", "", "11: missing required key train.steps; add the key"),
    ("seq_length: 64", "valid: []", "4: missing required key data.seq_length; add the key"),
    ("steps: 10", "steps: ten", f"11: train.steps=ten {WHOLE}"),
    ("steps: 10", "steps: '10'", f"11: train.steps='10' {WHOLE}"),
    ("steps: 10", "steps: 1:30", f"11: train.steps=1:30 {WHOLE}"),
    ("steps: 10", "steps: 010", f"11: train.steps=010 {WHOLE}"),
    ("steps: 10", "steps: true", f"11: train.steps=true {WHOLE}"),
    ("steps: 10", "steps: 1e3", f"11: train.steps=1e3 {WHOLE}"),
    ("steps: 10", "steps: " + "9" * 5000, f"11: train.steps={'9' * 500}"),
    ("lr: 1e-4", "lr: fast", f"14: optim.lr=fast {FINITE}"),
    ("lr: 1e-4", "lr: true", f"14: optim.lr=true {FINITE}"),
    ("lr: 1e-4", "lr: .inf", f"14: optim.lr=.inf {FINITE}"),
    ("lr: 1e-4", "lr: 1e999", f"14: optim.lr=1e999 {FINITE}"),
    ("lr: 1e-4", "lr:", f"14: optim.lr='' {FINITE}"),
    ("dir: runs/a", "dir:", f"2: run.dir='' {TEXTUAL}"),
    ("dir: runs/a", "dir: [a]", f"2: run.dir=(a list) {TEXTUAL}"),
    ("steps: 10", "precision: bf61", "11: train.precision=bf61 must be one of bf16, fp32; use bf16"),
    (
        "train:",
        "eval: {at_start: 1}\ntrain:",
        "10: eval.at_start=1 must be true or false; use one of these words",
    ),
    ("train:", "eval: 3\ntrain:", "10: eval=3 must be a section; write `key: value` lines under it"),
    ("seq_length: 64", "valid: x", f"4: data.valid=x {LIST}"),
    ("runs/a", "!x a", "2: run.dir has the YAML tag !x; write a plain value without a tag"),
    (
        "data:",
        "data: !!python/dict",
        "3: data has the YAML tag tag:yaml.org,2002:python/dict; write a plain ",
    ),
    ("dir: runs/a", "dir: @a", "2: not valid YAML: while scanning for the next token, found character '@'"),
]


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES)
def test_mistakes_are_named_with_line_and_remedy(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in MINIMAL
    assert error_of(tmp_path, MINIMAL.replace(old, new, 1)).startswith(f"run.yaml:{message}")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.stps=3", "override: unknown key train.stps; did you mean train.steps?"),
        ("lr=3", "override: unknown key lr; did you mean optim.lr?"),
        ("train.steps", "is not of the form section.key=value"),
        ("train.steps.x=3", "10 has no key x"),
        ("train.steps=", "override: train.steps='' must be a whole number"),
        ("zzz.qqq=1", "override: unknown key zzz; the file has run, start,"),
    ],
)
def test_wrong_overrides_are_named(tmp_path: Path, override: str, part: str) -> None:
    assert part in error_of(tmp_path, MINIMAL, override)


def test_whole_sections_and_lists_can_be_overridden(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "eval:\n")
    config = load_config(path, ["data.valid=[{name: v, path: p}]", "eval.at_start=false", "run.name="]).config
    assert [valid.name for valid in config.data.valid] == ["v"]
    assert config.eval.at_start is False and config.run.name == ""


def test_files_that_are_no_configuration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration: No such file"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\xd8a")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "binary.yaml")
    assert "missing required key run.dir" in error_of(tmp_path, "")
    assert "the file=(a list) must be a section" in error_of(tmp_path, "- 1\n")
    assert "expected a single document" in error_of(tmp_path, MINIMAL + "---\na: 1\n")
    assert "must be a section" in error_of(tmp_path, "run: &r [*r]\n")


def test_config_to_dict_is_what_json_and_yaml_hold(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL)).config
    values = config_to_dict(config)
    assert json.loads(json.dumps(values)) == values == yaml.safe_load(resolved_yaml(config))
