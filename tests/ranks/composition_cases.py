"""The layouts that `test_composition` proves; without megatron-core, so that the page that lists them can be tested."""

from __future__ import annotations

from typing import NamedTuple

from cptron.config.schema import AttentionConfig, MemoryConfig
from cptron.model.options import ModelOptions
from cptron.runtime.topology import Layout


class Case(NamedTuple):
    """A layout, and what else is on."""

    layout: Layout
    world_size: int
    tied: bool = False
    documents: bool = True
    reset: bool = False
    recompute: str = "none"
    micro: int = 2
    overlap: bool = False

    @property
    def id(self) -> str:
        """What the test is called."""
        dp = self.world_size // self.layout.ranks
        words = [f"{self.layout.describe()}_dp{dp}", "tied" if self.tied else "untied"]
        words += ["documents"] if self.documents else []
        words += ["reset"] if self.reset else []
        words += [f"recompute-{self.recompute}"] if self.recompute != "none" else []
        words += ["overlap"] if self.overlap else []
        return "-".join(words)

    @property
    def options(self) -> ModelOptions:
        """Model options of the case."""
        return ModelOptions(
            attention=AttentionConfig(document_mask=self.documents, reset_positions=self.reset),
            memory=MemoryConfig(
                recompute=self.recompute,  # type: ignore[arg-type]
                recompute_modules=("core_attn", "mlp"),
                logits_chunk_tokens=7,  # no divisor of anything
            ),
        )


def case(world_size: int, tied: bool = False, **given: object) -> Case:
    """A case from the fields of `Layout` and of `Case`."""
    own = {key: given.pop(key) for key in list(given) if key in Case._fields}
    sp = bool(given.pop("sp", False))
    return Case(Layout(sequence_parallel=sp, **given), world_size, tied, **own)  # type: ignore[arg-type]


CASES = [
    # one axis
    case(1, documents=False),
    case(1, tied=True, reset=True, recompute="full"),
    case(1, recompute="selective"),
    case(2, tp=2),
    case(4, tp=4, tied=True),
    case(2, tp=2, sp=True),
    case(4, tp=4, sp=True, tied=True, recompute="full"),
    case(2, pp=2, tied=True),
    case(3, pp=3, recompute="full"),
    case(4, pp=4, first_stage_layers=1, last_stage_layers=1, tied=True),
    case(2, pp=2, first_stage_layers=2),
    case(2, pp=2, virtual_stages=3),
    case(3, pp=3, virtual_stages=2, tied=True),
    case(2, pp=2, virtual_stages=2, first_stage_layers=2, recompute="full"),
    case(2, cp=2, documents=False),
    case(2, cp=2, tied=True),
    case(4, cp=4, reset=True),
    case(2, cp=2, recompute="selective"),
    case(2),
    case(4, tied=True, recompute="full", micro=1),
    case(2, overlap=True),
    # pairs
    case(4, tp=2, pp=2, tied=True),
    case(4, tp=2, sp=True, pp=2),
    case(4, tp=2, sp=True, pp=2, virtual_stages=3, tied=True, recompute="full"),
    case(4, tp=2, pp=2, virtual_stages=3, documents=False),
    case(4, tp=2, cp=2),
    case(4, tp=2, sp=True, cp=2, tied=True, reset=True),
    case(4, tp=2, sp=True, cp=2, documents=False, recompute="selective"),
    case(4, tp=2),
    case(4, tp=2, sp=True, tied=True, recompute="full"),
    case(4, pp=2, cp=2),
    case(4, pp=2, cp=2, tied=True, recompute="full"),
    case(4, pp=2, cp=2, virtual_stages=3),
    case(4, pp=2, tied=True, micro=1),
    case(4, pp=2, virtual_stages=3, micro=1),
    case(4, pp=2, first_stage_layers=4, recompute="selective"),
    case(4, cp=2, reset=True),
    case(4, cp=2, tied=True, documents=False),
    case(4, cp=2, overlap=True),
    case(8, tp=4, pp=2, tied=True),
    case(8, tp=4, sp=True, cp=2),
    # triples
    case(8, tp=2, sp=True, pp=2, cp=2, tied=True, reset=True),
    case(8, tp=2, pp=2, cp=2, recompute="full"),
    case(8, tp=2, sp=True, pp=2, cp=2, virtual_stages=3),
    case(8, tp=2, sp=True, pp=2, tied=True, micro=1, recompute="selective"),
    case(8, tp=2, sp=True, pp=2, virtual_stages=3, micro=1),
    case(8, tp=2, sp=True, cp=2, tied=True),
    case(8, tp=2, cp=2, recompute="full", overlap=True),
    case(8, pp=2, cp=2, micro=1),
    case(8, pp=2, cp=2, virtual_stages=3, tied=True, micro=1),
]
