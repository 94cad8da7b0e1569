"""The runtime on real ranks: the host adaptor symbol by symbol, agreement on errors, and the test helper itself."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cptron import testing
from cptron.errors import DataError
from cptron.testing import RankFailure, run_ranks


def _twice(value: Any) -> Any:
    return 2 * value


def adaptor_semantics() -> None:
    """Every replaced symbol has the CPU meaning of the same operation."""
    import torch

    import cptron.runtime.megatron_ready

    from cptron.runtime import host_adaptor

    assert cptron.runtime.megatron_ready
    for (owner, name), value in host_adaptor.replacements().items():
        assert hasattr(owner, name), f"{owner}.{name} is no symbol of torch"
        assert type(getattr(owner, name)) is type(value) or callable(value)
    assert torch.cuda.current_device() == torch.device("cpu")
    for call in ("synchronize", "empty_cache", "_lazy_init"):
        assert getattr(torch.cuda, call)() is None
    ran = []
    torch.cuda._lazy_call(lambda: ran.append(1))
    assert ran == [1]
    for factory in ("zeros", "ones", "empty"):
        assert getattr(torch, factory)(3, device="cuda", pin_memory=True).device.type == "cpu"
    assert torch.tensor([1, 2], device=torch.device("cuda", 0)).tolist() == [1, 2]
    assert torch.arange(3, device="cuda").tolist() == [0, 1, 2]
    assert torch.full((2,), 7, device="cuda").tolist() == [7, 7]
    x = torch.ones(2)
    assert x.cuda() is x and x.to("cuda") is x and x.pin_memory() is x
    assert x.to(torch.float64).dtype == torch.float64
    assert x.type() == "torch.cuda.FloatTensor"
    assert x.bfloat16().type() == "torch.cuda.BFloat16Tensor"
    assert x.type(torch.int32).dtype == torch.int32
    torch.cuda.manual_seed(5)
    state = torch.cuda.get_rng_state()
    first = torch.rand(3)
    torch.cuda.set_rng_state(state)
    assert torch.equal(first, torch.rand(3))
    assert torch.cuda.default_generators[0] is torch.default_generator
    with torch.cuda.stream(torch.cuda.current_stream()):
        torch.cuda.Event().record()
    compiled = []
    late = host_adaptor._compiled_when_called(lambda function: compiled.append(function) or function)(_twice)
    assert not compiled and late.__name__ == "_twice"
    assert [late(2), late(3)] == [4, 6] and compiled == [_twice]
    assert torch.compile(_twice, backend="eager")(x).tolist() == [2, 2]
    with torch.device("meta"):
        assert torch.zeros(2).is_meta, "factories must still be known to torch's device contexts"


def test_adaptor_symbol_by_symbol() -> None:
    """On a rank, since the adaptor lasts as long as its process."""
    run_ranks(adaptor_semantics, 1)


def logits_beside_the_engine(directory: str, token_ids: list[int]) -> np.ndarray:
    """`transformers` in a process where the adaptor is applied."""
    import cptron.runtime.megatron_ready

    from cptron.convert.reference import reference_logits
    from cptron.convert.safetensors_io import ModelReader

    assert cptron.runtime.megatron_ready
    reader = ModelReader(Path(directory))
    return reference_logits(reader.config, reader, token_ids).numpy()


def test_transformers_computes_the_same_beside_the_engine(untied: Path) -> None:
    """The adaptor must not change what an independent reference computes in the same process."""
    from test_parity import transformers_logits

    token_ids = list(range(40))
    expected = transformers_logits(untied, token_ids)
    (found,) = run_ranks(logits_beside_the_engine, 1, str(untied), token_ids)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def leave_a_process() -> int:
    """Start something that would go on for long, as megatron-core's saves do."""
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid


def test_a_stopped_rank_leaves_nothing_behind() -> None:
    """What it has started ends with it."""
    worker = testing._Worker()
    worker.pipe.send(({}, list(sys.path)))
    worker.pipe.send((leave_a_process, (), {}))
    failed, pid = worker.pipe.recv()
    assert not failed and psutil.pid_exists(pid)
    left = psutil.Process(pid)
    worker.kill()
    psutil.wait_procs([left], timeout=120)
    assert not psutil.pid_exists(pid)


def one_rank_disagrees() -> str:
    """Rank 1 has an error that rank 0 does not see."""
    from cptron.runtime.dist import agree
    from cptron.runtime.launcher import launched_ranks
    from cptron.runtime.session import open_session

    ranks = launched_ranks()
    assert ranks is not None

    def action() -> None:
        if ranks.rank == 1:
            raise DataError("value, rule, remedy")

    with open_session(ranks, threads_per_rank=1):
        try:
            agree(action)
        except DataError as error:
            return str(error)
    return "no error"


def test_an_error_on_one_rank_is_raised_on_all() -> None:
    """With the same class and message, and without a hang."""
    assert run_ranks(one_rank_disagrees, 2) == ["value, rule, remedy"] * 2


def first_rank_fails() -> None:
    """Rank 0 raises while rank 1 waits for it for ever."""
    if os.environ["RANK"] == "0":
        raise ValueError("broken on purpose")
    time.sleep(3600)


def test_a_failing_rank_ends_the_call_with_its_traceback() -> None:
    """Long before the other rank would return, and the next call works."""
    with pytest.raises(RankFailure, match="broken on purpose"):  # not that the time of the call is over
        run_ranks(first_rank_fails, 2)
    assert run_ranks(os.getpid, 1)


def agreed_on(losses: list[float], received: list[int]) -> object:
    """What this rank hears in a step in which each rank has a loss, a limit and a signal of its own."""
    import torch

    from cptron.runtime.agreement import agree_on_step
    from cptron.runtime.dist import init_process_group, shutdown
    from cptron.runtime.launcher import launched_ranks

    ranks = launched_ranks()
    assert ranks is not None
    init_process_group("gloo", ranks, 240)
    found = agree_on_step(
        losses[ranks.rank], 0.1 + ranks.rank, 2 - ranks.rank, received[ranks.rank], torch.device("cpu")
    )
    shutdown()
    return repr(found.loss), found.grad_norm, found.limit, sorted(found.signals)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 0.1])
def test_a_step_is_agreed_on(loss: float) -> None:
    """Rank 0's numbers to the bit, whatever they are, and everybody's signals."""
    signals = [0, signal.SIGUSR1, signal.SIGTERM]
    found = run_ranks(agreed_on, 3, [loss, 0.3, math.nan], signals)
    assert found == [(repr(loss), 0.1, 2, sorted(signals[1:]))] * 3
    assert run_ranks(agreed_on, 3, [loss, 0.3, 1.0], [0, 0, 0]) == [(repr(loss), 0.1, 2, [])] * 3
