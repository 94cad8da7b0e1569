"""What a plan says of chats: what loss masks leave of them, whether an instruct model gets any, and in which order.

Place in the flow: `preflight`, before any rank is started. Imports no torch. Invariant: it only tells; a base that has
a chat template is never trained without chats, or with unusually few or many as replay, in silence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cptron.checkpoint import layout
from cptron.config.schema import Config
from cptron.data.content import Content
from cptron.data.source import open_learned
from cptron.tokens.chat_template import source_sha256
from cptron.train.origin import Origin

USUAL = (0.01, 0.05)
"""Share of the tokens that chats of role replay usually have; reported, see docs/instruction.md."""
_SAMPLE_BLOCKS = 64
_SAMPLE_BYTES = 1 << 18

Blend = tuple[str, dict[str, float]]
"""Where it is in force (empty: in the whole run), and the share of each source that it draws, of sum 1."""


def chat_notes(config: Config, origin: Origin, contents: Mapping[str, Content]) -> tuple[str, ...]:
    """One line each. `contents` has every source, by name. Raises DataError where a loss mask is damaged."""
    blends = _blends(config)
    learned = {
        source.name: learned_part(open_learned(source.path, contents[source.name]))
        for source in config.data.sources
    }
    masked = [_masked(name, part, learned, blends) for name, part in learned.items() if part < 1]
    template = next(filter(None, map(source_sha256, _small_files(origin))), "")
    of_the_base = [*_replay(config, contents, blends), *_templates(template, contents)] if template else []
    return (*masked, *of_the_base, *_orders(config, contents))


def learned_part(mask: np.ndarray) -> float:
    """Part of the tokens that a loss mask counts, of samples of a large one; 1 where there is no mask."""
    if not mask.size:
        return 1.0
    count = min(_SAMPLE_BLOCKS, -(-mask.size // _SAMPLE_BYTES))
    starts = [mask.size * number // count for number in range(count)]
    parts = [mask[start : min(start + _SAMPLE_BYTES, mask.size)] for start in starts]
    return float(sum(np.count_nonzero(part) for part in parts) / sum(map(len, parts)))


def _blends(config: Config) -> list[Blend]:
    data = config.data
    usual = {source.name: source.token_share for source in data.sources}
    named = [
        (f" in data.stages.{number}", dict(stage.shares) or usual) for number, stage in enumerate(data.stages)
    ]
    return [
        (where, {name: share / math.fsum(shares.values()) for name, share in shares.items() if share})
        for where, shares in named or [("", usual)]
    ]


def _masked(name: str, part: float, learned: Mapping[str, float], blends: Sequence[Blend]) -> str:
    """What a source's share of the tokens read is of those trained on."""
    told = []
    for where, shares in blends:
        total = math.fsum(share * learned[other] for other, share in shares.items())
        if name in shares and total:
            told.append(
                f"{_percent(shares[name])} of the tokens read, {_percent(shares[name] * part / total)} of those "
                f"trained on{where}"
            )
    return f"source {name}: its loss mask counts {_percent(part)} of its tokens; {', '.join(told) or 'never drawn'}"


def _replay(config: Config, contents: Mapping[str, Content], blends: Sequence[Blend]) -> list[str]:
    """Of a base that can chat."""
    chats = {name for name, content in contents.items() if _option(content, "chat_template")}
    drawn = {name for _, shares in blends for name in shares}
    if not chats & drawn:
        return [
            "the base model has a chat template, but no source is known to hold chats: it may forget to follow "
            "instructions; mix 1 to 5 % of chats with role replay (docs/instruction.md)"
        ]
    replayed = {source.name for source in config.data.sources if source.role == "replay"} & chats
    least, most = USUAL
    unusual = []
    for where, shares in blends:
        share = math.fsum(shares.get(name, 0.0) for name in replayed)
        if replayed and not least - 1e-9 <= share <= most + 1e-9:
            unusual.append(f"{_percent(share)} of the tokens{where}")
    if not unusual:
        return []
    return [
        f"chats of role replay ({', '.join(sorted(replayed))}) are {', '.join(unusual)}; usual for an instruct model "
        "are 1 to 5 % (docs/instruction.md)"
    ]


def _templates(of_base: str, contents: Mapping[str, Content]) -> list[str]:
    return [
        f"source {name} was rendered by another chat template than the base model's, and teaches other turns; run "
        "cptron preprocess with the base model's directory"
        for name, content in contents.items()
        if _option(content, "chat_template_source") not in ("", of_base)
    ]


def _orders(config: Config, contents: Mapping[str, Content]) -> list[str]:
    return [
        f"source {source.name} holds chats and texts in the order of its file, which order=shuffled does not keep; "
        "order=given does, as for questions before their document"
        for source in config.data.sources
        if _option(contents[source.name], "chat_and_text") and source.order == "shuffled"
    ]


def _small_files(origin: Origin) -> list[Path]:
    """Where what lay beside the weights is: config, tokenizer, chat template."""
    if origin.hugging_face is not None:
        return [origin.hugging_face]
    return [path / layout.HUGGING_FACE for path in (origin.base, origin.branch_from) if path is not None]


def _option(content: Content, name: str) -> str:
    return str(content.manifest.options.get(name, "")) if content.manifest is not None else ""


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
