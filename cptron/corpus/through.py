"""Documents through one step, counted.

Place in the flow: `work` chains these generators, one a step, so that a shard is never in memory as a whole.
Invariant: every document that comes is passed on, became several, or is counted as dropped; one at which a step breaks
is dropped with the error as its reason, and a step that breaks often stops the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from cptron.corpus.counts import StepCounts
from cptron.corpus.document import Document, Dropped, Rejected, Result
from cptron.corpus.step import MapStep, Tally
from cptron.errors import CptronError, DataError

BROKEN = "step_failed"
"""Reason of documents at which a step raised what it should not."""
_BATCH_BYTES = 4 << 20
_FEW_ERRORS = 20
_MOST_ERRORS = 0.01
"""Of the documents; beyond it, and beyond `_FEW_ERRORS`, it is the step that is wrong and not a document."""

Sized = tuple[Document, int]
"""A document and the bytes of its text."""
Broken = Callable[[Document, Dropped], None]
"""Told of every document at which a step raised."""


def through_step(
    step: MapStep[Any], counts: StepCounts, documents: Iterable[Sized], broken: Broken
) -> Iterator[Sized]:
    """What `step` lets through of `documents`, in order. Raises DataError where it fails too often."""

    def apply(batch: Sequence[Document]) -> list[Result]:
        return step.apply_batch(batch, counts.tally)

    return _through(apply, step.batch_documents, counts, documents, broken)


def through_call(
    call: Callable[[Document, Tally], Result], counts: StepCounts, documents: Iterable[Sized], broken: Broken
) -> Iterator[Sized]:
    """The same for the second pass of a corpus step."""

    def apply(batch: Sequence[Document]) -> list[Result]:
        return [call(document, counts.tally) for document in batch]

    return _through(apply, 1, counts, documents, broken)


def _through(
    apply: Callable[[Sequence[Document]], list[Result]],
    batch_documents: int,
    counts: StepCounts,
    documents: Iterable[Sized],
    broken: Broken,
) -> Iterator[Sized]:
    for batch in _batches(documents, batch_documents):
        started_s = time.process_time()
        results = _results(apply, [document for document, _ in batch], counts, broken)
        counts.cpu_s += time.process_time() - started_s
        for (document, num_bytes), result in zip(batch, results, strict=True):
            counts.came.add(num_bytes)
            if isinstance(result, Dropped):
                counts.drop(document, num_bytes, result)
                continue
            made = result if isinstance(result, tuple) else (result,)
            assert made, f"{counts.name} made an empty tuple of {document.id}"
            counts.made += len(made) - 1
            counts.changed += _is_changed(made[0], document)
            for one in made:
                if isinstance(one, Rejected):
                    counts.drop(one.document, one.document.num_bytes, one.why)
                    continue
                left_bytes = num_bytes if one.text is document.text else one.num_bytes
                counts.left.add(left_bytes)
                yield one, left_bytes
        if sum(isinstance(result, Dropped) and result.reason == BROKEN for result in results):
            _require_few(counts)


def _is_changed(made: Document | Rejected, document: Document) -> bool:
    return isinstance(made, Rejected) or (made.text is not document.text and made.text != document.text)


def _batches(documents: Iterable[Sized], most: int) -> Iterator[list[Sized]]:
    batch: list[Sized] = []
    num_bytes = 0
    for one in documents:
        batch.append(one)
        num_bytes += one[1]
        if len(batch) >= most or num_bytes >= _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _results(
    apply: Callable[[Sequence[Document]], list[Result]],
    documents: list[Document],
    counts: StepCounts,
    broken: Broken,
) -> list[Result]:
    before = counts.tally.copy() if len(documents) > 1 else None
    try:
        return apply(documents)
    except (CptronError, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        if before is not None:  # one of many: find it
            counts.tally.clear()
            counts.tally.update(before)
            return [result for one in documents for result in _results(apply, [one], counts, broken)]
        why = Dropped(BROKEN, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        broken(documents[0], why)
        return [why]


def _require_few(counts: StepCounts) -> None:
    failed = counts.dropped[BROKEN].documents
    if failed >= _FEW_ERRORS and failed > _MOST_ERRORS * counts.came.documents:
        sample = counts.samples[BROKEN][0]
        raise DataError(
            f"step {counts.name} failed at {failed} of {counts.came.documents} documents, such as {sample['id']} "
            f"({sample['detail']}), may at 1 %; remove the step or correct what it needs"
        )
