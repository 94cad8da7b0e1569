"""`cptron doctor`: what this machine has, and what cptron will use for what.

Place in the flow: before a first run, and in every report of a problem. Invariant: starts nothing, needs no
network and exits with `EXIT_CODE` exactly when something required is missing or outside its bounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cptron.config.check_fp8 import FP8_CAPABILITY
from cptron.errors import EXIT_CODE
from cptron.report.console import table

BOUNDS: dict[str, tuple[str, str]] = {
    "python": ("3.11", ""),
    "torch": ("2.6", ""),
    "megatron-core": ("0.16.1", "0.21"),
    "transformers": ("5.0", "6"),
    "tokenizers": ("0.21", ""),
    "numpy": ("1.26", ""),
    "safetensors": ("0.4.3", ""),
    "sentencepiece": ("0.2", ""),
    "pyyaml": ("6.0", ""),
    "tqdm": ("4.66", ""),
    "orjson": ("3.10", ""),
    "zstandard": ("0.22", ""),
    "psutil": ("5.9", ""),
}
"""Required: first version that works, and first that does not (empty: none known). As in pyproject.toml."""

ACCELERATORS = {
    "transformer_engine": ("transformer_engine", "model.backend=te: fused layers, attention, FP8 recipes"),
    "apex": ("apex.optimizers", "NVIDIA's FusedAdam; with its CUDA extensions also fused weight gradients"),
    "flash_attn": ("flash_attn", "attention inside Transformer Engine"),
    "emerging_optimizers": ("emerging_optimizers", "optim.name=muon"),
    "triton": ("triton", "kernels of torch.compile"),
    "gigatoken": ("gigatoken", "cptron preprocess: tokenizes fast where its ids are the reference's"),
    "snaptokens": ("snaptokens", "cptron preprocess: the same, for tokenizers gigatoken refuses"),
    "tiktoken": ("tiktoken", "cptron preprocess: .tiktoken files"),
    "pyarrow": ("pyarrow", "cptron preprocess: Parquet and Hugging Face datasets on disk"),
    "jinja2": ("jinja2", "cptron preprocess: chat templates"),
    "tensorboard": ("tensorboard", "log.tensorboard=true"),
    "wandb": ("wandb", "log.wandb=offline or online"),
    "lm_eval": ("lm_eval", "cptron eval --harness"),
}
"""Optional: the module that proves the package is there, and what it is for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked for. `problem` is empty when all is well, else it says what to do."""

    name: str
    found: str
    wanted: str
    problem: str = ""


def main(argv: Sequence[str]) -> int:
    """Print the findings; returns 0, or `EXIT_CODE` when something required is missing. With `--cluster` all ranks of
    a job look at their machines together (`health`)."""
    if "--cluster" in argv:
        from cptron.health.main import main as examine_cluster

        return examine_cluster(argv)
    parser = argparse.ArgumentParser(
        prog="cptron doctor", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument(
        "--cluster", action="store_true", help="look at all machines of a job; see its own --help"
    )
    as_json = parser.parse_args(argv).json
    required, optional = required_findings(), optional_findings()
    devices = device_facts()
    uses = uses_of(devices, {finding.name: finding for finding in optional})
    if as_json:
        groups = {"required": [asdict(f) for f in required], "optional": [asdict(f) for f in optional]}
        print(json.dumps({"device": devices, **groups, "uses": uses}, indent=2))
    else:
        print(_text(devices, required, optional, uses))
    problems = [finding for finding in required if finding.problem]
    for finding in problems:
        print(f"cptron doctor: {finding.name} {finding.problem}", file=sys.stderr)
    return EXIT_CODE if problems else 0


def required_findings() -> list[Finding]:
    """Python, the packages cptron cannot work without, and its compiled kernels."""
    findings = [_bounded("python", platform.python_version())]
    findings += [_bounded(name, _version(name)) for name in BOUNDS if name != "python"]
    return [*findings, _kernels()]


def optional_findings() -> list[Finding]:
    """What makes cptron faster or logs elsewhere; found without importing it."""
    findings = []
    for name, (module, purpose) in ACCELERATORS.items():
        found = (_version(name) or "yes") if _has_module(module) else "no"
        problem = ""
        if name == "apex" and found == "no" and _has_module("apex"):
            problem = "the installed `apex` is not NVIDIA's (the PyPI package of that name is unrelated); uninstall it"
        findings.append(Finding(name, found, purpose, problem))
    return findings


def device_facts() -> dict[str, Any]:
    """The accelerator or the CPU that `runtime.device: auto` takes, and the machine's memory."""
    facts: dict[str, Any] = {"cpu": _cpu_model(), "cores": _num_cores(), "memory_gib": _memory_gib()}
    gpus: list[dict[str, Any]] = []
    if find_spec("torch") is not None and not _torch_damage():
        import torch

        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            memory_gib = round(properties.total_memory / 2**30, 1)
            fp8 = (properties.major, properties.minor) >= FP8_CAPABILITY
            gpus.append({"name": properties.name, "memory_gib": memory_gib, "fp8": fp8})
    return {**facts, "gpus": gpus}


