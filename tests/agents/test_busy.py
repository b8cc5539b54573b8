"""M6: without a fault there is exactly one round, also where others want all of the machine."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from tests.agents.conftest import StartJob

pytestmark = [pytest.mark.agents, pytest.mark.timeout(600)]

BUSY_S = 300.0
SPINNERS = 4


def test_16_a_busy_machine_costs_no_round(start_job: StartJob) -> None:
    job = start_job(spares=1, last_call=30)
    job.start("n1", "n2", "n3")
    job.wait_for_round({"n1": 0, "n2": 1})
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(SPINNERS)]
    try:
        end_s = time.monotonic() + BUSY_S
        pause = threading.Event()
        while time.monotonic() < end_s:
            assert not any(life.ended() for life in job.lives.values())
            assert all(not life.last("stopping") for life in job.lives.values())
            pause.wait(1.0)
        job.wait_for_steps()
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    assert job.rounds() == {1: {"n1": 0, "n2": 1}}
    job.order("finish")
    assert job.codes() == {"n1": 0, "n2": 0, "n3": 0}
    job.assert_no_orphans()
