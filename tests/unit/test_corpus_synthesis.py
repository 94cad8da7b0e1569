"""Synthesis by an endpoint: what is asked, how often, what comes out, and that no failure loses anything."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from corpus_world import documents_of, files_of, run
from synthesis_world import KEY, VARIABLE, Reply, completion, document, good, pair, serving, synthesis

from cptron.corpus.load import load_curation
from cptron.corpus.stages import identities
from cptron.corpus.synthesis.budget import Spent, read_spent
from cptron.errors import ConfigError, DataError
from cptron.tokens.interleave import Keys, interleave


def dropped(root: Path) -> dict[str, int]:
    """Reasons of the step, in the manifest."""
    steps = json.loads((root / "out/manifest.json").read_text())["steps"]
    return dict(steps[0]["dropped"])


def test_pairs_say_where_they_come_from(tmp_path: Path) -> None:
    """Messages, text, ids, provenance; then the interleaving that the trainer reads."""
    with serving(good) as server:
        manifest = run(synthesis(tmp_path, server.url))
    made = documents_of(tmp_path / "out")
    assert len(made) == manifest.documents == 12 and dropped(tmp_path) == {}
    assert manifest.steps[0].documents_in == 6 and manifest.steps[0].documents_made == 6
    first = made[0]
    assert first["id"].startswith("x/in.jsonl#0/factual.0.") and first["document_id"] == "d0"
    question, answer = (message["content"] for message in first["messages"])
    assert first["text"] == f"{question}\n{answer}" and "Number0x" in question
    origin = first["meta"]["synthesis"]
    assert origin["document_sha256"] == hashlib.sha256(document(0).encode()).hexdigest()
    assert origin["document"] == "x/in.jsonl#0" and origin["model"] == {"endpoint_model": "m"}
    assert origin["prompt"] == "factual" and origin["parameters"]["temperature"] == 0.0
    output = tmp_path / "mixed.jsonl"
    files = [str(path) for path in (tmp_path / "out").glob("*.zst")]
    with pytest.raises(DataError, match="question-id-key"):
        interleave([str(tmp_path / "in.jsonl")], files, output, keys=Keys(id="n"))
    keys = Keys(id="n", question_id="document_id")
    counts = interleave([str(tmp_path / "in.jsonl")], files, output, keys=keys)
    assert (counts.documents, counts.questions, counts.documents_with_questions) == (6, 12, 6)
    lines = [json.loads(line)["messages"] for line in output.read_text().splitlines()]
    assert lines[0] == first["messages"] and lines[2] == document(0)


def test_nothing_is_asked_twice_and_workers_do_not_matter(tmp_path: Path) -> None:
    """Other words each time, yet the same bytes: from the cache, with other batches, other workers, other patience."""
    with serving(good) as server:
        config = synthesis(tmp_path, server.url, endpoint={"concurrency": 2})
        run(config)
        before = files_of(tmp_path / "out")
        assert set(server.asked.values()) == {1} and server.most_at_once <= 2
        config["steps"][0]["batch_documents"] = 1
        run(config, restart=True)
        assert len(server.bodies) == 6
        after = files_of(tmp_path / "out")
        assert {name: data for name, data in after.items() if name.endswith("zst")} == {
            name: data for name, data in before.items() if name.endswith("zst")
        }
    config["steps"][0]["endpoint"]["timeout_s"] = 9  # how answers are come by decides nothing
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(config))
    patient = identities(load_curation(path))
    config["steps"][0]["questions"] = 9
    path.write_text(yaml.safe_dump(config))
    assert "timeout_s" not in json.dumps(patient) and patient != identities(load_curation(path))


def failing(prompt: str, before: int) -> Reply:
    """Every way to fail that a try again can mend, one after the other."""
    whole = good(prompt, before)[2]
    ways: list[Reply] = [
        (500, {}, b"oops"),
        (429, {"Retry-After": "0"}, b'{"error": {"message": "slow down"}}'),
        (200, {}, b"<html>not JSON"),
        (200, {}, b'{"choices": []}'),
        (200, {"Content-Length": str(len(whole) + 50)}, whole),  # cut off
        (0, {}, b""),
        completion(""),
    ]
    return ways[before] if before < len(ways) else good(prompt, before)


def test_failures_are_tried_again(tmp_path: Path) -> None:
    """Each question gets through seven of them; tries are counted, and an unknown cost is the most possible."""
    with serving(failing) as server:
        run(synthesis(tmp_path, server.url, documents=2, endpoint={"retries": 7}))
        assert set(server.asked.values()) == {8}
    assert len(documents_of(tmp_path / "out")) == 4
    spent = read_spent(tmp_path / "cache")
    assert spent.requests == 16 and spent.tokens > 2 * 110


def test_retry_after_is_kept_to(tmp_path: Path) -> None:
    """At least as long as asked; a longer one than is allowed ends the run, which then goes on."""
    times: list[float] = []

    def reply(prompt: str, before: int) -> Reply:
        times.append(time.monotonic())
        return (429, {"Retry-After": "1"}, b"") if before == 0 else good(prompt, before)

    with serving(reply) as server:
        config = synthesis(tmp_path, server.url, documents=1)
        run(config)
        assert times[1] - times[0] >= 1.0
        server.reply = lambda prompt, before: (
            503,
            {"Retry-After": "3600" if "Number1x" in prompt else "600"},
            b"",
        )
        started = time.monotonic()  # the other one, which would wait, is not waited for
        with pytest.raises(DataError, match="asks to wait 3600 s"):
            run(synthesis(tmp_path, server.url, documents=3, endpoint={"longest_wait_s": 600}), restart=True)
        assert time.monotonic() - started < 500


def test_slow_server_is_not_waited_for(tmp_path: Path) -> None:
    """The time is for the whole answer, however alive the connection looks."""

    is_over = threading.Event()

    def reply(prompt: str, before: int) -> Reply:
        is_over.wait(600)
        return good(prompt, before)

    with serving(reply) as server:
        config = synthesis(tmp_path, server.url, documents=1, endpoint={"timeout_s": 0.2, "retries": 1})
        started = time.monotonic()
        with pytest.raises(DataError, match=r"no answer in 2 tries .*no whole answer in 0\.2 s"):
            run(config)
        assert time.monotonic() - started < 500
        is_over.set()


@pytest.mark.parametrize("status", [401, 404])
def test_refused_key_stops_at_once_and_is_never_shown(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even if the server repeats it."""
    monkeypatch.setenv(VARIABLE, KEY)
    body = json.dumps({"error": {"message": f"wrong key {KEY}"}}).encode()
    with serving(lambda prompt, before: (status, {}, body)) as server:
        config = synthesis(tmp_path, server.url, endpoint={"api_key_variable": VARIABLE})
        with pytest.raises(DataError, match="wrong key API_KEY") as caught:
            run(config)
        assert server.keys == {f"Bearer {KEY}"} and set(server.asked.values()) == {1}
    assert KEY not in str(caught.value) + "".join(capsys.readouterr())


