"""FLOPs of training against published sizes, against torch's own counter, and sums over documents by hand."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import LLAMA3_8B, LLAMA3_70B, llama

from cptron.model.architecture import Architecture
from cptron.model.flops import attention_flops, matmul_flops_per_token, sum_of_squares, train_flops


@pytest.mark.parametrize(("arch", "gflops"), [(LLAMA3_8B, 51.5), (LLAMA3_70B, 449.0)])
def test_llama_3_at_8192(arch: Architecture, gflops: float) -> None:
    """The numbers that throughput of these models is stated with."""
    assert train_flops(arch, 8192, 8192**2) / 8192 == pytest.approx(gflops * 1e9, rel=0.005)


@pytest.mark.parametrize(("arch", "weights"), [(LLAMA3_8B, 8030261248), (LLAMA3_70B, 70553706496)])
def test_weights_in_products_are_all_but_embeddings_and_norms(arch: Architecture, weights: int) -> None:
    """From the published numbers of parameters."""
    table = arch.vocab_size * arch.hidden_size
    norms = (2 * arch.num_layers + 1) * arch.hidden_size
    assert matmul_flops_per_token(arch) == 6 * (weights - table - norms)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("head_dim", "num_kv_heads", "length"), [(8, 2, 16), (12, 4, 7), (16, 1, 33)])
def test_equal_to_torchs_counter(head_dim: int, num_kv_heads: int, length: int, tied: bool) -> None:
    """Exactly: products with weights are `mm`; eager attention is `bmm` over the full square, twice the causal
    half; nothing else is a product."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"num_attention_heads": 4, "hidden_size": 32, "vocab_size": 96, "head_dim": head_dim}
    arch = llama(num_layers=3, ffn_hidden_size=80, num_kv_heads=num_kv_heads, tied_embeddings=tied, **sizes)
    model = LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=3,
            intermediate_size=80,
            num_key_value_heads=num_kv_heads,
            tie_word_embeddings=tied,
            attn_implementation="eager",
            **sizes,
        )
    )
    tokens_BS = torch.randint(0, 96, (2, length))
    with FlopCounterMode(display=False) as counter:
        model(tokens_BS, labels=tokens_BS, use_cache=False).loss.backward()
    counts = dict(counter.get_flop_counts()["Global"])
    assert counts.pop(torch.ops.aten.mm) == 2 * length * matmul_flops_per_token(arch)
    assert counts.pop(torch.ops.aten.bmm) == 2 * attention_flops(arch, [length, length])
    assert counts == {}


@settings(deadline=None)
@given(st.lists(st.integers(1, 100_000), max_size=20))
def test_documents_add_up(lengths: list[int]) -> None:
    """Each by itself; one that is twice as long costs four times as much."""
    total = attention_flops(LLAMA3_8B, lengths)
    assert total == sum(attention_flops(LLAMA3_8B, [length]) for length in lengths)
    assert attention_flops(LLAMA3_8B, [2 * length for length in lengths]) == 4 * total
    squares = sum(length**2 for length in lengths)
    assert train_flops(LLAMA3_8B, sum(lengths), squares) == total + sum(lengths) * matmul_flops_per_token(
        LLAMA3_8B
    )
    assert attention_flops(LLAMA3_8B, np.array(lengths, np.int32)) == total


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(0, 40), st.data())
def test_sum_of_squares_equals_brute_force(num_rows: int, num_tokens: int, data: st.DataObject) -> None:
    """Rows of ascending documents, some of one token; a row's first document never joins the last row's."""
    steps = st.lists(st.integers(0, 1), min_size=num_tokens, max_size=num_tokens)
    rows = [list(itertools.accumulate(data.draw(steps))) for _ in range(num_rows)]
    documents_BS = np.array(rows, np.int32).reshape(num_rows, num_tokens)
    expected = sum(len(list(run)) ** 2 for row in rows for _, run in itertools.groupby(row))
    assert sum_of_squares(documents_BS) == expected


@pytest.mark.parametrize(
    ("documents_BS", "expected"),
    [([[0, 0, 0, 0]], 16), ([[0, 0, 1, 2]], 6), ([[0, 0], [0, 0]], 8), ([[0, 1], [1, 1]], 6)],
)
def test_sum_of_squares_by_hand(documents_BS: list[list[int]], expected: int) -> None:
    """One document, three, and rows whose numbers would join."""
    assert sum_of_squares(np.array(documents_BS, np.int32)) == expected


def test_sum_of_squares_of_a_million_tokens_does_not_overflow() -> None:
    """32 bits hold the numbers of documents, not the squares."""
    assert sum_of_squares(np.zeros((4, 1 << 20), np.int32)) == 4 << 40


def test_counting_needs_no_torch() -> None:
    """Reports are made where it may be absent."""
    program = "import sys, cptron.model.flops; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
