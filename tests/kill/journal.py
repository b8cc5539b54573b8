"""What each process says it did, one file per process, read by the driver while they run and after they were killed.

A line is one write to a file that was opened for appending, so a killed process leaves whole lines only.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import time
from typing import Any


class Journal:
    """The lines of one process."""

    def __init__(self, path: pathlib.Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def say(self, word: str, **fields: Any) -> None:
        line = json.dumps({"word": word, "at_s": time.monotonic(), **fields}).encode() + b"\n"
        assert os.write(self._handle, line) == len(line)


class Reader:
    """All journals of one directory: new lines since the last look, per process in their order."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._offsets: dict[str, int] = {}

    def news(self, role: str) -> dict[str, list[dict[str, Any]]]:
        """Process name -> its new lines, for processes whose name begins with `role`."""
        found: dict[str, list[dict[str, Any]]] = {}
        for path in sorted(self._directory.glob(f"{role}*.jsonl")):
            offset = self._offsets.get(path.name, 0)
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            if whole:
                self._offsets[path.name] = offset + len(whole)
                found[path.name.removesuffix(".jsonl")] = [json.loads(line) for line in whole.splitlines()]
        return found


def digests(directory: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every payload file below `directory`, by this suite's own reading.

    Raises:
        FileNotFoundError: it vanished before all of it was read.
    """
    found = {}
    for above, _, names in os.walk(directory, onerror=_raise):
        for name in names:
            path = pathlib.Path(above, name)
            if name not in ("manifest.json", "STABLE"):
                found[path.relative_to(directory).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    directory.stat()
    return found


def _raise(error: OSError) -> None:
    raise error
