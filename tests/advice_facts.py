"""Facts for the tests of advice: a plain case, and a grid around it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from cptron.advise.facts import Base, Corpus, Facts, Held, LengthBin, StepZeroLoss

LLAMA = Base(
    path="checkpoints/base",
    kind="checkpoint",
    family="llama",
    parameters=8_030_261_248,
    vocab_size=128_256,
    max_positions=131_072,
    tied_embeddings=False,
    rope="rope base 500000, RopeScaling",
    instruct=False,
    state="decayed",
    lr_at_save=3e-5,
    lr_peak=3e-4,
    flops_per_token=4.5e10,
    attention_flops_per_position=7.9e5,
)
INSTRUCT = replace(LLAMA, instruct=True)
CONSTANT = replace(LLAMA, state="constant_phase")


def corpus(name: str, tokens: int, length: int = 800) -> Corpus:
    """Documents of one length."""
    documents = max(1, tokens // length)
    first = 1 << (length.bit_length() - 1)
    bins = (LengthBin(first=first, last=2 * first - 1, documents=documents, tokens=tokens),)
    return Corpus(
        name=name,
        path=f"tokens/{name}",
        documents=documents,
        tokens=tokens,
        median_tokens=float(length),
        longest_tokens=length,
        lengths=bins,
    )


def held(name: str, suite: str, tokens: int = 10_000_000) -> Held:
    """A validation set."""
    return Held(name=name, path=f"tokens/{name}", suite=suite, tokens=tokens)  # type: ignore[arg-type]


def gap(nats: float) -> tuple[StepZeroLoss, ...]:
    """Losses that differ by so much."""
    return (
        StepZeroLoss(name="new", suite="new", nats_per_token=2.0 + nats),
        StepZeroLoss(name="old", suite="old", nats_per_token=2.0),
    )


VALID = (held("new", "new"), held("old", "old"))
PLAIN = Facts(
    base=LLAMA,
    new=(corpus("manuals", 20_000_000_000),),
    replay=(corpus("web", 200_000_000_000),),
    valid=VALID,
    losses=gap(0.8),
    budget_tokens=30_000_000_000,
    ranks=8,
)
GRID = {
    "plain": PLAIN,
    "tiny corpus": replace(PLAIN, new=(corpus("manuals", 300_000),)),
    "tiny world": replace(
        PLAIN, new=(corpus("manuals", 4_000),), replay=(corpus("web", 3_000),), budget_tokens=10_000, ranks=1
    ),
    "huge corpus": replace(PLAIN, new=(corpus("manuals", 3_000_000_000_000),), budget_tokens=10**12),
    "same language": replace(PLAIN, language="same", losses=()),
    "other language": replace(PLAIN, language="other", losses=()),
    "other language, small": replace(PLAIN, language="other", budget_tokens=10**9),
    "nothing known": replace(PLAIN, losses=(), base=replace(LLAMA, state="unknown")),
    "weak": replace(PLAIN, losses=gap(0.1)),
    "essential": replace(PLAIN, general="essential", losses=gap(2.0)),
    "instruct base": replace(PLAIN, base=INSTRUCT, chat=(corpus("talk", 100_000_000),)),
    "instruct base, few chats": replace(PLAIN, base=INSTRUCT, chat=(corpus("talk", 50_000),)),
    "instruct base without chats": replace(PLAIN, base=INSTRUCT),
    "no replay": replace(PLAIN, replay=()),
    "no replay, Hugging Face": replace(PLAIN, replay=(), base=replace(LLAMA, kind="hugging_face")),
    "no replay, essential": replace(PLAIN, replay=(), general="essential"),
    "few replay": replace(PLAIN, replay=(corpus("web", 10_000_000),)),
    "constant phase": replace(PLAIN, base=CONSTANT),
    "constant phase, small": replace(PLAIN, base=CONSTANT, budget_tokens=10**9),
    "long context": replace(PLAIN, goal="long-context", new=(corpus("books", 10**10, 100_000),)),
    "64K": replace(PLAIN, goal="long-context", seq_length=65_536),
    "several sources": replace(
        PLAIN,
        new=(corpus("manuals", 3 * 10**9), corpus("cases", 7 * 10**6)),
        replay=(corpus("web", 10**11), corpus("code", 10**9)),
    ),
    "no validation": replace(PLAIN, valid=()),
    "only new validation": replace(PLAIN, valid=(held("new", "new"),)),
    "small model": replace(
        PLAIN, base=replace(LLAMA, parameters=120_000, vocab_size=300, max_positions=128, lr_peak=0.0)
    ),
}
GRID["small model"] = replace(GRID["small model"], budget_tokens=10**8)


def _corpora(prefix: str, least: int, most: int) -> st.SearchStrategy[tuple[Corpus, ...]]:
    sizes = st.lists(st.integers(2_000, 10**12), min_size=least, max_size=most)
    return sizes.map(lambda found: tuple(corpus(f"{prefix}{n}", size) for n, size in enumerate(found)))


any_facts = st.builds(
    Facts,
    base=st.sampled_from([LLAMA, INSTRUCT, CONSTANT, replace(LLAMA, max_positions=2048)]),
    new=_corpora("new", 1, 3),
    replay=_corpora("old", 0, 2),
    chat=st.just(()),
    valid=st.sampled_from([(), VALID, VALID[:1]]),
    losses=st.sampled_from([(), *(gap(nats) for nats in (-0.5, 0.3, 0.8, 3.0))]),
    budget_tokens=st.integers(5_000, 10**13),
    max_epochs=st.sampled_from([1.0, 1.5, 4.0, 10.0]),
    language=st.sampled_from(["same", "other", "unknown"]),
    general=st.sampled_from(["wanted", "essential"]),
    ranks=st.sampled_from([1, 3, 8, 64]),
)
"""All that a command line could name, within reason."""


def with_chat(facts: Facts, tokens: int) -> Facts:
    """The same for an instruct base with conversations."""
    return replace(facts, base=replace(facts.base, instruct=True), chat=(corpus("talk", tokens),))
