"""The front door: help, version, unknown verbs, and errors as one line with exit code 2."""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import subprocess
import sys

import pytest

from cptron import __version__, cli
from cptron.errors import EXIT_CODE


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(autouse=True)
def _started_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("arguments", [[], ["help"], ["-h"], ["--help"]])
def test_help_names_every_verb(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """On stdout, with exit code 0."""
    assert cli.main(arguments) == 0
    shown = capsys.readouterr()
    assert not shown.err
    for verb, (_, purpose) in cli.VERBS.items():
        assert f"  {verb} " in shown.out
        assert purpose in shown.out


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version_is_a_single_word(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fit for a script."""
    assert cli.main([flag]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_unknown_verb_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """It names the verb and those there are."""
    assert cli.main(["trian", "run.yaml"]) == EXIT_CODE
    shown = capsys.readouterr()
    assert not shown.out
    (line,) = shown.err.splitlines()
    assert "'trian'" in line
    assert all(verb in line for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_a_main_that_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`cptron VERB --help` exits with 0."""
    main = importlib.import_module(cli.VERBS[verb][0]).main
    assert len(inspect.signature(main).parameters) == 1
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variable", "where"), [("", ""), ("RANK", " [rank 3]"), ("SLURM_PROCID", " [rank 3]")]
)
def test_an_error_of_the_user_is_one_line(
    variable: str,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the rank where there are several, and no traceback."""
    if variable:
        monkeypatch.setenv(variable, "3")
    assert cli.main(["convert", "absent_model", "out"]) == EXIT_CODE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cptron: error{where}: Hugging Face model absent_model does not exist;")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only errors that a user can act on are made short."""
    monkeypatch.setitem(cli.VERBS, "broken", ("importlib", "has no main"))
    with pytest.raises(AttributeError):
        cli.main(["broken"])


def test_the_front_door_is_light() -> None:
    """Help and typing errors must not wait for torch."""
    done = python(
        "-c", "import sys, cptron.cli; print([m for m in ('torch', 'megatron', 'numpy') if m in sys.modules])"
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
    done = python("-X", "importtime", "-m", "cptron.cli", "help")
    assert done.returncode == 0
    assert "usage: cptron VERB" in done.stdout
    assert " torch\n" not in done.stderr


def test_exit_code_reaches_the_shell() -> None:
    """As `python -m cptron.cli` and as a script."""
    done = python("-m", "cptron.cli", "trian")
    assert done.returncode == EXIT_CODE == 2
    assert done.stderr.startswith("cptron: error: unknown verb")


def test_a_reader_that_goes_away_is_no_fault() -> None:
    """As `| head` does: the code that a shell gives to it, and not a word."""
    words = [sys.executable, "-m", "cptron.cli", "doctor"]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as nobody:
        done = subprocess.run(words, stdout=nobody, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_another_broken_pipe_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One within, while somebody reads what is printed."""

    def broken(_: object) -> int:
        raise BrokenPipeError("a process of ours is gone")

    monkeypatch.setattr("cptron.doctor.main", broken)
    with pytest.raises(BrokenPipeError):
        cli.main(["doctor"])
