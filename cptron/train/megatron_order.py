"""The exact sample order of a Megatron-LM run, for those who must go on with one.

Place in the flow: takes the place of `data.stream` when `data.order` is `megatron`. Adapter for
`megatron.core.datasets`, whose own classes make the order. Invariant: sample p of this stream is sample p of
the Megatron run with the same token files, weights, seed, sequence length, split and number of samples; each
of these is part of the sources' identity, because in Megatron each of them decides the order.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from cptron.config.schema import Config, SourceConfig
from cptron.data.batch import MicroBatch
from cptron.data.content import Content, open_content
from cptron.data.ledger import Ledger
from cptron.data.source import check_ids, named
from cptron.data.stages import Stage
from cptron.data.stream import Draw
from cptron.errors import ConfigError, DataError

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MegatronFiles:
    """What the datasets are built from: all of it found on this rank alone, before they are built together."""

    contents: dict[str, Content]
    """By name of the source, in the order of the configuration."""
    index_directory: Path
    """Exists, can be written, and is of these contents only."""


def open_files(config: Config) -> MegatronFiles:
    """Open the sources and make the directory of their index files; rank-local.

    megatron-core names its index files by path and options, not by content: files made again under the same
    path would silently get the old order. So each content has a directory of its own. Raises ConfigError or
    DataError.
    """
    data = config.data
    contents = {item.name: _open_content(item) for item in data.sources}
    identities = "|".join(content.identity for content in contents.values())
    root = Path(data.cache_dir or Path(data.sources[0].path).parent / ".megatron_index")
    directory = root / hashlib.sha256(identities.encode()).hexdigest()[:16]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise DataError(
            f"{directory} cannot be written ({error}), but data.order=megatron keeps its index files there; "
            "set data.cache_dir to a directory that all nodes share and can write"
        ) from None
    return MegatronFiles(contents, directory)


def _open_content(item: SourceConfig) -> Content:
    content = open_content(item.path)
    if content.manifest and "loss_mask" in content.manifest.files:
        raise ConfigError(
            f"source {item.name} ({item.path}) has a loss mask, which Megatron's order does not know; "
            "use data.order=cptron"
        )
    return content


class _NoTokenizer:
    """The order does not depend on the tokenizer; megatron-core only asks that there is one."""

    vocab_size = None
    unique_identifiers: dict[str, str] = {}  # noqa: RUF012 # read by megatron-core, never changed
    eod = -1


class MegatronSource:
    """One token file as megatron-core's `GPTDataset` orders it: its documents are the sequences of `.idx`."""

    def __init__(
        self,
        item: SourceConfig,
        dataset: Any,
        identity: str,
        seq_length: int,
        vocab_size: int,
        *,
        eod_mask_loss: bool = False,
    ) -> None:
        self.name = item.name
        self.identity = identity
        self.seq_length = seq_length
        lengths = dataset.dataset.sequence_lengths
        self.samples_per_epoch = (int(np.sum(lengths[dataset.indices], dtype=np.int64)) - 1) / seq_length
        self._where = f"source {item.name} ({item.path})"
        self._dataset = dataset
        self._lengths = lengths
        self._vocab_size = vocab_size
        self._eod_mask_loss = eod_mask_loss

    def read(self, cursors: Int64Array, batch: MicroBatch) -> None:
        """Write the samples `cursors` [B] to the arrays of `batch`. Raises DataError on an id that the model
        has not."""
        for row, cursor in enumerate(cursors.tolist()):
            sample = self._dataset[cursor]
            batch.tokens_BS[row] = sample["tokens"].numpy()
            batch.labels_BS[row] = sample["labels"].numpy()
            batch.loss_mask_BS[row] = sample["loss_mask"].numpy()
            batch.documents_BS[row] = self.documents(cursor)
            if self._eod_mask_loss:
                batch.loss_mask_BS[row, self._beginnings(cursor) - 1] = 0  # the labels there begin a document
            with named(self._where):
                check_ids(batch.tokens_BS[row], self._vocab_size)
                check_ids(batch.labels_BS[row], self._vocab_size)

    def documents(self, cursor: int) -> npt.NDArray[np.int32]:
        """Document of each input token of a sample `[seq_length]`."""
        places_S = np.arange(self.seq_length)
        return np.searchsorted(self._beginnings(cursor), places_S, side="right").astype(np.int32)

    def count(self, cursors: Int64Array) -> tuple[int, int]:
        """Documents that begin in the samples `cursors`, and tokens that they predict: the position in the
        stream, so those that `eod_mask_loss` leaves out are counted too."""
        stream = np.asarray(self._dataset.shuffle_index)[cursors].astype(np.int64)
        index = self._dataset.sample_index
        (first, offset), (last, rest) = index[stream].T.astype(np.int64), index[stream + 1].T.astype(np.int64)
        documents = (offset == 0).astype(np.int64) + last - first - (rest == 0)
        return int(documents.sum()), len(cursors) * self.seq_length

    def _beginnings(self, cursor: int) -> Int64Array:
        """Where in a sample the next documents begin, as places of its `seq_length` + 1 tokens: from the index,
        because a token id that ends documents may also stand inside one."""
        at = int(self._dataset.shuffle_index[cursor])
        (first, offset), (last, _) = self._dataset.sample_index[at : at + 2].tolist()
        lengths = self._lengths[self._dataset.document_index[first:last]].astype(np.int64)
        begins: Int64Array = np.unique(np.cumsum(lengths) - offset)
        return begins[begins > 0]  # one without tokens begins where the next does, at the beginning the first


