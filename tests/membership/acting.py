"""Real agents and workers, as small as they can be: started by tests, told what to do by lines, ended by their pids."""

from __future__ import annotations

import json
import os
import pathlib
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

PATIENCE_S = 30.0

# Each prints the pids that it stands for, in one line, once they are as they should be.
PAUSE = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
DEAF = (
    "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True)\n"
    "while True: signal.pause()"
)
STOPPED = "import os, signal; print(os.getpid(), flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
# A grandchild in a session of its own, whose parent is gone.
ORPHAN = "import os, signal\nif os.fork(): os._exit(0)\nos.setsid(); print(os.getpid(), flush=True); signal.pause()"
FAMILY = (
    "import os, signal, subprocess, sys\n"
    f"words = [sys.executable, '-S', '-c', {PAUSE!r}]\n"
    "child = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)\n"
    "print(os.getpid(), child.stdout.readline().decode().strip(), flush=True); signal.pause()"
)

_AGENT = """
import json, os, subprocess, sys
from holdfast.rendezvous.desk import Desk
from holdfast.rendezvous.workers import Guardian

token, scripts, place, grace_s = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], float(sys.argv[4])
desk = Desk(place)
guardian = Guardian(token, desk, grace_s=grace_s)
guardian.start()
desk.drain("a reason")
environment = {**os.environ, "HOLDFAST_AGENT": token}
options = {"env": environment, "start_new_session": True, "stdout": subprocess.PIPE}
workers = [subprocess.Popen([sys.executable, "-S", "-c", script], **options) for script in scripts]
pids = [int(pid) for worker in workers for pid in worker.stdout.readline().split()]
print(json.dumps({"pids": pids, "desk": str(desk.path), "guardian": guardian.pid}), flush=True)
for line in sys.stdin:
    getattr(guardian, line.strip())()
    print(json.dumps(guardian.pid), flush=True)
"""


class Watched:
    """A process that need not be a child of ours: whether it has ended, without asking by its number."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle = os.pidfd_open(pid)

    def ended(self, within_s: float = 0.0) -> bool:
        return bool(select.select([self._handle], [], [], within_s)[0])

    def send(self, number: int) -> None:
        signal.pidfd_send_signal(self._handle, number)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self.send(signal.SIGKILL)
        os.close(self._handle)


class Acting:
    """An agent with a guardian and workers, all of them real."""

    def __init__(self, place: pathlib.Path, token: str, scripts: list[str], grace_s: float = 0.2) -> None:
        words = [sys.executable, "-c", _AGENT, token, json.dumps(scripts), str(place), str(grace_s)]
        self.agent = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        said = self._said()
        self.workers = [Watched(pid) for pid in said["pids"]]
        self.guardians = [Watched(said["guardian"])]
        self.desk = pathlib.Path(said["desk"])

    @property
    def guardian(self) -> Watched:
        return self.guardians[-1]

    def tell(self, word: str) -> int | None:
        """Have the agent call its guardian's method of this name. The guardian's pid after it."""
        assert self.agent.stdin is not None
        self.agent.stdin.write(word.encode() + b"\n")
        self.agent.stdin.flush()
        pid: int | None = self._said()
        if pid is not None and pid != self.guardian.pid:
            self.guardians.append(Watched(pid))
        return pid

    def _said(self) -> Any:
        assert self.agent.stdout is not None
        return json.loads(self.agent.stdout.readline())

    def close(self) -> None:
        self.agent.kill()
        for watched in (*self.guardians, *self.workers):  # while one of them is there, the agent's words have no end
            watched.close()
        self.agent.communicate()


@contextmanager
def acting(place: pathlib.Path, token: str, *scripts: str, grace_s: float = 0.2) -> Iterator[Acting]:
    agent = Acting(place, token, list(scripts), grace_s)
    try:
        yield agent
    finally:
        agent.close()


@contextmanager
def process(script: str, environment: dict[str, str]) -> Iterator[list[Watched]]:
    """One process, a child of ours, and what it says it has started."""
    words = [sys.executable, "-S", "-c", script]
    started = subprocess.Popen(words, env={**os.environ, **environment}, stdout=subprocess.PIPE, start_new_session=True)
    assert started.stdout is not None
    watched = [Watched(int(pid)) for pid in started.stdout.readline().split()]
    try:
        yield watched
    finally:
        for one in watched:
            one.close()
        started.kill()
        started.communicate()
