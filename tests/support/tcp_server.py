"""A store's server in a process of its own, to kill and freeze."""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType

from tests.support import frozen

SCRIPT = """
import sys
from holdfast.rendezvous.tcp import serve_tcp
server, port = serve_tcp("127.0.0.1", int(sys.argv[1]))
print(port, flush=True)
sys.stdin.read()
"""


class TcpServer:
    """Serves a TCPStore on loopback at `port`. Context manager."""

    def __init__(self, port: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def freeze(self) -> None:
        frozen.freeze(self._process.pid)

    def thaw(self) -> None:
        frozen.thaw(self._process.pid)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> TcpServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
