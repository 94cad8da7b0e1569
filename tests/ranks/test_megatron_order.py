"""`data.order: megatron` against megatron-core's own datasets and its sampler's arithmetic, written out here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cptron.config.load import load_config
from cptron.data.ledger import Ledger
from cptron.data.loader import Cut, TrainLoader
from cptron.errors import DataError
from cptron.tokens.indexed_writer import IndexedWriter

SEQ, SAMPLES = 16, 120


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
    from cptron.train.megatron_order import MegatronStream

    used = prefixes[:num_sources]
    config = config_of(tmp_path, used, f"data.megatron_consumed_samples={consumed}")
    dataset = megatron_dataset(used)
    ledgers = [Ledger(), Ledger()]
    for step in range(5):
        for rank in (0, 1):
            ledgers[rank] = Ledger.from_dict(json.loads(json.dumps(ledgers[rank].to_dict())))
            loader = TrainLoader(MegatronStream(config, ledgers[rank]), ledgers[rank], Cut(8, 2, rank, 2))
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
    from cptron.train.megatron_order import MegatronStream

    stream = MegatronStream(config_of(tmp_path, prefixes), Ledger())
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


def test_another_number_of_samples_is_another_order(tmp_path: Path, prefixes: list[str]) -> None:
    """Megatron would repeat some samples and lose others; here it is refused."""
    from cptron.train.megatron_order import MegatronStream

    stream = MegatronStream(config_of(tmp_path, prefixes), Ledger())
    stream.draw(8)
    with pytest.raises(DataError, match="source s0 has changed"):
        MegatronStream(config_of(tmp_path, prefixes, "data.megatron_samples=200"), stream.ledger)
    assert stream.draw(SAMPLES) == []
    assert "leaves no further" in stream.notes[-1]
