"""What the documents tell people to type, name and click is there: commands, flags, keys, files, links, modules."""

from __future__ import annotations

import argparse
import functools
import importlib
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cptron.cli import VERBS
from cptron.config.check import check_config
from cptron.config.load import config_to_dict, load_config
from cptron.corpus.load import load_curation
from cptron.launch.arguments import Asked, asked
from cptron.tokens.preprocess_options import parse_options

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cptron"
PAGES = [
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "launch/*.md")
    for path in sorted(ROOT.glob(pattern))
]
QUICKSTART = ROOT / "examples/quickstart/quickstart.yaml"
PLACEHOLDER = "run.yaml"
"""A file that stands for the reader's own; its overrides are tried on the quickstart's configuration."""
OTHER_PROGRAMS = ("mkdir", "pip", "source")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
GPUS_OF_A_NODE = 8
FILE_TYPES = ("py", "yaml", "json", "sbatch")
"""`train.sbatch` is no configuration key."""


class Parsed(Exception):
    """Raised in place of running a verb, once its own parser has accepted the arguments."""


def name_of(path: Path) -> str:
    """Path from the top of the repository."""
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    """Fenced blocks of these languages."""
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return BLOCK.sub("", page.read_text())


def inline_code(page: Path) -> list[str]:
    """Every `code` within the prose."""
    return INLINE.findall(prose(page))


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every command in the page's shell blocks, and of those in prose that are more than a name."""
    for block in blocks(page, "bash", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split(" && "):
                if words := shlex.split(command, comments=True):
                    yield words
    for code in inline_code(page):
        words = code.split()
        if words[0] in ("make", "torchrun", "sbatch") and len(words) > 1:
            yield shlex.split(code)


def parse_only(verb: str, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What the verb's own parser makes of the arguments; the verb does not run."""
    results: list[argparse.Namespace] = []

    def stop(
        self: argparse.ArgumentParser, parse: Callable[..., Any], args: Any = None, namespace: Any = None
    ) -> argparse.Namespace:
        results.append(parse(self, args, namespace))
        raise Parsed

    with monkeypatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            parse = getattr(argparse.ArgumentParser, name)
            patch.setattr(argparse.ArgumentParser, name, functools.partialmethod(stop, parse))
        with pytest.raises(Parsed):
            importlib.import_module(VERBS[verb][0]).main(list(arguments))
    return results[0]


class Checker:
    """Decides whether one command line of a page would be accepted."""

    def __init__(self, page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self._page = page
        self._monkeypatch = monkeypatch
        self._tmp_path = tmp_path

    def check(self, words: list[str]) -> None:
        """Fail unless programs, verbs, flags, files and overrides of the command exist."""
        program, *rest = words
        if program == "make":
            self._make(rest)
        elif program == "cptron":
            self._cptron(rest)
        elif program == "torchrun":
            assert rest[rest.index("-m") + 1] == "cptron.cli"
            self._cptron(rest[rest.index("-m") + 2 :])
        elif program == "sbatch":
            self._sbatch(rest)
        elif program.endswith("python"):
            self._python(rest)
        else:
            assert program in OTHER_PROGRAMS, f"{' '.join(words)}: a program this test does not know"

    def _make(self, words: list[str]) -> None:
        targets = re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
        variables = re.findall(r"^([A-Z_]+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for word in words:
            name, is_variable, _ = word.partition("=")
            assert name in (variables if is_variable else targets), f"make {word}"

    def _python(self, words: list[str]) -> None:
        module = words[1] if words[0] == "-m" else ""
        if module.startswith("benchmarks."):
            importlib.import_module(module).parse(words[2:])
            return
        assert module in ("pytest", "venv") or (ROOT / words[0]).is_file(), f"python {' '.join(words)}"

    def _sbatch(self, words: list[str]) -> None:
        (at, script) = next((i, word) for i, word in enumerate(words) if word.endswith(".sbatch"))
        assert (ROOT / script).is_file(), script
        nodes = [int(word.partition("=")[2]) for word in words[:at] if word.startswith("--nodes=")]
        if script == "launch/train.sbatch":
            self._cptron(["train", *words[at + 1 :]], world_size=nodes[0] * GPUS_OF_A_NODE)
        else:
            own = {"convert.sbatch": [], "evaluate.sbatch": ["eval"]}
            self._cptron([*own.get(Path(script).name, [Path(script).stem]), *words[at + 1 :]])

    def _cptron(self, words: list[str], world_size: int = 0) -> None:
        verb, *arguments = words
        assert verb in VERBS, f"cptron {verb}"
        if verb == "submit":
            self._submit(asked(arguments))
            return
        args = parse_only(verb, arguments, self._monkeypatch)
        if verb == "preprocess":
            assert parse_options(arguments)[1] == [], "a flag without effect"
        if verb == "curate":
            load_curation(args.config, args.overrides)
        if verb == "train":
            config = load_config(self._config(args.config), args.overrides).config
            check_config(config, world_size or config.parallel.local_ranks or GPUS_OF_A_NODE)

    def _submit(self, request: Asked) -> None:
        each = request.args.gpus_per_node or request.args.ranks_per_node or GPUS_OF_A_NODE
        self._cptron(list(request.command), world_size=each * (request.args.nodes or 1))

    def _config(self, path: Path) -> Path:
        """The file itself, or a YAML block of the page that starts with its name."""
        if (ROOT / path).is_file():
            return ROOT / path
        for block in blocks(self._page, "yaml"):
            if block.startswith(f"# {path}"):
                written = self._tmp_path / path.name
                written.write_text(block)
                return written
        assert str(path) == PLACEHOLDER, f"{path} is neither a file nor a block of the page"
        return QUICKSTART


def config_keys() -> set[str]:
    """Every `section.key`."""
    values = config_to_dict(load_config(QUICKSTART).config)
    return {f"{section}.{key}" for section, keys in values.items() for key in keys}


def slug(heading: str) -> str:
    """Anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_would_be_accepted(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Verbs, flags, make targets, scripts, configuration files and overrides."""
    monkeypatch.chdir(ROOT)
    checker = Checker(page, monkeypatch, tmp_path)
    for words in commands(page):
        try:
            checker.check(words)
        except (SystemExit, Exception) as error:
            raise AssertionError(f"{name_of(page)}: {shlex.join(words)}: {error}") from error


def test_the_readme_is_read() -> None:
    """The test above is worth what it finds: both commands, every verb of the tour, both cluster scripts."""
    found = list(commands(ROOT / "README.md"))
    programs = {" ".join(words[:2]) for words in found}
    assert {"make demo", "make test"} <= programs
    verbs = ("curate", "tokenizer", "preprocess", "convert", "train", "eval", "export")
    assert {f"cptron {verb}" for verb in verbs} <= programs
    assert any("launch/train.sbatch" in words for words in found)
    assert len((ROOT / "README.md").read_text().splitlines()) < 190


@pytest.mark.parametrize(
    "line",
    [
        "cptron trian examples/quickstart/quickstart.yaml",
        "cptron train examples/quickstart/quickstart.yaml train.stpes=3",
        "cptron train examples/quickstart/quickstart.yaml parallel.tp=3",
        "cptron train examples/quickstart/absent.yaml",
        "cptron eval --checkpoint c --dta d",
        "cptron preprocess --input a --tokenizer-model b --output-prefix c --vocab-size 3",
        "make dmeo",
        "make test VARIABLE=1",
        "sbatch --nodes=1 launch/absent.sbatch examples/recipes/llama3_8b_h100.yaml",
        "torchrun --nproc-per-node 3 -m cptron.cli train run.yaml parallel.tp=2 parallel.local_ranks=3",
        "wget something",
        "cptron submit examples/recipes/llama3_8b_h100.yaml --nodes 3",
        "cptron submit --partition x -- preprocess --input a --output-prefix c",
        "sbatch launch/convert.sbatch models/x checkpoints/x",
    ],
)
def test_checker_refuses(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It can tell."""
    monkeypatch.chdir(ROOT)
    with pytest.raises((Exception, SystemExit)):  # whatever the reader would have met
        Checker(ROOT / "README.md", monkeypatch, tmp_path).check(shlex.split(line))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link within the repository names a file or folder, and its anchor a heading there."""
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{name_of(page)}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{name_of(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_in_prose_exist(page: Path) -> None:
    """Verbs, paths of the repository, configuration keys and modules that the text names in `code`."""
    keys, sections = config_keys(), {key.partition(".")[0] for key in config_keys()}
    for code in inline_code(page):
        first, *more = code.split()
        if first == "cptron" and more:
            assert more[0] in VERBS or more[0].isupper(), f"{name_of(page)}: {code}"
        if re.fullmatch(r"(docs|examples|launch|tools|tests|cptron|csrc)/[\w./-]*", code):
            assert "NAME" in code or (ROOT / code).exists(), f"{name_of(page)}: {code}"
        if module := re.fullmatch(r"(\w+)/(\w+\.py)", code):
            folders = {path.name: path for path in (*PACKAGE.iterdir(), ROOT / "tools") if path.is_dir()}
            if module[1] in folders:
                assert (folders[module[1]] / module[2]).is_file(), f"{name_of(page)}: {code}"
        if (key := re.fullmatch(r"(\w+)\.(\w+)(?:[=:].*)?", code)) and key[1] in sections:
            named = f"{key[1]}.{key[2]}"
            known = named in keys or (PACKAGE / key[1] / f"{key[2]}.py").is_file() or key[2] in FILE_TYPES
            assert known, f"{name_of(page)}: {code}"


def rooms_of_the_page() -> dict[str, set[str]]:
    """Room -> names that docs/architecture.md gives for its files."""
    (block,) = [text for text in blocks(ROOT / "docs/architecture.md", "") if text.startswith("cptron/\n")]
    rooms: dict[str, set[str]] = {}
    room = ""
    for line in block.splitlines()[2:]:
        if start := re.match(r"  (\w+)/ +\d+ ", line):
            room = start[1]
            line = re.split(r" {2,}", line.strip(), maxsplit=2)[-1]
        if room:
            words = re.sub(r"\([^)]*\)?|^[^(]*\)", "", line)
            rooms.setdefault(room, set()).update(re.findall(r"\b[a-z][a-z0-9_]*\b", words))
    return rooms


def test_architecture_page_names_every_room_and_file() -> None:
    """The page is the living one: no room or file is missing there, and none is there that does not exist."""
    named = rooms_of_the_page()
    found = {
        room.name: {path.stem for path in room.iterdir() if path.stem != "__init__"} - {"__pycache__"}
        for room in PACKAGE.iterdir()
        if (room / "__init__.py").is_file()
    }
    assert named == found


def test_front_files_are_on_the_architecture_page() -> None:
    """The files beside the rooms."""
    text = (ROOT / "docs/architecture.md").read_text()
    for path in PACKAGE.glob("*.py"):
        assert path.stem == "__init__" or path.name in text, path.name
