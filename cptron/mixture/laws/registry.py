"""The laws by name, and the law that suits given data.

Place in the flow: `fit` chooses here, `fit_file` finds a stored law again. Invariant: a law is rebuilt from what is
stored beside its parameters, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cptron.errors import DataError, either
from cptron.mixture.laws.d_cpt import DCPTLaw
from cptron.mixture.laws.exponential import ExponentialLaw
from cptron.mixture.laws.law import Law
from cptron.mixture.laws.power import PowerLaw, TwoPowers
from cptron.mixture.laws.ridge import RidgeLaw
from cptron.mixture.points import SCALARS

LAWS = {
    "cmr": "αR^s+β of the own percentage, at one model size and one number of tokens (arXiv 2407.17467)",
    "cmr-tokens": "powers of the tokens at each measured mixture, and the critical ratio that follows (same paper)",
    "d-cpt": "E + A/N^α + B r^η/D^β + C/(r+ε)^γ; with a learnability also + F/K^μ (arXiv 2406.01375)",
    "mixing": "c + k exp(Σ t_j r_j) over all shares (arXiv 2403.16952)",
    "regmix": "ridge regression on x, √x, log(x + 0.001) of all shares (arXiv 2407.01492)",
}
"""What `--law` takes."""


def law_for(
    name: str, domains: Sequence[str], own: Sequence[int], varied: Sequence[str], *, old: bool
) -> Law:
    """The law of one loss. `own` are the positions of its domains, `varied` the scalars that have several values;
    `old`: the loss is the one that may be forgotten."""
    if name == "cmr":
        return PowerLaw(tuple(own))
    if name == "cmr-tokens":
        return TwoPowers() if old else PowerLaw(())
    if name == "d-cpt":
        return DCPTLaw(tuple(own), tuple(varied))
    assert name in ("mixing", "regmix"), f"the command offers what is in LAWS, not {name}"
    return ExponentialLaw(tuple(domains)) if name == "mixing" else RidgeLaw(tuple(domains))


def settings_of(law: Law) -> dict[str, Any]:
    """What rebuilds the law, as JSON."""
    if isinstance(law, PowerLaw):
        return {"kind": "power", "own": list(law.own)}
    if isinstance(law, TwoPowers):
        return {"kind": "two_powers"}
    if isinstance(law, DCPTLaw):
        return {"kind": "d_cpt", "own": list(law.own), "terms": list(law.terms)}
    assert isinstance(law, ExponentialLaw | RidgeLaw), f"a new law, {law!r}, must be stored here"
    return {
        "kind": "exponential" if isinstance(law, ExponentialLaw) else "ridge",
        "domains": list(law.domains),
    }


def stored_law(settings: dict[str, Any], domains: Sequence[str]) -> Law:
    """The law that `settings_of` described. Raises `DataError` where it describes none over these domains."""
    kinds = ("power", "two_powers", "d_cpt", "exponential", "ridge")
    kind = settings.get("kind")
    own, terms = settings.get("own", []), settings.get("terms", [])
    whole = isinstance(own, list) and all(type(i) is int and 0 <= i < len(domains) for i in own)
    known = isinstance(terms, list) and all(term in SCALARS for term in terms)
    if kind not in kinds or not whole or not known or (kind == "d_cpt" and not own):
        raise DataError(f"law {settings!r:.200} must be {either(kinds)} with domains that exist; fit again")
    if kind == "power":
        return PowerLaw(tuple(own))
    if kind == "two_powers":
        return TwoPowers()
    if kind == "d_cpt":
        return DCPTLaw(tuple(own), tuple(terms))
    if settings.get("domains") != list(domains):
        raise DataError(f"law {settings!r:.200} must be over the domains {', '.join(domains)}; fit again")
    return ExponentialLaw(tuple(domains)) if kind == "exponential" else RidgeLaw(tuple(domains))
