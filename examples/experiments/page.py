"""The page of the experiments, made from their results.

Place in the flow: `results.json` -> here -> `docs/experiments/README.md`. Invariant: a pure function of the results; no
number on the page is written by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from examples.experiments.claims import Json, alarm_steps, change, loss, name_of
from examples.experiments.plan import EXPERIMENTS

INTRODUCTION = """# Experiments

What replay, learning rate, monitor and selector do to a real model on real text, at a size that a CPU can afford.
Made by

```bash
make experiments
```

from [results.json](results.json): a test holds that this page and every verdict on it follow from the raw numbers
there. The program and its configurations are in [examples/experiments](../../examples/experiments)."""

RULES = """- One row is one run of `cptron train` from the same base. All runs of a table see the same number of tokens:
  what replay takes, new text lacks. At {percent} % replay there are {tokens:,} tokens of old text, about {sequences}
  sequences.
- Old text is held-out introductions of Wikipedia articles, and others of them are replayed. New text is held out by
  document.
- Changes are against the base (step 0), in nats per token, with the 95 % interval of the paired bootstrap over windows
  that [the monitor](../forgetting.md) uses. It tells how well the windows stand for the text, and nothing of what
  another seed would give.
- Claims, limits and epsilon were fixed before the runs, and the peak rate by a pilot without replay. After the first
  evaluations two things were added for the last claim: interpolations with the base, where no checkpoint is within
  epsilon, and the checkpoints of 1 % replay, for which that run was made again. The peak rate was halved after one
  evaluation of that pilot.
- After the first two runs the configurations were given `parallel.local_ranks: 1`, with which all had run; the marks by
  which the program knows finished runs were brought in line by hand, the numbers were not touched.
- A claim holds or does not hold by its estimates."""

LIMITS = """## What this does not show

- It is one model of 135 M parameters, one draw of the data a row ({seeds}), {tokens:,} tokens a run; the published
  tables that the claims come from have 200 to 300 billion (arXiv 2403.08763, as reported). Shapes can be compared,
  sizes of effects cannot.
- The base was tuned on instructions, and the text of its own pretraining is not at hand. Wikipedia stands for it; so
  replay also teaches how these introductions are written, and old text can end better than it began. No run on old text
  alone tells how much of that is such learning.
