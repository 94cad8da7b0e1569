"""Import and what it goes on from: the same model to the bit, or an error; nothing of another model, or of others."""

from __future__ import annotations

import json
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from weights_world import llama, save

from cptron.checkpoint import layout
from cptron.checkpoint.block_file import BlockFile
from cptron.checkpoint.reader import ShardReader
from cptron.convert import hf_import, shard_stream
from cptron.convert.hf_export import export_hugging_face
from cptron.convert.hf_import import import_hugging_face, plan_import
from cptron.convert.megatron import export_megatron
from cptron.convert.safetensors_io import ModelReader
from cptron.convert.verify import compare_bits
from cptron.durable import working_directory
from cptron.errors import CheckpointError, ConversionError, CptronError

OUTPUT, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama. Nobody changes it."""
    return save(tmp_path_factory.mktemp("models") / "hf", llama(1))


@pytest.fixture(scope="module")
def converted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint. Nobody changes it."""
    target = tmp_path_factory.mktemp("checkpoints") / "checkpoint"
    import_hugging_face(model, target)
    return target


def interrupted(source: Path, target: Path, files: int) -> None:
    """A conversion that stops after `files` files."""
    write = shard_stream.ShardStream._file

    def stop(stream: Any, number: int, *rest: Any) -> Any:
        if number >= files:
            raise OSError(28, "No space left on device")
        return write(stream, number, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_stream.ShardStream, "_file", stop)
        with pytest.raises(CheckpointError, match="give the same command to go on"):
            import_hugging_face(source, target)
    assert len(list((working_directory(target) / hf_import.PROGRESS).glob("*.json"))) == files


def holds(checkpoint: Path, source: Path, tmp_path: Path) -> bool:
    """Whether an export of the checkpoint has the bits of the source."""
    export_hugging_face(checkpoint, tmp_path / "export")
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "export", source))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_goes_on_with_another_number_of_workers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are cut for the workers: a record of another cut is not of this file."""
    monkeypatch.setattr(shard_stream, "num_workers", lambda: 2)
    interrupted(model, tmp_path / "out", 1)
    monkeypatch.setattr(shard_stream, "num_workers", lambda: 4)
    import_hugging_face(model, tmp_path / "out")
    assert holds(tmp_path / "out", model, tmp_path)


def test_it_does_not_go_on_from_a_changed_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a tensor, as where a damaged download is replaced."""
    monkeypatch.setattr(shard_stream, "FILE_BYTES", 1500)
    tensors = llama(1) | {name: torch.randn(2000, 16) for name in (EMBEDDING, OUTPUT)}
    source = save(tmp_path / "hf", tensors, vocab_size=2000)
    interrupted(source, tmp_path / "out", 1)
    tensors[EMBEDDING][1000] += 1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    import_hugging_face(source, tmp_path / "out")
    assert holds(tmp_path / "out", source, tmp_path)


