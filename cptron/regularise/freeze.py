"""Parameters, and rows of a vocabulary matrix, that stand still until so many tokens were trained on.

Place in the flow: `regulariser` asks before and after each update. Invariant: what stands still is a pure function of
the configuration and of the tokens trained on; neither it nor its moments change by a bit, it has no weight decay and
no part in the gradient's norm; the optimizer is never made anew.

Whole parameters simply have no gradient. Rows are the beginning of a stretch: their gradient is zero, and what the
optimizer makes of them all the same (decay of weights and moments) is undone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from cptron.config.schema_regularise import FreezeConfig
from cptron.errors import ConfigError
from cptron.optim.names import named_parameters
from cptron.optim.stretch import Stretch

VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")


class Freezer:
    """Keeps still what `optim.freeze` says, on one rank."""

    def __init__(
        self, rules: Sequence[FreezeConfig], stretches: Sequence[Stretch], first_row: int, hidden_size: int
    ) -> None:
        """`first_row`: the first token whose row this tensor rank holds. `rules` were checked by `check_rules`."""
        # in fp32 masters are views of the weights, of which torch warns that such have no gradient: that is meant
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
        self._stretches = stretches
        self._limits = [
            [
                (rule.until_tokens, _still(stretch, rule.rows_below, first_row, hidden_size))
                for rule in rules
                if re.search(rule.match, stretch.name)
            ]
            for stretch in stretches
        ]
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Views of what must not change, and what they held before the update."""

    def stop_gradients(self, tokens_total: int) -> None:
        """Take the gradients away from what stands still after so many tokens."""
        for stretch, count in self._standing(tokens_total):
            if count == stretch.main.numel():
                stretch.main.grad = None
            elif stretch.main.grad is not None:
                stretch.main.grad[:count] = 0

    @torch.no_grad()
    def keep(self, tokens_total: int) -> None:
        """Remember the rows that stand still, with their moments."""
        self._kept = []
        for stretch, count in self._standing(tokens_total):
            if 0 < count < stretch.main.numel():
                for tensor in (stretch.main, *stretch.moments):
                    view = tensor.view(-1)[:count]
                    self._kept.append((view, view.clone()))

    @torch.no_grad()
    def put_back(self) -> None:
        """Undo what the update has done to these rows."""
        for view, before in self._kept:
            view.copy_(before)
        self._kept = []

    def _standing(self, tokens_total: int) -> list[tuple[Stretch, int]]:
        """Stretches of which something stands still, and how many of their first elements do."""
        found = []
        for stretch, limits in zip(self._stretches, self._limits, strict=True):
            count = max((count for until, count in limits if tokens_total < until), default=0)
            if count:
                found.append((stretch, count))
        return found


def _still(stretch: Stretch, rows_below: int, first_row: int, hidden_size: int) -> int:
    """Elements at the beginning of a stretch that a rule means."""
    size = stretch.stop - stretch.start
    if not rows_below:
        return size
    return min(max((rows_below - first_row) * hidden_size - stretch.start, 0), size)


def check_rules(rules: Sequence[FreezeConfig], chunks: Sequence[Any], vocab_size: int) -> None:
    """Raise `ConfigError` on every rank for a rule that fits no trained parameter anywhere, or rows of what has none;
    collective."""
    trained = [name for name, param in named_parameters(chunks) if param.requires_grad]
    by_rank: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_rank, trained)
    names = sorted({name for names in by_rank for name in names})
    for rule in rules:
        fits = [name for name in names if re.search(rule.match, name)]
        if not fits:
            raise ConfigError(
                f"optim.freeze match={rule.match!r} fits no trained parameter; names are such as "
                f"{', '.join(names[:3])}: correct the expression or leave it out"
            )
        others = [name for name in fits if not name.endswith(VOCABULARY)]
        if rule.rows_below and others:
            raise ConfigError(
                f"optim.freeze match={rule.match!r} has rows_below={rule.rows_below} and fits {others[0]}, whose rows "
                f"are no tokens; fit {' or '.join(VOCABULARY)} only, or leave rows_below out"
            )
        if rule.rows_below > vocab_size:
            raise ConfigError(
                f"optim.freeze match={rule.match!r}: rows_below={rule.rows_below} is more than the "
                f"model's {vocab_size} tokens; lower it, or leave it out for all rows"
            )
    always = [
        name
        for name in names
        if not any(not rule.rows_below and re.search(rule.match, name) for rule in rules)
    ]
    if rules and not always:
        raise ConfigError(
            f"optim.freeze fits all {len(names)} parameters, so nothing would be trained at first; narrow them"
        )
