"""kill -9 at random: nothing committed and retained is lost, nothing is torn, nothing is left behind."""

from __future__ import annotations

import os
import pathlib
import random
import sys
import tempfile
from collections.abc import Iterator

import pytest

from tests.kill.driver import Driver

KILLS = 1000
LIMIT_S = 280.0  # of which a quiet machine needs half

pytestmark = [
    pytest.mark.kill,
    pytest.mark.skipif(sys.platform != "linux", reason="children die with their parent on Linux only"),
]


@pytest.fixture
def base(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """In memory where there is some: a killed process loses no page cache, and there a second sees more kills."""
    shm = pathlib.Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="holdfast-kill-", dir=shm) as folder:
        yield pathlib.Path(folder)


@pytest.mark.timeout(3600)
def test_I1_to_I8_under_kill_9(base: pathlib.Path, effort: int) -> None:
    seed = random.SystemRandom().randrange(10**6) if effort > 1 else 1
    kills = KILLS * effort
    report = Driver(base, seed).run(kills, LIMIT_S * effort)
    print(report)
    again = f"python -m tests.kill.driver --seed {seed} --kills {kills} --keep EMPTY_DIRECTORY"
    assert not report.problems, "\n".join([*report.problems[:20], str(report), f"again: {again}"])
    assert report.kills >= kills
    assert report.count["committed"] > kills / 2, "most publishers came to publish"
    assert report.count["given"] > kills, "and consumers to take"
    assert report.count["adopted"] > kills / 20, "and lives to take over from those before"
