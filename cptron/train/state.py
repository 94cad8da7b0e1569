"""The state of a run that is not a tensor: small, explicit, JSON.

Place in the flow: advanced by the loop, stored in every checkpoint as `state.json`. Invariant: with the
weights, the optimizer and the configuration it determines everything that follows.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cptron.data.ledger import Ledger
from cptron.errors import CheckpointError


@dataclass
class TrainState:
    """Where the run stands."""

    step: int
    tokens_total: int
    ledger: Ledger

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `read_state` inverts it."""
        return {"step": self.step, "tokens_total": self.tokens_total, "ledger": self.ledger.to_dict()}


def read_state(path: Path) -> dict[str, Any]:
    """Contents of a checkpoint's `state.json`. Raises `CheckpointError` when it is missing or damaged."""
    try:
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); the checkpoint holds weights only or is damaged"
        ) from None


def random_state() -> dict[str, str]:
    """This rank's generator states, base64."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in states.items()}


def set_random_state(encoded: dict[str, str]) -> None:
    """Restore what `random_state` returned."""
    for name, text in encoded.items():
        state = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
        if name == "cpu":
            torch.set_rng_state(state)
        elif torch.cuda.is_available():
            torch.cuda.set_rng_state(state)
