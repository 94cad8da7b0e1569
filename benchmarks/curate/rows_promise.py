"""Row of the classifier's promise: how often the precision on unseen real text is what training promised.

Place in the flow: `--rows promise` of `benchmarks.curate.run`. Invariant: a training sees a random half of each domain,
and precision is counted on the other half; both thresholds are of the same classifier.

The peer is the usual choice: the lowest threshold whose estimated precision, on the examples that are held out, is the
one that is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.curate.rows_select import Mix, mix_of
from benchmarks.data.results import Row
from cptron.corpus.document import draw
from cptron.corpus.registry import config_class
from cptron.corpus.select.linear import LinearClassifier, Training, train
from cptron.corpus.select.promise import Scored
from cptron.errors import DataError

SEEDS = 5
LEAST_FOUND = 5
"""Positive examples that the peer's threshold must find."""

Found = tuple[float, float, float, float]
"""Precision and recall on unseen documents, of ours and of the peer; nan where ours refuses."""


def rows(directory: Path, command: str, seeds: int = SEEDS) -> list[Row]:
    """One row over all domains and seeds."""
    mix = mix_of(directory)
    asked = config_class("classifier")().min_precision
    found = {name: [_trained(mix, name, seed) for seed in range(seeds)] for name in mix}
    every = np.array([one for runs in found.values() for one in runs])
    promised = every[~np.isnan(every[:, 0])]
    documents = sum(map(len, mix.values()))
    return [
        Row(
            row="select classifier promise",
            work=f"trainings whose precision on unseen text is {asked}, as promised",
            peer="lowest threshold by the estimate",
            unit="share",
            ours=round(float((promised[:, 0] >= asked).mean()), 4),
            peer_value=round(float((every[:, 2] >= asked).mean()), 4),
            goal=">= 0.95",
            met=bool((promised[:, 0] >= asked).mean() >= 0.95),
            input=f"{documents} documents of {len(mix)} domains, each the target of {seeds} trainings on a random half",
            rounds=1,
            note=f"{len(every) - len(promised)} of {len(every)} trainings refused to promise; "
            + "; ".join(f"{name}: {_ranges(runs)}" for name, runs in found.items()),
            command=command,
        )
    ]


def _ranges(runs: Sequence[Found]) -> str:
    """Of a domain."""
    low, high = np.nanmin(np.array(runs), axis=0), np.nanmax(np.array(runs), axis=0)
    return (
        f"precision {low[0]:.3f} to {high[0]:.3f}, by the estimate {low[2]:.3f} to {high[2]:.3f}; "
        f"recall {low[1]:.3f} to {high[1]:.3f}, by the estimate {low[3]:.3f} to {high[3]:.3f}"
    )


def _trained(mix: Mix, name: str, seed: int) -> Found:
    defaults = config_class("classifier")()
    halves: dict[bool, list[tuple[str, bool]]] = {True: [], False: []}
    for domain, documents in mix.items():
        texts = list(dict.fromkeys(document.text for document in documents))
        random.Random(f"{seed} {domain}").shuffle(texts)
        for number, text in enumerate(texts):
            halves[number % 2 == 0].append((text, domain == name))
    how = Training(
        buckets=defaults.buckets,
        longest=defaults.longest,
        penalty=defaults.penalty,
        held_out=defaults.held_out,
        min_precision=defaults.min_precision,
        confidence=defaults.confidence,
        threshold=0.0,
        seed=seed,
    )
    positives, negatives = ([text for text, is_it in halves[True] if is_it is kind] for kind in (True, False))
    refused = False
    try:
        model = train(positives, negatives, how)
    except DataError:
        refused = True
        model = train(positives, negatives, replace(how, threshold=1.0))
    held = _scored(model, [one for one in halves[True] if draw(one[0], seed) < how.held_out])
    unseen = _scored(model, halves[False])
    precise = [
        threshold
        for threshold in np.unique(held.scores).tolist()
        if held.counts(threshold)[0] >= max(LEAST_FOUND, how.min_precision * held.counts(threshold)[1])
    ]
    nan = float("nan")
    ours = (nan, nan) if refused else _measured(unseen, model.quality.threshold)
    return (*ours, *_measured(unseen, precise[0]))


def _scored(model: LinearClassifier, documents: Sequence[tuple[str, bool]]) -> Scored:
    scores = np.array([round(model.score(text), 6) for text, _ in documents])
    return Scored(scores, np.array([is_it for _, is_it in documents]))


def _measured(unseen: Scored, threshold: float) -> tuple[float, float]:
    """Precision and recall."""
    right, found = unseen.counts(threshold)
    return right / max(1, found), right / max(1, int(unseen.positive.sum()))
