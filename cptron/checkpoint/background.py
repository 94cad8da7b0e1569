"""Hands a rank's blocks to the process that writes them, in memory that both see.

Place in the flow: an asynchronous save begins a copy and goes on; the copy is waited for before the next update, which
is the first thing to change what is copied; the loop asks after each step whether all is written. Invariant: host
memory for one copy of what the rank writes, no more; it is not overwritten before it is on disk; and an error of the
process is raised by the next question.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cptron.checkpoint.archive import ALIGNMENT
from cptron.checkpoint.block_writer import BlockSpec, Written
from cptron.checkpoint.tensor_bytes import bytes_of
from cptron.errors import CheckpointError

Block = tuple[BlockSpec, torch.Tensor]


class BackgroundWriter:
    """One process behind this rank, for one save at a time."""

    def __init__(self) -> None:
        self._descriptor = _memory_file()
        self._memory: mmap.mmap | None = None
        self._pinned = False
        self._is_busy = False
        self._copier = ThreadPoolExecutor(1, "save copy")
        self._copying: Future[None] | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        words = ["-m", "cptron.checkpoint.save_worker", str(self._descriptor), str(os.getpid())]
        self._process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._descriptor,),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        threading.Thread(target=self._listen, name="save answers", daemon=True).start()

    def start(self, directory: Path, rank: int, blocks: Sequence[Block]) -> None:
        """Begin to copy `blocks`, and then to write them to files of `rank` in `directory`. They must not change before
        `copied` is back. Raises `CheckpointError` where there is no memory."""
        assert not self._is_busy, "the save before is waited for first"
        starts, num_bytes = [], 0
        for spec, _ in blocks:
            starts.append(num_bytes)
            num_bytes += -(-spec.num_bytes // ALIGNMENT) * ALIGNMENT
        memory = self._reserve(max(num_bytes, ALIGNMENT), any(tensor.is_cuda for _, tensor in blocks))
        request = {
            "directory": str(directory),
            "rank": rank,
            "num_bytes": len(memory),
            "blocks": [(asdict(spec), start) for (spec, _), start in zip(blocks, starts, strict=True)],
        }
        tensors = [tensor.detach().reshape(-1) for _, tensor in blocks]
        stream = _stream_after_all(tensors) if self._pinned else None

        def copy() -> None:
            _copy(tensors, memory, starts, stream)
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):  # it ended: so says its answer
                self._process.stdin.write(f"{json.dumps(request)}\n".encode())
                self._process.stdin.flush()

        self._is_busy = True
        self._copying = self._copier.submit(copy)

    def copied(self) -> None:
        """Wait until what is being saved may change."""
        if self._copying is not None:
            self._copying.result()
            self._copying = None

    @property
    def is_ready(self) -> bool:
        """Whether `result` need not wait."""
        return not self._answers.empty()

    def result(self) -> Written:
        """What was written, when it is. Raises `CheckpointError` when it could not be."""
        assert self._is_busy
        self.copied()
        answer = self._answers.get()
        self._is_busy = False
        if not answer:
            self._answers.put("")  # nor will there be another
            code = self._process.wait()
            raise CheckpointError(
                f"the process that writes this rank's part of the checkpoint ended with exit code {code}; "
                "if memory was short, set checkpoint.asynchronous=false"
            )
        values: dict[str, Any] = json.loads(answer)
        if "error" in values:
            raise CheckpointError(values["error"])
        return Written.of(values)

    def close(self) -> None:
        """End the process, and with it what it was writing."""
        self._copier.shutdown()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what it no longer reads
                if pipe is not None:
                    pipe.close()
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self._address())
        os.close(self._descriptor)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed from this side
            for line in self._process.stdout:
                if line.endswith(b"\n"):  # else it was killed while it answered
                    self._answers.put(line.decode())
        self._answers.put("")

    def _reserve(self, num_bytes: int, pin: bool) -> mmap.mmap:
        """Memory of at least `num_bytes`; page-locked for copies from a GPU."""
        if self._memory is None or len(self._memory) < num_bytes:
            assert not self._pinned, "what a rank writes has the same size at each save"
            try:
                os.ftruncate(self._descriptor, num_bytes)
                self._memory = mmap.mmap(self._descriptor, num_bytes)
                if pin:
                    code = torch.cuda.cudart().cudaHostRegister(self._address(), num_bytes, 0)
                    torch.cuda.check_error(int(code))
                    self._pinned = True
            except (OSError, ValueError, RuntimeError) as error:
                raise CheckpointError(
                    f"no {num_bytes / 2**30:.1f} GiB of host memory for an asynchronous save ({error}); "
                    "set checkpoint.asynchronous=false"
                ) from None
        return self._memory

    def _address(self) -> int:
        assert self._memory is not None
        return torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr()


def _stream_after_all(tensors: Sequence[torch.Tensor]) -> Any:
    """A stream of the GPU on which copies begin when all that was asked for so far is computed."""
    stream = torch.cuda.Stream(tensors[0].device)
    stream.wait_stream(torch.cuda.current_stream(tensors[0].device))
    return stream


def _copy(tensors: Sequence[torch.Tensor], memory: mmap.mmap, starts: Sequence[int], stream: Any) -> None:
    """Copy flat tensors to `starts` of `memory`: one after the other, without the threads that training uses."""
    if stream is None:
        for tensor, start in zip(tensors, starts, strict=True):
            source = bytes_of(tensor)
            np.copyto(np.frombuffer(memory, np.uint8, source.nbytes, start), np.frombuffer(source, np.uint8))
        return
    with torch.cuda.stream(stream):
        for tensor, start in zip(tensors, starts, strict=True):
            target = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=start)
            target.copy_(tensor, non_blocking=True)
    stream.synchronize()


def _memory_file() -> int:
    """A file in memory without a name; on disk where the system has no such thing."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("cptron save")
    with tempfile.TemporaryFile() as stream:
        return os.dup(stream.fileno())
