"""Stopping a process so that it has stopped when the call returns: the signal alone arrives a little later."""

from __future__ import annotations

import os
import pathlib
import signal


def freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    while any(_state(task) not in "TZ" for task in pathlib.Path(f"/proc/{pid}/task").iterdir()):
        os.sched_yield()


def thaw(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


def _state(task: pathlib.Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # a thread that ended
        return "Z"
