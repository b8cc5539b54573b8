"""What every process of the demo has in common: it reports what it did, and it never outlives the demo.

python -m examples.demo.process model|trainer|inference|command ROOT …
"""

from __future__ import annotations

import importlib
import os
import pathlib
import sys
import threading
import time
from typing import Any

import msgspec


class Said(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One line of a process's report; what it says of a version, or of itself."""

    event: str
    at_s: float = 0.0  # seconds, on the machine's monotonic clock
    version: str = ""
    step: int = -1
    cycle: int = 0
    loss: float = 0.0
    url: str = ""
    model: str = ""
    reason: str = ""
    answers: int = 0
    completions: tuple[str, ...] = ()
    made_by: tuple[str, ...] = ()  # fingerprints of the weights


class Reporter:
    """Appends what this process did to its report, for main and for the table at the end."""

    def __init__(self, path: pathlib.Path) -> None:
        self._file = path.open("ab", buffering=0)

    def say(self, event: str, **fields: Any) -> None:
        self._file.write(msgspec.json.encode(Said(event=event, at_s=time.monotonic(), **fields)) + b"\n")


class Report:
    """Reads what a process has said so far, each line once; a line that is being written waits for its end."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._read_bytes = 0
        self._said: list[Said] = []

    def said(self) -> list[Said]:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._read_bytes)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read_bytes += len(whole)
            self._said += [msgspec.json.decode(line, type=Said) for line in whole.splitlines()]
        return self._said


def wait_for_path(path: pathlib.Path) -> None:
    """Return once `path` is there."""
    while not path.exists():
        time.sleep(0.05)


def _end_with_parent() -> None:
    """End this process when main's end of the pipe on stdin closes, however main ended."""

    def watch() -> None:
        while os.read(0, 1):  # not through sys.stdin, whose lock would be held when this process ends
            continue
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()  # before the role's imports, which take seconds
    sys.exit(importlib.import_module(f"examples.demo.{sys.argv[1]}").main(*sys.argv[2:]))
