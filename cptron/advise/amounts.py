"""How many tokens of what: shares, passes, sequence length, batch and steps.

Place in the flow: `advice` asks once the shift is judged; the rules explain the numbers. Invariant: pure; no corpus of
new data is passed over more than `max_epochs` times, replay has at least its floor, and more shift never means
less replay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cptron.advise.facts import Corpus, Facts
from cptron.advise.shift import Kind
from cptron.errors import ConfigError

REPLAY_SHARE: Mapping[str, Mapping[Kind, float]] = {
    "wanted": {"weak": 0.05, "moderate": 0.10, "strong": 0.25},
    "essential": {"weak": 0.10, "moderate": 0.25, "strong": 0.50},
}
"""Share of the tokens by how much the base's abilities matter, and the shift."""
LONG_CONTEXT_REPLAY = 0.40
"""At least, where longer sequences are learned: short documents."""
CHAT_SHARE = {"wanted": 0.03, "essential": 0.05}
LEAST_SHARE = 0.01
"""Of replay and of conversations, also where they must be repeated for it."""

LARGE_TOKENS = 5_000_000_000
"""A run of fewer tokens is a small one."""
SEQ_LENGTH = 8192
SEQUENCES_OF_A_CORPUS = 16
LEAST_SEQ_LENGTH = 16
BATCH_TOKENS = {"small": 1 << 20, "large": 1 << 22, "longest": 1 << 23}
LONGEST_FROM = 65_536
"""Longer sequences get the `longest` batch."""
LEAST_STEPS = 200
SAMPLES_TO_SPARE = 2
"""A blend is within one sample of its shares, and a limit must not be met before the last step."""
NEARLY = 0.999
"""Of the budget is the budget: shares have six digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Amounts:
    """A run's sizes."""

    seq_length: int
    global_batch_size: int
    steps: int
    written: Mapping[str, float]
    """Share of the training tokens by source, in few digits."""
    shares: Mapping[str, float]
    """The same, so that they sum to 1."""
    epochs: Mapping[str, float]
    """Passes over each source."""
    replay: float
    """Share of replay, conversations not included."""
    replay_wanted: float
    chat: float
    beyond_epochs: tuple[str, ...]
    """Replay sources that are repeated more than the limit for their floor."""
    limited_by: str
    """`budget` or `epochs`: what ends the run."""

    @property
    def tokens(self) -> int:
        """Of the whole run."""
        return self.steps * self.global_batch_size * self.seq_length

    @property
    def is_small(self) -> bool:
        """Few tokens for a change of what the model knows."""
        return self.tokens < LARGE_TOKENS


