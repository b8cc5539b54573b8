"""Real etcd servers on loopback: one, or a cluster of three, to restart, kill and freeze."""

from __future__ import annotations

import contextlib
import http.client
import pathlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from tests.support import frozen

LONG_S = 60.0
COMMON = ("--log-level", "warn", "--heartbeat-interval", "100", "--election-timeout", "1000")


def binary() -> str:
    found = shutil.which("etcd")
    assert found is not None, "etcd is not installed: apt-get install etcd-server"
    return found


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [each.getsockname()[1] for each in sockets]


def until(found: Callable[[], bool], what: str) -> None:
    """Look until it is so."""
    end_s = time.monotonic() + LONG_S
    pause = threading.Event()
    while not found():
        assert time.monotonic() < end_s, what
        pause.wait(0.05)


class Etcd:
    """One member. Attributes: `name`, `port` (clients), `peer_port`, `url`, `directory` (its data)."""

    def __init__(
        self,
        root: pathlib.Path,
        name: str,
        port: int,
        peer_port: int,
        *,
        more: Sequence[str] = (),
        scheme: str = "http",
    ) -> None:
        self.name = name
        self.port = port
        self.peer_port = peer_port
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.directory = root / name
        self.log = root / f"{name}.log"
        self._scheme = scheme
        self._more = tuple(more)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def peer_url(self) -> str:
        return f"http://127.0.0.1:{self.peer_port}"

    def start(self, cluster: str = "", *, wait: bool = True) -> None:
        """Start it; `cluster` is etcd's --initial-cluster, of itself alone by default."""
        command = [
            *(binary(), "--name", self.name, "--data-dir", str(self.directory)),
            *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
            *("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url),
            *("--initial-cluster", cluster or f"{self.name}={self.peer_url}"),
            *COMMON,
            *self._more,
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it answers (with TLS: until it listens)."""
        until(self._answers, f"etcd does not come up: {self.log.read_text()[-2000:]}")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-2000:]
        with contextlib.suppress(OSError, http.client.HTTPException):
            if self._scheme == "https":
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return True
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1.0)
            with contextlib.closing(connection):
                connection.request("GET", "/health")
                return b'"true"' in connection.getresponse().read()
        return False

    def freeze(self) -> None:
        frozen.freeze(self.pid)

    def thaw(self) -> None:
        frozen.thaw(self.pid)

    def kill(self) -> None:
        """kill -9, whether frozen or not; nothing happens if it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(LONG_S)
            self._process = None

    def restart(self, cluster: str = "") -> None:
        self.kill()
        self.start(cluster)


@contextlib.contextmanager
def one_etcd(root: pathlib.Path, *, more: Sequence[str] = (), scheme: str = "http") -> Iterator[Etcd]:
    port, peer_port = free_ports(2)
    etcd = Etcd(root, "alone", port, peer_port, more=more, scheme=scheme)
    try:
        etcd.start()
        yield etcd
    finally:
        etcd.kill()


@contextlib.contextmanager
def three_etcds(root: pathlib.Path) -> Iterator[list[Etcd]]:
    """A cluster."""
    ports = free_ports(6)
    members = [Etcd(root, f"m{number}", ports[2 * number], ports[2 * number + 1]) for number in range(3)]
    cluster = ",".join(f"{member.name}={member.peer_url}" for member in members)
    try:
        for member in members:
            member.start(cluster, wait=False)
        for member in members:
            member.wait()
        yield members
    finally:
        for member in members:
            member.kill()
