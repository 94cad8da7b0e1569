"""The commands as a user types them: real processes, two ranks under torchrun, trackers on, network refused."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import ROOT, assert_close, call, cptron, error_lines, evals, steps
from safetensors.torch import load_file
from tiny_world import ONE, Layout, World, save_model

from cptron.config.load import load_config


@pytest.fixture
def proxy() -> Iterator[socket.socket]:
    """A proxy that answers nobody; every attempt to reach the network by HTTP shows as a connection to it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def test_train_with_two_ranks_and_trackers(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path, proxy: socket.socket
) -> None:
    """`cptron train` starts its own ranks, gives the known curve, fills all trackers and asks no network."""
    run = tmp_path / "run"
    overrides = [f"run.dir={run}", "parallel.local_ranks=2", "parallel.tp=2"]
    overrides += ["log.tensorboard=true", "log.wandb=offline"]
    url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
    env = {name: url for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy")}
    done = call(cptron("train", world.config, *overrides), 240, **env, NO_PROXY="", no_proxy="")
    assert done.returncode == 0, done.stderr
    assert_close(steps(run), steps(whole_runs[ONE]))
    assert_close(evals(run), evals(whole_runs[ONE]))
    with pytest.raises(BlockingIOError):
        proxy.accept()
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert (run / "report.html").stat().st_size > 0
    both = call(cptron("report", run, whole_runs[ONE], "--output", tmp_path / "both.html"), 240)
    assert (both.returncode, both.stdout) == (0, f"{tmp_path / 'both.html'}\n"), both.stderr
    assert load_config(run / "config.yaml").config == load_config(world.config, overrides).config


def test_preprocess_tool_writes_the_same_files(world: World, tmp_path: Path) -> None:
    """`tools/preprocess_data.py` with Megatron's flags gives the bytes that `cptron preprocess` gives."""
    tool = [sys.executable, ROOT / "tools" / "preprocess_data.py"]
    flags = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", world.hugging_face]
    flags += ["--append-eod", "--workers", "2", "--output-prefix", tmp_path / "domain"]
    done = call([*tool, "--input", world.corpus("domain"), *flags], 240)
    assert done.returncode == 0, done.stderr
    for kind in ("bin", "idx"):
        made = tmp_path / f"domain_text_document.{kind}"
        assert made.read_bytes() == world.tokens("domain").with_name(made.name).read_bytes()


def test_convert_tool_knows_two_ways() -> None:
    """In and out; another word is a mistake of the command line."""
    assert call([sys.executable, ROOT / "tools" / "convert_checkpoint.py", "sideways"], 240).returncode == 2


@pytest.mark.more
def test_convert_tool_there_and_back(world: World, tmp_path: Path) -> None:
    """`tools/convert_checkpoint.py` imports and exports; the weights return bit for bit."""
    tool = [sys.executable, ROOT / "tools" / "convert_checkpoint.py"]
    for words in (
        ["import", world.hugging_face, tmp_path / "base"],
        ["export", tmp_path / "base", tmp_path / "back"],
    ):
        done = call([*tool, *words], 240)
        assert done.returncode == 0, done.stderr
    ours, theirs = (load_file(d / "model.safetensors") for d in (tmp_path / "back", world.hugging_face))
    assert ours.keys() == theirs.keys()
    assert all(
        torch.equal(tensor.view(torch.uint8), ours[name].view(torch.uint8)) for name, tensor in theirs.items()
    )


def test_verify_of_a_wrong_pair_exits_2(world: World, tmp_path: Path) -> None:
    """The exit code is what a script sees."""
    save_model(tmp_path / "other", seed=1)
    done = call(cptron("verify", world.base, tmp_path / "other"), 240)
    assert done.returncode == 2
    (line,) = error_lines(done.stderr)
    assert "not the same model" in line
    assert "Traceback" not in done.stderr