def plan(facts: Facts, kind: Kind) -> Amounts:
    """Raises `ConfigError` where the data or the budget do not fill a run."""
    seq_length = sequence_length(facts)
    samples = {corpus.name: (corpus.tokens - 1) // seq_length for corpus in facts.corpora}
    for corpus in facts.corpora:
        _require_samples(corpus, samples[corpus.name], seq_length, facts.max_epochs)
    budget = facts.budget_tokens // seq_length
    new, replay, chat = (
        _Group(samples, part, facts.max_epochs) for part in (facts.new, facts.replay, facts.chat)
    )
    wanted = replay_wanted(facts, kind)
    chat_share = _chat_share(facts, budget, new, chat)
    share = _affordable(wanted, chat_share, budget, new.capacity, replay.capacity)
    parts = ((new, 1 - share - chat_share), (replay, share), (chat, chat_share))
    longest = min(budget, new.capacity / parts[0][1])
    beyond = [
        name
        for group, part in parts[1:]
        for name in group.names
        if part <= LEAST_SHARE and part * longest > group.capacity
    ]
    written = {
        name: float(f"{part * samples[name] / group.total:.6g}")
        for group, part in parts
        for name in group.names
    }
    shares = {name: one / sum(written.values()) for name, one in written.items()}
    limits = {
        name: (facts.max_epochs * samples[name] - SAMPLES_TO_SPARE) / shares[name]
        for name in samples
        if name not in beyond
    }
    total = min(budget, int(min(limits.values())))
    batch = _batch(facts, seq_length, total)
    steps = total // batch
    if steps < 2:
        raise ConfigError(
            f"{facts.budget_tokens} tokens of budget and at most {facts.max_epochs:g} passes over the data are "
            f"{total} sequences of {seq_length} tokens, no two batches of {batch}; give more of them, a lower "
            "--seq-length, or fewer --ranks"
        )
    return Amounts(
        seq_length=seq_length,
        global_batch_size=batch,
        steps=steps,
        written=written,
        shares=shares,
        epochs={name: shares[name] * steps * batch / samples[name] for name in samples},
        replay=share,
        replay_wanted=wanted,
        chat=chat_share,
        beyond_epochs=tuple(beyond),
        limited_by="budget" if total >= NEARLY * budget else "epochs",
    )


def replay_wanted(facts: Facts, kind: Kind) -> float:
    """Share of replay where there is enough of it; 0 without any."""
    if not facts.replay:
        return 0.0
    share = REPLAY_SHARE[facts.general][kind]
    return max(share, LONG_CONTEXT_REPLAY) if facts.goal == "long-context" else share


def sequence_length(facts: Facts) -> int:
    """As asked for; else all positions for long context, and otherwise 8192 or what base, data and budget have."""
    most = facts.base.max_positions
    if facts.seq_length:
        return facts.seq_length
    if facts.goal == "long-context":
        return most
    smallest = min(facts.budget_tokens, *(corpus.tokens for corpus in facts.corpora))
    fits = _power_of_two(max(LEAST_SEQ_LENGTH, smallest // SEQUENCES_OF_A_CORPUS))
    return min(SEQ_LENGTH, most, fits)


class _Group:
    """Sources of one kind, which are passed over alike."""

    def __init__(self, samples: Mapping[str, int], corpora: Sequence[Corpus], max_epochs: float) -> None:
        self.names = [corpus.name for corpus in corpora]
        counts = [samples[name] for name in self.names]
        self.total = sum(counts)
        self.capacity = (max_epochs - SAMPLES_TO_SPARE / min(counts)) * self.total if counts else 0.0
        """Samples that can be drawn in all without a pass too many."""


def _require_samples(corpus: Corpus, samples: int, seq_length: int, max_epochs: float) -> None:
    if samples * max_epochs <= SAMPLES_TO_SPARE:
        raise ConfigError(
            f"{corpus.name} ({corpus.path}) has {corpus.tokens} tokens, {samples} whole sequences of "
            f"{seq_length}, and --max-epochs={max_epochs:g} passes of that are no run; give more data, more "
            "passes or a lower --seq-length"
        )


def _chat_share(facts: Facts, budget: int, new: _Group, chat: _Group) -> float:
    """What is wanted, or what there is for the longest run that any replay would make."""
    if not facts.chat:
        return 0.0
    wanted = CHAT_SHARE[facts.general]
    most_replay = max(*REPLAY_SHARE[facts.general].values(), LONG_CONTEXT_REPLAY) if facts.replay else 0.0
    longest = min(budget, new.capacity / (1 - most_replay - wanted))
    return min(wanted, max(LEAST_SHARE, chat.capacity / longest))


def _affordable(wanted: float, chat: float, budget: int, new: float, replay: float) -> float:
    """The share of replay, less where there is not enough of it for its passes; never below the least."""
    if not wanted:
        return 0.0
    if wanted * min(budget, new / (1 - wanted - chat)) <= replay:
        return wanted
    return max(LEAST_SHARE, replay / min(budget, (new + replay) / (1 - chat)))


def _batch(facts: Facts, seq_length: int, total: int) -> int:
    """Sequences of a step: the preset's tokens, fewer where they would leave few steps, a multiple of the ranks."""
    size = "small" if total * seq_length < LARGE_TOKENS else "large"
    if facts.goal == "long-context":
        size = "longest" if seq_length > LONGEST_FROM else "large"
    sequences = _power_of_two(max(1, min(BATCH_TOKENS[size] // seq_length, total // LEAST_STEPS)))
    return -(-sequences // facts.ranks) * facts.ranks


def _power_of_two(number: int) -> int:
    """The largest that is not more."""
    return 1 << (number.bit_length() - 1)
