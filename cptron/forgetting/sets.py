"""Everything that a run evaluates: its validation sets, and the probes that are on.

Place in the flow: configuration -> here -> `evaluate.perplexity`, in training and where its numbers are to be had
again. Imports no torch. Invariant: the same configuration gives the same windows, whoever opens them.
"""

from __future__ import annotations

from cptron.config.schema import AttentionConfig, Config
from cptron.data.valid import ValidSet
from cptron.data.windows import WindowSet
from cptron.forgetting.probes import probe_sets


def evaluated_sets(
    config: Config, vocab_size: int, dp_rank: int = 0, dp_size: int = 1, sequence_unit: int = 1
) -> list[WindowSet]:
    """As one data parallel rank sees them. Raises `DataError`."""
    data, attention = config.data, config.attention
    seen = "" if attention == AttentionConfig() else f"{attention.document_mask}|{attention.reset_positions}"
    micro = config.eval.micro_batch_size or config.train.micro_batch_size
    found: list[WindowSet] = [
        ValidSet(
            item.name,
            item.path,
            data.seq_length,
            item.max_tokens,
            micro,
            dp_rank,
            dp_size,
            vocab_size,
            eod_mask_loss=data.eod_mask_loss,
            seen=seen,
        )
        for item in data.valid
    ]
    return found + list(
        probe_sets(config.forgetting, config.run.seed, vocab_size, (micro, dp_rank, dp_size), sequence_unit)
    )
