"""Limits of a loss, and what becomes of a document beyond them.

Place in the flow: shared by the steps that measure perplexity. Invariant: a document that stays carries its losses.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

from cptron.corpus.document import Document, Dropped, Result

Measure = Literal["nats_per_token", "bits_per_byte", "perplexity"]


class LimitSettings(Protocol):
    """Settings of every such step."""

    @property
    def measure(self) -> Measure: ...
    @property
    def least(self) -> float: ...
    @property
    def most(self) -> float: ...


def limits_problem(config: LimitSettings) -> str:
    """What is wrong with the settings, if anything."""
    if config.least < 0 or (config.most and config.most < config.least):
        return (
            f"least {config.least} must be 0 or more, and most {config.most} 0 or not below it; correct them"
        )
    return ""


def within_limits(
    document: Document, name: str, config: LimitSettings, nats_per_token: float, bits_per_byte: float
) -> Result:
    """The document with its losses in its metadata, or dropped."""
    values = {
        "nats_per_token": round(nats_per_token, 4),
        "bits_per_byte": round(bits_per_byte, 4),
        "perplexity": round(math.exp(min(nats_per_token, 700.0)), 2),
    }
    value = values[config.measure]
    if value < config.least:
        return Dropped("too_predictable", f"{config.measure} {value}")
    if config.most and value > config.most:
        return Dropped("too_surprising", f"{config.measure} {value}")
    return document.with_meta(
        **{
            f"{name}_nats_per_token": values["nats_per_token"],
            f"{name}_bits_per_byte": values["bits_per_byte"],
        }
    )
