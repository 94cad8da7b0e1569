"""What is measured inside one process: each function runs alone in a fresh one and prints its answer as JSON.

Usage: python -m benchmarks.data.cases NAME '{"argument": value}'      (by the rows, not by people)

Place in the flow: called by `measure.run_case`. Invariant: imports and inputs are made before the clock
starts and before the peak of memory is reset; `peak_bytes` is what the work itself added.

`peer_*` is megatron-core's own code (or `tokenizers`), unchanged.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

Answer = dict[str, Any]
CHUNK = 1_000_000


@contextmanager
def measured(answer: Answer) -> Iterator[None]:
    """Put the time of a block and the memory that it added at its peak into `answer`."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before_bytes = _status_bytes("VmRSS")
    started_s = time.perf_counter()
    yield
    answer["elapsed_s"] = time.perf_counter() - started_s
    answer["peak_bytes"] = max(0, _status_bytes("VmHWM") - before_bytes)


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def shares(num_sources: int) -> list[float]:
    """Shares of very different sizes, the same for both sides."""
    drawn = np.random.default_rng(7).lognormal(0.0, 1.0, num_sources)
    return [float(share) for share in drawn / drawn.sum()]


def peer_encode(tokenizer: str, corpus: str, max_bytes: int) -> Answer:
    """`tokenizers.encode_batch_fast` on all cores, texts in memory already."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(Path(tokenizer) / "tokenizer.json"))
    texts, size = [], 0
    with open(corpus, "rb") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            size += len(line)
            if size >= max_bytes:
                break
    answer: Answer = {"num_bytes": size}
    with measured(answer):
        for start in range(0, len(texts), 1_000):
            for encoding in backend.encode_batch_fast(texts[start : start + 1_000], add_special_tokens=False):
                _ = encoding.ids
    return answer


def peer_blend(num_sources: int, num_samples: int) -> Answer:
    """megatron-core's greedy blend, as `BlendedDataset` calls it."""
    from megatron.core.datasets import helpers

    weights = shares(num_sources)
    answer: Answer = {}
    with measured(answer):
        dataset_index = np.zeros(num_samples, dtype=np.int16)
        dataset_sample_index = np.zeros(num_samples, dtype=np.int64)
        helpers.build_blending_indices(
            dataset_index, dataset_sample_index, weights, num_sources, num_samples, False
        )
    answer["deviation"] = _deviation(dataset_index[:CHUNK], weights)
    return answer


def ours_blend_eager(num_sources: int, num_samples: int) -> Answer:
    """Every sample's source, and its number in the source, in arrays of the same types as megatron-core's."""
    from cptron.data.blend import Blend

    weights = shares(num_sources)
    answer: Answer = {}
    with measured(answer):
        blend, counts = Blend(weights), [0] * num_sources
        dataset_index = np.zeros(num_samples, dtype=np.int16)
        dataset_sample_index = np.zeros(num_samples, dtype=np.int64)
        step = 1 << 16  # stays in the cache of the processor
        for start in range(0, num_samples, step):
            chosen, numbers = blend.draw(counts, min(step, num_samples - start))
            dataset_index[start : start + len(chosen)] = chosen
            dataset_sample_index[start : start + len(chosen)] = numbers
            counts = (np.array(counts) + np.bincount(chosen, minlength=num_sources)).tolist()
    answer["deviation"] = _deviation(dataset_index[:CHUNK], weights)
    return answer


