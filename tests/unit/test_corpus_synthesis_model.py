"""Synthesis by one model in two ways: on this machine, and behind a server of it; chats, and completions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from corpus_world import run
from model_server import ModelServer, model_serving
from synthesis_world import KEY, VARIABLE, document, synthesis, tiny_model

from cptron.corpus.synthesis.answer import Answer, Request
from cptron.corpus.synthesis.endpoint import Endpoint
from cptron.corpus.synthesis.local_model import LocalModel
from cptron.corpus.synthesis.prompt import KINDS, read_prompt, shipped_path
from cptron.corpus.synthesis.settings import EndpointSettings, LocalSettings
from cptron.errors import ConfigError, DataError

CHAT = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a chat template."""
    pytest.importorskip("torch")
    return tiny_model(tmp_path_factory.mktemp("base"))


def with_template(base: Path, folder: Path, template: str) -> Path:
    """The same model with a chat template."""
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def local(folder: Path, requests: list[Request], batch_size: int = 1) -> list[Answer]:
    """By the model in this process."""
    settings = LocalSettings(folder=str(folder), batch_size=batch_size)
    model = LocalModel(settings, 0.0, 1.0, NUM_TOKENS, 0)
    starts = range(0, len(requests), batch_size)
    return [answer for start in starts for answer in model.answers(requests[start : start + batch_size])]


def requests_of(*kinds: str) -> list[Request]:
    """About two documents."""
    prompts = [read_prompt(kind, shipped_path(kind)) for kind in kinds]
    return [prompt.request(document(number), 2, "") for number in range(2) for prompt in prompts]


@pytest.mark.parametrize("interface", ["chat", "completions"])
def test_server_of_a_model_says_what_the_model_says(
    interface: str, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words, end and tokens; the budget is spent to the token; a wrong key or name ends it at the first try."""
    folder = base_folder if interface == "completions" else with_template(base_folder, tmp_path / "m", CHAT)
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # proxies are not used
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    requests = requests_of("factual", "summary")[::3]
    expected = local(folder, requests)
    server = ModelServer(folder, "tiny", KEY)
    with model_serving(server) as url:
        settings = EndpointSettings(url=url, model="tiny", api_key_variable=VARIABLE, interface=interface)  # type: ignore[arg-type]
        (tmp_path / "cache").mkdir()
        endpoint = Endpoint(settings, 0.0, 1.0, NUM_TOKENS, tmp_path / "cache")
        assert [endpoint.answers([request])[0] for request in requests] == expected
        spent = sum(answer.tokens_in + answer.tokens_out for answer in expected)
        assert f'"tokens": {spent}' in (tmp_path / "cache/spent.json").read_text()
        cases: list[tuple[dict[str, Any], str]] = [
            ({"model": "other"}, "404.*'other' does not exist"), ({"api_key_variable": "X_KEY"}, "401")
        ]  # fmt: skip
        for wrong, message in cases:
            monkeypatch.setenv("X_KEY", "sk-wrong-0123456789")
            refused = Endpoint(replace(settings, **wrong), 0.0, 1.0, NUM_TOKENS, tmp_path / "cache")
            with pytest.raises(DataError, match=message) as caught:
                refused.answers(requests[:1])
            assert "\n" not in str(caught.value) and "sk-wrong" not in str(caught.value)
        assert server.num_answers == len(requests)
    if interface == "completions":
        assert all(answer.text.startswith("Q:") for answer in expected)


def test_models_without_chats_get_examples_and_stop(base_folder: Path) -> None:
    """The prompt ends in the beginning of an answer, which ends at the line that ends the examples; in batches too."""
    requests = requests_of(*KINDS)
    assert all(request.completion.endswith(f"Text:\n{document(0)}\n\nQ:") for request in requests[:3])
    assert all(request.completion.count("\n###\n") == 2 and request.stop == "\n###" for request in requests)
    alone = local(base_folder, requests)
    written = [answer.text for answer in alone]
    assert all(answer.end == "length" for answer in alone)
    ends = [replace(request, stop=text[8:10]) for request, text in zip(requests, written, strict=True)]
    stopped = local(base_folder, ends, batch_size=3)
    assert [answer.text for answer in stopped] == [
        "Q:" + text[2:].partition(text[8:10])[0] for text in written
    ]
    assert all(answer.end == "stop" for answer in stopped)


def test_templates_without_a_system_role(base_folder: Path, tmp_path: Path) -> None:
    """Its text stands before the question then; a template that takes no question at all is named."""
    plain = with_template(base_folder, tmp_path / "a", CHAT)
    strict = with_template(base_folder, tmp_path / "b", NO_SYSTEM + CHAT)
    request = requests_of("factual")[0]
    as_one = Request("", f"{request.system}\n\n{request.user}")
    assert local(strict, [request]) == local(plain, [as_one]) != local(plain, [request])
    broken = with_template(base_folder, tmp_path / "c", "{{ raise_exception('never') }}")
    with pytest.raises(DataError, match="takes no question of a user"):
        local(broken, [request])


def test_what_a_model_cannot_do_is_said_at_the_beginning(base_folder: Path, tmp_path: Path) -> None:
    """An answer as long as the context; completions without examples."""
    with pytest.raises(DataError, match="answer_tokens 4096 must be below the context"):
        LocalModel(LocalSettings(folder=str(base_folder)), 0.0, 1.0, 4096, 0)
    (tmp_path / "own.txt").write_text("--- user\n{document}")
    settings: dict[str, Any] = {"kinds": ["own"], "prompts": {"own": str(tmp_path / "own.txt")}}
    with pytest.raises(ConfigError, match="no `--- completion`"):
        run(synthesis(tmp_path, "http://127.0.0.1:9/v1", endpoint={"interface": "completions"}, **settings))


@pytest.mark.more
def test_workers_do_not_matter_to_a_local_model(base_folder: Path, tmp_path: Path) -> None:
    """Groups, answers and counts: by one process and by two, each with a cache of its own."""
    found = []
    for workers in (1, 2):
        config = synthesis(tmp_path / "in", "", documents=40, kinds=["factual"], answer_tokens=8)
        step = config["steps"][0]
        step["local"] = {"folder": str(base_folder), "batch_size": 4, "threads": 1}
        step["cache"] = str(tmp_path / f"cache{workers}")
        config["output"] = str(tmp_path / f"out{workers}")
        del step["endpoint"]
        run(config, workers=workers)
        answers = {path.name: path.read_bytes() for path in (tmp_path / f"cache{workers}").glob("???/*.json")}
        manifest = json.loads((tmp_path / f"out{workers}/manifest.json").read_text())
        assert manifest["steps"][0]["counted"]["answers"] == 40 and 10 <= len(answers) < 40
        found.append((answers, manifest["steps"]))
    assert found[0] == found[1]
