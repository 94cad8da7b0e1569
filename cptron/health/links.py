"""How fast the ranks talk and compute: all-reduce within and between machines, pairs, a matrix product.

Place in the flow: measured by all ranks together for `cptron doctor --cluster`. Invariant: the same sequence of
collectives on every rank; every number is of the best of few tries, so that it says what the link can do, not what else
went on.

Bus bandwidth is that of NCCL's own tests: bytes / seconds * 2 (n - 1) / n for n ranks, which does not grow with n.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

SIZES_GPU = (2**20, 2**24, 2**28)
SIZES_CPU = (2**16, 2**20, 2**23)
TRIES = 5
PAIR_BYTES = {"cuda": 2**26, "cpu": 2**20}
MATRIX = {"cuda": 8192, "cpu": 384}
PRODUCTS = 5


@dataclass(frozen=True, slots=True)
class Links:
    """What was measured, the same on every rank."""

    first_collective_s: float
    """Of the slowest rank."""
    all_gb_per_s: dict[int, float]
    """Bytes -> bus bandwidth of all ranks together, GB/s."""
    within_gb_per_s: dict[int, float]
    """The same within machines, of the slowest machine; empty with one rank a machine."""
    within_slowest: str
    """That machine."""
    between_gb_per_s: dict[int, float]
    """The same between machines, of the slowest group of ranks with the same local number; empty with one machine."""
    pairs: list[tuple[int, int, float, float]]
    """Neighbours (a, b), GB/s in one direction, seconds for the way of an empty message."""
    tflop_per_s: list[float]
    """Of a matrix product, by rank."""


def measure_links(hosts: Sequence[str], device: torch.device, first_s: float) -> Links:
    """Measure everything; collective. `hosts` by rank; `first_s` is what this rank's first collective took."""
    sizes = SIZES_GPU if device.type == "cuda" else SIZES_CPU
    world = list(range(len(hosts)))
    names = list(dict.fromkeys(hosts))
    inside = [[rank for rank in world if hosts[rank] == name] for name in names]
    most = max(map(len, inside))
    across = [[group[place] for group in inside if place < len(group)] for place in range(most)]
    within = _by_group(inside, sizes, device)
    between = _by_group(across, sizes, device)
    slowest = min(within, key=lambda index: within[index][max(sizes)], default=0)
    return Links(
        first_collective_s=max(_everyones(first_s, device)),
        all_gb_per_s=_bus(world, sizes, device, dist.group.WORLD) if len(world) > 1 else {},
        within_gb_per_s=within.get(slowest, {}),
        within_slowest=names[slowest],
        between_gb_per_s=min(between.values(), key=lambda found: found[max(sizes)], default={}),
        pairs=_pairs(len(world), device),
        tflop_per_s=_everyones(_product_tflop_per_s(device), device),
    )


def _by_group(
    groups: Sequence[Sequence[int]], sizes: Sequence[int], device: torch.device
) -> dict[int, dict[int, float]]:
    """Bus bandwidths of groups of more than one rank, by the group's number; all groups measure at once."""
    made = [dist.new_group(list(group)) if len(group) > 1 else None for group in groups]
    found: dict[int, float] = {}
    mine = -1
    for index, (group, handle) in enumerate(zip(groups, made, strict=True)):
        if handle is not None and dist.get_rank() in group:
            mine, found = index, _bus(group, sizes, device, handle)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (mine, found))
    for handle in made:
        if handle is not None and handle is not dist.GroupMember.NON_GROUP_MEMBER:
            dist.destroy_process_group(handle)
    result: dict[int, dict[int, float]] = {}
    for index, measured in everyone:
        if index >= 0:
            before = result.get(index, measured)
            result[index] = {size: min(before[size], measured[size]) for size in measured}
    return result


def _bus(ranks: Sequence[int], sizes: Sequence[int], device: torch.device, group: Any) -> dict[int, float]:
    """Bytes -> GB/s of this rank's all-reduces in the group."""
    share = 2 * (len(ranks) - 1) / len(ranks)
    found = {}
    for size in sizes:
        values = torch.ones(size // 4, dtype=torch.float32, device=device)
        best_s = _best_s(lambda values=values: dist.all_reduce(values, group=group), device)
        found[size] = size * share / best_s / 1e9
    return found


def _best_s(action: Any, device: torch.device, tries: int = TRIES) -> float:
    """Seconds of the fastest of some tries, after one that warms up."""
    times = []
    for _ in range(tries + 1):
        _halt(device)
        start_s = time.perf_counter()
        action()
        _halt(device)
        times.append(time.perf_counter() - start_s)
    return max(min(times[1:]), 1e-9)


def _halt(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _pairs(count: int, device: torch.device) -> list[tuple[int, int, float, float]]:
    """Messages between neighbours: first 0-1, 2-3 and so on, then 1-2, 3-4 and so on; each of a round talks alone."""
    mine = []
    rank = dist.get_rank()
    for first in (0, 1):
        partner = rank + 1 if (rank - first) % 2 == 0 else rank - 1
        if rank >= first and 0 <= partner < count and min(rank, partner) >= first:
            seconds = [_round_trip_s(rank, partner, size, device) for size in (4, PAIR_BYTES[device.type])]
            if rank < partner:
                way_s = seconds[0] / 2
                gb_per_s = PAIR_BYTES[device.type] / max(seconds[1] / 2 - way_s, 1e-9) / 1e9
                mine.append((rank, partner, gb_per_s, way_s))
        dist.barrier()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return sorted(pair for pairs in everyone for pair in pairs)


def _round_trip_s(rank: int, partner: int, size: int, device: torch.device) -> float:
    """There and back, the fastest of some."""
    values = torch.ones(size // 4, dtype=torch.float32, device=device)

    def there_and_back() -> None:
        if rank < partner:
            dist.send(values, partner)
            dist.recv(values, partner)
        else:
            dist.recv(values, partner)
            dist.send(values, partner)

    return _best_s(there_and_back, device)


def _product_tflop_per_s(device: torch.device) -> float:
    """Of a square matrix product: bf16 on a GPU, fp32 on a CPU."""
    size = MATRIX[device.type]
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.ones(size, size, dtype=kind, device=device) for _ in range(2))

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right)

    return 2 * size**3 * PRODUCTS / _best_s(products, device) / 1e12


def _everyones(value: float, device: torch.device) -> list[float]:
    """A number of each rank, by rank, on all."""
    mine = torch.tensor([value], dtype=torch.float64, device=device)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(found, mine)
    return torch.cat(found).tolist()
