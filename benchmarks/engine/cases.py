"""What is measured: the fixed table of models, precisions and goals, and the layers that fit in a device's memory.

Place in the flow: read by the runner and by every measured process. Invariant: a case says everything about the
work, so all its peers do the same; nothing here imports torch.

Shapes: h hidden size, f inner size of the MLP, k size of the keys, P parameters.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cptron.model.architecture import Architecture, RopeScaling

LLAMA3_ROPE = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)

SMOLLM2_135M = Architecture(
    family="llama",
    num_layers=30,
    hidden_size=576,
    ffn_hidden_size=1536,
    num_attention_heads=9,
    num_kv_heads=3,
    head_dim=64,
    vocab_size=49152,
    max_position_embeddings=8192,
    norm_eps=1e-5,
    rope_theta=100000.0,
    tied_embeddings=True,
)
LLAMA32_1B = Architecture(
    family="llama",
    num_layers=16,
    hidden_size=2048,
    ffn_hidden_size=8192,
    num_attention_heads=32,
    num_kv_heads=8,
    head_dim=64,
    vocab_size=128256,
    max_position_embeddings=131072,
    norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=LLAMA3_ROPE,
    tied_embeddings=True,
)
LLAMA31_8B = replace(
    LLAMA32_1B,
    num_layers=32,
    hidden_size=4096,
    ffn_hidden_size=14336,
    head_dim=128,
    tied_embeddings=False,
)

Goal = tuple[str, Literal["tflops", "tokens"], str, float]
"""What it is called, the quantity, against which row's (or none), and at least how much or how many times."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of work and who does it."""

    name: str
    device: Literal["cpu", "cuda"]
    arch: Architecture
    seq_length: int
    precision: Literal["bf16", "fp32"]
    peers: tuple[str, ...]
    """Names in `one.PEERS`; `torchtitan` stands for all its ways to attend."""
    fp8: Literal["none", "tensorwise", "rowwise"] = "none"
    micro_batch: int = 1
    mean_document: int = 0
    """Mean length of the documents of a row; 0 means one document a row."""
    fit_layers: bool = False
    """As many layers as fit in the device's memory, the same in all cases of this architecture."""
    same_start: bool = False
    """All peers begin with the weights of one checkpoint, and their losses must agree."""
    goals: tuple[Goal, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.micro_batch * self.seq_length

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form; `from_dict` inverts it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Case:
        """Rebuild from `to_dict` output."""
        lists = {name: tuple(values[name]) for name in ("peers",)}
        goals = tuple(tuple(goal) for goal in values["goals"])
        return cls(**{**values, **lists, "goals": goals, "arch": Architecture.from_dict(values["arch"])})


CPU = Case(
    name="smollm2-135m/fp32",
    device="cpu",
    arch=SMOLLM2_135M,
    seq_length=512,
    precision="fp32",
    peers=("cptron", "transformers"),
    same_start=True,
    goals=((">= 1.0 x transformers", "tokens", "smollm2-135m/fp32/transformers", 1.0),),
)
SMALL = replace(CPU, name="smollm2-6-layers/fp32", arch=replace(SMOLLM2_135M, num_layers=6), goals=())
"""The same with a fifth of the layers: the output layer weighs more."""

_1B = Case(
    name="llama-3.2-1b/bf16",
    device="cuda",
    arch=LLAMA32_1B,
    seq_length=8192,
    precision="bf16",
    peers=("cptron", "torchtitan", "transformers"),
    goals=((">= 1.05 x torchtitan", "tokens", "llama-3.2-1b/bf16/torchtitan", 1.05),),
)
_8B = replace(
    _1B,
    name="llama-3.1-8b-shape/bf16",
    arch=LLAMA31_8B,
    fit_layers=True,
    goals=(
        (">= 560 TFLOP/s", "tflops", "", 560.0),
        (">= 1.05 x torchtitan", "tokens", "llama-3.1-8b-shape/bf16/torchtitan", 1.05),
    ),
)


def _fp8(case: Case, recipe: Literal["tensorwise", "rowwise"], goals: tuple[Goal, ...] = ()) -> Case:
    name = case.name.replace("/bf16", f"/fp8-{recipe}")
    titan: Goal = (">= 1.05 x torchtitan", "tokens", f"{name}/torchtitan", 1.05)
    return replace(
        case, name=name, fp8=recipe, peers=("cptron", "torchtitan"), goals=(*goals, titan) if goals else ()
    )


def _documents(case: Case) -> Case:
    return replace(
        case, name=case.name + "/documents", mean_document=1024, peers=("cptron", "torchtitan"), goals=()
    )


CASES: tuple[Case, ...] = (
    CPU,
    SMALL,
    _1B,
    _fp8(_1B, "tensorwise", ((">= 1.35 x bf16", "tokens", "llama-3.2-1b/bf16/cptron", 1.35),)),
    _fp8(_1B, "rowwise"),
    _documents(_1B),
    _8B,
    _fp8(_8B, "tensorwise", ((">= 1.35 x bf16", "tokens", "llama-3.1-8b-shape/bf16/cptron", 1.35),)),
    _fp8(_8B, "rowwise"),
    _documents(_8B),
)


def parameters(arch: Architecture) -> int:
    """Trained numbers of the model."""
    heads, keys = arch.num_attention_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    attention = 2 * arch.hidden_size * (heads + keys)
    layer = attention + 3 * arch.hidden_size * arch.ffn_hidden_size + 2 * arch.hidden_size
    tables = 1 if arch.tied_embeddings else 2
    return arch.num_layers * layer + tables * arch.vocab_size * arch.hidden_size + arch.hidden_size


STATE_BYTES = 2 + 4 + 12
"""Of a parameter: bf16 weight, fp32 gradient, fp32 master weight and two moments."""
SPARE_BYTES = 8 << 30
"""Logits of a chunk, a gradient of the output matrix, workspaces and fragments."""


def bytes_needed(arch: Architecture, tokens: int) -> int:
    """Estimate of a step's peak: state of P parameters, and what a layer keeps of a token in bf16 (7h + 3k + 3f
    numbers: two residuals, two norms, queries and keys before and after rotation, values, attention, both halves
    of the MLP and their product)."""
    keys = arch.num_kv_heads * arch.head_dim
    kept = 2 * (7 * arch.hidden_size + 3 * keys + 3 * arch.ffn_hidden_size)
    return STATE_BYTES * parameters(arch) + arch.num_layers * tokens * kept + SPARE_BYTES


def layers_that_fit(case: Case, memory_bytes: int) -> int:
    """The most layers whose estimate is within the memory, at most the model's and at least one."""
    for layers in range(case.arch.num_layers, 1, -1):
        if bytes_needed(replace(case.arch, num_layers=layers), case.tokens) <= memory_bytes:
            return layers
    return 1


def with_layers(case: Case, layers: int) -> Case:
    """The case with another number of layers."""
    return replace(case, arch=replace(case.arch, num_layers=layers))
