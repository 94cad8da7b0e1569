"""A plan as text.

Place in the flow: `main` prints these lines, made of the record that `--json` prints. Invariant: what was not measured
is called a prediction where it stands, and carries its range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cptron.report.console import table

GIB = 2**30
Facts = Mapping[str, Any]


def plan_lines(record: Facts) -> list[str]:
    """The whole plan, the best layout first."""
    return [
        *_head(record),
        *(f"note     {note}" for note in record.get("notes", [])),
        "",
        *_recipe(record["as_written"]),
        "",
        *_ranking(record),
        "",
        *_run(record),
        "",
        *_outputs(record),
    ]


def _head(record: Facts) -> list[str]:
    cluster, model, efficiency = record["cluster"], record["model"], record["efficiency"]
    gpu = cluster["gpu"]
    known = "fitted to a log" if efficiency["is_measured"] else "a prediction, nothing of it measured"
    return [
        f"model    {model['family']}, {model['parameters'] / 1e9:.3f} B parameters; "
        f"{model['flops_per_token_causal'] / 1e9:.2f} GFLOP a token with causal attention, "
        f"{model['flops_per_token_full_attention'] / 1e9:.2f} with the full square",
        f"cluster  {cluster['num_gpus']} x {gpu['name']} ({gpu['memory_gib']:g} GiB, {gpu['bf16_tflop_per_s']:g} "
        f"TFLOP/s bf16), {cluster['gpus_per_node']} a node, {cluster['network_gb_per_s']:g} GB/s a GPU between nodes",
        f"speed    {known}: matrix products reach {efficiency['expected']:.0%} of the peak "
        f"({efficiency['low']:.0%} to {efficiency['high']:.0%}; {efficiency['source']})",
    ]


def _recipe(facts: Facts) -> list[str]:
    if "refused" in facts:
        return [f"as written: refused by the trainer: {facts['refused']}"]
    memory = facts["memory"]
    left = memory["left_bytes"] / GIB
    verdict = f"fits, {left:.1f} GiB left" if left >= 0 else f"does NOT fit, {-left:.1f} GiB too much"
    parts = ", ".join(
        f"{name} {memory[name] / GIB:.1f}"
        for name in (
            "weights",
            "gradients",
            "optimizer",
            "teacher",
            "activations",
            "working",
            "slack",
            "context",
        )
        if memory[name]
    )
    return [
        f"as written: {facts['layout']}, {verdict}: {memory['total'] / GIB:.1f} GiB a GPU at most ({parts}); "
        f"{facts['step_time_s']:.2f} s a step"
    ]


def _ranking(record: Facts) -> list[str]:
    rows = []
    for facts in record["layouts"]:
        memory = facts["memory"]
        chosen = dict(item.split("=", 1) for item in facts["overrides"])
        recompute = chosen["memory.recompute"]
        if recompute == "full" and chosen["memory.recompute_layers"] != "0":
            recompute = f"{chosen['memory.recompute_layers']} layers"
        rows.append(
            [
                facts["layout"],
                chosen["train.micro_batch_size"],
                recompute if recompute != "selective" else "mlp",
                f"{facts['step_time_s']:.2f}",
                f"{facts['tokens_per_s_per_gpu']['expected']:.0f}",
                f"{100 * facts['mfu_causal']['expected']:.1f}",
                f"{memory['total'] / GIB:.1f}",
                f"{memory['left_bytes'] / GIB:.1f}",
            ]
        )
    heads = ["layout", "micro", "recompute", "step s", "tokens/s/GPU", "MFU % causal", "GiB", "GiB left"]
    lines = [
        f"{record['layouts_that_fit']} layouts fit, {record['layouts_too_large']} are too large, the trainer refuses "
        f"{sum(record['layouts_refused'].values())}; predicted fastest:",
        *table(heads, rows).splitlines(),
    ]
    for facts in record["faster_but_too_large"]:
        lines.append(
            f"  faster, but too large: {facts['layout']} micro {_value(facts, 'train.micro_batch_size')}, "
            f"{_value(facts, 'memory.recompute')}: {facts['reason']}"
        )
    return lines


def _value(facts: Facts, key: str) -> str:
    found: str = dict(item.split("=", 1) for item in facts["overrides"])[key]
    return found


def _run(record: Facts) -> list[str]:
    best = record["layouts"][0]
    peak = f"{best['peak_tflop_per_s']:g} TFLOP/s"
    return [
        f"the run with {best['layout']}: {best['tokens'] / 1e9:.4g} B tokens in {best['steps']:,} steps (predicted; "
        "low to high in brackets)",
        f"  tokens/s/GPU   {_range(best['tokens_per_s_per_gpu'], '{:.0f}')}",
        f"  MFU causal     {_range(best['mfu_causal'], '{:.1%}')} of {peak}: each token attends to those before it",
        f"  MFU full       {_range(best['mfu_full'], '{:.1%}')}: the same speed with the full square of scores counted "
        "(PaLM; Megatron-LM before 25.09)",
        f"  HFU causal     {_range(best['hfu_causal'], '{:.1%}')}: with what is recomputed",
        f"  days           {_range(best['days'])}, training steps alone: no evaluations, saves, restarts",
        f"  GPU-hours      {_range(best['gpu_hours'])}",
        f"  cost           {_range(best['usd'])} USD at {_prices(record)}",
        f"  energy         {_range(best['kwh'])} kWh with the servers and their cooling",
        f"  cptron train RECIPE {' '.join(best['overrides'])}",
    ]


def _prices(record: Facts) -> str:
    low, high = record["cluster"]["gpu"]["usd_per_hour"]
    return f"{low:g} to {high:g} a GPU-hour" if low != high else f"{low:g} a GPU-hour"


def _range(values: Facts, form: str = "") -> str:
    """`expected [low to high]`; without a form by the size of each."""
    expected, low, high = (
        form.format(value) if form else _number(value)
        for value in (values["expected"], values["low"], values["high"])
    )
    return f"{expected} [{low} to {high}]"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _outputs(record: Facts) -> list[str]:
    kept = record["checkpoints"]
    return [
        f"checkpoints: {kept['bytes_each'] / 1e9:.1f} GB each, {kept['most_at_once']} at once: "
        f"{kept['bytes_at_once'] / 1e12:.3f} TB",
        *_corpus(record["corpus"]),
    ]


def _corpus(sources: Sequence[Facts]) -> list[str]:
    rows = [
        [
            source["name"],
            source["role"],
            f"{100 * source['share']:.2f}",
            f"{source['drawn_tokens'] / 1e9:.4g}",
            "?" if source["tokens"] is None else f"{source['tokens'] / 1e9:.4g}",
            "?" if source["epochs"] is None else f"{source['epochs']:.2f}",
            f"{source['max_epochs']:g}" if source["max_epochs"] else "-",
        ]
        for source in sources
    ]
    lines = table(
        ["source", "role", "share %", "B drawn", "B in its files", "epochs", "at most"], rows
    ).splitlines()
    absent = [source["name"] for source in sources if source["tokens"] is None]
    if absent:
        lines.append(
            f"token files of {', '.join(absent)} are not on this machine: their epochs are not known"
        )
    over = [source["name"] for source in sources if source["is_exhausted"]]
    if over:
        lines.append(f"{', '.join(over)}: the run asks for more epochs than max_epochs allows")
    return lines + [line for source in sources for line in _curated(source)]


def _curated(source: Facts) -> list[str]:
    parts: dict[str, list[str]] = {}
    for part in source["curated"]:
        tokens = "" if part["tokens"] is None else f", {part['tokens'] / 1e6:.4g} M tokens"
        parts.setdefault(part["corpus"], []).append(
            f"{part['source']} {part['documents']:,} documents, {part['text_bytes'] / 1e6:.4g} MB{tokens}"
        )
    return [
        f"{source['name']} was made of curated corpus {corpus[:12]}: {'; '.join(found)}"
        for corpus, found in parts.items()
    ]
