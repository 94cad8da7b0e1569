"""Targets: checkpoints, ours and Megatron's: manifest, state, index of blocks, shards, torch's index, marks."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from fuzz_bytes import mutate_bytes
from fuzz_json import change, dump, mutate_json, parse
from fuzz_planted import archives, calls, growing, mutate_archive, mutate_pickle
from fuzz_target import Seed, Target
from shard_files import sign
from small_arch import SMALL
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from cptron.checkpoint import layout
from cptron.checkpoint.block_file import BlockFile
from cptron.checkpoint.blocks import TensorRecord, write_index
from cptron.checkpoint.marks import read_marks
from cptron.checkpoint.reader import ShardReader
from cptron.checkpoint.torch_dist import TorchDistReader
from cptron.checkpoint.verify import Proven, damage
from cptron.convert.megatron import find_shards
from cptron.durable import begin_directory
from cptron.errors import CheckpointError
from cptron.inspect import text_lines
from cptron.inspect_run import describe_checkpoint
from cptron.model.architecture import RopeScaling
from cptron.train.state import TrainState, random_state, read_state, set_random_state

ARCH = replace(
    SMALL,
    rope_scaling=RopeScaling(
        factor=2.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8
    ),
)
VALUES = {
    "w": torch.arange(24.0).view(4, 6),
    "b": torch.arange(6, dtype=torch.bfloat16),
    "s": torch.tensor([1.5]),
}
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
LEDGER = {
    "entries": {
        "one": {
            "identity": "ab" * 32,
            "share": 0.5,
            "cursor": 8,
            "since_mix": 8,
            "tokens": 256,
            "documents": 3,
            "epochs": 0.25,
        }
    }
}


def write_shards(directory: Path) -> None:
    """By the product's writer: a tensor in two blocks, the others in one."""
    with BlockFile(directory, "__0_0.distcp") as file:
        for key, first, tensor in (
            ("w", (0, 0), VALUES["w"][:2]),
            ("w", (2, 0), VALUES["w"][2:]),
            ("b", (0,), VALUES["b"]),
            ("s", (0,), VALUES["s"]),
        ):
            data = tensor.contiguous().view(torch.uint8).numpy().reshape(-1).data
            file.write(key, first, tuple(tensor.shape), NAMES[tensor.dtype], data)
    tensors = {key: TensorRecord(tuple(value.shape), NAMES[value.dtype]) for key, value in VALUES.items()}
    write_index(directory, tensors, file.blocks, {"step": 3})


def make_checkpoint(root: Path) -> Path:
    """A checkpoint of a run."""
    final = layout.step_directory(root / "checkpoints", 3)
    working = begin_directory(final)
    (working / layout.SHARDS).mkdir()
    write_shards(working / layout.SHARDS)
    (working / layout.HUGGING_FACE).mkdir()
    (working / layout.HUGGING_FACE / "config.json").write_text("{}")
    state = TrainState(step=3, tokens_total=300).to_dict() | {
        "ledger": LEDGER,
        "random_states": [random_state()],
    }
    layout.write_json(working / layout.STATE, state)
    manifest = layout.Manifest(
        kind="training",
        step=3,
        tokens_total=300,
        architecture=ARCH.to_dict(),
        hugging_face_model="tiny",
        tokenizer_fingerprint="f" * 64,
        weights_fingerprint="e" * 64,
        probe=layout.Probe(token_ids=[1, 2], loss_nats_per_token=2.5),
        config={"run": {"dir": "x"}},
        ledger=LEDGER,
        metrics={"valid/one/loss_nats_per_token": 2.0},
        versions={"torch": "1"},
    )
    layout.publish(final, manifest)
    return final


def _seed(file: str) -> Any:
    return lambda root: [Seed(make_checkpoint(root), file)]


def read_checkpoint(directory: Path) -> Any:
    """What people and programs are told of it, and its small files."""
    facts = describe_checkpoint(directory)
    return json.dumps(facts), text_lines(facts), layout.read_hugging_face(directory)


def read_signed(directory: Path) -> Any:
    """The same where the manifest's hash fits, as if the product had written what is in it."""
    import hashlib

    digest = hashlib.sha256((directory / layout.MANIFEST).read_bytes()).hexdigest()
    (directory / layout.DIGEST).write_text(f"{digest}  {layout.MANIFEST}\n")
    return read_checkpoint(directory)


def proven(directory: Path) -> str:
    """Every file as it was written."""
    found = damage(directory)
    if found:
        raise CheckpointError(found[0])
    return "whole"


def nothing_passes(_: Path, value: Any) -> str:
    """A damaged file of a checkpoint is never taken for whole."""
    return f"damage was not seen: {value!r:.80}"


def manifest_passes(directory: Path, value: Any) -> str | None:
    """The manifest's digest may be written in other ways that say the same."""
    again = read_signed(directory)
    return None if again == value else nothing_passes(directory, value)


