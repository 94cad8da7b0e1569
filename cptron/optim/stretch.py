"""What of each parameter this rank's optimizer updates: the stretches of the distributed optimizer, with their names.

Place in the flow: `regularise` works on these between the gradient and the update; no communication is needed for
anything that is done element by element. Invariant: over all ranks, the stretches that count hold every trained element
exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from cptron.optim.names import named_parameters


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Elements `start` to `stop` of a flattened parameter."""

    name: str
    """Of the parameter in the whole model."""
    param: torch.Tensor
    main: torch.Tensor
    """The elements as the optimizer has them: flat, fp32; their gradient is its `grad`, once it is ready."""
    start: int
    stop: int
    counts: bool
    """False where another tensor rank or stage updates the same elements, and counts them."""
    inner: Any
    """The optimizer that updates them."""
    group_index: int

    @property
    def group(self) -> dict[str, Any]:
        """Settings of its parameter group, with this step's rate as `lr`."""
        return self.inner.param_groups[self.group_index]  # type: ignore[no-any-return]

    @property
    def moments(self) -> list[torch.Tensor]:
        """The optimizer's tensors for these elements."""
        size = self.main.numel()
        return [t for t in self.inner.state[self.main].values() if torch.is_tensor(t) and t.numel() == size]


def stretches_of(optimizer: Any) -> list[Stretch]:
    """All stretches of this rank, in the order of the optimizer's parameters."""
    chunks = optimizer.wrapped_chunks
    names = {param: name for name, param in named_parameters(chunks)}
    found: list[Stretch] = []
    for part in optimizer.chained_optimizers:
        for param, (group_index, _) in part.model_param_group_index_map.items():
            place = part._get_model_param_range_map(param)["param"]
            main = part._get_main_param_and_optimizer_states(param)["param"]
            whole = getattr(param, "tensor_model_parallel", False) or chunks[0].tp_group.rank() == 0
            counts = whole and not getattr(param, "shared", False)
            found.append(
                Stretch(
                    names[param], param, main, place.start, place.end, counts, part.optimizer, group_index
                )
            )
    return found


KINDS = ("embedding", "attention", "mlp", "norm", "output")
"""What parameters are in."""


def kind_of(name: str) -> str:
    """Which kind the parameter `name` is of."""
    if "norm" in name:  # the fused layers of Transformer Engine have theirs in the linear's name
        return "norm"
    if name.startswith("embedding."):
        return "embedding"
    if name.startswith("output_layer."):
        return "output"
    return "attention" if ".self_attention." in name else "mlp"
