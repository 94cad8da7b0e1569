"""What the device reaches in one matrix product of the model's kind.

Place in the flow: measured in every round, beside the peers; the share of it that a step reaches is reported.
Invariant: the best of all repetitions and shapes counts, since it is a ceiling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.engine.cases import Case

WARMUP = 3
DURATION_S = 2.0
"""Of each product's repetitions: long enough for a moment in which the machine does nothing else."""


def ceiling_tflops(case: Case, threads: int) -> float:
    """TFLOP/s of the best product: the model's largest of a layer, and a square one of like size."""
    if case.device == "cpu":
        torch.set_num_threads(threads)
    return max(_tflops(product, flops, case.device == "cuda") for product, flops in _products(case))


def _products(case: Case) -> Iterator[tuple[Callable[[], object], int]]:
    tokens, hidden, inner = case.tokens, case.arch.hidden_size, 2 * case.arch.ffn_hidden_size
    square = 8192 if case.device == "cuda" else 1024
    for rows, contraction, columns in ((tokens, hidden, inner), (square, square, square)):
        yield _product(case, rows, contraction, columns), 2 * rows * contraction * columns


def _product(case: Case, rows: int, contraction: int, columns: int) -> Callable[[], object]:
    dtype = torch.float32 if case.precision == "fp32" else torch.bfloat16
    a_MK = torch.randn(rows, contraction, device=case.device).to(dtype)
    b_NK = torch.randn(columns, contraction, device=case.device).to(dtype)
    if case.fp8 == "none":
        return lambda: a_MK @ b_NK.t()
    a_fp8, b_fp8 = a_MK.to(torch.float8_e4m3fn), b_NK.to(torch.float8_e4m3fn)
    one = torch.ones((), device=case.device)
    return lambda: torch._scaled_mm(
        a_fp8, b_fp8.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _tflops(product: Callable[[], object], flops: int, on_gpu: bool) -> float:
    best_s, number, began_s = float("inf"), 0, time.perf_counter()
    while number <= WARMUP or time.perf_counter() - began_s < DURATION_S:
        started_s = time.perf_counter()
        product()
        if on_gpu:
            torch.cuda.synchronize()
        if number >= WARMUP:
            best_s = min(best_s, time.perf_counter() - started_s)
        number += 1
    return flops / best_s / 1e12