def read_training_state(directory: Path) -> Any:
    """Everything a resume takes from it."""
    saved = read_state(directory / layout.STATE)
    state = TrainState.from_dict(saved)
    for encoded in saved["random_states"][:1]:
        set_random_state(encoded)
    return json.dumps(state.to_dict(), sort_keys=True)


def check_training_state(directory: Path, value: Any) -> str | None:
    """What was read is what the JSON says; what older versions lack is as at the start."""
    content = TrainState().to_dict() | json.loads((directory / layout.STATE).read_text())
    if not {"begun_step", "begun_tokens"} & content["watch"].keys():
        content["watch"] |= {"begun_step": 0, "begun_tokens": 0}
    found = json.loads(value)
    return (
        None
        if all(found[key] == content[key] for key in found if key != "ledger")
        else "other values than the JSON has"
    )


def make_shards(root: Path) -> list[Seed]:
    """Shards alone."""
    directory = root / "shards"
    directory.mkdir()
    write_shards(directory)
    return [Seed(directory, "index.json")]


def make_block_file(root: Path) -> list[Seed]:
    """The file of their blocks."""
    return [Seed(make_shards(root)[0].directory, "__0_0.distcp")]


def _all(reader: Any) -> Any:
    found = {}
    for key in sorted(reader.keys):
        found[key] = repr(reader.read(key).tolist())
        shape = reader.shape(key)
        if shape and shape[0] > 1:
            found[f"{key} last row"] = repr(
                reader.read(key, (shape[0] - 1, *[0] * (len(shape) - 1)), (1, *shape[1:])).tolist()
            )
    return found


def read_blocks(directory: Path) -> Any:
    """Every tensor, whole and in part."""
    return _all(ShardReader(directory))


def check_blocks(directory: Path, value: Any) -> str | None:
    """By the index in JSON and the bytes of the file, with torch alone."""
    index = json.loads((directory / "index.json").read_text())
    data = (directory / "__0_0.distcp").read_bytes()
    for key, (shape, dtype) in index["tensors"].items():
        whole = torch.zeros(shape, dtype=getattr(torch, dtype))
        for name, offsets, sizes, file, _, _, at in index["blocks"]:
            if name == key and file == "__0_0.distcp":
                count = torch.Size(sizes).numel()
                part = data[at : at + count * whole.itemsize]
                if count:
                    values = torch.frombuffer(bytearray(part), dtype=whole.dtype, count=count).view(sizes)
                    whole[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))] = values
        if repr(whole.tolist()) != value[key]:
            return f"other values than the index and the bytes have: {key}"
    return None


def make_foreign(root: Path) -> list[Seed]:
    """torch's own distributed checkpoint."""
    directory = root / "shards"
    dcp.save(dict(VALUES), checkpoint_id=str(directory), no_dist=True)
    return [Seed(directory, ".metadata")]


def make_foreign_file(root: Path) -> list[Seed]:
    """Its file of chunks."""
    return [Seed(make_foreign(root)[0].directory, "__0_0.distcp")]


def read_foreign(directory: Path) -> Any:
    """Every tensor, whole and in part."""
    return _all(TorchDistReader(directory))


def make_crafted(root: Path) -> list[Seed]:
    """One tensor as torch saves it; the index is made to fit whatever the file becomes."""
    torch.save(torch.arange(16.0), root / "__0_0.distcp")
    return [Seed(root, "__0_0.distcp")]


def read_crafted(directory: Path) -> Any:
    """The tensor, by an index that believes the file."""
    path = directory / "__0_0.distcp"
    place = MetadataIndex("w", torch.Size([0]))
    chunk = ChunkStorageMetadata(torch.Size([0]), torch.Size([16]))
    tensor = TensorStorageMetadata(TensorProperties(dtype=torch.float32), torch.Size([16]), [chunk])
    index = Metadata({"w": tensor}, storage_data={place: _StorageInfo(path.name, 0, path.stat().st_size)})
    (directory / ".metadata").write_bytes(pickle.dumps(index))
    return TorchDistReader(directory).read("w").tolist()


def planted_index(directory: Path) -> Mapping[str, bytes]:
    """Code in torch's index, alone and within a valid one; and pickles that grow."""
    return {**calls((directory / "shards" / ".metadata").read_bytes()), **growing()}


def planted_chunks(directory: Path) -> Mapping[str, bytes]:
    """The same in the archives of the chunks."""
    return {**calls(), **growing(), **archives(b"")}


def make_marks(root: Path) -> list[Seed]:
    """Marks, and files known to be whole, beside a checkpoint."""
    directory = make_checkpoint(root).parent
    (directory / "marks.json").write_text(json.dumps({"3": ["best", "milestone"]}))
    return [Seed(directory, "marks.json")]


def make_proven(root: Path) -> list[Seed]:
    """What was verified before."""
    final = make_checkpoint(root)
    known = Proven(root / "verified.json")
    known.add(final, ["state.json"])
    return [Seed(root, "verified.json")]


