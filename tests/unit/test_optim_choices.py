"""Rules of the optimizer's choices, each with its remedy; and what each name is made of."""

from __future__ import annotations

import importlib.machinery
from pathlib import Path
from typing import Any

import pytest
import torch

from cptron.config import check_optim
from cptron.config.check_optim import check_optim_choices
from cptron.config.schema import OptimConfig, ParamGroupConfig
from cptron.errors import ConfigError
from cptron.optim.adamw import AdamW
from cptron.optim.registry import RECIPES, recipe
from cptron.optim.sgd import SGD
from cptron.optim.stored_state import set_step, step_of

GROUP = ParamGroupConfig(match="*word_embeddings*", lr_mult=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"moments": "bf16"},
        {"moments": "bf16", "beta2": 0.99},
        {"name": "sgd", "momentum": 0.0},
        {"groups": (GROUP, ParamGroupConfig(match="*", lr_mult=0.0))},
        {"frozen": ("a", "b")},
    ],
)
def test_legal_choices(changes: dict[str, Any]) -> None:
    """Nothing is raised."""
    check_optim_choices(OptimConfig(lr=1e-4, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moments": "bf16", "beta2": 0.999}, r"beta2=0.999 .*use beta2 up to 0.99"),
        ({"moments": "bf16", "name": "sgd"}, r"for optim.name=adamw, not sgd"),
        ({"momentum": 1.0}, r"momentum=1.0 must be from 0 to below 1"),
        ({"momentum": -0.1}, r"momentum=-0.1"),
        ({"groups": (ParamGroupConfig(match="x", lr_mult=-1.0),)}, r"lr_mult=-1.0 must be 0 or more"),
        ({"groups": (ParamGroupConfig(match="x", lr_mult=float("nan")),)}, r"lr_mult=nan"),
        ({"groups": (ParamGroupConfig(match=" "),)}, r"empty pattern at place 1"),
        ({"groups": (GROUP, GROUP)}, r"'\*word_embeddings\*' twice"),
        ({"frozen": ("a", "")}, r"optim.frozen has an empty pattern at place 2"),
        ({"frozen": ("a", "b", "a")}, r"optim.frozen has 'a' twice"),
    ],
)
def test_broken_rules(changes: dict[str, Any], message: str) -> None:
    """The value, the rule and the remedy."""
    with pytest.raises(ConfigError, match=message):
        check_optim_choices(OptimConfig(lr=1e-4, **changes))


def spec_of(origin: Path) -> importlib.machinery.ModuleSpec:
    """A package as if it were installed."""
    return importlib.machinery.ModuleSpec("package", None, origin=str(origin))


def test_muon_needs_its_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Refused where one is absent, and not where both are; decided without importing anything."""
    (tmp_path / "optimizer").mkdir()
    packages: dict[str, Any] = {
        "emerging_optimizers": None,
        "megatron.core": spec_of(tmp_path / "__init__.py"),
    }
    monkeypatch.setattr(check_optim, "find_spec", packages.__getitem__)
    muon = OptimConfig(name="muon", lr=1e-4)
    with pytest.raises(ConfigError, match=r"emerging_optimizers, which is not installed"):
        check_optim_choices(muon)
    packages["emerging_optimizers"] = spec_of(tmp_path)
    with pytest.raises(ConfigError, match=r"megatron-core .* has no Muon"):
        check_optim_choices(muon)
    (tmp_path / "optimizer" / "muon.py").touch()
    check_optim_choices(muon)


def arguments() -> dict[str, Any]:
    """What megatron-core passes to FusedAdam."""
    params = [torch.nn.Parameter(torch.ones(3))]
    return {
        "params": params,
        "lr": 1.0,
        "weight_decay": 1.0,
        "betas": (0.8, 0.9),
        "eps": 1e-6,
        "adam_w_mode": True,
    }


@pytest.mark.parametrize("installed", [False, True])
def test_what_each_name_is_made_of(installed: bool) -> None:
    """FusedAdam is left alone where it is installed, except for what it does not do alike everywhere."""
    adamw = recipe(OptimConfig(lr=1.0), installed)
    assert (adamw.inner is None) == installed
    rounded = recipe(OptimConfig(lr=1.0, moments="bf16"), installed)
    assert rounded.inner is AdamW and rounded.make is not None
    made = rounded.make(**arguments())
    assert made.state_dtype is torch.bfloat16 and made.defaults["betas"] == (0.8, 0.9)
    sgd = recipe(OptimConfig(name="sgd", lr=1.0, momentum=0.7), installed)
    assert sgd.inner is SGD and sgd.make is not None
    assert sgd.make(**arguments()).defaults["momentum"] == 0.7
    muon = recipe(OptimConfig(name="muon", lr=1.0, momentum=0.7), installed)
    assert not muon.sharded and muon.settings["optimizer"] == "muon" and muon.settings["muon_momentum"] == 0.7
    assert set(RECIPES) == {"adamw", "sgd", "muon"}


class Part:
    """One of the optimizers of a run."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


class Chained:
    """megatron-core's optimizer, as far as steps are counted."""

    def __init__(self, *inner: torch.optim.Optimizer) -> None:
        self.chained_optimizers = [Part(optimizer) for optimizer in inner]


def test_steps_are_counted_wherever_an_optimizer_does() -> None:
    """In groups, as ours and FusedAdam do, or for each parameter, as torch's; groups keep the configured settings."""
    weight = torch.nn.Parameter(torch.ones(2))
    groups = [{"params": [weight], "lr_mult": 2.0}, {"params": [], "lr_mult": 3.0}]
    ours = AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    torchs = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    for optimizer in (ours, torchs):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.ones(2)
        optimizer.step()
    both: Any = Chained(ours, torchs)
    assert step_of(both) == 1
    set_step(both, 5)
    assert step_of(both) == 5 and [group["step"] for group in ours.param_groups] == [5, 5]
    assert [group["lr_mult"] for group in ours.param_groups] == [2.0, 3.0]
    set_step(both, None)
    assert step_of(both) == 5
    ours.param_groups[0]["step"] = 6
    with pytest.raises(AssertionError, match=r"\[5, 6\]"):
        step_of(both)
