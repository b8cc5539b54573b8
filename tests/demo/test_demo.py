"""The demo as users start it: with etcd below, with each fault alone (in a soak), and interrupted at any moment."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest

from examples.demo.main import FAULTS
from examples.demo.processes import MARK, ROOT
from tests.support.channels import until

pytestmark = [pytest.mark.demo, pytest.mark.timeout(900)]
SOAK = os.environ.get("HOLDFAST_SOAK") == "1"
ENDS_S = 60.0  # far longer than it takes, on a machine that others use


@contextmanager
def _demo(place: pathlib.Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "examples.demo.main", "--quick", "--keep", str(place), *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        try:
            yield demo
        finally:
            demo.kill()


def _left(place: pathlib.Path) -> list[str]:
    """The commands of what goes on of a demo with this directory."""
    found = []
    for pid in os.listdir("/proc"):
        try:
            line = pathlib.Path("/proc", pid, "cmdline").read_bytes() if pid.isdigit() else b""
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(place).encode() in line:
            found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


def _read(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.read()


@pytest.mark.parametrize(
    ("store", "faults"),
    [("etcd", "member,kill"), *((("tcp", name) for name in FAULTS if name != "member") if SOAK else ())],
)
def test_the_job_survives(tmp_path: pathlib.Path, store: str, faults: str) -> None:
    place = tmp_path / "demo"
    with _demo(place, "--store", store, "--faults", faults) as demo:
        said = _read(demo.stdout)
        assert demo.wait() == 0, said
    assert "every claim holds" in said
    assert said.count("survived: ") == len(faults.split(","))
    assert _left(place) == []
    assert (place / "report.html").stat().st_size > 0


@pytest.mark.parametrize("seed", range(10 if SOAK else 3))
def test_whatever_ends_the_demo_ends_all_of_its_processes(tmp_path: pathlib.Path, seed: int) -> None:
    chance = random.Random(seed)
    number = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[seed % 3]
    place = tmp_path / "demo"
    with _demo(place) as demo:
        assert demo.stdout is not None
        for _ in range(chance.randrange(1, 6)):  # its lines tell how far it is
            assert demo.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            demo.wait(chance.uniform(0.0, 4.0))
        demo.send_signal(number)
        demo.stdout.read()
        assert demo.wait(ENDS_S) == (-number if number == signal.SIGKILL else 128 + number)
    until(lambda: not _left(place), "processes are left", timeout_s=ENDS_S)
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and _is_marked(pid, place)]


def _is_marked(pid: str, place: pathlib.Path) -> bool:
    """Whether it is a process of this demo, whatever it calls itself."""
    try:
        environment = pathlib.Path("/proc", pid, "environ").read_bytes()
        return MARK.encode() in environment and str(place).encode() in environment
    except OSError:
        return False