def read_proven(directory: Path) -> bool:
    """Whether a file that was not proven is taken for one."""
    return Proven(directory / "verified.json")(directory / "checkpoints" / "step_00000003" / "manifest.json")


def make_tracker(root: Path) -> list[Seed]:
    """A run of Megatron-LM."""
    (root / "iter_0000007").mkdir()
    (root / "iter_0000007" / ".metadata").write_bytes(b"x")
    (root / "latest_checkpointed_iteration.txt").write_text("7\n")
    return [Seed(root, "latest_checkpointed_iteration.txt")]


def make_signed(root: Path) -> list[Seed]:
    """A manifest of which every field may be changed."""
    final = make_checkpoint(root)
    sign(final)
    return [Seed(final, layout.MANIFEST)]


def mutate_state(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Half of the damage to the fields beside the random states, which are long."""
    if draw.random() < 0.4:
        return mutate_json(draw, content, others)
    return dump(change(draw, parse(content), ())).encode("utf-8", "surrogatepass")


_REFUSED = frozenset(calls(b".")) | frozenset(name for name in archives(b"") if name.startswith("code"))
TARGETS = [
    Target(
        format="checkpoint manifest",
        name="manifest",
        reader="cptron.checkpoint.layout.read_manifest",
        make=_seed(layout.MANIFEST),
        read=read_checkpoint,
        mutate=mutate_json,
        check=nothing_passes,
    ),
    Target(
        format="checkpoint manifest",
        name="manifest-digest",
        reader="cptron.checkpoint.layout.read_manifest",
        make=_seed(layout.DIGEST),
        read=read_checkpoint,
        mutate=mutate_bytes,
        check=manifest_passes,
        budget=0.5,
    ),
    Target(
        format="checkpoint manifest",
        name="manifest-signed",
        reader="cptron.checkpoint.layout, cptron.inspect_run.describe_checkpoint",
        make=make_signed,
        read=read_signed,
        mutate=mutate_json,
        budget=3,
    ),
    Target(
        format="checkpoint files",
        name="checkpoint-file",
        reader="cptron.checkpoint.verify.damage",
        make=_seed(f"{layout.SHARDS}/__0_0.distcp"),
        read=proven,
        mutate=mutate_bytes,
        check=nothing_passes,
    ),
    Target(
        format="checkpoint state",
        name="state",
        reader="cptron.train.state, cptron.data.ledger.Ledger",
        make=_seed(layout.STATE),
        read=read_training_state,
        mutate=mutate_state,
        check=check_training_state,
        budget=2,
    ),
    Target(
        format="index of blocks",
        name="block-index",
        reader="cptron.checkpoint.blocks.read_index, cptron.checkpoint.reader.ShardReader",
        make=make_shards,
        read=read_blocks,
        mutate=mutate_json,
        check=check_blocks,
        budget=3,
    ),
    Target(
        format="file of blocks",
        name="block-file",
        reader="cptron.checkpoint.reader.ShardReader",
        make=make_block_file,
        read=read_blocks,
        mutate=mutate_bytes,
        check=check_blocks,
    ),
    Target(
        format="torch_dist index",
        name="torch-dist-index",
        reader="cptron.checkpoint.untrusted.read_index, cptron.checkpoint.torch_dist.TorchDistReader",
        make=make_foreign,
        read=read_foreign,
        mutate=mutate_pickle,
        planted=planted_index,
        refused=_REFUSED,
        budget=3,
    ),
    Target(
        format="torch_dist chunks",
        name="torch-dist-chunks",
        reader="cptron.checkpoint.torch_dist.TorchDistReader",
        make=make_foreign_file,
        read=read_foreign,
        mutate=mutate_archive,
        planted=planted_chunks,
        refused=_REFUSED,
    ),
    Target(
        format="torch_dist chunks",
        name="torch-dist-archive",
        reader="cptron.checkpoint.torch_dist.TorchDistReader",
        make=make_crafted,
        read=read_crafted,
        mutate=mutate_archive,
        planted=planted_chunks,
        refused=_REFUSED,
    ),
    Target(
        format="marks",
        name="marks",
        reader="cptron.checkpoint.marks.read_marks",
        make=make_marks,
        read=read_marks,
        mutate=mutate_json,
        budget=0.5,
    ),
    Target(
        format="proven files",
        name="proven",
        reader="cptron.checkpoint.verify.Proven",
        make=make_proven,
        read=read_proven,
        mutate=mutate_json,
        check=lambda _, value: "an unproven file passes" if value else None,
        budget=0.5,
    ),
    Target(
        format="Megatron tracker",
        name="tracker",
        reader="cptron.convert.megatron.find_shards",
        make=make_tracker,
        read=lambda directory: find_shards(directory).name,
        mutate=mutate_bytes,
        budget=0.3,
    ),
]
