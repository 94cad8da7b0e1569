"""The weights that all peers of a case begin with: a model's directory of `transformers`, and its checkpoint.

Place in the flow: made by the runner before the first measurement, kept under the work directory. Invariant: a
directory that exists is complete, and belongs to the architecture that its name is made of.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from cptron.model.architecture import Architecture

SEED = 1234


def start_weights(arch: Architecture, work_dir: Path) -> tuple[Path, Path]:
    """(Directory in `transformers`' form, checkpoint of the engine) of one random model."""
    import torch
    from transformers import LlamaForCausalLM

    from benchmarks.engine.peer_transformers import hugging_face_config
    from cptron.convert.hf_import import import_hugging_face

    digest = hashlib.sha256(json.dumps(arch.to_dict(), sort_keys=True).encode()).hexdigest()[:12]
    home = work_dir / digest
    model_dir, checkpoint = home / "transformers", home / "cptron"
    if not (model_dir / "config.json").is_file():
        print("  making the weights to begin with", file=sys.stderr, flush=True)
        torch.manual_seed(SEED)
        partial = home / "transformers.partial"
        LlamaForCausalLM(hugging_face_config(arch)).float().save_pretrained(partial)
        partial.rename(model_dir)
    if not checkpoint.exists():
        import_hugging_face(model_dir, checkpoint)
    return model_dir, checkpoint


def main() -> int:
    """Command line: an architecture as JSON, and the work directory; prints the two directories."""
    model_dir, checkpoint = start_weights(Architecture.from_dict(json.loads(sys.argv[1])), Path(sys.argv[2]))
    print(f"{model_dir}\n{checkpoint}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
