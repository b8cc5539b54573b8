"""The demo's processes as main sees them: started, told of, killed, frozen, woken, and all ended at the end."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from examples.demo.plan import Places
from examples.demo.process import Report, Said
from examples.demo.report import spoken

ROOT = pathlib.Path(__file__).parents[2]  # where `examples` is imported from
LIMIT_S = 120.0  # for anything that is waited for


class DemoFailed(Exception):
    """Something that should have happened did not."""


class Process:
    """One process of the demo, with its report and its log. Its role is a module of this package."""

    def __init__(self, places: Places, name: str, role: str, *arguments: object) -> None:
        self.name = name
        self.log = places.log(name)
        self._report = Report(places.report(name))
        with self.log.open("wb") as log:
            # A group of its own, so that Ctrl-C reaches main alone, which then ends the others in order. stdin is a
            # pipe that nobody writes to: it closes when main is gone, however it went.
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "examples.demo.process", role, str(places.root), *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def code(self) -> int | None:
        """The exit code, None while it lives."""
        return self._popen.poll()

    def is_stopped(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def end(self) -> None:
        if self._popen.poll() is None:
            self._popen.kill()  # also ends one that is stopped
        self._popen.wait()
        if self._popen.stdin is not None:
            self._popen.stdin.close()

    def said(self, event: str = "") -> list[Said]:
        return [said for said in self._report.said() if event in ("", said.event)]


class Cast:
    """All processes of one run of the demo."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.all: dict[str, Process] = {}
        self._doomed: set[str] = set()
        self._told: dict[str, int] = {}
        self._began_s = time.monotonic()

    @property
    def took_s(self) -> float:
        return time.monotonic() - self._began_s

    def start(self, name: str, role: str, *arguments: object) -> Process:
        self.all[name] = Process(self.places, name, role, *arguments)
        return self.all[name]

    def may_fail(self, process: Process) -> None:
        """From now on this one may end otherwise than with code 0."""
        self._doomed.add(process.name)

    def terminate(self, *processes: Process) -> None:
        """Ask these to end, and wait until they have."""
        for process in processes:
            process.signal(signal.SIGTERM)
        names = " and ".join(process.name for process in processes)
        self.wait_for(f"{names} to end", lambda: all(process.code is not None for process in processes))

    def end_all(self) -> None:
        for process in self.all.values():
            process.end()

    def say(self, text: str) -> None:
        print(f"{self.took_s:5.1f} s  {text}", flush=True)

    def wait_for(self, what: str, condition: Callable[[], object]) -> None:
        """Return once `condition` holds; tell meanwhile what the processes report."""
        deadline_s = time.monotonic() + LIMIT_S
        while not condition():
            self._tell()
            for process in self.all.values():
                if process.code not in (None, 0) and process.name not in self._doomed:
                    tail = process.log.read_text(errors="replace")[-3000:]
                    raise DemoFailed(f"{process.name} ended with code {process.code}:\n{tail}")
            if time.monotonic() > deadline_s:
                raise DemoFailed(f"waited {LIMIT_S:g} s in vain for: {what}")
            time.sleep(0.05)
        self._tell()

    def _tell(self) -> None:
        for process in self.all.values():
            said = process.said()
            for line in said[self._told.get(process.name, 0) :]:
                text = spoken(line)
                if text:
                    self.say(f"{process.name:12} {text}")
            self._told[process.name] = len(said)
