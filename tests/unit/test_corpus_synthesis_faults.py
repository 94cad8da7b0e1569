"""Synthesis when the server, the way to it or the answers are wrong; and one file with all that belongs behind it."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest
from corpus_world import documents_of, run
from synthesis_world import Reply, completion, good, pair, serving, synthesis

from cptron.corpus.load import load_curation
from cptron.corpus.main import main
from cptron.corpus.steps.synthesise import Step
from cptron.corpus.synthesis.budget import Spent, read_spent
from cptron.errors import DataError

OPENSSL = [
    "openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "2",
    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
]  # fmt: skip
"""A certificate that nobody else vouches for."""


def test_nobody_there_costs_nothing(tmp_path: Path) -> None:
    """Tried again, then one line; tries are counted, tokens are not, as nothing was sent."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and not listening: nobody else gets the port meanwhile
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        with pytest.raises(
            DataError, match=r"no answer in 3 tries \(last: ConnectionRefusedError.*it goes on$"
        ) as caught:
            run(synthesis(tmp_path, url, documents=1, endpoint={"retries": 2}))
    assert "\n" not in str(caught.value) and read_spent(tmp_path / "cache") == Spent(3, 0)


def test_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not trusted ends it at the first try; with its authority named it works."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    files = ["-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run([*OPENSSL, *files], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(good, context) as server:
        config = synthesis(tmp_path, server.url, documents=1)
        with pytest.raises(DataError, match=r"no certificate that this machine trusts.*self-signed"):
            run(config)
        assert not server.bodies and read_spent(tmp_path / "cache") == Spent(1, 0)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert run(config).documents == 2


def test_half_a_key_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a message is cut, the key in it was cut out before; a word that serves as a key is left in answers."""
    secret = "sk-abcdefghijklmnopqrstuvwxyz"
    monkeypatch.setenv("SOME_KEY", secret)
    with serving(lambda prompt, before: (403, {}, b"x" * 185 + secret.encode())) as server:
        with pytest.raises(DataError, match="status 403") as caught:
            run(synthesis(tmp_path, server.url, endpoint={"api_key_variable": "SOME_KEY"}))
        assert "sk-abc" not in str(caught.value) and set(server.asked.values()) == {1}
        monkeypatch.setenv("SOME_KEY", "river")
        server.reply = good
        run(synthesis(tmp_path, server.url, endpoint={"api_key_variable": "SOME_KEY"}), restart=True)
    assert all("river" in one["text"] for one in documents_of(tmp_path / "out"))


def test_workers_share_the_server(tmp_path: Path) -> None:
    """Slow answers at the same time: no more than `concurrency`, of both processes together."""

    met = threading.Barrier(3)

    def reply(prompt: str, before: int) -> Reply:
        if not met.broken:
            with contextlib.suppress(threading.BrokenBarrierError):
                met.wait(60)  # the first three wait for each other
                met.abort()
        time.sleep(0.1)
        return good(prompt, before)

    with serving(reply) as server:
        config = synthesis(tmp_path, server.url, documents=24, endpoint={"concurrency": 3})
        run(config, workers=2)
        assert server.most_at_once == 3 and set(server.asked.values()) == {1} and len(server.asked) == 24
        assert all(body["stream"] is False for body in server.bodies)


def test_cost_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the end of the command: requests with all tries, and tokens; nothing of a model on this machine."""
    with serving(lambda prompt, before: good(prompt, before) if before else (429, {}, b"")) as server:
        run(synthesis(tmp_path, server.url, documents=2))
        assert main([str(tmp_path / "out.yaml"), "--workers", "1"]) == 0
    assert "synthesise: 4 requests and 220 tokens of the endpoint since" in capsys.readouterr().out
    counted = json.loads((tmp_path / "out/manifest.json").read_text())["steps"][0]["counted"]
    assert counted == {
        "passages": 2, "answers": 2, "tokens in": 200, "tokens out": 20, "pairs of factual, version 1": 4
    }  # fmt: skip


def test_duplicates_and_evaluation_sets_behind_it(tmp_path: Path) -> None:
    """One file: pairs that are the same, nearly the same, or of an evaluation set go, each with its reason."""
    planted = "How long was the wooden bridge over the cold river that the engine of the mill stood beside?"
    (tmp_path / "evaluation.jsonl").write_text(json.dumps({"question": planted, "answer": "Long."}) + "\n")

    def reply(prompt: str, before: int) -> Reply:
        one = pair(prompt)
        number = int(one["answer"].split()[1].removeprefix("Number").removesuffix("x"))
        same = (
            "What heats the water of the engine that was built by the river, and where is it held meanwhile?"
        )
        answer = (
            "The boiler of the engine holds the litres of water and heats them, and was built by the river."
        )
        return completion(
            json.dumps(
                [
                    one,
                    {"question": same if number < 3 else f"{same} Say it.", "answer": answer},
                    *([{"question": planted, "answer": "It was built by the river."}] if number == 5 else []),
                ]
            )
        )

    with serving(reply) as server:
        config = synthesis(tmp_path, server.url, documents=6)
        config["steps"] += [
            {"step": "exact_dedup", "same": "words"},
            {"step": "near_duplicates", "shingle_size": 3},
            {"step": "decontaminate", "evaluation": [str(tmp_path / "evaluation.jsonl")]},
        ]
        manifest = run(config, workers=1)
    assert [dict(step.dropped) for step in manifest.steps] == [
        {}, {"duplicate": 4}, {"near_duplicate": 1}, {"words_of_evaluation_set": 1}
    ]  # fmt: skip
    made = documents_of(tmp_path / "out")
    assert len(made) == 7 and not any(planted in one["text"] for one in made)


def test_groups_of_a_local_model_are_no_matter_of_speed(tmp_path: Path) -> None:
    """Documents at once decide who is in a group, and so the answers: of a local model the setting has no say."""
    path = tmp_path / "x.yaml"
    sizes = set()
    for number in (1, 7):
        config = synthesis(tmp_path, "http://127.0.0.1:9/v1", batch_documents=number)
        step = config["steps"][0]
        step["local"] = {"folder": "f", "batch_size": 4}
        del step["endpoint"]
        path.write_text(json.dumps(config))
        settings = load_curation(path).steps[0].settings
        sizes.add(Step("synthesise", settings, 0).batch_documents)
    assert sizes == {32}
