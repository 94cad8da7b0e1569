"""`python -m examples.recipes.plans`: writes what `cptron plan` says of every recipe, and the table in README.md.

Place in the flow: run from the top of the repository after a recipe or the planner has changed; a test
makes both again and compares. Invariant: what is written is the output of the command that stands above it, so that a
reader can repeat it.
"""

from __future__ import annotations

import io
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cptron import cli
from cptron.durable import replace_text
from cptron.plan.shown import plan_lines

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
README = HERE / "README.md"
UNITS = (("days", 1), ("hours", 24), ("min", 1440), ("s", 86400))
MARKS = ("<!-- plans -->\n", "<!-- end of plans -->\n")
RECIPES = "examples/recipes"


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A recipe with what it is planned for."""

    recipe: str
    """Name of its file without `.yaml`."""
    what: str
    """For the index."""
    clusters: tuple[str, ...]
    """Arguments of `cptron plan`, one plan each."""

    @property
    def commands(self) -> tuple[str, ...]:
        """What a reader types."""
        return tuple(f"cptron plan {RECIPES}/{self.recipe}.yaml {arguments}" for arguments in self.clusters)


def h100s(*counts: int, more: str = "") -> tuple[str, ...]:
    """Arguments for so many H100."""
    return tuple(f"--gpus {count} --gpu h100{more}" for count in counts)


PLANNED = (
    Planned(
        recipe="llama3_8b_h100",
        what="Llama 3.1 8B on a domain, bf16",
        clusters=h100s(64, 512, more=" --tokens 50e9"),
    ),
    Planned(
        recipe="llama3_8b_fp8",
        what="the same in FP8",
        clusters=h100s(64, 512, more=" --tokens 50e9"),
    ),
    Planned(recipe="llama3_70b_h100", what="Llama 3.1 70B on a domain, bf16", clusters=h100s(64, 512)),
    Planned(recipe="llama3_70b_fp8", what="the same in FP8", clusters=h100s(64, 512)),
    Planned(
        recipe="llama3_1b_vietnamese",
        what="Llama 3.2 1B, another language: 20.9 GB of Vietnamese",
        clusters=h100s(8),
    ),
    Planned(
        recipe="qwen25_7b_domain",
        what="Qwen2.5 7B on a domain, replay in two languages and code",
        clusters=h100s(32),
    ),
    Planned(
        recipe="legal_medical_70_30",
        what="Llama 3.1 8B on law and medicine, 70 : 30, with a monitor",
        clusters=h100s(32),
    ),
    Planned(recipe="code_85_8_7", what="Llama 2 7B on code, 85 : 8 : 7 as Code Llama", clusters=h100s(128)),
    Planned(
        recipe="math_llemma",
        what="Code Llama 7B on mathematics, as Llemma",
        clusters=(*h100s(128), "--gpus 256 --gpu a100-40gb --interconnect hdr200"),
    ),
    Planned(
        recipe="long_64k_prolong",
        what="Llama 3 8B Instruct to 64K tokens, as ProLong",
        clusters=h100s(64),
    ),
    Planned(recipe="long_512k_prolong", what="from there to 512K tokens", clusters=h100s(128)),
    Planned(
        recipe="long_1m_ultralong",
        what="Llama 3.1 8B Instruct to 1M tokens, as UltraLong",
        clusters=h100s(64),
    ),
    Planned(
        recipe="llama3_8b_instruct",
        what="Llama 3.1 8B Instruct on a domain, with chats, so that it goes on following instructions",
        clusters=h100s(32),
    ),
    Planned(
        recipe="llama3_8b_forgetting",
        what="little replay, and a monitor that takes more where the model forgets",
        clusters=h100s(32),
    ),
    Planned(
        recipe="llama3_8b_stages", what="questions, domain, long samples: three stages", clusters=h100s(32)
    ),
    Planned(
        recipe="llama3_8b_infinite",
        what="data that never ends: an infinite schedule to anneal from",
        clusters=h100s(32),
    ),
    Planned(recipe="llama3_8b_lora", what="LoRA beside the frozen 8B, on one GPU", clusters=h100s(1)),
    Planned(
        recipe="smollm2_135m_laptop",
        what="SmolLM2 135M on a laptop; planned for one gaming GPU",
        clusters=("--gpus 1 --gpu rtx4090 train.precision=bf16",),
    ),
)
"""In the order of the index."""


def plan(command: str) -> dict[str, Any]:
    """What the command finds, as JSON. Raises `RuntimeError` with the command where it refuses."""
    said = io.StringIO()
    with redirect_stdout(said):
        code = cli.main([*shlex.split(command)[1:], "--json"])
    if code:
        raise RuntimeError(f"{command} ends with {code}")
    found: dict[str, Any] = json.loads(said.getvalue())
    return found


def text_of(planned: Planned, records: Mapping[str, dict[str, Any]]) -> str:
    """The file beside the recipe: each command, and below it what it prints."""
    blocks = ["\n".join([f"$ {command}", *plan_lines(records[command])]) for command in planned.commands]
    return "\n\n\n".join(blocks) + "\n"


def index(records: Mapping[str, dict[str, Any]], recipes: Sequence[Planned] = PLANNED) -> str:
    """The table of README.md: of each recipe the first plan's layout, time and cost, with their ranges."""
    lines = [
        "| recipe | what | planned for | tokens | time | GPU-hours | USD |",
        "|---|---|---|---|---|---|---|",
    ]
    for planned in recipes:
        record = records[planned.commands[0]]
        best, cluster = record["layouts"][0], record["cluster"]
        name = f"[{planned.recipe}]({planned.recipe}.yaml)"
        cells = [
            f"{name} ([plan](plans/{planned.recipe}.txt))",
            planned.what,
            f"{cluster['num_gpus']} {cluster['gpu']['name']}",
            f"{best['tokens'] / 1e9:.3g} B" if best["tokens"] >= 1e9 else f"{best['tokens'] / 1e6:.3g} M",
            _time(best["days"]),
            *(_range(best[key]) for key in ("gpu_hours", "usd")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _time(days: Mapping[str, float]) -> str:
    """In the largest unit of which it has one."""
    unit, in_a_day = next(
        ((unit, count) for unit, count in UNITS if days["expected"] * count >= 1), UNITS[-1]
    )
    return f"{_range({name: value * in_a_day for name, value in days.items()})} {unit}"


def _range(values: Mapping[str, float]) -> str:
    expected, low, high = (_number(values[name]) for name in ("expected", "low", "high"))
    return f"{expected} ({low} to {high})"


def _number(value: float) -> str:
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"


def with_index(readme: str, table: str) -> str:
    """README.md with the table between its marks."""
    before, _, rest = readme.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}{table}{MARKS[1]}{after}"


def main() -> int:
    """Write all of it."""
    records = {command: plan(command) for planned in PLANNED for command in planned.commands}
    (HERE / "plans").mkdir(exist_ok=True)
    for planned in PLANNED:
        replace_text(HERE / "plans" / f"{planned.recipe}.txt", text_of(planned, records))
    replace_text(README, with_index(README.read_text(), index(records)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