class MegatronStream:
    """Draws samples in Megatron's order and keeps the account of them; made like a `SampleStream`."""

    def __init__(self, config: Config, ledger: Ledger, files: MegatronFiles, vocab_size: int = 0) -> None:
        """Build the datasets as Megatron does; collective. Raises ConfigError when the order is not stated.

        Token ids from `vocab_size` on are refused when they are read; 0 checks nothing.
        """
        data = config.data
        if data.megatron_samples < 1:
            raise ConfigError(
                f"data.megatron_samples={data.megatron_samples} must be the number of training samples of the Megatron "
                "run (train_samples, or train_iters * global_batch_size), which decides its order; set it"
            )
        self.notes: list[str] = []
        self.stage, self.stage_number = Stage(tuple(item.token_share for item in data.sources)), 0
        top = _build(config, files.index_directory)
        single = isinstance(top, GPTDataset)
        self._size = data.megatron_samples
        self._source_of = np.zeros(self._size, np.int16) if single else top.dataset_index
        self._sample_of = np.arange(self._size) if single else top.dataset_sample_index
        self.sources = [
            MegatronSource(
                item,
                dataset,
                _identity(config, content),
                data.seq_length,
                vocab_size,
                eod_mask_loss=data.eod_mask_loss,
            )
            for item, content, dataset in zip(
                data.sources, files.contents.values(), [top] if single else top.datasets, strict=True
            )
        ]
        self.ledger = Ledger()
        self.ledger.assign(ledger)
        new = not self.ledger.entries
        self._entries = [self.ledger.open(source.name, source.identity) for source in self.sources]
        total = sum(item.token_share for item in data.sources)
        self.ledger.set_shares({item.name: item.token_share / total for item in data.sources})
        if new and data.megatron_consumed_samples:
            self._enter(0, data.megatron_consumed_samples)

    def batch_size(self, default: int) -> int:
        """Megatron's order has no stages."""
        return default

    def stage_after(self, ledger: Ledger) -> Stage:
        """Megatron's order has no stages."""
        return self.stage

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


def _build(config: Config, index_directory: Path) -> Any:
    """The training dataset that Megatron builds for `--data-path`: weights only beside several sources."""
    data = config.data
    paths: Sequence[str] = [item.path for item in data.sources]
    weights = [item.token_share for item in data.sources] if len(paths) > 1 else None
    dataset_config = GPTDatasetConfig(
        random_seed=config.run.seed,
        sequence_length=data.seq_length,
        blend=(list(paths), weights),
        split=data.megatron_split,
        path_to_cache=str(index_directory),
        tokenizer=_NoTokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,  # `MegatronSource` does it: there is no id here that ends documents
        create_attention_mask=False,
    )
    sizes = [data.megatron_samples, 0, 0]
    train, *_ = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, dataset_config).build()
    if train is None:
        raise ConfigError(
            f"data.megatron_split={data.megatron_split} leaves nothing to train on; give Megatron's --split"
        )
    return train


def _identity(config: Config, content: Content) -> str:
    shares = [source.token_share for source in config.data.sources]
    order = f"{config.data.megatron_samples}|{config.data.megatron_split}|{shares}"
    return hashlib.sha256(f"{content.identity}|megatron|{order}".encode()).hexdigest()
