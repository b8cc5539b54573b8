"""The part of `make bench` about seeing a run of 1 000 nodes, 200 servers, 10 000 versions: status, report, trace."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

Row = tuple[str, str, str, str]
MB = 10**6


def measures(pairs: int) -> dict[str, Callable[[], list[Row]]]:
    return {"events: a run of 1 000 nodes": lambda: seeing(max(1, pairs // 3))}


def seeing(runs: int) -> list[Row]:
    """Wall time of each command, interpreter's start included; memory and size of the report."""
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from tests.support.manyevents import FULL, write

    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as scratch:
        events = write(pathlib.Path(scratch), FULL)
        size = sum(path.stat().st_size for path in events.iterdir())
        what = f"{len(list(events.iterdir()))} files, {size / MB:.0f} MB of events"
        page, trace = pathlib.Path(scratch, "report.html"), pathlib.Path(scratch, "trace.json")
        looks = sorted(_run("status", "--events", str(events))[0] for _ in range(2 * runs + 1))
        report_s, peak = _run("report", str(events), "-o", str(page))
        trace_s, _ = _run("trace", str(events), "-o", str(trace))
        return [
            (f"first screen of status, {what}", f"{looks[runs]:.2f} s", f"{looks[0]:.2f} … {looks[-1]:.2f}", "≤ 1 s"),
            ("report of them", f"{report_s:.1f} s", f"peak {peak / MB:.0f} MB", ""),
            ("the page", f"{page.stat().st_size / MB:.2f} MB", "", "≤ 5 MB"),
            ("trace of them", f"{trace_s:.1f} s", f"{trace.stat().st_size / MB:.0f} MB", ""),
        ]


def _run(*words: str) -> tuple[float, int]:
    """How long the command took (s), and its peak memory (bytes)."""
    began_s = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "holdfast.cli.main", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in (0, 3), words
    return time.perf_counter() - began_s, used.ru_maxrss * 1024
