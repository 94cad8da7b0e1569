"""What a GPU can do, where each number is from, and GPUs that a user describes.

Place in the flow: every estimate of `plan` is made of these. Invariant: peaks are dense, of one GPU, and never
guessed: a type that is not in the table has to be described in a file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from cptron.config.nodes import compose, read_text
from cptron.errors import ConfigError, either

GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One type of GPU, in the server it usually comes in."""

    name: str
    memory_gib: float
    """As torch reports it, less than on the label."""
    bf16_tflop_per_s: float
    """Dense, accumulated in fp32."""
    fp32_tflop_per_s: float
    """Without TF32."""
    fp8_tflop_per_s: float = 0.0
    """Dense; 0: it has none."""
    memory_gb_per_s: float
    """Bandwidth of its own memory."""
    link_gb_per_s: float
    """To the other GPUs of its node, in one direction."""
    board_w: float
    """Most that the GPU draws."""
    server_w: float
    """Its share of the most that a server draws."""
    usd_per_hour: tuple[float, float]
    """Lowest and highest price that is usual; it is the least certain number here."""
    source: str
    """Where the numbers are from."""

    @property
    def memory_bytes(self) -> float:
        """Bytes that a process can have, less what its CUDA context takes."""
        return self.memory_gib * GIB

    def peak(self, precision: str, *, fp8: bool = False) -> float:
        """Most FLOP/s of its matrix products. Raises `ConfigError` where it has no FP8."""
        if fp8 and not self.fp8_tflop_per_s:
            raise ConfigError(
                f"--gpu {self.name} has no FP8 matrix products; set fp8.recipe=none or name another GPU"
            )
        found = self.fp8_tflop_per_s if fp8 else self.bf16_tflop_per_s
        return (found if precision == "bf16" else self.fp32_tflop_per_s) * 1e12


_HOPPER = (
    "H100 and H200 data sheets: 989 TFLOP/s bf16 and 1979 FP8 dense, 67 fp32, NVLink 900 GB/s both ways, 700 W; "
    "3.35 and 4.8 TB/s. DGX H100: 10.2 kW for 8. Memory: 79.11 GiB in torch's own message "
    "(NVIDIA-NeMo/Automodel#2673), 139.8 GiB for H200 from memory. Prices: lists of May 2026"
)
_AMPERE = (
    "A100 data sheet: 312 TFLOP/s bf16 dense, 19.5 fp32, NVLink 600 GB/s both ways, 400 W; 2.04 and 1.56 TB/s. "
    "DGX A100: 6.5 kW for 8. Memory from memory. Prices: lists of May 2026"
)
_FROM_MEMORY = "data sheet, from memory; server's share assumed 1.7 times the board; price assumed"

_TABLE = (
    Gpu(
        name="h100",
        memory_gib=79.1,
        bf16_tflop_per_s=989.5,
        fp32_tflop_per_s=67,
        fp8_tflop_per_s=1979,
        memory_gb_per_s=3350,
        link_gb_per_s=450,
        board_w=700,
        server_w=1275,
        usd_per_hour=(2.0, 5.0),
        source=_HOPPER,
    ),
    Gpu(
        name="h200",
        memory_gib=139.8,
        bf16_tflop_per_s=989.5,
        fp32_tflop_per_s=67,
        fp8_tflop_per_s=1979,
        memory_gb_per_s=4800,
        link_gb_per_s=450,
        board_w=700,
        server_w=1275,
        usd_per_hour=(2.5, 7.0),
        source=_HOPPER,
    ),
    Gpu(
        name="h100-pcie",
        memory_gib=79.1,
        bf16_tflop_per_s=756,
        fp32_tflop_per_s=51,
        fp8_tflop_per_s=1513,
        memory_gb_per_s=2000,
        link_gb_per_s=64,
        board_w=350,
        server_w=600,
        usd_per_hour=(1.8, 3.5),
        source=f"{_FROM_MEMORY}; links: PCIe 5, though a bridge joins pairs",
    ),
    Gpu(
        name="a100",
        memory_gib=79.2,
        bf16_tflop_per_s=312,
        fp32_tflop_per_s=19.5,
        memory_gb_per_s=2039,
        link_gb_per_s=300,
        board_w=400,
        server_w=812,
        usd_per_hour=(0.8, 3.0),
        source=_AMPERE,
    ),
    Gpu(
        name="a100-40gb",
        memory_gib=39.4,
        bf16_tflop_per_s=312,
        fp32_tflop_per_s=19.5,
        memory_gb_per_s=1555,
        link_gb_per_s=300,
        board_w=400,
        server_w=812,
        usd_per_hour=(0.8, 2.5),
        source=_AMPERE,
    ),
    Gpu(
        name="b200",
        memory_gib=178,
        bf16_tflop_per_s=2250,
        fp32_tflop_per_s=75,
        fp8_tflop_per_s=4500,
        memory_gb_per_s=7700,
        link_gb_per_s=900,
        board_w=1000,
        server_w=1790,
        usd_per_hour=(3.5, 8.0),
        source="DGX B200 data sheet, from memory: 72 PFLOP/s FP8 sparse, 1440 GB, 14.3 kW for 8; price assumed",
    ),
    Gpu(
        name="l40s",
        memory_gib=44.4,
        bf16_tflop_per_s=362,
        fp32_tflop_per_s=91.6,
        fp8_tflop_per_s=733,
        memory_gb_per_s=864,
        link_gb_per_s=32,
        board_w=350,
        server_w=600,
        usd_per_hour=(0.7, 2.0),
        source="L40S data sheet: 362 TFLOP/s bf16 and 733 FP8 dense, 864 GB/s, PCIe 4, 350 W; price assumed",
    ),
    Gpu(
        name="rtx4090",
        memory_gib=23.6,
        bf16_tflop_per_s=165,
        fp32_tflop_per_s=82.6,
        fp8_tflop_per_s=330,
        memory_gb_per_s=1008,
        link_gb_per_s=25,
        board_w=450,
        server_w=700,
        usd_per_hour=(0.3, 0.8),
        source=f"{_FROM_MEMORY}; links: PCIe 4 through the host",
    ),
)
NUMBERS = {field.name for field in fields(Gpu)} - {"name", "usd_per_hour", "source"}
GPUS: Mapping[str, Gpu] = {gpu.name: gpu for gpu in _TABLE}
"""Name -> GPU."""


