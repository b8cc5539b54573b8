"""A server in this process or in one of its own, and a client for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from holdfast.serve.app import build
from holdfast.serve.server import Config, Server, open_server

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0


@dataclass
class Reply:
    status: int
    raw: bytes
    kind: str

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["code"] == self.status
        return error


class Client:
    """Asks one server, over a connection of its own each time."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url
        self._address = urllib.parse.urlsplit(url).netloc
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._address, timeout=PATIENCE_S)

    def get(self, path: str) -> Reply:
        return self._ask("GET", path, None)

    def post(self, path: str, body: Any = None) -> Reply:
        raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        return self._ask("POST", path, raw)

    def _ask(self, method: str, path: str, body: bytes | None) -> Reply:
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, {"content-type": "application/json", **self._headers})
            answer = connection.getresponse()
            return Reply(answer.status, answer.read(), answer.getheader("content-type", ""))

    @contextlib.contextmanager
    def stream(self, path: str, body: dict[str, Any]) -> Iterator[Iterator[Any]]:
        """Events as they come; the last one is the string "[DONE]"."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("POST", path, json.dumps(body | {"stream": True}), self._headers)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            assert answer.getheader("content-type", "").startswith("text/event-stream")
            yield _events(answer)

    def complete(self, model: str, prompt: Any, **more: Any) -> Reply:
        body = {"model": model, "prompt": prompt, "temperature": 0, "return_token_ids": True, "max_tokens": 12}
        return self.post("/v1/completions", body | more)

    def tokens(self, model: str, prompt: Any, **more: Any) -> list[int]:
        """The first answer's tokens, made greedily."""
        reply = self.complete(model, prompt, **more)
        assert reply.status == 200, reply.raw
        ids: list[int] = reply.json["choices"][0]["token_ids"]
        return ids

    def load(self, name: str, path: pathlib.Path) -> Reply:
        return self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})

    def unload(self, name: str) -> Reply:
        return self.post("/v1/unload_lora_adapter", {"lora_name": name})

    def reload(self, path: pathlib.Path) -> Reply:
        return self.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(path)}})

    def models(self) -> list[str]:
        return [card["id"] for card in self.get("/v1/models").json["data"]]

    def metric(self, name: str) -> dict[str, float]:
        """Values of a metric by its labels, as they stand in the text."""
        lines = self.get("/metrics").raw.decode().splitlines()
        found = [line.removeprefix(name).rsplit(" ", 1) for line in lines if line.startswith(name + "{")]
        return {labels: float(value) for labels, value in found}

    def count(self, name: str) -> int:
        return int(sum(self.metric(name).values()))


def _events(answer: http.client.HTTPResponse) -> Iterator[Any]:
    for line in answer:
        if line.strip():
            data = line.decode().removeprefix("data: ").strip()
            yield data if data == "[DONE]" else json.loads(data)


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@contextlib.contextmanager
def serving(model: pathlib.Path, **options: Any) -> Iterator[tuple[Client, Server]]:
    """A server in a thread of this process; only its signals are missing."""
    server = open_server(Config(model=model, **options))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        web = _Uvicorn(uvicorn.Config(build(server), log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=web.run, kwargs={"sockets": [listening]})
        server.engine.start()
        thread.start()
        try:
            assert web.ready.wait(PATIENCE_S)
            yield Client(f"http://127.0.0.1:{listening.getsockname()[1]}", options.get("api_key")), server
        finally:
            assert server.engine.stop(PATIENCE_S)
            web.should_exit = True
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


@contextlib.contextmanager
def served(model: pathlib.Path, *options: str) -> Iterator[tuple[Client, subprocess.Popen[str]]]:
    """`holdfast serve` as a process of its own, on a free port."""
    command = [sys.executable, "-m", "holdfast.cli.main", "serve", str(model), "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " at http://" in line, line
        yield Client(line.split(" at ")[1].strip()), process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
