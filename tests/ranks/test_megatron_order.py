"""`data.order: megatron` against megatron-core's own datasets and its sampler's arithmetic, written out here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rank_calls
from tiny_world import World
from tokens_world import write_by_megatron, write_known

from cptron.config.load import load_config
from cptron.data.content import open_content
from cptron.data.ledger import Ledger
from cptron.data.loader import Cut, TrainLoader
from cptron.data.valid import ValidSet
from cptron.errors import ConfigError, DataError
from cptron.forgetting.sets import evaluated_sets
from cptron.testing import run_ranks
from cptron.tokens.indexed_writer import IndexedWriter

if TYPE_CHECKING:
    from cptron.train.megatron_order import MegatronStream

SEQ, SAMPLES = 16, 120


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    """This process as the only rank: megatron-core asks for its number before it writes an index file."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two corpora with unlike documents, one of them repeated several times by the run."""
    directory = tmp_path_factory.mktemp("tokens")
    rng = np.random.default_rng(5)
    made = []
    for name, count, first in (("a", 60, 0), ("b", 9, 10_000)):
        lengths = rng.integers(1, 50, count).tolist()
        with IndexedWriter(directory / name, np.int32) as writer:
            for length in lengths:
                writer.add(np.arange(first, first + length))
                first += length
            writer.finish()
        made.append(str(directory / name))
    return made


def config_of(tmp_path: Path, prefixes: list[str], *overrides: str) -> Any:
    """A configuration in Megatron's order over these files."""
    sources = "\n".join(
        f"    - {{name: s{i}, path: {prefix}, token_share: {share}}}"
        for i, (prefix, share) in enumerate(zip(prefixes, (0.7, 0.3), strict=False))
    )
    path = tmp_path / "run.yaml"
    path.write_text(
        f"run: {{dir: {tmp_path}/run, seed: 99}}\nstart: {{checkpoint: {tmp_path}/base}}\n"
        f"data:\n  seq_length: {SEQ}\n  order: megatron\n  megatron_samples: {SAMPLES}\n  megatron_split: '90,10,0'\n"
        f"  sources:\n{sources}\ntrain: {{steps: 5, global_batch_size: 8}}\noptim: {{lr: 1.0e-3}}\n"
    )
    return load_config(path, list(overrides)).config


def stream_of(config: Any, ledger: Ledger | None = None, vocab_size: int = 0) -> MegatronStream:
    """As a run opens it."""
    from cptron.train.megatron_order import MegatronStream, open_files

    return MegatronStream(config, ledger or Ledger(), open_files(config), vocab_size)


def rows_of(stream: MegatronStream, num_samples: int) -> list[list[int]]:
    """Inputs of the next samples."""
    ledger = Ledger()
    loader = TrainLoader(stream, ledger, Cut(num_samples, num_samples))
    (batch,) = loader.next_step()
    loader.close()
    rows: list[list[int]] = batch.tokens_BS.tolist()
    return rows


