"""Write `tests/golden/megatron_preprocess.json`: hashes of what Megatron's own tool makes of real documents.

Usage: python -m benchmarks.data.make_golden      (needs `make bench-peers` and the model of `make demo`)

Place in the flow: run by hand when Megatron's format changes; `tests/e2e/test_megatron_bytes.py` compares ours
with it where Megatron is not at hand. Invariant: nothing of ours takes part in making the hashes.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.data.get_peers import Megatron
from benchmarks.data.get_tokenizers import DEFAULT_DIR
from benchmarks.data.make_corpus import ROOT, SEED_TEXTS
from benchmarks.data.measure import run_process

GOLDEN = ROOT / "tests" / "golden" / "megatron_preprocess.json"
FLAGS = ("--tokenizer-type", "HuggingFaceTokenizer", "--append-eod", "--workers", "2")
FILES = ("postgresql_docs_en.train.jsonl.gz", "wikipedia_vital_en.train.jsonl.gz")
DOCUMENTS_PER_FILE = 100
TOKENIZERS = {
    "smollm2": ROOT / ".cache" / "smollm2-135m",
    "llama3": DEFAULT_DIR / "llama3",
    "qwen3": DEFAULT_DIR / "qwen3",
}


def real_documents(path: Path) -> Path:
    """Write the first documents of both quickstart corpora as one JSONL file."""
    with path.open("wb") as out:
        for name in FILES:
            with gzip.open(SEED_TEXTS / name) as lines:
                out.writelines(itertools.islice(lines, DOCUMENTS_PER_FILE))
    return path


def run_megatron(megatron: Megatron, text: Path, tokenizer: Path, prefix: Path) -> None:
    """Megatron's own tool on a JSONL file. Raises BenchmarkError when it fails."""
    words: list[str | Path] = [
        *megatron.command("preprocess_data.py"),
        "--input",
        text,
        "--output-prefix",
        prefix,
    ]
    run_process([*words, "--tokenizer-model", tokenizer, *FLAGS], megatron.env)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    """Make and write the hashes of all tokenizers."""
    megatron = Megatron()
    missing = [str(folder) for folder in TOKENIZERS.values() if not folder.is_dir()]
    if megatron.why_not or missing:
        print(f"error: {megatron.why_not or missing}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        text = real_documents(Path(scratch) / "text.jsonl")
        made = {}
        for name, folder in TOKENIZERS.items():
            prefix = Path(scratch) / name
            run_megatron(megatron, text, folder, prefix)
            made[name] = {kind: sha256(Path(f"{prefix}_text_document.{kind}")) for kind in ("bin", "idx")}
        golden = {
            "made_by": f"tools/preprocess_data.py of Megatron-LM {megatron.version}",
            "flags": list(FLAGS),
            "input": f"first {DOCUMENTS_PER_FILE} documents of each of {', '.join(FILES)}",
            "input_sha256": sha256(text),
            "sha256": made,
        }
    GOLDEN.write_text(json.dumps(golden, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