def uses_of(devices: dict[str, Any], optional: dict[str, Finding]) -> dict[str, str]:
    """What does what on this machine with default settings."""
    has = {name: finding.found != "no" for name, finding in optional.items()}
    on_gpu = bool(devices["gpus"])
    fused = "Transformer Engine's" if has["transformer_engine"] else "Apex's" if has["apex"] else ""
    trackers = [f"{name} (installed, off)" for name in ("tensorboard", "wandb") if has[name]]
    return {
        "device and backend": "CUDA with NCCL"
        if on_gpu
        else "CPU with gloo (megatron-core through the host adaptor)",
        "layers": "torch (model.backend=native)" + _or_te(has, "layers"),
        "attention": _attention(on_gpu) + _or_te(has, "attention"),
        "pointwise work": "kernels made by torch.compile" if on_gpu else "torch",
        "weight gradients": "Apex, straight into the fp32 buffer"
        if on_gpu and _has_module("fused_weight_gradient_mlp_cuda")
        else "torch",
        "FP8 products": _fp8(devices["gpus"]),
        "optimizer": f"megatron-core distributed optimizer with {fused or 'cptron'} AdamW",
        "checkpoints": "megatron-core torch_dist shards and a manifest of every file",
        "logging": ", ".join(["metrics.jsonl, console, report.html", *trackers]),
    }


def _attention(on_gpu: bool) -> str:
    if not on_gpu:
        return "torch scaled_dot_product_attention, one call a document"
    return "torch scaled_dot_product_attention (cuDNN, else flash); varlen flash attention over documents"


def _fp8(gpus: list[dict[str, Any]]) -> str:
    if gpus and all(gpu["fp8"] for gpu in gpus):
        return "torch scaled matrix products"
    return "none in this hardware; fp8.without_hardware=emulate computes the same numbers slowly"


def _or_te(has: dict[str, bool], part: str) -> str:
    return f"; Transformer Engine {part} with model.backend=te" if has["transformer_engine"] else ""


def _bounded(name: str, found: str) -> Finding:
    low, high = BOUNDS[name]
    wanted = f">={low}" + (f",<{high}" if high else "")
    if not found:
        return Finding(name, "missing", wanted, f"is not installed; run `pip install '{name}{wanted}'`")
    if _release(found) < _release(low) or (high and _release(found) >= _release(high)):
        remedy = f"install Python {wanted}" if name == "python" else f"run `pip install '{name}{wanted}'`"
        return Finding(name, found, wanted, f"{found} is outside {wanted}; {remedy}")
    if name == "torch" and (damage := _torch_damage()):
        return Finding(name, "broken", wanted, f"{found} fails to load ({damage}); install it again")
    return Finding(name, found, wanted)


def _release(text: str) -> tuple[int, ...]:
    """Numbers of a version's release part, without trailing zeros: `2.13.0+cpu` is (2, 13)."""
    numbers = []
    for part in text.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _kernels() -> Finding:
    """The project's own C++ extension, loaded: one built for another Python is as good as none."""
    try:
        import_module("cptron._kernels")
    except ImportError as error:
        found = "missing" if find_spec("cptron._kernels") is None else "broken"
        reason = "is not built" if found == "missing" else f"does not load: {' '.join(str(error).split())}"
        problem = f"{reason}; run `pip install -e .` in the source tree, which needs a C++17 compiler"
        return Finding("cptron._kernels", found, "built", problem)
    return Finding("cptron._kernels", "built", "built")


def _torch_damage() -> str:
    """Why torch cannot be imported, as where a library of the machine is missing; empty if it can."""
    try:
        import_module("torch")
    except Exception as error:  # a library that is not found is an OSError, others raise what they like
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _has_module(module: str) -> bool:
    """Whether `package` or `package.part` is installed; looks at files and runs none of them."""
    package, _, part = module.partition(".")
    spec = find_spec(package)
    if spec is None or not part:
        return spec is not None
    return any((Path(place) / part).is_dir() for place in spec.submodule_search_locations or [])


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        models = []
    return models[0] if models else platform.processor() or platform.machine()


def _num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _text(
    devices: dict[str, Any], required: list[Finding], optional: list[Finding], uses: dict[str, str]
) -> str:
    names = [gpu["name"] for gpu in devices["gpus"]]
    gpus = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"
    machine = [
        ["GPU", gpus],
        ["CPU", f"{devices['cpu']}, {devices['cores']} cores"],
        ["memory", f"{devices['memory_gib']} GiB"],
    ]
    needed = [[f.name, f.found, f.wanted, "NOT OK" if f.problem else "ok"] for f in required]
    extras = [[f.name, f.found, f.problem or f.wanted] for f in optional]
    return "\n\n".join(
        [
            table(["machine", ""], machine),
            table(["required", "found", "wanted", ""], needed),
            table(["optional", "found", "for"], extras),
            table(["used for", "what"], [[key, value] for key, value in uses.items()]),
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
