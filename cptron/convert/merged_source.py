"""A base's weights with an adapter merged in, tensor by tensor.

Place in the flow: export and verification of a checkpoint that holds an adapter. Invariant: matrices without an adapter
are the base's to the bit; the others are merged in fp32.
"""

from __future__ import annotations

import torch

from cptron.checkpoint.checksum import Checksums, as_text, checksum, differing
from cptron.checkpoint.names import stored_key
from cptron.checkpoint.reader import Reader
from cptron.config.schema import AdapterConfig
from cptron.convert.peft_export import Adapters, adapted_modules, merged_weight
from cptron.convert.source import WeightSource
from cptron.errors import CheckpointError
from cptron.model.adapters import is_adapter
from cptron.model.architecture import Architecture


def read_adapters(reader: Reader, arch: Architecture, checksums: Checksums) -> dict[str, torch.Tensor]:
    """All tensors of an adapter's checkpoint by megatron-core name; they are small. Raises `CheckpointError` where
    they are not those whose checksums were recorded, if any were."""
    found = {}
    for key in reader.keys:
        if not is_adapter(key) or not key.startswith("decoder.layers."):
            continue  # the optimizer's state
        stacked = reader.read(key)
        for layer in range(arch.num_layers):
            name = key.replace("decoder.layers.", f"decoder.layers.{layer}.", 1)
            assert stored_key(name)[0] == key, "adapters are stored under their own names"
            found[name] = stacked[layer]
    wrong = differing(as_text({name: checksum(tensor) for name, tensor in found.items()}), checksums)
    if checksums and wrong:
        raise CheckpointError(
            f"{reader.directory} holds other weights in {wrong[0]} than were recorded when it was written; "
            "it is damaged: use another checkpoint"
        )
    return found


class MergedSource:
    """`WeightSource` of base and adapter together."""

    def __init__(
        self, base: WeightSource, arch: Architecture, adapters: Adapters, settings: AdapterConfig
    ) -> None:
        self._base, self._adapters, self._settings = base, adapters, settings
        self._modules = adapted_modules(adapters, arch, settings)

    def read(self, name: str) -> torch.Tensor:
        """A whole tensor."""
        tensor = self._base.read(name)
        prefix = self._modules.get(name.removesuffix(".weight"))
        return tensor if prefix is None else merged_weight(tensor, prefix, self._adapters, self._settings)

    def read_range(self, name: str, dim: int, start: int, end: int) -> torch.Tensor:
        """Entries `start` to `end` along `dim`."""
        if name.removesuffix(".weight") in self._modules:
            return self.read(name).narrow(dim, start, end - start)
        return self._base.read_range(name, dim, start, end)