def test_nothing_of_another_model_is_published(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was begun under the same name, in more files."""
    other = save(tmp_path / "hf", llama(2))
    monkeypatch.setattr(shard_stream, "FILE_BYTES", 600)
    interrupted(other, tmp_path / "out", 6)
    monkeypatch.setattr(shard_stream, "FILE_BYTES", 10**9)
    import_hugging_face(model, tmp_path / "out")
    reader = ShardReader(tmp_path / "out" / "shards")
    used = {chunk.file for chunks in reader._blocks.values() for chunk in chunks}
    assert {path.name for path in (tmp_path / "out" / "shards").glob("*.distcp")} == used


def test_an_error_of_the_probe_ends_the_writing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also Ctrl-C: nobody waits for the end of a model that is not going to be published."""
    begun, ended = threading.Event(), threading.Event()
    write, written = BlockFile.write, []

    class Stop(threading.Event):
        """What tells the writer: it is held up until then."""

        def set(self) -> None:
            super().set()
            ended.set()

    def slow(file: BlockFile, key: str, *rest: Any) -> None:
        begun.set()
        ended.wait(60)
        ended.set()  # nobody waits a second time
        written.append(key)
        write(file, key, *rest)

    def stopped(*_: Any) -> None:
        begun.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(BlockFile, "write", slow)
    monkeypatch.setattr(hf_import, "make_probe", stopped)
    monkeypatch.setattr(hf_import, "threading", SimpleNamespace(Event=Stop))
    with pytest.raises(KeyboardInterrupt):
        import_hugging_face(model, tmp_path / "out")
    assert written and not list((working_directory(tmp_path / "out") / hf_import.PROGRESS).glob("*.json"))
    assert not (tmp_path / "out").exists()


def test_what_others_made_meanwhile_is_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversion takes long enough for its output's name to be taken."""
    make = hf_import.make_probe

    def slow(*words: Any) -> Any:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "precious").touch()
        return make(*words)

    monkeypatch.setattr(hf_import, "make_probe", slow)
    with pytest.raises(ConversionError, match="already exists"):
        import_hugging_face(model, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_a_trial_refuses_what_the_conversion_would(model: Path, tmp_path: Path) -> None:
    """`--dry-run` into a directory that exists."""
    assert plan_import(model, tmp_path / "new")["family"] == "llama"
    with pytest.raises(ConversionError, match="already exists"):
        plan_import(model, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tied_copy_must_be_one(dtype: torch.dtype, tmp_path: Path) -> None:
    """`transformers` unties a model whose stored output matrix is another; it is never dropped unseen."""
    tensors = llama(1, dtype)
    copied = save(
        tmp_path / "copied", tensors | {OUTPUT: tensors[EMBEDDING].clone()}, tie_word_embeddings=True
    )
    import_hugging_face(copied, tmp_path / "checkpoint")
    tensors[OUTPUT] = tensors[EMBEDDING].clone()
    tensors[OUTPUT][39, 15] += 1
    other = save(tmp_path / "other", tensors, tie_word_embeddings=True)
    with pytest.raises(ConversionError, match=r"tie_word_embeddings=true and a lm_head\.weight that is not"):
        import_hugging_face(other, tmp_path / "out")
    with pytest.raises(ConversionError, match=r"tie_word_embeddings=true and a lm_head\.weight that is not"):
        compare_bits(tmp_path / "checkpoint", ModelReader(other))


def test_tables_do_not_decide_the_precision(tmp_path: Path) -> None:
    """Rotary tables that old Llamas store in fp32: they are not converted."""
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    source = save(tmp_path / "hf", llama(1, torch.bfloat16) | table)
    assert import_hugging_face(source, tmp_path / "out").precision == "bf16"


@contextmanager
def small_disk(limit: int) -> Iterator[None]:
    """Lets no file grow beyond a size, as a full disk does; only for so long: pytest writes files too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [300, 2000, 5000])
@pytest.mark.parametrize("what", ["import", "export", "megatron"])
def test_a_full_disk_is_one_clear_line(
    what: str, limit: int, model: Path, converted: Path, tmp_path: Path
) -> None:
    """Wherever in a file it comes; nothing is published."""
    convert: dict[str, Callable[[Path], Any]] = {
        "import": lambda target: import_hugging_face(model, target),
        "export": lambda target: export_hugging_face(converted, target),
        "megatron": lambda target: export_megatron(converted, target),
    }
    with small_disk(limit), pytest.raises(CptronError, match=r"cannot be written .*make room"):
        convert[what](tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_export_compares_the_vocabulary(converted: Path, tmp_path: Path) -> None:
    """Also Megatron-LM's form, which is written by rows."""
    shutil.copytree(converted, tmp_path / "damaged")
    reader = ShardReader(converted / "shards")
    needle = reader.read("embedding.word_embeddings.weight")[3].numpy().tobytes()
    for path in (tmp_path / "damaged" / "shards").glob("*.distcp"):
        content = bytearray(path.read_bytes())
        if needle in content:
            content[content.index(needle) + 1] ^= 1
            path.write_bytes(content)
    assert layout.read_manifest(tmp_path / "damaged")
    for export in (export_hugging_face, export_megatron):
        with pytest.raises(CheckpointError, match=r"other weights in embedding\.word_embeddings\.weight"):
            export(tmp_path / "damaged", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_a_larger_model_is_refused(tmp_path: Path) -> None:
    """There is no row for its ids, and the row behind the last is another tensor's."""
    source = save(tmp_path / "hf", llama(1), tokenizer=True)
    with pytest.raises(ConversionError, match=r"gives id \d+, but the model has 40 embeddings"):
        import_hugging_face(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_loss_is_refused(tmp_path: Path) -> None:
    """The gate would refuse it before every run; what is wrong is said where it comes in."""
    tensors = llama(1)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan
    with pytest.raises(ConversionError, match=r"a loss of nan on the probe; .* `cptron health` names"):
        import_hugging_face(save(tmp_path / "hf", tensors), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_zeros_of_either_sign_are_other_bits(tmp_path: Path) -> None:
    """Equal by value, but not to the bit."""
    tensors = llama(1)
    tensors["model.norm.weight"][3] = 0.0
    source = save(tmp_path / "hf", tensors)
    import_hugging_face(source, tmp_path / "out")
    assert compare_bits(tmp_path / "out", ModelReader(source))[0] == len(tensors)
    tensors["model.norm.weight"][3] = -0.0
    other = save(tmp_path / "other", tensors)
    with pytest.raises(ConversionError, match=r"differ in 1 tensor\(s\), first model\.norm\.weight"):
        compare_bits(tmp_path / "out", ModelReader(other))


def test_an_index_is_not_carried(tmp_path: Path) -> None:
    """It is of the files that it came with, and an export has others."""
    source = save(tmp_path / "hf", llama(1))
    names = {"lm_head.weight": "model.safetensors"}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    import_hugging_face(source, tmp_path / "checkpoint")
    assert holds(tmp_path / "checkpoint", source, tmp_path)
    assert {path.name for path in (tmp_path / "export").iterdir()} == {"config.json", "model.safetensors"}
