"""Sync processes between a channel and fake servers: in this process, or in one of their own that can be killed."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import urllib.error
import urllib.request
from contextlib import ExitStack
from typing import Any, TypeVar

import holdfast
from holdfast.channel.publisher import Publisher
from holdfast.core.names import Version
from holdfast.sync.config import ChannelConfig, ServerConfig, SyncConfig, check_config
from holdfast.sync.process import Sync
from holdfast.testing.adapters import adapter_files
from holdfast.testing.server import FakeServer
from holdfast.testing.vllm import FakeVLLM
from tests.support.channels import until

PATIENCE_S = 60.0
S = TypeVar("S", bound=FakeServer)


class Scene:
    """One test's channel, servers and processes."""

    def __init__(self, path: pathlib.Path, stack: ExitStack, python: str) -> None:
        self.path = path
        self.stage = path / "stage"
        self._stack = stack
        self._python = python
        self._number = 0

    # The channel

    def publisher(self, name: str = "channel", **options: Any) -> Publisher:
        """An open publisher that keeps the newest version only, and sweeps."""
        self._number += 1
        term = holdfast.Term(job=f"job-{self._number}", round=0, nonce="1")
        options = {"retention": holdfast.Retention(keep_recent=1), "take_over": True, "term": term, **options}
        publisher = holdfast.Channel(self.path / name, lease_s=20.0).publisher(**options)
        return self._stack.enter_context(publisher)

    def publish(
        self,
        publisher: Publisher,
        step: int,
        *,
        rank: int = 8,
        full: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> Version:
        """An adapter, or a whole model, with bytes of its own at each call."""
        self._number += 1
        folder = self.path / f"files-{self._number}"
        folder.mkdir()
        files = adapter_files(self._number, rank)
        if full:
            files = {"model.safetensors": files["adapter_model.safetensors"], "config.json": b"{}"}
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return publisher.publish_directory(step, folder, metadata=metadata)

    def consumer(self, name: str = "channel") -> Any:
        """What the sync process's file in the channel says; None if there is none."""
        seen = holdfast.Channel(self.path / name).observer().consumers()
        return next((one.record for life, one in sorted(seen.items(), reverse=True) if life.name == "sync"), None)

    def until_acknowledged(self, version: Version) -> None:
        until(lambda: self.consumer().acknowledged == str(version), f"{version} was never acknowledged")

    def copies(self, adapter: str = "policy") -> set[str]:
        """The versions of which there are copies."""
        return {path.name for path in self.stage.glob(f"{adapter}/sync/versions/*")}

    # Servers and sync processes

    def server(self, **options: Any) -> FakeVLLM:
        return self.take(FakeVLLM(**options))

    def take(self, server: S) -> S:
        """Start `server`; it ends with the test."""
        self._stack.enter_context(server)
        return server

    def config(self, *servers: Any, **options: Any) -> SyncConfig:
        """Channel "channel" into `servers` (fakes, or settings)."""
        channel = options.pop("channel", {})
        channels = options.pop("channels", (ChannelConfig(path=str(self.path / "channel"), **channel),))
        each = options.pop("server", {})
        settings = tuple(
            one if isinstance(one, ServerConfig) else ServerConfig(url=one.url, **{"linger_s": 0.2, **each})
            for one in servers
        )
        chosen: dict[str, Any] = {
            "name": "sync",
            "stage": str(self.stage),
            "listen": "127.0.0.1:0",
            "lease_s": 20.0,
            "discover_s": 0.1,
        }
        return check_config(SyncConfig(channels=channels, servers=settings, **(chosen | options)))

    def sync(self, *servers: Any, **options: Any) -> Running:
        """A sync process in this one."""
        running = Running(Sync(self.config(*servers, **options)), options.get("token_file"))
        self._stack.callback(running.stop)
        running.sync.start()
        return running

    def process(self, *words: str) -> subprocess.Popen[str]:
        """`holdfast sync …` in a process of its own."""
        command = [self._python, "-m", "holdfast.cli.main", "sync", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._stack.callback(end, process)
        return process

    def command(self, server: FakeVLLM, *words: str) -> list[str]:
        """The words of a sync process that feeds `server`."""
        return [
            *(str(self.path / "channel"), "--url", server.url, "--name", "sync", "--stage", str(self.stage)),
            *("--listen", "off", "--linger", "0.2", "--lease", "20", *words),
        ]


class Running:
    """A sync process in this one, and its own HTTP as others see it."""

    def __init__(self, sync: Sync, token_file: str | None = None) -> None:
        self.sync = sync
        self._token = pathlib.Path(token_file).read_text().strip() if token_file else None
        self._stopped = False

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self.sync.stop()

    @property
    def url(self) -> str:
        assert self.sync.api is not None
        return self.sync.api.url

    def ask(self, path: str, body: object = None, *, token: str | None = None) -> tuple[int, Any]:
        """Status and JSON (or text) of one request."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data)
        token = token if token is not None else self._token
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, said = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, said = error.code, error.read()
        return status, said.decode() if path == "/metrics" and status == 200 else json.loads(said)

    def channels(self, server: int = 0) -> dict[str, dict[str, Any]]:
        """What one server serves: adapter -> the channel's entry."""
        return {one["adapter"]: one for one in self.ask("/served")[1]["servers"][server]["channels"]}

    def served(self, adapter: str = "policy", server: int = 0) -> dict[str, Any]:
        return self.channels(server).get(adapter, {})

    def until_serves(self, version: Version, adapter: str = "policy", server: int = 0) -> dict[str, Any]:
        """Wait until `version` is served and all is at rest; what is said of it then."""
        found: dict[str, Any] = {}

        def there() -> bool:
            found.update(self.served(adapter, server))
            return (found.get("version"), found.get("state")) == (str(version), "ready")

        until(there, f"{version} was never served", timeout_s=PATIENCE_S)
        return found

    def until_reason(self, *words: str, adapter: str = "policy") -> dict[str, Any]:
        """Wait until the server's state has a reason with these words; what is said then."""
        found: dict[str, Any] = {}

        def there() -> bool:
            found.update(self.served(adapter))
            return all(word in found.get("reason", "") for word in words)

        until(there, f"never said {words}", timeout_s=PATIENCE_S)
        return found


def end(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> int:
    """End a process by its id, if it runs; its exit status."""
    if process.poll() is None:
        os.kill(process.pid, number)
    process.communicate(timeout=60)
    return process.returncode
