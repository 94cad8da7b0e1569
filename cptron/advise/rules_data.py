"""Choices about data: shares, passes, sequence length, batch and tokens.

Place in the flow: called by `advice` with the amounts. Invariant: pure.
"""

from __future__ import annotations

from cptron.advise.amounts import CHAT_SHARE, LEAST_SHARE, LONGEST_FROM, Amounts
from cptron.advise.choice import Choice, Value
from cptron.advise.facts import Facts
from cptron.advise.shift import Shift

TINY_TOKENS = 100_000_000
"""New data below it are a tiny corpus."""
MFU, H100_FLOPS = 0.4, 989.5e12
"""For an estimate of GPU hours: share of the peak, and the dense bf16 peak of an H100."""


def data_choices(facts: Facts, shift: Shift, amounts: Amounts) -> list[Choice]:
    """All of them."""
    choices = [_shares(facts, shift, amounts)]
    if facts.chat:
        choices.append(_chat(facts, amounts))
    if amounts.replay + amounts.chat:
        choices.append(_floor(amounts))
    choices += [
        _epochs(facts, amounts),
        _length(facts, amounts),
        _batch(facts, amounts),
        _tokens(facts, amounts),
    ]
    if facts.goal == "long-context":
        choices.append(_mask())
    return choices


def _shares(facts: Facts, shift: Shift, amounts: Amounts) -> Choice:
    sets = _share_keys(amounts, [corpus.name for corpus in (*facts.new, *facts.replay)])
    evidence = [
        "ibrahim-replay",
        "tiny-replay",
        "nemotron-tiers",
        "poro2-mix",
        "qwen-coder-mix",
        "cmr-law",
        "d-cpt-law",
        "shift-thresholds",
    ]
    if len(facts.new) > 1 or len(facts.replay) > 1:
        evidence.append("tokens-in-proportion")
    if not facts.replay:
        return Choice(
            above="data.sources",
            sets=sets,
            why=f"No old data are named, so nothing is replayed, and forgetting will be large: {shift.why}.",
            evidence=("ibrahim-replay", "tiny-replay", "shift-thresholds"),
            unknown="; ".join(part for part in (shift.unknown, _PROXIES, _chats_missing(facts)) if part),
        )
    words = [f"{amounts.replay:.3g} of the tokens replay old data. The shift is {shift.kind}: {shift.why}."]
    words.append(f"What the base can do is {facts.general} (--general).")
    if facts.goal == "long-context":
        words.append("Longer sequences are learned with at least 0.4 of short documents.")
        evidence.append("prolong-scripts")
    if amounts.replay < amounts.replay_wanted:
        words.append(f"{amounts.replay_wanted:g} was wanted, and there are not enough replay data for it.")
    words.append(
        "The published shares differ by more than tenfold; short runs on your data tell more than any of them."
    )
    return Choice(
        above="data.sources",
        sets=sets,
        why=" ".join(words),
        evidence=tuple(evidence),
        unknown="; ".join(part for part in (shift.unknown, _SWEEP, _chats_missing(facts)) if part),
    )


def _chat(facts: Facts, amounts: Amounts) -> Choice:
    names = [corpus.name for corpus in facts.chat]
    wanted = CHAT_SHARE[facts.general]
    few = "" if amounts.chat >= wanted else f" {wanted:g} was wanted, and there are not enough of them."
    return Choice(
        sets=_share_keys(amounts, names),
        above=f"data.sources.{names[0]}",
        why=f"{amounts.chat:.3g} of the tokens are conversations, since the base follows instructions; 1 to 5 "
        f"% is what was reported to keep that.{few} The other way is to train the base model that it was made "
        "from, and to add the difference afterwards (`cptron merge-weights`).",
        evidence=("findap", "residual"),
        unknown="whether instructions are still followed: a validation set of conversations with suite probe, "
        "and tasks by `cptron eval --harness`",
    )


def _floor(amounts: Amounts) -> Choice:
    floor = max(LEAST_SHARE / 2, round((amounts.replay + amounts.chat) / 2, 4))
    return Choice(
        sets={"data.replay_floor": floor},
        why="Whatever changes shares on the way leaves replay this much.",
        evidence=("floors",),
    )


def _epochs(facts: Facts, amounts: Amounts) -> Choice:
    limit = float(facts.max_epochs)
    sets: dict[str, Value] = {
        f"data.sources.{corpus.name}.max_epochs": 0.0 if corpus.name in amounts.beyond_epochs else limit
        for corpus in facts.corpora
    }
    sets["data.on_max_epochs"] = "stop"
    passes = ", ".join(f"{name} {_passes(epochs)}" for name, epochs in amounts.epochs.items())
    words = [f"Passes over the data: {passes}. The limit is {limit:g} and ends the run."]
    evidence = ["muennighoff", "polish-repeats", "poro2-repeats"]
    if amounts.beyond_epochs:
        words.append(
            f"{', '.join(amounts.beyond_epochs)} would be too small for the least share of replay, and is "
            "repeated beyond the limit: a little replay of few data is better than none, but get more."
        )
    if sum(corpus.tokens for corpus in facts.new) < TINY_TOKENS:
        words.append(
            "New data of less than 100 M tokens: rewriting them in many ways was reported to teach what "
            "repeating does not."
        )
        evidence.append("entigraph")
    seen = min(amounts.epochs[corpus.name] for corpus in facts.new)
    unknown = ""
    if seen > 1:
        unknown = _REPEATING
    return Choice(
        above="data.on_max_epochs", sets=sets, why=" ".join(words), evidence=tuple(evidence), unknown=unknown
    )