def gpu_named(name: str, described: Path | None = None) -> Gpu:
    """The GPU of this name in the file `described`, else in the table. Raises `ConfigError`."""
    known = {**GPUS, **(read_gpus(described) if described else {})}
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"use {either(sorted(known))}"
    raise ConfigError(f"--gpu {name} is not known; {hint} Or describe it in a YAML file and give --gpu-file")


def read_gpus(path: Path) -> dict[str, Gpu]:
    """GPUs that a user has measured or rents: a YAML mapping of names to the fields of `Gpu`; what is left out is
    that of the GPU named by `like`. Raises `ConfigError`."""
    where = f"--gpu-file {path}"
    root = compose(read_text(path), where)
    found: dict[str, Gpu] = {}
    for name, node in _entries(root, where):
        if name in found or not name:
            raise ConfigError(f"{where} names the GPU {name!r:.60} twice, or not at all; give each one name")
        found[name] = _read(f"{where}: {name:.60}", name, dict(_entries(node, f"{where}: {name:.60}")))
    return found


def _entries(node: yaml.Node | None, where: str) -> list[tuple[str, yaml.Node]]:
    """Keys and values of a section."""
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{where} must hold a section for each GPU, as `mine: {{like: h100}}`")
    keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    if len(keys) < len(node.value):
        raise ConfigError(f"{where} has a key that is no name; write `mine: {{like: h100}}`")
    return list(zip(keys, (value for _, value in node.value), strict=True))


def _read(where: str, name: str, given: dict[str, yaml.Node]) -> Gpu:
    known = {field.name for field in fields(Gpu)} - {"name"}
    unknown = sorted(set(given) - known - {"like"})
    if unknown:
        listed = ", ".join(f"{key:.60}" for key in unknown[:5])
        raise ConfigError(f"{where} has {listed}, which no GPU has; use {either(sorted(known))}")
    texts = {key: _text(node, f"{where}.{key}") for key, node in given.items() if key in ("like", "source")}
    like = texts.get("like", "")
    if like and like not in GPUS:
        raise ConfigError(f"{where}.like={like:.60} is not in the table; use {either(sorted(GPUS))}")
    base = {key: getattr(GPUS[like], key) for key in known} if like else {"fp8_tflop_per_s": 0.0}
    numbers = {key: _number(node, f"{where}.{key}") for key, node in given.items() if key in NUMBERS}
    values: dict[str, Any] = {**base, "source": f"{where}, like {like or 'nothing'}", **numbers}
    if "source" in texts:
        values["source"] = texts["source"]
    if "usd_per_hour" in given:
        values["usd_per_hour"] = _price(given["usd_per_hour"], f"{where}.usd_per_hour")
    missing = sorted(known - set(values))
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}; add them, or `like:` with a GPU of the table")
    zero = sorted(key for key in NUMBERS - {"fp8_tflop_per_s", "board_w", "server_w"} if values[key] <= 0)
    if zero:
        raise ConfigError(f"{where}: {', '.join(zero)} of 0 must be above 0; correct it")
    return Gpu(name=name, **values)


def _text(node: yaml.Node, where: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        kind = "list" if isinstance(node, yaml.SequenceNode) else "section"
        raise ConfigError(f"{where} is a {kind}, must be a single value; write one")
    return str(node.value)


def _number(node: yaml.Node, where: str) -> float:
    text = _text(node, where)
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < 1e9:
        raise ConfigError(f"{where}={text!r:.40} must be a number from 0 to below 1e9; correct it")
    return found


def _price(node: yaml.Node, where: str) -> tuple[float, float]:
    """One number, or the lowest and the highest."""
    parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
    found = [_number(part, where) for part in parts[:3]]
    if len(found) not in (1, 2) or found[0] > found[-1]:
        raise ConfigError(f"{where} must be one price or the lowest and the highest; use e.g. [2, 3]")
    return found[0], found[-1]
