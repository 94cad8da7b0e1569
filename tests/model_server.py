"""A server with OpenAI's interface, by the standard library, that answers from a model in a folder.

Written against OpenAI's documents and not with `cptron`'s code, so that both can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class ModelServer:
    """Greedy answers of the model in `folder`, which is called `name`, to those who have `key`."""

    def __init__(self, folder: Path, name: str, key: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        self._name, self._key = name, key
        self.num_answers = 0

    def reply(self, path: str, authorization: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and content."""
        if authorization != f"Bearer {self._key}":
            return 401, _error("Incorrect API key provided", "invalid_api_key")
        if body["model"] != self._name:
            return 404, _error(f"The model {body['model']!r} does not exist", "model_not_found")
        if body.get("stream"):
            return 400, _error("this server has no streams", "unsupported")
        if path == "/v1/chat/completions":
            prompt = self._tokenizer.apply_chat_template(
                body["messages"], tokenize=False, add_generation_prompt=True
            )
            text, usage, reason = self._completed(prompt, body, False)
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
        elif path == "/v1/completions":
            text, usage, reason = self._completed(body["prompt"], body, True)
            choice = {"text": text}
        else:
            return 404, _error("no such path", "not_found")
        self.num_answers += 1
        return 200, {"choices": [{"index": 0, "finish_reason": reason, **choice}], "usage": usage}

    def _completed(self, prompt: str, body: dict[str, Any], special: bool) -> tuple[str, dict[str, int], str]:
        assert body["temperature"] == 0
        ids = self._tokenizer(prompt, add_special_tokens=special)["input_ids"]
        made: list[int] = []
        reason = "length"
        while len(made) < body["max_tokens"]:
            with torch.inference_mode():
                token = int(self._model(torch.tensor([ids + made])).logits[0, -1].argmax())
            if token == self._tokenizer.eos_token_id:
                reason = "stop"
                break
            made.append(token)
        text = self._tokenizer.decode(made, skip_special_tokens=True)
        for stop in body.get("stop", []):
            if stop in text:
                text, reason = text.partition(stop)[0], "stop"
        usage = {
            "prompt_tokens": len(ids), "completion_tokens": len(made), "total_tokens": len(ids) + len(made)
        }  # fmt: skip
        return text, usage, reason


@contextmanager
def model_serving(server: ModelServer) -> Iterator[str]:
    """Its address, while it runs; one request at a time."""

    class Handler(BaseHTTPRequestHandler):
        """Hands everything to `server`."""

        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            """A question."""
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, content = server.reply(self.path, self.headers.get("Authorization", ""), body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Connection", "close")  # there is one thread
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is logged."""

    http = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1"
    finally:
        http.shutdown()
        http.server_close()


def _error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": code}}
