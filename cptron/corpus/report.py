"""The report of a curation: `report.json` for programs, `report.md` for people, `timing.json` for the impatient.

Place in the flow: `publish` writes it beside the output. Invariant: report.json and report.md depend on the counts
alone, as the output does; what differs from run to run is in timing.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cptron.corpus.counts import Amount, StepCounts
from cptron.corpus.manifest import CorpusManifest
from cptron.corpus.summary import SourceSums, Summary
from cptron.durable import replace_text

_MOST_TALLIES = 40
"""Lines of what else a step counts; report.json has all."""
_SAMPLE_CHARACTERS = 160
_MARKUP = re.compile(r"[\\`|<>\[\]*]|(?<!\w)_|_(?!\w)")
"""What Markdown would take for its own in the middle of a line."""


def write_reports(output: Path, manifest: CorpusManifest, summary: Summary) -> None:
    """Write all three into `output`, in place of older ones."""
    content = {
        "fingerprint": manifest.fingerprint,
        "records_read": manifest.records_read,
        "records_rejected": manifest.records_rejected,
        "documents": manifest.documents,
        "text_bytes": manifest.text_bytes,
        "tokens": manifest.tokens,
        "steps": [
            _step(step) | {"figures": summary.figures.get(name, {})} for name, step in summary.steps.items()
        ],
        "sources": {name: _source(source) for name, source in summary.sources.items()},
    }
    replace_text(output / "report.json", json.dumps(content, indent=2, ensure_ascii=True) + "\n")
    replace_text(output / "report.md", "\n".join(_page(manifest, summary)) + "\n")
    replace_text(output / "timing.json", json.dumps(_timing(summary), indent=2) + "\n")


def _step(counts: StepCounts) -> dict[str, Any]:
    content = counts.as_json()
    content.pop("cpu_s")
    content["dropped"] = dict(sorted(content["dropped"].items()))
    content["tally"] = dict(sorted(content["tally"].items()))
    content["samples"] = {
        reason: [{key: value for key, value in sample.items() if key != "key"} for sample in samples]
        for reason, samples in sorted(content["samples"].items())
    }
    return content


def _source(source: SourceSums) -> dict[str, Any]:
    steps = [_step(step) for step in source.steps.values()]
    for step in steps:
        step.pop("samples")  # those over all sources are enough
    return {
        "text_key": source.text_key,
        "records": source.records,
        "rejected": dict(sorted(source.rejected.items())),
        "read": asdict(source.read),
        "written": asdict(source.written),
        "tokens": source.tokens or None,
        "steps": steps,
    }


def _timing(summary: Summary) -> dict[str, Any]:
    steps = {
        step.name: {
            "cpu_s": round(step.cpu_s, 3),
            "mb_per_cpu_s": round(step.came.bytes / 1e6 / step.cpu_s, 2) if step.cpu_s else None,
        }
        for step in summary.steps.values()
    }
    return {"steps": steps, "reading_and_writing_cpu_s": round(summary.other_cpu_s, 3)}


def _page(manifest: CorpusManifest, summary: Summary) -> Iterator[str]:
    tokens = "" if manifest.tokens is None else f", {manifest.tokens:,} tokens"
    yield from ("# Curation report", "")
    amount = f"{_mb(manifest.text_bytes)}{tokens}"
    yield f"{manifest.records_read:,} records in, {manifest.documents:,} documents out ({amount})."
    yield from ("", f"Fingerprint `{manifest.fingerprint[:16]}`.", "", "## Sources", "")
    yield from _table(
        ["source", "text at", "records", "damaged", "documents in", "MB in", "documents out", "MB out", "kept"],
        [
            [
                name, _cell(source.text_key), f"{source.records:,}", f"{source.rejected.total():,}",
                *_amount(source.read), *_amount(source.written), _share(source.written.bytes, source.read.bytes),
            ]
            for name, source in summary.sources.items()
        ],
    )  # fmt: skip
    yield from ("", "## Steps", "")
    yield from _table(
        ["step", "documents in", "MB in", "documents out", "MB out", "dropped", "changed"],
        [
            [
                step.name, *_amount(step.came), *_amount(step.left),
                f"{sum(amount.documents for amount in step.dropped.values()):,}", f"{step.changed:,}",
            ]
            for step in summary.steps.values()
        ],
    )  # fmt: skip
    if rejected := summary.rejected:
        yield from ("", "## Damaged records", "", "They are in `quarantine.jsonl` with file and line.", "")
        yield from _table(
            ["reason", "records"], [[reason, f"{count:,}"] for reason, count in sorted(rejected.items())]
        )
        if count := rejected["truncated"]:
            yield from ("", cut_short(count))
    for step in summary.steps.values():
        figures = summary.figures.get(step.name, {})
        if step.dropped or step.tally or figures:
            yield from _step_section(step, figures)


def cut_short(count: int) -> str:
    """What so many records of the reason `truncated` mean: each of them stands for all behind it."""
    files = "1 file is" if count == 1 else f"{count:,} files are"
    return f"{files} cut off or damaged: nobody knows how much is missing behind the records that `truncated` names."


def _step_section(step: StepCounts, figures: Mapping[str, float]) -> Iterator[str]:
    yield from ("", f"## {step.name}")
    if figures:
        rows = [[_cell(name), f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"]
                for name, value in figures.items()]  # fmt: skip
        yield from ("", *_table(["figure", "value"], rows))
    if step.dropped:
        rows = [[reason, *_amount(amount)] for reason, amount in _most_first(step)]
        yield from ("", *_table(["dropped for", "documents", "MB"], rows))
    if step.tally:
        rows = [[_cell(name), f"{count:,}"] for name, count in step.tally.most_common()]
        rows.sort(key=lambda row: (-int(row[1].replace(",", "")), row[0]))
        yield from ("", *_table(["counted", "times"], rows[:_MOST_TALLIES]))
    for reason, _ in _most_first(step):
        yield from ("", f"Dropped for `{reason}`:", "")
        for sample in step.samples[reason]:
            detail = f" ({_cell(sample['detail'])})" if sample["detail"] else ""
            yield f"- {_code(sample['id'])}{detail}: {_cell(sample['text'][:_SAMPLE_CHARACTERS])}"


def _most_first(step: StepCounts) -> list[tuple[str, Amount]]:
    return sorted(step.dropped.items(), key=lambda item: (-item[1].documents, item[0]))


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headers)} |"
    yield f"|{'---|' * len(headers)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _amount(amount: Amount) -> list[str]:
    return [f"{amount.documents:,}", f"{amount.bytes / 1e6:,.2f}"]


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.2f} MB"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _cell(text: str) -> str:
    """Text of a corpus on one line, in which nothing is a table's border, a link or a tag."""
    return _MARKUP.sub(r"\\\g<0>", _line(text))


def _code(text: str) -> str:
    """A name that can be copied: between backticks every character stands for itself."""
    return f"`{_line(text).replace('`', chr(39))}`"


def _line(text: str) -> str:
    return "".join(char for char in " ".join(text.split()) if char.isprintable() or char == " ")
