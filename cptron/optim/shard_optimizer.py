"""Base of our inner optimizers: what megatron-core's distributed optimizer asks of the one inside it.

Place in the flow: `adamw` and `sgd` are of it. Its contract is that of Apex's and Transformer Engine's
optimizers: `step` is an int in each parameter group, and a parameter's state is tensors of its own shape.
Invariant: state stays in the precision it was made in, also when a checkpoint holds it in another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch


class ShardOptimizer(torch.optim.Optimizer):
    """Counts steps, makes and loads state; a subclass updates the parameters."""

    state_names: ClassVar[tuple[str, ...]]
    """Names of a parameter's state tensors; megatron-core stores only `exp_avg` and `exp_avg_sq`."""
    state_dtype: torch.dtype | None = None
    """Precision of the state; None means the parameter's."""

    def allocate(self) -> None:
        """Make all state now, so that a load has where to write and lack of memory shows at the start."""
        for group in self.param_groups:
            for param in group["params"]:
                self._make_state(param)

    def _make_state(self, param: torch.Tensor) -> None:
        state = self.state[param]
        for name in self.state_names:
            if name not in state:
                state[name] = torch.zeros_like(param, dtype=self.state_dtype or param.dtype)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, and count the step in every group."""
        assert closure is None
        for group in self.param_groups:
            group["step"] = int(group.get("step", 0)) + 1
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                for param in params:
                    self._make_state(param)
                self._update(group, params)

    def _update(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take settings and state over; tensors that are already of the right kind are not copied.

        torch's own would cast all state to the parameters' precision at once.
        """
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for param, index in zip(group["params"], saved["params"], strict=True):
                self._load_state(param, state_dict["state"].get(index, {}))
            group.update({key: value for key, value in saved.items() if key != "params"})

    def _load_state(self, param: torch.Tensor, saved: Mapping[str, torch.Tensor]) -> None:
        for name in self.state_names:
            if name in saved:
                dtype = self.state_dtype or param.dtype
                self.state[param][name] = saved[name].to(device=param.device, dtype=dtype)
