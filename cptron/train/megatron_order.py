"""The exact sample order of a Megatron-LM run, for those who must go on with one.

Place in the flow: takes the place of `data.stream` when `data.order` is `megatron`. Adapter for
`megatron.core.datasets`, whose own classes make the order. Invariant: sample p of this stream is sample p of
the Megatron run with the same token files, weights, seed, sequence length, split and number of samples; each
of these is part of the sources' identity, because in Megatron each of them decides the order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from cptron.config.schema import Config
from cptron.data.batch import MicroBatch
from cptron.data.content import open_content
from cptron.data.ledger import Ledger
from cptron.data.stream import Draw
from cptron.errors import ConfigError

Int64Array = npt.NDArray[np.int64]


class _NoTokenizer:
    """The order does not depend on the tokenizer; megatron-core only asks that there is one."""

    vocab_size = None
    unique_identifiers: dict[str, str] = {}  # noqa: RUF012 # read by megatron-core, never changed
    eod = -1


class MegatronSource:
    """One token file as megatron-core's `GPTDataset` orders it."""

    def __init__(
        self, name: str, dataset: Any, identity: str, seq_length: int, tokens_per_epoch: int
    ) -> None:
        self.name = name
        self.identity = identity
        self.seq_length = seq_length
        self.samples_per_epoch = (tokens_per_epoch - 1) / seq_length
        self._dataset = dataset

    def read(self, cursors: Int64Array, batch: MicroBatch) -> None:
        """Write the samples `cursors` [B] to the arrays of `batch`."""
        for row, cursor in enumerate(cursors.tolist()):
            sample = self._dataset[cursor]
            batch.tokens_BS[row] = sample["tokens"].numpy()
            batch.labels_BS[row] = sample["labels"].numpy()
            batch.loss_mask_BS[row] = sample["loss_mask"].numpy()

    def count(self, cursors: Int64Array) -> tuple[int, int]:
        """Documents that begin in the samples `cursors`, and tokens that they predict."""
        stream = np.asarray(self._dataset.shuffle_index)[cursors].astype(np.int64)
        index = self._dataset.sample_index
        (first, offset), (last, rest) = index[stream].T.astype(np.int64), index[stream + 1].T.astype(np.int64)
        documents = (offset == 0).astype(np.int64) + last - first - (rest == 0)
        return int(documents.sum()), len(cursors) * self.seq_length


class MegatronStream:
    """Draws samples in Megatron's order and keeps the account of them; made like a `SampleStream`."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        """Build the datasets as Megatron does; collective. Raises ConfigError when the order is not stated."""
        data = config.data
        if data.megatron_samples < 1:
            raise ConfigError(
                f"data.megatron_samples={data.megatron_samples} must be the number of training samples of the Megatron "
                "run (train_samples, or train_iters * global_batch_size), which decides its order; set it"
            )
        self.notes: list[str] = []
        top = _build(config)
        single = isinstance(top, GPTDataset)
        self._size = data.megatron_samples
        self._source_of = np.zeros(self._size, np.int16) if single else top.dataset_index
        self._sample_of = np.arange(self._size) if single else top.dataset_sample_index
        self.sources = [
            _open(config, index, dataset) for index, dataset in enumerate([top] if single else top.datasets)
        ]
        self.ledger = Ledger()
        self.ledger.assign(ledger)
        new = not self.ledger.entries
        self._entries = [self.ledger.open(source.name, source.identity) for source in self.sources]
        total = sum(item.token_share for item in data.sources)
        self.ledger.set_shares({item.name: item.token_share / total for item in data.sources})
        if new and data.megatron_consumed_samples:
            self._enter(0, data.megatron_consumed_samples)

    def draw(self, num_samples: int) -> list[Draw]:
        """The next samples, entered in the ledger; an empty list when the Megatron run would have ended."""
        start = sum(entry.cursor for entry in self._entries)
        if start + num_samples > self._size:
            self.notes.append(f"data.megatron_samples={self._size} leaves no further global batch")
            return []
        window = slice(start, start + num_samples)
        drawn = zip(self._source_of[window].tolist(), self._sample_of[window].tolist(), strict=True)
        self._enter(start, num_samples)
        return [Draw(source, sample) for source, sample in drawn]

    def _enter(self, start: int, num_samples: int) -> None:
        chosen = self._source_of[start : start + num_samples]
        for index, (source, entry) in enumerate(zip(self.sources, self._entries, strict=True)):
            count = int((chosen == index).sum())
            documents, tokens = source.count(np.arange(entry.cursor, entry.cursor + count))
            entry.cursor += count
            entry.since_mix += count
            entry.documents += documents
            entry.tokens += tokens
            entry.epochs = entry.cursor / source.samples_per_epoch


def _build(config: Config) -> Any:
    """The training dataset that Megatron builds for `--data-path`: weights only beside several sources."""
    data = config.data
    paths: Sequence[str] = [item.path for item in data.sources]
    weights = [item.token_share for item in data.sources] if len(paths) > 1 else None
    dataset_config = GPTDatasetConfig(
        random_seed=config.run.seed,
        sequence_length=data.seq_length,
        blend=(list(paths), weights),
        split=data.megatron_split,
        path_to_cache=data.cache_dir or None,
        tokenizer=_NoTokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    sizes = [data.megatron_samples, 0, 0]
    train, *_ = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, dataset_config).build()
    if train is None:
        raise ConfigError(
            f"data.megatron_split={data.megatron_split} leaves nothing to train on; give Megatron's --split"
        )
    return train


def _open(config: Config, index: int, dataset: Any) -> MegatronSource:
    item = config.data.sources[index]
    lengths = dataset.dataset.sequence_lengths
    tokens_per_epoch = int(np.sum(lengths[dataset.indices], dtype=np.int64))
    shares = [source.token_share for source in config.data.sources]
    order = f"{config.data.megatron_samples}|{config.data.megatron_split}|{shares}"
    identity = hashlib.sha256(f"{open_content(item.path).identity}|megatron|{order}".encode()).hexdigest()
    return MegatronSource(item.name, dataset, identity, config.data.seq_length, tokens_per_epoch)
