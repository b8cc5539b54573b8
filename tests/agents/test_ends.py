"""How a job ends, and with which code each node leaves (design 5.3)."""

from __future__ import annotations

import pytest

from tests.agents.conftest import StartJob

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]


@pytest.mark.parametrize("launcher", ["torchrun", "holdfast"])
def test_1_all_succeed_and_spares_leave_with_0(start_job: StartJob, launcher: str) -> None:
    job = start_job(launcher=launcher, spares=1, last_call=30)
    job.start("n1", "n2", "n3")
    assert job.wait_for_round({"n1": 0, "n2": 1}) == 1
    job.order("finish")
    assert job.codes() == {"n1": 0, "n2": 0, "n3": 0}
    assert job["n3"].said() == ["holdfast: succeeded: all 2 nodes are done"]
    job.assert_no_orphans()