def _length(facts: Facts, amounts: Amounts) -> Choice:
    length = amounts.seq_length
    total = sum(corpus.tokens for corpus in facts.new)
    longer = sum(corpus.share_in_longer(length) * corpus.tokens for corpus in facts.new) / total
    documents = ", ".join(
        f"{corpus.name} median {corpus.median_tokens:,.0f}, longest {corpus.longest_tokens:,}"
        for corpus in facts.new
    )
    why = (
        f"The base has {facts.base.max_positions:,} positions ({facts.base.rope}). Tokens of a document: "
        f"{documents}; about {longer:.0%} of the new tokens are in longer documents than a sequence."
    )
    evidence = (
        ("prolong-scripts",)
        if facts.goal == "long-context"
        else ("sequence-8k", "large-batches", "small-batches")
    )
    if facts.seq_length:
        why = f"As asked for. {why}"
    return Choice(sets={"data.seq_length": length}, why=why, evidence=evidence)


def _batch(facts: Facts, amounts: Amounts) -> Choice:
    batch = amounts.global_batch_size * amounts.seq_length
    evidence = ("small-batches" if amounts.is_small else "large-batches", "steps-for-a-schedule")
    if facts.goal == "long-context":
        evidence = ("prolong-scripts", "steps-for-a-schedule")
    size = "8 M" if facts.goal == "long-context" and amounts.seq_length > LONGEST_FROM else "4 M"
    usual = "0.3 to 2 M" if amounts.is_small and facts.goal == "domain" else size
    return Choice(
        sets={"train.global_batch_size": amounts.global_batch_size},
        why=f"{batch:,} tokens a step. Published runs of this kind take {usual} tokens; a batch is smaller "
        f"where that would leave less than 200 steps. A multiple of {facts.ranks} data parallel rank(s) (--ranks).",
        evidence=evidence,
        unknown="the layout: parallel.tp, pp and train.micro_batch_size depend on the machines and are not "
        "advised here",
    )


def _tokens(facts: Facts, amounts: Amounts) -> Choice:
    tokens = amounts.tokens
    left = facts.budget_tokens - tokens
    end = "the budget" if amounts.limited_by == "budget" else f"the limit of {facts.max_epochs:g} passes"
    words = [
        f"{tokens:,} tokens, which is where {end} ends. The budget is {facts.budget_tokens:,} "
        f"({facts.budget_from})."
    ]
    if amounts.limited_by == "epochs":
        words.append(f"{left:,} tokens of it are not used; more or other data would use them.")
    flops = facts.base.flops_per_token + facts.base.attention_flops_per_position * amounts.seq_length
    if flops:
        hours = tokens * flops / (MFU * H100_FLOPS * 3600)
        words.append(
            f"At most {tokens * flops:.2g} model FLOPs: about {hours:.2g} hours of one H100 at {MFU:.0%} of "
            "its peak, which is an estimate and not a measurement."
        )
    return Choice(
        sets={"train.steps": amounts.steps},
        why=" ".join(words),
        evidence=("megatron-mfu", "muennighoff") if amounts.limited_by == "epochs" else ("megatron-mfu",),
        unknown="the speed on your machines: a few steps of this file show tokens per second",
    )


def _mask() -> Choice:
    return Choice(
        sets={"attention.document_mask": True},
        why="Documents of a sequence do not see each other. The two best known public recipes contradict each "
        "other here.",
        evidence=("prolong-scripts", "ultralong"),
    )


def _chats_missing(facts: Facts) -> str:
    return _CHATS if facts.base.instruct and not facts.chat else ""


_SWEEP = "the best share for these data: runs of some hundred steps at 1, 5, 10, 25 and 50 %, then `cptron mixlaw fit`"
_PROXIES = (
    "whether anything like the base's own data can be had: public text of the same kinds replays less well "
    "than the real ones, and better than nothing"
)
_REPEATING = (
    "where repeating stops helping here: the monitor says when the training loss falls and the new data's "
    "does not"
)
_CHATS = (
    "how much of following instructions is lost without conversations, which was reported to be nearly all: "
    "name some by --chat, or train the base model and add the difference (`cptron merge-weights`)"
)


def _share_keys(amounts: Amounts, names: list[str]) -> dict[str, Value]:
    return {f"data.sources.{name}.token_share": amounts.written[name] for name in names}


def _passes(epochs: float) -> str:
    return f"{epochs:.2f}" if epochs >= 0.01 else f"{epochs:.2g}"
