"""Which layers each pipeline stage holds.

Place in the flow: the configuration check and `model.build` agree on it here; no torch. Invariant: the chunks of all
stages, taken in the order in which a token passes them, are the layers of the model in order, each once.
"""

from __future__ import annotations

from cptron.errors import ConfigError, either
from cptron.runtime.topology import Layout


def stage_sizes(num_layers: int, layout: Layout) -> list[int]:
    """Layers of each stage. Raises `ConfigError` when they cannot be cut so, naming what can."""
    pp, first, last = layout.pp, layout.first_stage_layers, layout.last_stage_layers
    if pp == 1:
        if first or last:
            raise ConfigError(
                f"parallel.first_stage_layers={first} and parallel.last_stage_layers={last} need more than one stage, "
                "but parallel.pp=1; leave them 0"
            )
        sizes = [num_layers]
    else:
        others = pp - (first > 0) - (last > 0)
        left = num_layers - first - last
        if left < others or (others and left % others) or (not others and left):
            raise ConfigError(_uneven(num_layers, layout))
        each = left // others if others else 0
        sizes = [first or each, *[each] * (pp - 2), last or each]
    bad = [size for size in sizes if size % layout.virtual_stages]
    if bad:
        legal = [n for n in range(1, num_layers + 1) if all(size % n == 0 for size in sizes)]
        raise ConfigError(
            f"parallel.virtual_stages={layout.virtual_stages} must divide the {bad[0]} layers of a stage; "
            f"use {either(legal)}"
        )
    return sizes


def _uneven(num_layers: int, layout: Layout) -> str:
    pp, first, last = layout.pp, layout.first_stage_layers, layout.last_stage_layers
    if first or last:
        return (
            f"parallel.first_stage_layers={first} and parallel.last_stage_layers={last} leave "
            f"{num_layers - first - last} of {num_layers} layers, which the other stages of parallel.pp={pp} cannot "
            "share equally; change one of the three"
        )
    legal = [n for n in range(1, num_layers + 1) if num_layers % n == 0]
    message = f"parallel.pp={pp} must divide num_layers={num_layers}; use {either(legal)}"
    each = -(-num_layers // pp)
    short = num_layers - (pp - 1) * each
    if pp > 1 and short > 0:
        message += f", or keep pp={pp} with parallel.last_stage_layers={short}"
    return message


def layers_of(num_layers: int, layout: Layout, stage: int, chunk: int) -> range:
    """Layers, from 0, of the `chunk`-th part of the model on `stage`.

    Megatron's interleaving (Narayanan et al. 2021): a token passes the first chunks of all stages, then the
    second ones, and so on.
    """
    sizes = [size // layout.virtual_stages for size in stage_sizes(num_layers, layout)]
    start = chunk * sum(sizes) + sum(sizes[:stage])
    return range(start, start + sizes[stage])
