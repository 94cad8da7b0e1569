"""A server with OpenAI's interface that misbehaves as it is told, documents to ask about, and curations of them."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from corpus_world import config_of
from tokens_world import save_byte_tokenizer

KEY = "sk-secret-0123456789abcdef"
VARIABLE = "CPTRON_TEST_KEY"
Reply = tuple[int, Mapping[str, str], bytes]
"""Status, headers, body."""
DOCUMENT = "The {name} engine was built in {year} by the river. Its boiler holds {year} litres of water and heats them."


def document(number: int) -> str:
    """A text with facts of its own."""
    return DOCUMENT.format(name=f"Number{number}x", year=1800 + number)


def pair(user: str, serial: int = 0) -> dict[str, str]:
    """A good question and answer about the document in a prompt."""
    name = next(word for word in user.split() if word.startswith("Number"))
    return {
        "question": f"When was the {name} engine built, in the {serial}. telling?",
        "answer": f"The {name} engine was built by the river.",
    }


def completion(text: str | None, reason: str = "stop", **message: Any) -> Reply:
    """A right response."""
    content = {
        "choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }
    return 200, {}, json.dumps(content).encode()


class Server:
    """Answers every question with `reply(prompt, how often it was asked before)`."""

    def __init__(self, reply: Callable[[str, int], Reply]) -> None:
        self.reply = reply
        self.asked: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        self.url = ""

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        """One request."""
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self._lock:
            before = self.asked[prompt]
            self.asked[prompt] += 1
            self.bodies.append(body)
            self.keys.add(handler.headers.get("Authorization", ""))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            assert handler.path == "/v1/chat/completions"
            status, headers, content = self.reply(prompt, before)
            if status == 0:  # hang up
                handler.close_connection = True
                return
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(content)
            handler.close_connection = "Content-Length" in headers
        except OSError:
            pass  # the client had no patience
        finally:
            with self._lock:
                self._at_once -= 1


@contextmanager
def serving(reply: Callable[[str, int], Reply], context: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A server on this machine; with TLS where there is a `context`."""
    server = Server(reply)

    class Handler(BaseHTTPRequestHandler):
        """Hands everything to `server`."""

        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            """A question."""
            server.handle(self)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is logged."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    if context:
        http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
        server.url = f"https://localhost:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def good(prompt: str, before: int) -> Reply:
    """Two pairs, in other words each time that it is asked."""
    text = json.dumps([pair(prompt, time.monotonic_ns()), pair(prompt, time.monotonic_ns() + 1)])
    return completion(f"Here they are:\n```json\n{text}\n```")


def synthesis(root: Path, url: str, documents: int = 6, **settings: Any) -> dict[str, Any]:
    """A curation of some documents with one step that asks `url`."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": document(number), "n": f"d{number}"}) for number in range(documents)]
    (root / "in.jsonl").write_text("".join(line + "\n" for line in lines))
    endpoint = {
        "url": url, "model": "m", "first_wait_s": 0.01, "longest_wait_s": 2, "timeout_s": 120,
        **settings.pop("endpoint", {})
    }  # fmt: skip
    step = {
        "step": "synthesise", "kinds": ["factual"], "id_key": "n", "endpoint": endpoint, "cache": str(root / "cache"),
        **settings,
    }  # fmt: skip
    config: dict[str, Any] = config_of(
        root / "out", {"x": [str(root / "in.jsonl")]}, [step], shard_bytes=1024
    )
    return config


def tiny_model(folder: Path) -> Path:
    """A Llama with random weights, and a tokenizer of bytes, without a chat template."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    save_byte_tokenizer(folder, ("</s>",), eos_token="</s>", tokenizer_class="PreTrainedTokenizerFast")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=4096, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
