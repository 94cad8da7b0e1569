"""Writes every tensor's memory into a ledger, as it is made and as it goes.

Place in the flow: entered around a step, real or of fake tensors; both are seen by the same code, which is why one can
be compared with the other. Invariant: a storage is counted once, from the operation that returns it to its end; what
an operation has allocated and freed again within itself is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cptron.trace.ledger import ACTIVATIONS, Ledger


class Tracker(TorchDispatchMode):
    """While it is entered, what operations return goes into `ledger`."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = ledger
        self._references: dict[int, Any] = {}
        self._hidden = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at its results."""
        found = func(*args, **(kwargs or {}))
        if not self._hidden:
            self.see(found)
        return found

    def see(self, values: Any) -> None:
        """Count the tensors among `values`, in lists too, that are not counted yet."""
        if isinstance(values, torch.Tensor):
            self._see_storage(values.untyped_storage())
        elif isinstance(values, list | tuple):
            for value in values:
                self.see(value)

    def _see_storage(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._references:
            return

        def gone(_: Any) -> None:
            del self._references[key]
            self.ledger.freed(key)

        self._references[key] = weakref.ref(storage, gone)
        self.ledger.made(key, storage.nbytes())

    def is_for(self, tensors: Iterable[torch.Tensor], category: str) -> None:
        """Say what the storages of these tensors are for."""
        self.ledger.is_for([tensor.untyped_storage()._cdata for tensor in tensors], category)

    @contextmanager
    def watching(self, chunks: Sequence[Any], received: Callable[[Any], Any]) -> Iterator[None]:
        """Tell the ledger of the forward passes of `chunks`, and that what they have `received` waits for the backward
        pass, too."""

        def begin(chunk: Any, *_: Any) -> None:
            found = [tensor for tensor in tree_leaves(received(chunk)) if isinstance(tensor, torch.Tensor)]
            self.is_for(found, ACTIVATIONS)
            self.ledger.begin_forward()

        def end(*_: Any) -> None:
            self.ledger.end_forward()

        hooks = [chunk.register_forward_pre_hook(begin) for chunk in chunks]
        hooks += [chunk.register_forward_hook(end) for chunk in chunks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def as_one_kernel(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What `function` returns, counted as if one kernel made it: what it makes on the way is in no memory, and for
        the backward pass it keeps those of its arguments that this needs."""
        arguments = {
            value.untyped_storage()._cdata: value for value in args if isinstance(value, torch.Tensor)
        }

        def pack(tensor: torch.Tensor) -> Any:
            known = tensor.untyped_storage()._cdata in arguments
            return tensor if known else (tensor, tuple(arguments.values()))

        def unpack(kept: Any) -> torch.Tensor:
            return kept if isinstance(kept, torch.Tensor) else kept[0]

        self._hidden += 1
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
                found = function(*args, **kwargs)
        finally:
            self._hidden -= 1
            arguments.clear()  # autograd keeps `pack`, too
        if not self._hidden:
            self.see(found)
        return found
