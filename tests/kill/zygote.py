"""A process that has Holdfast imported and forks one child per order, so that a process starts in milliseconds.

Orders come as JSON lines on standard input, answers go to standard output. Only this process signals its children and
takes up their end, so a signal can never reach another process that was given the same number.

    {"do": "start", "role": "consumer", "spec": {…}}  -> {"pid": 123}
    {"do": "signal", "pid": 123, "signal": 9}         -> {"status": null} or the exit status, if it has ended
    {"do": "ended"}                                   -> {"ended": {"123": 0}}: ended by themselves since the last order

At the end of its input it kills whoever is left.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import traceback
from typing import Any

from tests.kill.roles import ROLES

# Imported before the first fork, so that no child pays for it; none of them starts a thread.
_NEEDED = ("consumer", "memory", "posix", "publisher", "sweeper", "watch")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def main() -> None:
    for name in _NEEDED:
        importlib.import_module(f"holdfast.channel.{name}")
    gc.freeze()
    alive: set[int] = set()
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        ended = _reap(alive)
        if order["do"] == "start":
            assert len(os.listdir("/proc/self/task")) == 1, "a fork copies one thread only"
            pid = _start(order["role"], order["spec"])
            alive.add(pid)
            answer: dict[str, Any] = {"pid": pid}
        elif order["do"] == "signal":
            answer = {"status": _signal(order["pid"], order["signal"], alive, ended)}
        else:
            answer = {}
        print(json.dumps({**answer, "ended": ended}), flush=True)
    for pid in tuple(alive):
        _signal(pid, signal.SIGKILL, alive, {})


def _start(role: str, spec: dict[str, Any]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            with open(os.devnull, "r+b") as null, open(spec["stderr"], "ab") as errors:
                os.dup2(null.fileno(), 0)
                os.dup2(null.fileno(), 1)
                os.dup2(errors.fileno(), 2)
            ROLES[role](spec)
            status = 0
    except BaseException:  # noqa: BLE001 - the outermost loop of a process: told to the driver by file and status
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _signal(pid: int, number: int, alive: set[int], ended: dict[int, int]) -> int | None:
    """Signal a child that was not taken up yet; its exit status if it has ended, or was killed."""
    if pid in ended:
        return ended[pid]
    assert pid in alive
    os.kill(pid, number)
    if number != signal.SIGKILL:
        return None
    alive.discard(pid)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != -signal.SIGKILL:
        ended[pid] = status  # it was quicker
    return status


def _reap(alive: set[int]) -> dict[int, int]:
    ended = {}
    for pid in tuple(alive):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            alive.discard(pid)
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended


if __name__ == "__main__":
    main()
