"""What of the optimizer a checkpoint decides when it is loaded: state and step count, nothing else.

Place in the flow: wraps megatron-core's distributed optimizers right after they are made. megatron-core pairs
the stored parameter groups with the current ones by their multipliers and takes the stored values over; so a
multiplier changed in the configuration would either fail to load or be ignored. State is stored by parameter and
all groups share one step, hence groups need no pairing. Invariant: after a load every group has the settings of
the configuration and the step of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cptron.errors import CheckpointError

STATE_NAMES = ("exp_avg", "exp_avg_sq")
"""What megatron-core stores of each parameter beside itself."""


def keep_groups_on_load(optimizer: Any) -> None:
    """Make `optimizer.load_state_dict` keep the current groups, whatever groups the checkpoint had."""
    load = optimizer.load_state_dict

    def load_state_dict(state_dict: Mapping[str, Any]) -> None:
        stored = state_dict["optimizer"]
        groups = _with_step(
            optimizer.optimizer.state_dict()["param_groups"], _one_step(stored["param_groups"])
        )
        load({**state_dict, "optimizer": {**stored, "param_groups": groups}})

    optimizer.load_state_dict = load_state_dict


def _one_step(groups: Sequence[Mapping[str, Any]]) -> int | None:
    steps = {int(group["step"]) for group in groups if group.get("step") is not None}
    if len(steps) > 1:
        raise CheckpointError(
            f"the optimizer's parameter groups are at different steps, {sorted(steps)}; this checkpoint is not "
            "one of cptron: start from its weights with start.mode=init_from"
        )
    return steps.pop() if steps else None


def _with_step(groups: Sequence[Mapping[str, Any]], step: int | None) -> list[dict[str, Any]]:
    settings = [{k: v for k, v in group.items() if k not in ("params", "step")} for group in groups]
    return [{**group, "step": step} for group in settings] if step is not None else settings


def store_only(optimizer: Any, names: Sequence[str]) -> None:
    """For an inner optimizer that has not all of `STATE_NAMES`: neither save nor expect the others."""
    absent = [name for name in STATE_NAMES if name not in names]
    if not absent:
        return
    states, sharded = optimizer._get_main_param_and_optimizer_states, optimizer.sharded_state_dict

    def with_absent(model_param: Any) -> dict[str, Any]:
        tensors: dict[str, Any] = states(model_param)
        nothing = tensors["param"].detach().new_zeros(()).expand_as(tensors["param"])  # takes no memory
        return {**tensors, **dict.fromkeys(absent, nothing)}

    def without_absent(*args: Any, **kwargs: Any) -> dict[str, Any]:
        state_dict: dict[str, Any] = sharded(*args, **kwargs)
        for tensors in (state_dict["param_state"] or {}).values():
            for name in absent:
                del tensors[name]
        return state_dict

    optimizer._get_main_param_and_optimizer_states = with_absent
    optimizer.sharded_state_dict = without_absent
