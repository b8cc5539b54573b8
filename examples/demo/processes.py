"""The demo's processes: started, killed, frozen, woken, and all ended at the end, whatever happened.

python -m examples.demo.processes MARK        ends all processes with this mark once its own input ends
"""

from __future__ import annotations

import os
import pathlib
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

ROOT = pathlib.Path(__file__).parents[2]  # where `examples` is imported from
MARK = "HOLDFAST_DEMO_RUN"  # every process of a run inherits it
LIMIT_S = 400.0  # for anything that is waited for; two vLLM servers on two cores take minutes to come up
GRACE_S = 5.0
LOOK_S = 0.05
T = TypeVar("T")


class DemoFailed(Exception):
    """Something that should have happened did not."""


class Process:
    """One command, with its log. `life` counts how often it was started under this name."""

    def __init__(self, name: str, life: int, command: Iterable[object], log: pathlib.Path, mark: str) -> None:
        self.name = name
        self.life = life
        self.killed = False
        self.log = log
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", MARK: mark}
        environment["SPT_NOENV"] = "1"  # vLLM's processes name themselves, and would overwrite the mark
        with log.open("ab") as file:
            # A group of its own, so that Ctrl-C reaches the director alone, who then ends the others in order.
            self._popen = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,
                cwd=ROOT,
                env={**os.environ, **environment},
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def code(self) -> int | None:
        """The exit code, None while it lives."""
        return self._popen.poll()

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def wait(self) -> None:
        self._popen.wait()

    def kill(self) -> None:
        """kill -9 of it alone; what it started is left to its guardian."""
        self.killed = True
        self._popen.kill()
        self._popen.wait()

    def kill_all(self) -> None:
        """kill -9 of it and all that it started, as when its machine dies. It is not to be blamed for its exit code."""
        self.killed = True
        for pid in tree(self.pid):
            _send(pid, signal.SIGKILL)
        self._popen.wait()

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Cast:
    """All processes of one run. `limit_s`: how long anything may take that is waited for (seconds)."""

    def __init__(self, logs: pathlib.Path, limit_s: float = LIMIT_S) -> None:
        self._logs = logs
        self.limit_s = limit_s
        self._mark = secrets.token_hex(8)
        self._began_s = time.monotonic()
        self.all: list[Process] = []
        self.now: dict[str, Process] = {}
        logs.mkdir(parents=True)
        # Its input ends when the director does, however that ended.
        watchdog = (sys.executable, "-m", "examples.demo.processes", self._mark)
        self._watchdog = subprocess.Popen(watchdog, stdin=subprocess.PIPE, process_group=0, cwd=ROOT)

    @property
    def took_s(self) -> float:
        return time.monotonic() - self._began_s

    def start(self, name: str, *command: object) -> Process:
        before = self.now.get(name)
        process = Process(name, before.life + 1 if before else 1, command, self._logs / f"{name}.log", self._mark)
        self.all.append(process)
        self.now[name] = process
        return process

    def say(self, text: str) -> None:
        print(f"{self.took_s:6.1f} s  {text}", flush=True)

    def wait_for(self, what: str, condition: Callable[[], T]) -> T:
        """What `condition` gives once that is true.

        Raises:
            DemoFailed: a process has ended that should not have, or it took too long.
        """
        until_s = time.monotonic() + self.limit_s
        while not (found := condition()):
            for process in self.now.values():
                if process.code not in (None, 0) and not process.killed:
                    raise DemoFailed(
                        f"{process.name} ended with {process.code}, while waiting for {what}:\n{process.tail()}"
                    )
            if time.monotonic() > until_s:
                raise DemoFailed(f"waited {self.limit_s:.0f} s in vain for {what}")
            time.sleep(LOOK_S)
        return found

    def wait_for_ends(self, *names: str) -> None:
        """Until these have ended by themselves."""
        for name in names:
            self.wait_for(f"{name} to end", lambda name=name: self.now[name].code is not None)  # type: ignore[misc]

    def terminate(self, *names: str) -> None:
        """Ask these to end, as a job manager does, and wait until they have."""
        for name in names:
            self.now[name].signal(signal.SIGTERM)
        self.wait_for_ends(*names)

    def end_all(self) -> list[int]:
        """Nothing is left running afterwards; the processes that had to be killed."""
        for process in self.all:
            if process.code is None:
                for pid in (process.pid, *tree(process.pid)):
                    _send(pid, signal.SIGCONT)
                process.signal(signal.SIGTERM)
        until_s = time.monotonic() + GRACE_S
        while any(process.code is None for process in self.all) and time.monotonic() < until_s:
            time.sleep(LOOK_S)
        left = marked(self._mark)
        self._watchdog.communicate()
        for process in self.all:
            process.wait()
        return left

    def workers(self) -> dict[int, Worker]:
        """The training processes of the present round, by rank."""
        found = [worker for pid in marked(self._mark) if (worker := _worker(pid)) is not None]
        latest = max((worker.round for worker in found), default=0)
        return {worker.rank: worker for worker in found if worker.round == latest}


class Worker:
    """One training process, as its environment tells."""

    def __init__(self, pid: int, node: str, rank: int, round_: int) -> None:
        self.pid = pid
        self.node = node
        self.rank = rank
        self.round = round_


def marked(mark: str) -> list[int]:
    """The live processes of the run with this mark."""
    wanted = f"{MARK}={mark}".encode()
    return [pid for pid in _pids() if wanted in _environment(pid) and is_there(pid)]


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants."""
    children: dict[int, list[int]] = {}
    for one in _pids():
        with suppress(OSError, IndexError, ValueError):
            stat = pathlib.Path(f"/proc/{one}/stat").read_text()
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(one)
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def freeze(pids: Iterable[int]) -> None:
    """SIGSTOP, and wait until they do stand."""
    pids = list(pids)
    for pid in pids:
        _send(pid, signal.SIGSTOP)
    while any(_state(pid) not in ("T", "t", "Z", "X", "") for pid in pids):
        time.sleep(0.001)


def wake(pids: Iterable[int]) -> None:
    for pid in pids:
        _send(pid, signal.SIGCONT)


def is_there(pid: int) -> bool:
    return _state(pid) not in ("Z", "X", "")


def _state(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _worker(pid: int) -> Worker | None:
    told = dict(entry.split("=", 1) for entry in _environment(pid).decode(errors="replace").split("\0") if "=" in entry)
    if "RANK" not in told or "HOLDFAST_NODE" not in told:
        return None
    return Worker(pid, told["HOLDFAST_NODE"], int(told["RANK"]), int(told["HOLDFAST_ROUND"]))


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _environment(pid: int) -> bytes:
    try:
        return pathlib.Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def main(mark: str) -> None:
    while os.read(0, 1):
        continue
    while there := marked(mark):
        for pid in there:
            _send(pid, signal.SIGKILL)
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main(sys.argv[1])
