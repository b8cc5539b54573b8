"""`run_control` in a process of its own."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys

LONG_S = 60.0
SCRIPT = """
import logging, sys
import msgspec
from holdfast.run.control import ControlSettings, run_control
logging.basicConfig(level=logging.INFO, format="%(message)s")
sys.exit(run_control(msgspec.json.decode(sys.argv[1], type=ControlSettings)))
"""


class Control:
    """One control process; its words, and its etcd's, go to `log`."""

    def __init__(self, log: pathlib.Path, **settings: object) -> None:
        self.log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, json.dumps(settings)], stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def children(self) -> list[int]:
        path = pathlib.Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(LONG_S)

    def ended(self) -> int:
        """Its exit code, once it has ended by itself."""
        return self._process.wait(LONG_S)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(LONG_S)
