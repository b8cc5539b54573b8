"""What all tests share: how hard to try, and that nothing outlives them."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from contextlib import suppress

import hypothesis
import pytest

_CI = "CI" in os.environ
_SOAK = os.environ.get("HOLDFAST_SOAK") == "1"
# In CI the same examples every time: what fails there fails for everyone. A soak looks for new ones.
hypothesis.settings.register_profile(
    "holdfast", deadline=None, print_blob=True, derandomize=_CI and not _SOAK, max_examples=2000 if _SOAK else 100
)
hypothesis.settings.load_profile("holdfast")


@pytest.fixture(scope="session")
def effort() -> int:
    """How many times as long as usual the random suites go on: 1, and 10 in a soak."""
    return 10 if _SOAK else 1


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    left = _live_children()
    assert not left, f"tests left processes running: {left}"


def _live_children() -> list[str]:
    """Command lines of this process's children; multiprocessing's own helpers end when it does."""
    tasks = pathlib.Path("/proc/self/task")
    if not tasks.exists():
        return []
    pids: set[str] = set()
    for task in tasks.iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ends just now
            pids.update((task / "children").read_text().split())
    commands = []
    for pid in sorted(pids):
        try:
            command = pathlib.Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # A zombie has no command line: it has ended.
        if (
            command
            and "multiprocessing.resource_tracker" not in command
            and "multiprocessing.forkserver" not in command
        ):
            commands.append(f"{pid}: {command.strip()}")
    return commands