def ours_blend_lazy(num_sources: int, num_samples: int, batch: int) -> Answer:
    """No index: the first sample from nothing, then `batch` at a time as a run draws them."""
    from cptron.data.blend import Blend

    weights = shares(num_sources)
    first: Answer = {}
    Blend(weights).draw([0] * num_sources, 1)  # code is loaded on first use
    with measured(first):
        blend = Blend(weights)
        chosen, _ = blend.draw([0] * num_sources, 1)
    counts = np.bincount(chosen, minlength=num_sources)
    answer: Answer = {"first_s": first["elapsed_s"], "first_peak_bytes": first["peak_bytes"]}
    with measured(answer):
        for _ in range(num_samples // batch):
            chosen, _ = blend.draw(counts.tolist(), batch)
            counts += np.bincount(chosen, minlength=num_sources)
    answer["each_s"] = answer["elapsed_s"] / (num_samples // batch * batch)
    far = [round(10**11 * share) for share in weights]
    started_s = time.perf_counter()
    Blend(weights).draw(far, 1)
    answer["far_s"] = time.perf_counter() - started_s
    return answer


def _deviation(chosen: np.ndarray, weights: list[float]) -> float:
    """Largest distance of any source from its share, at any prefix of `chosen`."""
    largest = 0.0
    places = np.arange(1, len(chosen) + 1)
    for source, weight in enumerate(weights):
        largest = max(largest, float(np.abs(np.cumsum(chosen == source) - places * weight).max()))
    return largest


def lengths(num_documents: int) -> np.ndarray:
    """Lengths in tokens of synthetic documents, a thousand on average."""
    drawn = np.random.default_rng(11).lognormal(6.2, 1.2, num_documents)
    scaled: np.ndarray = np.maximum(1, drawn * (1000 / drawn.mean())).astype(np.int32)
    return scaled


def peer_index(num_documents: int, num_epochs: int, seq_length: int) -> Answer:
    """The three arrays of `GPTDataset`, made by its own functions."""
    from megatron.core.datasets import helpers
    from megatron.core.datasets.gpt_dataset import _build_document_index, _build_shuffle_index

    sizes = lengths(num_documents)
    documents = np.arange(num_documents, dtype=np.int32)
    tokens_per_epoch = int(sizes.sum(dtype=np.int64))
    answer: Answer = {}
    with measured(answer):
        state = np.random.RandomState(1234)
        document_index = _build_document_index(documents, num_epochs, state, False)
        sample_index = helpers.build_sample_idx(
            sizes, document_index, seq_length, num_epochs, tokens_per_epoch, True, 1
        )
        num_samples = sample_index.shape[0] - 1
        shuffle_index = _build_shuffle_index(num_samples, num_samples, state)
    answer["num_samples"] = len(shuffle_index)
    return answer


def ours_index(num_documents: int, num_epochs: int, seq_length: int, locate: bool) -> Answer:
    """The index of every epoch; with `locate`, every sample of them is found as well."""
    import os

    from cptron.data.kernels import JoinedEpoch, Tokens, joined_starts
    from cptron.data.order import key

    sizes = lengths(num_documents)
    pointers = np.zeros(num_documents, dtype=np.int64)
    np.cumsum(sizes[:-1], dtype=np.int64, out=pointers[1:])
    nothing = np.zeros(0, np.uint8)
    tokens = Tokens(sizes.view(np.uint8), pointers.view(np.uint8), nothing, 4, nothing)
    threads = len(os.sched_getaffinity(0))
    epochs, num_samples = [], 0
    answer: Answer = {}
    with measured(answer):
        for number in range(num_epochs):
            document_key = key(1234, "benchmark", number, "documents")
            starts = joined_starts(tokens, document_key, threads)
            sample_key = key(1234, "benchmark", number, "samples")
            epochs.append(JoinedEpoch(tokens, starts, document_key, sample_key, seq_length))
            num_samples += epochs[-1].num_samples
            if locate:
                for start in range(0, epochs[-1].num_samples, CHUNK):
                    epochs[-1].count(np.arange(start, min(start + CHUNK, epochs[-1].num_samples)))
    answer["num_samples"] = num_samples
    return answer


def peer_read(prefix: str, seq_length: int, num_reads: int, cache: str) -> Answer:
    """`GPTDataset.__getitem__` without an attention mask."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=seq_length,
        blend=([prefix], None),
        split="1,0,0",
        path_to_cache=cache,
        tokenizer=_Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    files = IndexedDataset(prefix, mmap=True)
    documents = np.arange(len(files), dtype=np.int32)
    dataset = GPTDataset(files, prefix, documents, None, Split.train, config)
    wanted = np.random.default_rng(3).integers(0, len(dataset), num_reads)
    return _reads(wanted, lambda number: dataset[number])


class _Tokenizer:
    """What `GPTDataset` asks of a tokenizer."""

    vocab_size = 2**30
    eod = 0
    pad = -1
    unique_identifiers: dict[str, str] = {}  # noqa: RUF012 - read by megatron-core as an attribute


def ours_read(prefix: str, seq_length: int, num_reads: int) -> Answer:
    """`TokenSource.sample`: inputs, labels and loss mask of one random sample after the other."""
    from cptron.data.source import TokenSource

    source = TokenSource("benchmark", prefix, seq_length, 1234)
    wanted = np.random.default_rng(3).integers(0, source.samples_per_epoch, num_reads)
    return _reads(wanted, source.sample)


def ours_read_batch(prefix: str, seq_length: int, num_reads: int) -> Answer:
    """`TokenSource.read` into arrays that are used again, as the loader's page-locked ones are."""
    from cptron.data.source import TokenSource

    source = TokenSource("benchmark", prefix, seq_length, 1234)
    wanted = np.random.default_rng(3).integers(0, source.samples_per_epoch, num_reads)
    batch = source.empty_batch(1)
    return _reads(wanted, lambda number: source.read(np.array([number]), batch))


def _reads(wanted: np.ndarray, read: Callable[[int], Any]) -> Answer:
    for number in wanted.tolist():  # page cache and code are warm when the clock starts
        read(number)
    answer: Answer = {}
    with measured(answer):
        for number in wanted.tolist():
            read(number)
    answer["samples_per_s"] = len(wanted) / answer["elapsed_s"]
    return answer


def ours_loader(prefix: str, seq_length: int, num_steps: int, batch: int) -> Answer:
    """Global batches of one rank, on one core, nothing read ahead."""
    import os

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    loader = _loader([prefix], seq_length, batch)
    loader.next_step()
    answer: Answer = {}
    with measured(answer):
        for _ in range(num_steps):
            loader.next_step()
    loader.close()
    answer["tokens_per_s"] = num_steps * batch * seq_length / answer["elapsed_s"]
    return answer


def ours_first_batch(prefixes: list[str], seq_length: int, batch: int) -> Answer:
    """From nothing but paths to the first global batch, the import of the data room included."""
    answer: Answer = {}
    with measured(answer):
        loader = _loader(prefixes, seq_length, batch)
        loader.next_step()
    loader.close()
    return answer


def _loader(prefixes: list[str], seq_length: int, batch: int) -> Any:
    from cptron.data.ledger import Ledger
    from cptron.data.loader import Cut, TrainLoader
    from cptron.data.source import TokenSource
    from cptron.data.stream import Mix, SampleStream

    sources = [TokenSource(f"source{n}", prefix, seq_length, 1234) for n, prefix in enumerate(prefixes)]
    mix = Mix(tuple(shares(len(sources))), (0.0,) * len(sources), "warn")
    return TrainLoader(SampleStream(sources, mix, Ledger()), Ledger(), Cut(batch, 1))


CASES: dict[str, Callable[..., Answer]] = {
    case.__name__: case
    for case in (
        peer_encode,
        peer_blend,
        ours_blend_eager,
        ours_blend_lazy,
        peer_index,
        ours_index,
        peer_read,
        ours_read,
        ours_read_batch,
        ours_loader,
        ours_first_batch,
    )
}


if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]](**json.loads(sys.argv[2]))))