def megatron_dataset(prefixes: list[str]) -> Any:
    """What Megatron-LM builds, by the low-level classes and not by its builder."""
    import cptron.runtime.megatron_ready  # noqa: F401

    from megatron.core.datasets.blended_dataset import BlendedDataset
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    class NoTokenizer:
        vocab_size, eod = None, -1
        unique_identifiers: dict[str, str] = {}  # noqa: RUF012

    weights = [0.7, 0.3][: len(prefixes)]
    config = GPTDatasetConfig(
        random_seed=99,
        sequence_length=SEQ,
        blend=(prefixes, weights),
        split="90,10,0",
        tokenizer=NoTokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    parts = []
    for prefix, weight in zip(prefixes, weights, strict=True):
        indexed = IndexedDataset(prefix, multimodal=False, mmap=True)
        count = len(indexed.sequence_lengths)
        documents = np.arange(round(count * 0.9), dtype=np.int32)
        target = int(np.ceil(SAMPLES * weight)) if len(prefixes) > 1 else SAMPLES
        surplus = int(np.ceil(np.ceil(SAMPLES * weight) * 1.005)) if len(prefixes) > 1 else target
        parts.append(GPTDataset(indexed, prefix, documents, surplus, Split.train, config))
    if len(prefixes) == 1:
        return parts[0]
    return BlendedDataset(parts, weights, sum(int(np.ceil(SAMPLES * w)) for w in weights), config)


@pytest.mark.parametrize("num_sources", [1, 2])
@pytest.mark.parametrize("consumed", [0, 40])
def test_batches_are_megatrons(tmp_path: Path, prefixes: list[str], num_sources: int, consumed: int) -> None:
    """Sample for sample, as `MegatronPretrainingSampler` deals them to two data parallel ranks, and resumed."""
    used = prefixes[:num_sources]
    config = config_of(tmp_path, used, f"data.megatron_consumed_samples={consumed}")
    dataset = megatron_dataset(used)
    ledgers = [Ledger(), Ledger()]
    for step in range(5):
        for rank in (0, 1):
            ledgers[rank] = Ledger.from_dict(json.loads(json.dumps(ledgers[rank].to_dict())))
            loader = TrainLoader(stream_of(config, ledgers[rank]), ledgers[rank], Cut(8, 2, rank, 2))
            for number, batch in enumerate(loader.next_step()):
                first = consumed + step * 8 + number * 4 + rank * 2
                expected = [dataset[first], dataset[first + 1]]
                assert (batch.tokens_BS == np.stack([e["tokens"].numpy() for e in expected])).all()
                assert (batch.labels_BS == np.stack([e["labels"].numpy() for e in expected])).all()
                if num_sources > 1:
                    assert batch.source_B.tolist() == [int(e["dataset_id"]) for e in expected]
            loader.close()
    assert ledgers[0] == ledgers[1]
    entries = list(ledgers[0].entries.values())
    assert sum(entry.cursor for entry in entries) == consumed + 40
    assert [entry.tokens for entry in entries] == [entry.cursor * SEQ for entry in entries]


def test_documents_are_counted(tmp_path: Path, prefixes: list[str]) -> None:
    """Against the beginnings of documents among the inputs of the samples drawn."""
    stream = stream_of(config_of(tmp_path, prefixes))
    drawn = stream.draw(96)
    starts: set[int] = set()
    rng = np.random.default_rng(5)
    for count, first in ((60, 0), (9, 10_000)):
        starts |= set((first + np.concatenate([[0], np.cumsum(rng.integers(1, 50, count))[:-1]])).tolist())
    seen = 0
    dataset = megatron_dataset(prefixes)
    for number in range(len(drawn)):
        seen += sum(int(token) in starts for token in dataset[number]["tokens"].tolist())
    assert sum(entry.documents for entry in stream.ledger.entries.values()) == seen


def starts_of_documents() -> list[int]:
    """First token of every document of `prefixes`, whose tokens are all different."""
    rng = np.random.default_rng(5)
    return [
        int(start)
        for count, first in ((60, 0), (9, 10_000))
        for start in first + np.concatenate([[0], np.cumsum(rng.integers(1, 50, count))[:-1]])
    ]


@pytest.mark.parametrize("eod_mask_loss", ["false", "true"])
@pytest.mark.parametrize("num_sources", [1, 2])
def test_documents_are_numbered(
    tmp_path: Path, prefixes: list[str], num_sources: int, eod_mask_loss: str
) -> None:
    """By the first tokens of documents among the inputs; a label that is one does not count if asked for."""
    config = config_of(tmp_path, prefixes[:num_sources], f"data.eod_mask_loss={eod_mask_loss}")
    loader = TrainLoader(stream_of(config), Ledger(), Cut(SAMPLES, SAMPLES))
    (batch,) = loader.next_step()
    loader.close()
    starts = starts_of_documents()
    begins = np.isin(batch.tokens_BS, starts)
    begins[:, 0] = False
    assert batch.documents_BS.dtype == np.int32
    assert (batch.documents_BS == np.cumsum(begins, axis=1)).all()
    masked = np.isin(batch.labels_BS, starts) & (eod_mask_loss == "true")
    assert (batch.loss_mask_BS == np.where(masked, 0, 1)).all()
    if eod_mask_loss == "true":
        assert masked[:, -1].any() and (masked.sum() > masked[:, -1].sum())


def test_documents_without_tokens_have_no_number(tmp_path: Path) -> None:
    """Between others, one after the other, and where a sample ends."""
    lengths = [0, 3, 0, 0, 1, 20, 0, SEQ, 1, 1, 0, 13, 40, 0]
    starts = np.cumsum([0, *lengths[:-1]])
    documents = [[list(range(start, start + n))] for start, n in zip(starts.tolist(), lengths, strict=True)]
    write_by_megatron(tmp_path / "tokens", documents)
    words = ["data.megatron_split='100,0,0'", "data.eod_mask_loss=true"]
    loader = TrainLoader(
        stream_of(config_of(tmp_path, [str(tmp_path / "tokens")], *words)), Ledger(), Cut(96, 96)
    )
    (batch,) = loader.next_step()
    loader.close()
    begins = np.isin(batch.tokens_BS, starts)
    begins[:, 0] = False
    assert (batch.documents_BS == np.cumsum(begins, axis=1)).all()
    assert (batch.loss_mask_BS == ~np.isin(batch.labels_BS, starts)).all()


@pytest.mark.parametrize("eod_mask_loss", [False, True])
def test_a_run_opens_its_validation_sets_in_the_same_way(
    world: World, tmp_path: Path, eod_mask_loss: bool
) -> None:
    """The ends of documents count in training and validation, or in neither."""
    words = [f"run.dir={tmp_path / 'run'}", f"data.eod_mask_loss={eod_mask_loss}"]
    config = load_config(world.config, words).config
    for item, valid_set in zip(config.data.valid, evaluated_sets(config, vocab_size=0), strict=True):
        assert isinstance(valid_set, ValidSet)
        places = sum(int(batch.labels_BS.size) for batch in valid_set)
        tokens = open_content(item.path).tokens
        begun = int(
            np.searchsorted(np.cumsum(tokens.lengths_tokens[:-1]), valid_set._num_places, side="right")
        )
        assert begun and places >= valid_set._num_places
        assert valid_set.num_predicted_tokens == valid_set._num_places - begun * eod_mask_loss


@pytest.mark.parametrize("change", ["data.megatron_samples=200", "data.sources.s1.token_share=0.5"])
def test_another_number_of_samples_or_mix_is_another_order(
    tmp_path: Path, prefixes: list[str], change: str
) -> None:
    """Megatron would repeat some samples and lose others; here it is refused."""
    stream = stream_of(config_of(tmp_path, prefixes))
    stream.draw(8)
    with pytest.raises(DataError, match="source s0 has changed"):
        stream_of(config_of(tmp_path, prefixes, change), stream.ledger)
    assert stream.draw(SAMPLES) == []
    assert "leaves no further" in stream.notes[-1]


@pytest.mark.parametrize("words", [(), ("data.cache_dir={}/cache",)])
def test_files_made_again_have_index_files_of_their_own(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Other content under the same path is seen whole, in the order that it has under a path of its own."""
    prefix, twin = tmp_path / "tokens", tmp_path / "twin"
    options = ["data.megatron_split='100,0,0'", *(word.format(tmp_path) for word in words)]
    write_known(prefix, [list(range(i * 40, i * 40 + 40)) for i in range(2)])
    first = rows_of(stream_of(config_of(tmp_path, [str(prefix)], *options)), 96)
    assert max(map(max, first)) < 80
    documents = [list(range(i * 40, i * 40 + 40)) for i in range(40)]
    write_known(prefix, documents)
    write_known(twin, documents)
    again, other = (rows_of(stream_of(config_of(tmp_path, [str(p)], *options)), 96) for p in (prefix, twin))
    assert again == other
    assert len({token for row in again for token in row}) > 1500


@pytest.mark.parametrize("cache", ["", "cache"])
def test_index_files_are_where_they_are_asked_for(tmp_path: Path, prefixes: list[str], cache: str) -> None:
    """Those of the sources and of the blend; beside the first source when nothing is said."""
    own = tmp_path / "tokens"
    shutil.copytree(Path(prefixes[0]).parent, own, ignore=shutil.ignore_patterns(".*", "a", "b"))
    words = [f"data.cache_dir={tmp_path / cache}"] if cache else []
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    stream_of(config_of(tmp_path, [str(own / "a"), str(own / "b")], *words))
    made = {path for path in tmp_path.rglob("*.npy") if path not in before}
    assert len(made) == 2 * (2 * 3 + 2)  # of the training and the validation part of `megatron_split`
    expected = tmp_path / cache if cache else own / ".megatron_index"
    assert {path.parent.parent for path in made} == {expected}


def test_each_source_is_opened_once(
    tmp_path: Path, prefixes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files without a manifest are scanned when they are opened."""
    from cptron.train import megatron_order

    opened: list[str] = []
    inner = megatron_order.open_content
    monkeypatch.setattr(megatron_order, "open_content", lambda prefix: opened.append(prefix) or inner(prefix))
    stream_of(config_of(tmp_path, prefixes))
    assert opened == prefixes


def test_a_loss_mask_is_refused(tmp_path: Path) -> None:
    """megatron-core reads no mask: the user's words of a chat would be learned."""
    write_known(tmp_path / "chat", [list(range(20))] * 10, [0, 1] * 100)
    with pytest.raises(ConfigError, match=r"source s0 .*chat.* has a loss mask.* use data\.order=cptron"):
        stream_of(config_of(tmp_path, [str(tmp_path / "chat")]))


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    """With the name of the source; also where the last label alone has such an id."""
    prefix = tmp_path / "tokens"
    write_known(prefix, [list(range(SEQ + 1))])
    config = config_of(tmp_path, [str(prefix)], "data.megatron_split='100,0,0'", "data.megatron_samples=1")
    assert stream_of(config, vocab_size=SEQ + 1).draw(1)
    assert max(rows_of(stream_of(config, vocab_size=SEQ + 1), 1)[0]) == SEQ - 1
    with pytest.raises(
        DataError, match=rf"source s0 .*tokens.* token id {SEQ} is outside the vocabulary of {SEQ}"
    ):
        rows_of(stream_of(config, vocab_size=SEQ), 1)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_index_directory_that_one_rank_cannot_write(world: World, tmp_path: Path, failing: int) -> None:
    """All ranks say so, and none waits in megatron-core's barrier for the one that has failed."""
    (tmp_path / "file").write_text("")
    common = [f"run.dir={tmp_path / 'run'}", "data.order=megatron", "data.megatron_samples=160"]
    words = [[*common, f"data.cache_dir={tmp_path / 'cache'}"] for _ in range(2)]
    words[failing][-1] = f"data.cache_dir={tmp_path / 'file' / 'below'}"
    outcomes = run_ranks(rank_calls.train_each, 2, str(world.config), words)
    assert outcomes[0].error == outcomes[1].error
    assert outcomes[0].error.startswith(f"DataError: {tmp_path / 'file' / 'below'}")
    assert "set data.cache_dir" in outcomes[0].error


def test_ranks_with_different_files(world: World, tmp_path: Path) -> None:
    """Found before the index is built: rank 1 would look for index files of its own content."""
    other = tmp_path / "other"
    for kind in ("bin", "idx"):
        shutil.copy(f"{world.tokens('general')}.{kind}", f"{other}.{kind}")
    common = [f"run.dir={tmp_path / 'run'}", "data.order=megatron", "data.megatron_samples=160"]
    words = [common, [*common, f"data.sources.domain.path={other}"]]
    outcomes = run_ranks(rank_calls.train_each, 2, str(world.config), words)
    assert outcomes[0].error == outcomes[1].error
    assert outcomes[0].error.startswith("DataError: source domain has content ")


@pytest.mark.parametrize("order", ["cptron", "megatron"])
def test_the_vocabulary_of_the_model_is_asked_for(world: World, tmp_path: Path, order: str) -> None:
    """`cptron train` on foreign files: sources of either order, and validation sets."""
    write_known(tmp_path / "foreign", [[60_000] * 2000])
    (tmp_path / "foreign.manifest.json").unlink()
    common = [f"run.dir={tmp_path / 'run'}", f"data.order={order}", "data.megatron_samples=160"]
    for kind in ("sources", "valid"):
        words = [*common, f"data.{kind}.domain.path={tmp_path / 'foreign'}", "eval.at_start=false"]
        (outcome,) = run_ranks(rank_calls.train, 1, str(world.config), words)
        where = "source domain" if kind == "sources" else "validation set domain"
        assert outcome.error.startswith(f"DataError: {where} ({tmp_path / 'foreign'})")
        assert "token id 60000 is outside the vocabulary of" in outcome.error
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