- The held-out old text is like the replayed one. What becomes of other abilities was not measured."""


def page(results: Mapping[str, Any]) -> str:
    """The whole page."""
    runs = results["runs"]
    seeds = ", ".join(f"seed {seed}" for seed in sorted({run["seed"] for run in runs}))
    parts = [INTRODUCTION, _set_up(results), _summary(results["claims"])]
    for experiment in EXPERIMENTS:
        own = [run for run in runs if run["experiment"] == experiment.name]
        if own:
            claims = [claim for claim in results["claims"] if claim["experiment"] == experiment.name]
            parts.append(_section(experiment.name, experiment.title, own, claims))
    if results["not_run"]:
        parts.append(f"Planned, and not run yet: {', '.join(results['not_run'])}.")
    parts.append(
        LIMITS.format(seeds=seeds, tokens=sum(runs[0]["tokens"].values())) + _better_without_replay(runs)
    )
    return "\n\n".join(parts) + "\n"


def _set_up(results: Mapping[str, Any]) -> str:
    runs = results["runs"]
    minutes = sum(run["wall_s"] for run in runs) / 60
    rows = [
        ("model", results["model"]),
        ("run", results["run"]),
        ("machine", f"{results['machine']}; {results['workers']} runs at a time, one thread each"),
        (
            "time",
            f"{minutes:.0f} minutes, the sum over {len(runs)} runs, on a machine that may have had other work",
        ),
        ("versions", ", ".join(f"{name} {number}" for name, number in results["versions"].items())),
        ("code", f"commit {results['commit']}"),
        ("date", results["date"]),
    ]
    least = min((run for run in runs if run["replay_percent"]), key=replayed_tokens)
    tokens = replayed_tokens(least)
    rules = RULES.format(
        percent=least["replay_percent"], tokens=tokens, sequences=round(tokens / results["sequence_tokens"])
    )
    return f"## Set-up\n\n{_table(['', ''], rows)}\n\n{rules}"


def replayed_tokens(run: Mapping[str, Any]) -> int:
    """Of old text, that a run was trained on."""
    return sum(int(count) for name, count in run["tokens"].items() if name != run["experiment"])


def _summary(claims: Sequence[Mapping[str, Any]]) -> str:
    rows = [(claim["experiment"], claim["claim"], verdict(claim)) for claim in claims]
    return "## Claims\n\n" + _table(["experiment", "claim", "verdict"], rows)


def _better_without_replay(runs: Sequence[Mapping[str, Any]]) -> str:
    """A remark on runs that say so: nothing was replayed, and old text ends better than it began."""
    found = [(run, change(run, "old")) for run in runs if run["replay_percent"] == 0]
    rows = [
        f"{run['experiment']} at a peak of {run['lr']:g}: {interval(old)}"
        for run, old in found
        if old.high < 0
    ]
    if not rows:
        return ""
    return (
        f"\n- Old text ends better than it began even without replay ({'; '.join(rows)}): the base\n"
        "  gains on plain text whatever plain text it is trained on. So changes against the base understate what was\n"
        "  forgotten; differences between rows do not."
    )


def verdict(claim: Mapping[str, Any]) -> str:
    """In a word or three."""
    return "holds" if claim["holds"] else "**does not hold**"


def _section(name: str, title: str, runs: Sequence[Mapping[str, Any]], claims: Sequence[Json]) -> str:
    ordered = sorted(runs, key=lambda run: (-run["rate"], run["replay_percent"], run["seed"]))
    rows = [_row(run) for run in ordered]
    head = [
        "replay",
        "peak rate",
        "seed",
        "tokens new / replayed",
        "old: loss",
        "old: change",
        "new: loss",
        "new: change",
        "alarm at step",
    ]
    verdicts = "\n".join(
        f"- {claim['claim']} {verdict(claim).capitalize()}. {claim['why']}" for claim in claims
    )
    pictures = "\n".join(
        f"![{what}]({name}_{kind}.svg)"
        for kind, what in (
            ("replay", "change of loss against the share of replay"),
            ("forgetting", "change on old text against tokens"),
            ("learning", "change on new text against tokens"),
        )
    )
    selected = [row for run in ordered if run["selection"] for row in _selection_rows(run)]
    table = _table(["run", "model", "old: change", "new: change", "within epsilon", "chosen"], selected)
    choice = f"\n\n`cptron select`, on the runs whose checkpoints were kept:\n\n{table}" if selected else ""
    return f"## {title}\n\n{_table(head, rows)}\n\n{verdicts}\n\n{pictures}{choice}"


def _row(run: Mapping[str, Any]) -> tuple[str, ...]:
    new, steps = run["tokens"][run["experiment"]], alarm_steps(run)
    return (
        f"{run['replay_percent']} %",
        f"{run['lr']:g}",
        str(run["seed"]),
        f"{new:,} / {replayed_tokens(run):,}",
        f"{loss(run, 'old'):.3f}",
        interval(change(run, "old")),
        f"{loss(run, 'new'):.3f}",
        interval(change(run, "new")),
        ", ".join(map(str, steps)) or "-",
    )


def _selection_rows(run: Mapping[str, Any]) -> list[tuple[str, ...]]:
    selection = run["selection"]
    checkpoints = sorted(selection["candidates"], key=lambda row: row["step"])
    grid = sorted(
        (row for row in selection["grid"] if row["alpha"] is not None), key=lambda row: row["alpha"]
    )
    return [
        (
            f"{run['replay_percent']} % replay",
            name_of(row) if row["alpha"] is None else f"{name_of(row)} of {selection['grid_of']}",
            numbers(row["old_change_nats"]),
            numbers(row["new_change_nats"]),
            "yes" if row["is_within_epsilon"] else "no",
            "chosen" if row["is_chosen"] else "",
        )
        for row in [*checkpoints, *grid]
    ]


def interval(found: Any) -> str:
    """Estimate and ends."""
    return numbers((found.estimate, found.low, found.high))


def numbers(ends: Sequence[float]) -> str:
    """The same of three numbers."""
    return f"{ends[0]:+.3f} [{ends[1]:+.3f}, {ends[2]:+.3f}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines)
