"""Random schedules that pass every rule, for properties that all of them must have."""

from __future__ import annotations

from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from cptron.config.check_schedule import check_schedule
from cptron.config.schema import OptimConfig
from cptron.errors import ConfigError

FORMS = ("linear", "cosine", "exponential", "minus_sqrt", "geometric")


@st.composite
def schedules(draw: st.DrawFn) -> tuple[OptimConfig, int]:
    """A schedule and the number of steps of the run."""
    name = draw(st.sampled_from(["cosine", "wsd", "inverse_sqrt", "infinite", "constant"]))
    warmup = draw(st.integers(1 if name == "inverse_sqrt" else 0, 30))
    values: dict[str, Any] = {
        "schedule": name,
        "lr": 1.0,
        "lr_min": draw(st.sampled_from([0.0, 0.01, 0.3])),
        "warmup_steps": warmup,
        "warmup_from": draw(st.sampled_from([0.0, 0.2])),
    }
    if name == "infinite":
        values["cooldown_steps"] = draw(st.integers(1, 60))
        values["lr_constant"] = draw(st.sampled_from([0.3, 0.6, 1.0]))
        values["cooldown_form"] = draw(st.sampled_from(["cosine", "inverse_sqrt"]))
    if name in ("wsd", "infinite"):
        values["anneal_steps"] = draw(st.integers(1 if name == "wsd" else 0, 60))
        values["decay_form"] = draw(st.sampled_from(FORMS))
    shortest = warmup + values.get("cooldown_steps", 0) + values.get("anneal_steps", 0) + 1
    steps = draw(st.integers(shortest, 250))
    values["decay_steps"] = draw(st.sampled_from([0, 0, steps, shortest]))
    optim = OptimConfig(**values)
    try:
        check_schedule(optim, steps)
    except ConfigError:
        assume(False)
    return optim, steps
