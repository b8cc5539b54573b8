"""Drain and stop, as people ask for them with `holdfast drain` and `holdfast stop`."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from tests.agents.conftest import StartJob
from tests.support.jobs import Job

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]


def holdfast(job: Job, *words: str) -> subprocess.CompletedProcess[str]:
    """`holdfast WORDS` about this job."""
    binary = str(pathlib.Path(sys.executable).with_name("holdfast"))
    return subprocess.run(
        [binary, *words, f"--endpoint={job.endpoint}", f"--run={job.run}"],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_a_drained_node_is_replaced_at_a_step_boundary_and_leaves_with_0(
    start_job: StartJob, store: dict[str, str]
) -> None:
    job = start_job(**store, spares=1, last_call=30)
    job.order("drain")
    job.start_first("n1")
    job.start("n2", "n3")
    first = job.wait_for_round({"n1": 0, "n2": 1})
    done = holdfast(job, "drain", "n2")
    assert done.returncode == 0, done.stderr
    second = job.wait_for_round({"n1": 0, "n3": 1}, after=first)
    assert job["n2"].code() == 0
    told = job.lines("began", round=second)[0]["told"]
    assert "is drained, at a step boundary" in told["HOLDFAST_REASON"]
    assert told["HOLDFAST_RESTARTS"] == "0"
    assert {line["rank"] for line in job.lines("drains", round=first)} == {0, 1}
    steps = {rank: len(job.lines("step", round=first, rank=rank)) for rank in (0, 1)}
    assert steps[0] == steps[1]
    job.order("finish")
    assert {name: job[name].code() for name in ("n1", "n3")} == {"n1": 0, "n3": 0}
    job.assert_no_orphans()


def test_a_drained_node_whose_workers_do_not_listen_is_replaced_when_the_time_is_over(start_job: StartJob) -> None:
    job = start_job(torch=False, spares=1, last_call=30)
    job.start_first("n1")
    job.start("n2", "n3")
    first = job.wait_for_round({"n1": 0, "n2": 1})
    done = holdfast(job, "drain", "n2", "--timeout=1")
    assert done.returncode == 0, done.stderr
    second = job.wait_for_round({"n1": 0, "n3": 1}, after=first)
    assert "with its time over" in job.lines("began", round=second)[0]["told"]["HOLDFAST_REASON"]
    assert job["n2"].code() == 0
    job.order("finish")
    assert {name: job[name].code() for name in ("n1", "n3")} == {"n1": 0, "n3": 0}
    job.assert_no_orphans()


def test_the_stores_host_is_drained_too_and_keeps_the_store(start_job: StartJob) -> None:
    job = start_job(torch=False, spares=1, last_call=30)
    job.start_first("n1")
    job.start("n2", "n3")
    first = job.wait_for_round({"n1": 0, "n2": 1})
    done = holdfast(job, "drain", "n1", "--timeout=1", "--no-wait")
    assert done.returncode == 0, done.stderr
    job.wait_for_round({"n3": 0, "n2": 1}, after=first)
    job.wait(lambda: not job["n1"].workers(), "the workers of n1 live on")
    job.wait_for_steps(50)
    job.order("finish")
    assert job.codes() == {"n1": 0, "n2": 0, "n3": 0}
    job.assert_no_orphans()


def test_a_drain_for_which_nobody_can_take_the_place_is_called_off(start_job: StartJob) -> None:
    job = start_job(torch=False)
    job.start("n1", "n2")
    job.wait_for_round({"n1": 0, "n2": 1})
    done = holdfast(job, "drain", "n2", "--timeout=1")
    assert done.returncode == 1
    assert "nobody can take its place" in done.stdout + done.stderr
    job.wait_for_steps(50)
    assert set(job.rounds()) == {1}
    job.order("finish")
    assert job.codes() == {"n1": 0, "n2": 0}
    job.assert_no_orphans()


@pytest.mark.parametrize("code", [0, 42])
def test_a_job_that_is_told_to_stop_ends_with_that_code_where_there_is_a_seat(
    start_job: StartJob, store: dict[str, str], code: int
) -> None:
    job = start_job(**store, torch=False, spares=1, last_call=30)
    job.start("n1", "n2", "n3")
    job.wait_for_round({"n1": 0, "n2": 1})
    done = holdfast(job, "stop", f"--code={code}")
    assert done.returncode == 0, done.stderr
    assert job.codes() == {"n1": code, "n2": code, "n3": 0}
    job.assert_no_orphans()
