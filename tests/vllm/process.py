"""`holdfast sync` as a process of its own, and what stands between it and the server."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from holdfast.core.names import Version

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE_S = 90.0
LOOK_S = 0.05  # a look costs the processes that are looked at time, too
NOTHING: dict[str, Any] = {}


def until(condition: Callable[[], Any], what: str = "it never came true") -> Any:
    """Wait for `condition` to be true; its value."""
    tick = threading.Event()
    for _ in range(round(PATIENCE_S / LOOK_S)):
        found = condition()
        if found:
            return found
        tick.wait(LOOK_S)
    raise AssertionError(what)


class SyncProcess:
    """One life after the other of one sync process; its own HTTP is on a port of its own in each life."""

    def __init__(self, folder: pathlib.Path, *words: str) -> None:
        self.log = folder / "sync.log"
        self._words = words if "--config" in words else (*words, "--listen", "127.0.0.1:0")
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> SyncProcess:
        command = [sys.executable, "-m", "holdfast.cli.main", "sync", *self._words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        read = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self.url = until(lambda: self._listening(read), "it never listens")
        return self

    def _listening(self, read: int) -> str:
        assert self._process is not None
        said = self.log.read_bytes()[read:].decode(errors="replace")
        assert self._process.poll() is None, f"it ended with {self._process.returncode}: {said}"
        found = re.search(r"listening on (\S+)", said)
        return found[1] if found else ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """kill -9"""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
            self._process = None

    def end(self) -> int:
        """SIGTERM; its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            return process.wait(PATIENCE_S)
        finally:
            process.kill()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    # What it says

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.loads(answer.read())

    def serves(self, adapter: str = "policy") -> dict[str, Any]:
        """What it says of one channel on its one server; nothing while it is dead."""
        try:
            (server,) = self.ask("/served")["servers"]
        except (OSError, http.client.HTTPException):
            return NOTHING
        return next((one for one in server["channels"] if one["adapter"] == adapter), NOTHING)

    def until(self, condition: Callable[[], Any], what: str = "it never came true") -> Any:
        """Wait for `condition` while it runs; its value."""

        def met() -> Any:
            assert self._process is None or self._process.poll() is None, f"it ended:\n{self.said()}"
            return condition()

        try:
            return until(met, what)
        except AssertionError as error:
            said = "\n".join(self.said().splitlines()[-30:])
            raise AssertionError(f"{error}: {self.ask('/served')}\n{said}") from error

    def until_serves(self, version: Version, adapter: str = "policy") -> None:
        def there() -> bool:
            said = self.serves(adapter)
            return (said.get("version"), said.get("state")) == (str(version), "ready")

        self.until(there, f"{version} was never served")

    def said(self) -> str:
        return self.log.read_text(errors="replace")


@dataclass(frozen=True)
class Asked:
    """One request that changes something."""

    path: str
    query: str
    body: dict[str, Any]


class Tap:
    """Stands between a sync process and its server: notes what is asked, and can keep a request from going on."""

    def __init__(self, url: str) -> None:
        self.asked: list[Asked] = []
        self.reached = threading.Event()
        self._upstream = url.removeprefix("http://")
        self._stop: tuple[int, bool] | None = None
        self._go = threading.Event()
        self._go.set()
        self._lock = threading.Lock()
        tap = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                tap.forward(self)

            def do_POST(self) -> None:
                tap.forward(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the library's
                pass

        self._server = _Listening(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self.let_go()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def stop_at(self, nth: int, *, obeyed: bool) -> None:
        """Hold up the nth request from now on (from 1): before the server has it, or before its answer is handed on."""
        with self._lock:
            self._stop = (nth, obeyed)
            self.reached.clear()
            self._go.clear()

    def let_go(self) -> None:
        with self._lock:
            self._stop = None
            self._go.set()

    def forward(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        size = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(size)
        obeyed = self._note(handler, body)
        if obeyed is False:
            self._hold()
        connection = http.client.HTTPConnection(self._upstream, timeout=600)
        try:
            headers = {name: value for name, value in handler.headers.items() if name.lower() != "host"}
            connection.request(handler.command, handler.path, body or None, headers)
            answer = connection.getresponse()
            status, kind, data = answer.status, answer.getheader("Content-Type"), answer.read()
        except OSError:
            handler.close_connection = True  # as if this were the server's own socket
            return
        finally:
            connection.close()
        if obeyed is True:
            self._hold()
        with suppress(OSError):  # whoever asked may have been killed
            handler.send_response(status)
            if kind is not None:
                handler.send_header("Content-Type", kind)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)

    def _note(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> bool | None:
        """Whether to hold it up: False before the server has it, True after, None not at all."""
        if handler.command != "POST":
            return None
        path, _, query = handler.path.partition("?")
        with self._lock:
            self.asked.append(Asked(path, query, json.loads(body) if body else {}))
            if self._stop is None:
                return None
            nth, obeyed = self._stop
            self._stop = (nth - 1, obeyed) if nth > 1 else None
            return obeyed if nth == 1 else None

    def _hold(self) -> None:
        self.reached.set()
        assert self._go.wait(PATIENCE_S), "nobody lets it go on"

    def loads(self, version: Version) -> int:
        """How often this version was to be loaded."""
        with self._lock:
            return sum(str(version) in json.dumps(one.body) and _loads(one) for one in self.asked)


class _Listening(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that a killed process leaves behind is no news."""


def _loads(one: Asked) -> bool:
    return one.path in ("/v1/load_lora_adapter", "/collective_rpc")
