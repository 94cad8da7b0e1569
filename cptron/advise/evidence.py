"""What choices rest on: each piece of published or measured evidence once, with how it is known and what disagrees.

Place in the flow: `rules_*` cite entries by name; the written configuration, `--json` and docs/advice.md show them.
Invariant: every name in `against` is an entry, and disagreement is mutual.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Known = Literal["read", "second-hand", "from memory", "measured", "rule of thumb"]
Strength = Literal["good", "fair", "weak", "rule of thumb"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """One claim."""

    source: str
    """Paper with its number, project or documentation."""
    claim: str
    known: Known
    """`read`: in source code or official documentation. `second-hand`: reported by others, the paper itself was not
    read. `from memory`. `measured`: by this project, on models of 0.1 million parameters. `rule of thumb`: ours."""
    against: tuple[str, ...] = ()
    """Entries that say otherwise."""


def strength_of(names: Iterable[str]) -> Strength:
    """How well a choice is supported by these entries.

    `good`: two that were read, or one and two others. `fair`: one that was read, or two others. `weak`: one other.
    One level less where two of them disagree. `rule of thumb`: nothing but that.
    """
    cited = {name: EVIDENCE[name] for name in names}
    others = sum(one.known not in ("read", "rule of thumb") for one in cited.values())
    read = sum(one.known == "read" for one in cited.values())
    if not read + others:
        return "rule of thumb"
    level = 2 if read >= 2 or (read and others >= 2) else 1 if read or others >= 2 else 0
    level -= any(set(one.against) & cited.keys() for one in cited.values())
    return ("weak", "fair", "good")[max(level, 0)]


_MIX = {
    "ibrahim-replay": Evidence(
        source="Ibrahim et al. 2024, arXiv 2403.08763",
        claim="405M model, loss on old / new data: Pile to SlimPajama 2.44/2.50 without replay, 2.26/2.50 at 1 "
        "%, 2.23/2.51 at 5 %, 2.21/2.51 at 10 %, 2.16/2.54 at 50 %; Pile to German 3.56/1.11, 2.83/1.12, "
        "2.57/1.12, 2.46/1.13, at 25 % 2.33/1.16, 2.24/1.22. 1 % for a weak shift, 5 % and up to 25 % for a "
        "strong one",
        known="second-hand",
        against=("nemotron-tiers", "cmr-law", "poro2-mix"),
    ),
    "tiny-replay": Evidence(
        source="this project, docs/regularisers.md",
        claim="byte model of 0.12M parameters, Python to English, two seeds: 1, 5, 10, 25, 50 % replay take "
        "away about 40, 60, 70, 82, 92 % of the forgetting and cost 0.001, 0.01, 0.02, 0.06, 0.14 nats of new loss",
        known="measured",
    ),
    "nemotron-tiers": Evidence(
        source="NVIDIA Nemotron documentation",
        claim="general data for continued pretraining: 30 to 50 % at 1 to 5 B tokens, 40 to 60 % at 5 to 20 B, "
        "50 to 70 % at 20 to 50 B",
        known="read",
        against=("ibrahim-replay", "d-cpt-law", "injection"),
    ),
    "poro2-mix": Evidence(
        source="Poro 2 (Finnish, Llama 3.1 8B and 70B)",
        claim="30 % Finnish, 30 % English, 30 % code, 10 % mathematics over 165 B tokens; a mix of 70/25/4/1 "
        "lost about 10 points of English and mathematics",
        known="second-hand",
        against=("ibrahim-replay", "injection"),
    ),
    "qwen-coder-mix": Evidence(
        source="Qwen2.5-Coder",
        claim="70 % code, 20 % text, 10 % mathematics was best; MMLU 62.9, and 42.8 at 100 % code",
        known="second-hand",
    ),
    "cmr-law": Evidence(
        source="CMR law, arXiv 2407.17467",
        claim="largest share of new data that keeps the old loss within 0.05 nats: 0.30 to 0.48 for 460M to "
        "3.1B parameters at 20 B tokens",
        known="second-hand",
        against=("ibrahim-replay", "d-cpt-law"),
    ),
    "d-cpt-law": Evidence(
        source="D-CPT law, arXiv 2406.01375",
        claim="best share of new data 0.73 to 0.92; old loss may rise by 3 %",
        known="second-hand",
        against=("nemotron-tiers", "cmr-law"),
    ),
    "injection": Evidence(
        source="arXiv 2502.06042",
        claim="1 % of pretraining data mixed in was enough against forgetting in finetuning",
        known="second-hand",
        against=("nemotron-tiers", "poro2-mix"),
    ),
    "tokens-in-proportion": Evidence(
        source="this project",
        claim="sources of one kind share their part by their tokens, so that all are repeated alike; nothing "
        "says that it is best",
        known="rule of thumb",
    ),
    "shift-thresholds": Evidence(
        source="this project",
        claim="the base's loss on new less that on old data: below 0.6 nats per token a weak shift, from 1.2 a "
        "strong one. Ibrahim et al. report a gap of 0.49 (1.75 to 2.24, 10B model) for Pile to SlimPajama, "
        "which they call weak; the measured byte model had 1.4 nats per byte for Python to English. A gap is "
        "also how hard the text is",
        known="rule of thumb",
    ),
    "floors": Evidence(
        source="this project",
        claim="whatever changes shares on the way leaves replay half of what it was given",
        known="rule of thumb",
    ),
}

_AMOUNT = {
    "muennighoff": Evidence(
        source="Muennighoff et al. 2023, arXiv 2305.16264",
        claim="up to about 4 passes over the same data are nearly worth as much as new data, in pretraining",
        known="from memory",
        against=("poro2-repeats",),
    ),
    "polish-repeats": Evidence(
        source="a report on Polish pretraining",
        claim="5 B tokens of the best quality seen 4 times beat 50 B seen once",
        known="second-hand",
        against=("poro2-repeats",),
    ),
    "poro2-repeats": Evidence(
        source="Poro 2",
        claim="one pass; repeating data gave nothing",
        known="second-hand",
        against=("muennighoff", "polish-repeats"),
    ),
    "entigraph": Evidence(
        source="EntiGraph, Yang et al. 2024",
        claim="a corpus of 1.3 M tokens made into 455 M synthetic ones: QuALITY 39.5 to 56.2, with 10 % "
        "replay, rate 5e-6, 2 passes. Repeating a tiny corpus is not the same as more words for it",
        known="second-hand",
    ),
    "steps-for-a-schedule": Evidence(
        source="this project",
        claim="a batch is made smaller where it would leave less than 200 steps for warm-up and decay",
        known="rule of thumb",
    ),
    "megatron-mfu": Evidence(
        source="Megatron-LM's README",
        claim="41 to 48 % of the peak of H100 on large models",
        known="read",
    ),
    "sequence-8k": Evidence(
        source="this project",
        claim="8192 tokens, or all positions of the base where it has less: documents of a sample do not see "
        "each other, so short documents lose nothing, and long ones are cut less",
        known="rule of thumb",
    ),
}

_RATE = {
    "ibrahim-rate": Evidence(
        source="Ibrahim et al. 2024, arXiv 2403.08763",
        claim="warm up again to the peak of the pretraining, decay to a tenth; 0 to 2 % warm-up alike after 50 "
        "B tokens. More rate learns more and forgets more; warming up on the same data costs 0.1 to 0.2 nats",
        known="second-hand",
        against=("nemotron-steps", "parmar"),
    ),
    "poro2-rates": Evidence(
        source="Poro 2's scripts",
        claim="8B 3e-4, 70B 1.5e-4, cosine to 1e-8, warm-up 5 %",
        known="read",
        against=("nemotron-steps",),
    ),
    "large-batches": Evidence(
        source="Poro 2's scripts",
        claim="512 sequences of 8192 tokens",
        known="read",
    ),
    "small-batches": Evidence(
        source="Amazon Nova's documentation",
        claim="32 to 256 sequences of 8192",
        known="read",
    ),
    "decay-tenth": Evidence(
        source="scripts of Poro 2, Llemma and ProLong",
        claim="weight decay 0.1; ProLong betas 0.9 and 0.95, gradients clipped at 1",
        known="read",
        against=("decay-none",),
    ),
    "decay-none": Evidence(
        source="Amazon Nova's documentation",
        claim="weight decay 0, betas 0.9 and 0.95",
        known="read",
        against=("decay-tenth",),
    ),
    "llemma-config": Evidence(
        source="Llemma-7B's configuration",
        claim="1e-4 to 3.3 % of it, warm-up 500 steps",
        known="read",
    ),
    "code-llama": Evidence(
        source="Code Llama",
        claim="keeps the peak of Llama 2",
        known="from memory",
        against=("nemotron-steps",),
    ),
    "parmar": Evidence(
        source="Parmar et al. 2024, arXiv 2407.07263",
        claim="a 15B model goes on at the last rate of its pretraining, 4.5e-5, without warm-up, cosine to a "
        "hundredth, 300 B tokens",
        known="second-hand",
        against=("ibrahim-rate",),
    ),
    "nova-docs": Evidence(
        source="Amazon Nova's documentation",
        claim="1e-5 to 1e-6, warm-up 10 steps",
        known="read",
    ),
    "nemotron-steps": Evidence(
        source="NVIDIA Nemotron's steps",
        claim="1e-5 to 5e-5, 5 to 10 times below the pretraining",
        known="read",
        against=("ibrahim-rate", "poro2-rates", "code-llama"),
    ),
    "small-5e-6": Evidence(
        source="EntiGraph and ChipNeMo",
        claim="5e-6 for one domain",
        known="second-hand",
    ),
    "tiny-rate": Evidence(
        source="this project",
        claim="byte model of 0.12M parameters: a third of the peak forgets less (old loss 2.25 for 2.40) and "
        "learns less (1.75 for 1.69); twice the peak forgets more",
        known="measured",
    ),
    "hagele": Evidence(
        source="Hägele et al. 2024, arXiv 2405.18392",
        claim="a constant rate with a decay by 1 - sqrt over the last 10 to 20 % is about as good as cosine",
        known="second-hand",
        against=("poro2-wsd",),
    ),
    "poro2-wsd": Evidence(
        source="Poro 2",
        claim="WSD gave nothing over cosine",
        known="second-hand",
        against=("hagele", "infinite-shift"),
    ),
    "minicpm": Evidence(
        source="MiniCPM",
        claim="a decay over 10 % of the steps is enough, 2.5 % is not",
        known="second-hand",
    ),
    "infinite-shift": Evidence(
        source="arXiv 2503.02844",
        claim="infinite schedules beat repeated cosines under a shift of the data",
        known="second-hand",
        against=("poro2-wsd",),
    ),
    "tiny-constant-start": Evidence(
        source="this project",
        claim="byte model: going on from a base whose rate was not decayed ends 0.03 to 0.07 nats lower on "
        "both old and new data than from the decayed one, at the same tokens",
        known="measured",
    ),
    "nova-forge": Evidence(
        source="Amazon Nova Forge's documentation",
        claim="from about 10 B tokens start from a checkpoint before the decay, which is more plastic; below, "
        "or where instructions must be followed, from the finished model",
        known="read",
    ),
    "prolong-scripts": Evidence(
        source="ProLong's scripts, arXiv 2410.02660",
        claim="1e-5 at 64K tokens, 5e-6 at 512K, to a tenth, warm-up 10 %, 4 M and 8 M tokens a batch, "
        "documents masked; 60 % long documents (books, code), 40 % short ones",
        known="read",
        against=("ultralong", "nemotron-ultra"),
    ),
    "ultralong": Evidence(
        source="UltraLong, arXiv 2504.06214",
        claim="1 B tokens in one step of length, no document mask",
        known="second-hand",
        against=("prolong-scripts",),
    ),
    "nemotron-ultra": Evidence(
        source="Nemotron Ultra",
        claim="long context at a constant 2.5e-6 over 33 B tokens",
        known="second-hand",
        against=("prolong-scripts",),
    ),
}

_WATCH = {
    "epsilon-cmr": Evidence(
        source="CMR law, arXiv 2407.17467",
        claim="0.05 nats of old loss are the bound",
        known="second-hand",
        against=("epsilon-d-cpt",),
    ),
    "epsilon-d-cpt": Evidence(
        source="D-CPT law, arXiv 2406.01375",
        claim="3 % of the old loss are the bound",
        known="second-hand",
        against=("epsilon-cmr",),
    ),
    "stability-gap": Evidence(
        source="arXiv 2406.14833",
        claim="loss on old data overshoots early and comes back",
        known="second-hand",
    ),
    "tiny-overshoot": Evidence(
        source="this project",
        claim="byte model, 5 % replay: old loss 1.99 after a tenth of the run, 1.78 at its end",
        known="measured",
    ),
    "olmo-evals": Evidence(
        source="OLMo-core",
        claim="evaluates every 1000 steps, at the start and at the end",
        known="read",
    ),
    "context-collapse": Evidence(
        source="arXiv 2506.00288",
        claim="continued pretraining in another language without English: equal perplexity, in-context "
        "learning gone within about 1000 steps",
        known="second-hand",
    ),
    "reactions": Evidence(
        source="this project",
        claim="what the monitor does is proven to be done; how much it helps is not, and nobody is known to "
        "have published that",
        known="rule of thumb",
    ),
    "twenty-looks": Evidence(
        source="this project",
        claim="20 evaluations and 10 checkpoints a run: enough for a curve and for a choice among checkpoints",
        known="rule of thumb",
    ),
    "findap": Evidence(
        source="FinDAP",
        claim="instructions mixed in throughout were best; without them MT-Bench fell from 7.89 to about 1",
        known="second-hand",
        against=("residual",),
    ),
    "residual": Evidence(
        source="arXiv 2410.10739",
        claim="continued pretraining of an instruct model costs 10 points of IFEval; train the base model, and "
        "add the difference of the instruct and the base model afterwards (4 to 5 points better)",
        known="second-hand",
        against=("findap",),
    ),
    "tiny-regularisers": Evidence(
        source="this project, docs/regularisers.md",
        claim="byte model, without old data: decay to the start (strength 1) old loss 2.31 for 2.40 at a new "
        "loss of 1.71 for 1.69; 5 % replay 1.76 at 1.70. Interpolating with the base afterwards was better "
        "than both EWC and decay",
        known="measured",
    ),
    "freezing": Evidence(
        source="Li and Lee",
        claim="freezing lower layers alone does not prevent forgetting",
        known="second-hand",
    ),
    "tiny-freezing": Evidence(
        source="this project",
        claim="byte model: freezing embeddings and the first layer forgot less than nothing at all (2.28 for "
        "2.40) and learned least (1.87 for 1.69)",
        known="measured",
    ),
}

EVIDENCE: Mapping[str, Evidence] = {**_MIX, **_AMOUNT, **_RATE, **_WATCH}
"""Name -> entry."""