def test_key_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of the cache nor of the corpus, nor packed, even if an answer holds it."""
    monkeypatch.setenv(VARIABLE, KEY)

    def reply(prompt: str, before: int) -> Reply:
        return completion(json.dumps([{**pair(prompt), "question": f"Is {KEY} the engine?"}]))

    with serving(reply) as server:
        run(synthesis(tmp_path, server.url, endpoint={"api_key_variable": VARIABLE}))
        assert server.keys == {f"Bearer {KEY}"}
    made = documents_of(tmp_path / "out")
    assert made and all("API_KEY" in one["text"] for one in made)
    assert KEY not in json.dumps(made)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(DataError, match=f"{VARIABLE} is empty"):
        run(synthesis(tmp_path / "b", server.url, endpoint={"api_key_variable": VARIABLE}))
    monkeypatch.setenv(VARIABLE, "two\nlines")
    with pytest.raises(DataError, match="one word of ASCII") as caught:
        run(synthesis(tmp_path / "b", server.url, endpoint={"api_key_variable": VARIABLE}))
    assert "two" not in str(caught.value)


def test_what_cannot_be_used_is_counted_and_shown(tmp_path: Path) -> None:
    """Each with its reason; the answers that are good stay."""

    def reply(prompt: str, before: int) -> Reply:
        one = pair(prompt)
        name = one["answer"].split()[1]
        number = int(name.removeprefix("Number").removesuffix("x"))
        return [
            completion("I have nothing to say."),
            completion(json.dumps([one])[:-15], "length"),
            completion(json.dumps([one, {**one, "answer": "I'm sorry, I can't say."}, {"question": 3}])),
            completion(
                json.dumps([{**one, "answer": "Whales and dolphins swim far below ancient glaciers."}])
            ),
            (400, {}, b'{"error": {"message": "too long"}}'),
            completion(None, refusal="I will not."),
            completion(
                f"**Q1:** {one['question']}\n**A1:** {one['answer']}\nQ: {one['question']}\nA: Built by the river."
            ),
            completion(json.dumps([{**one, "answer": f"The {name} engine was built in 1066."}, one])),
        ][number]

    with serving(reply) as server:
        run(synthesis(tmp_path, server.url, documents=8))
    assert dropped(tmp_path) == {
        "unreadable": 1, "cut_off": 1, "refusal": 1, "no_pair": 1, "not_grounded": 1, "model_refused": 2, "repeated": 1,
        "unknown_number": 1,
    }  # fmt: skip
    assert [one["document_id"] for one in documents_of(tmp_path / "out")] == ["d2", "d6", "d7"]
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert "nothing to say" in json.dumps(report)


def test_budget_ends_and_the_run_goes_on(tmp_path: Path) -> None:
    """Never one request more than allowed, over runs; then the rest alone is asked, or left out."""
    with serving(good) as server:
        with pytest.raises(DataError, match="budget of 4 requests is spent"):
            run(synthesis(tmp_path, server.url, endpoint={"max_requests": 4}))
        assert len(server.bodies) == 4
        run(synthesis(tmp_path, server.url, cached_only=True, endpoint={"max_requests": 4}))
        assert len(server.bodies) == 4 and dropped(tmp_path) == {"not_asked": 2}
        with pytest.raises(DataError, match=r"budget of 2,?\d* tokens is spent"):
            run(synthesis(tmp_path, server.url, endpoint={"max_tokens": 2100, "concurrency": 1}))
        assert read_spent(tmp_path / "cache").tokens <= 2100
        run(synthesis(tmp_path, server.url, endpoint={"max_requests": 6}))
        assert set(server.asked.values()) == {1} and len(server.asked) == 6
    assert read_spent(tmp_path / "cache") == Spent(6, 6 * 110)


def test_failed_endpoint_stops_or_drops(tmp_path: Path) -> None:
    """`drop` remembers the failure, so that the output stays; twenty in a row stop the run all the same."""
    with serving(
        lambda prompt, before: (500, {}, b"") if "Number1x" in prompt else good(prompt, before)
    ) as server:
        settings: dict[str, Any] = {"endpoint": {"retries": 1}}
        with pytest.raises(DataError, match="no answer in 2 tries"):
            run(synthesis(tmp_path, server.url, **settings))
        settings["endpoint"] = {"retries": 1, "on_failure": "drop"}
        run(synthesis(tmp_path, server.url, **settings))
        assert dropped(tmp_path) == {"model_failed": 1}
        server.reply = lambda prompt, before: (400, {}, b"")
        config = synthesis(tmp_path / "b", server.url, documents=30)
        config["shard_bytes"] = 1 << 20
        with pytest.raises(DataError, match="none of 20 questions in a row"):
            run(config)
        # They are no answers: the server was not as it should be.
        assert not list((tmp_path / "b/cache").glob("???/*.json"))
        server.reply = good
        run(config)
        assert dropped(tmp_path / "b") == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "http://example.org/v1"}, "unencrypted"),
        ({"url": "https://me:pw@example.org/v1"}, "user or a password"),
        ({"url": "https://example.org/v1?key=1"}, "after"),
        ({"url": "ftp://example.org"}, "must be like https"),
        ({"url": ""}, "one set, one empty"),
        ({"api_key_variable": KEY}, "never the key itself"),
        ({"extra": {"model": "x"}}, "other settings say it"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    """One line, before anything is sent."""
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(synthesis(tmp_path, "http://localhost:1/v1", endpoint=settings)))
    with pytest.raises(ConfigError, match=message) as caught:
        load_curation(path)
    assert KEY not in str(caught.value) and "pw" not in str(caught.value).split("synthesise")[1]


def test_killed_anywhere_ends_with_the_bytes_of_the_first_answers(tmp_path: Path) -> None:
    """SIGKILL twice on the way; no question that was answered is asked again."""

    answered, is_killed = 40, threading.Event()

    def reply(prompt: str, before: int) -> Reply:
        if len(server.asked) > answered:  # it gets no further before it is killed
            is_killed.wait(600)
        return good(prompt, before)

    with serving(reply) as server:
        config = synthesis(tmp_path, server.url, documents=40, endpoint={"concurrency": 2, "timeout_s": 600})
        path = tmp_path / "x.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "cptron.cli", "curate", str(path), "--workers", "1"]
        for answered in (5, 20):
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
            while len(server.asked) <= answered:
                assert process.poll() is None, "it ended before it was killed"
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            is_killed.set()
            is_killed = threading.Event()
        answered = 40
        known = {path.name: path.read_bytes() for path in (tmp_path / "cache").glob("???/*.json")}
        assert 15 <= len(known) < 40
        run(config)
        first = files_of(tmp_path / "out")
        after = {path.name: path.read_bytes() for path in (tmp_path / "cache").glob("???/*.json")}
        assert known.items() <= after.items() and len(after) == 40
        assert sum(server.asked.values()) <= 40 + 2 * 2  # what was under way when it was killed
        num_asked = len(server.bodies)
        run(config, workers=2, restart=True)
        assert files_of(tmp_path / "out") == first and len(server.bodies) == num_asked
