"""A job that was requeued: each attempt starts clean, and the old one's stragglers harm nobody (design 5.1)."""

from __future__ import annotations

import pathlib

import pytest

from tests.agents.conftest import StartJob
from tests.support.jobs import Job

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]


def publishes(job: Job, channel: pathlib.Path, number: int) -> str:
    """Rank 0 publishes. The version's name."""
    weights = channel.parent / "weights"
    weights.mkdir(exist_ok=True)
    (weights / "w.bin").write_bytes(b"weights")
    job.order("publish", rank=0, number=number, channel=str(channel), weights=str(weights))
    return str(job.wait_for_line("published", number=number)["version"])


def test_14_a_requeued_job_starts_clean_and_a_late_agent_of_the_old_attempt_leaves_with_0(
    start_job: StartJob, outside: dict[str, str], tmp_path: pathlib.Path
) -> None:
    channel = tmp_path / "channel"
    old = start_job(**outside, torch=False, attempt="7.0")
    old.start("n1", "n2")
    old.wait_for_round({"n1": 0, "n2": 1})
    assert publishes(old, channel, 1).startswith("c000001-")
    for name in ("n1", "n2"):
        old[name].kill()

    new = start_job(**outside, torch=False, attempt="7.1")
    new.start("n1", "n2")
    assert new.wait_for_round({"n1": 0, "n2": 1}) == 1
    assert publishes(new, channel, 1).startswith("c000002-")

    old.start("n3")
    assert old["n3"].code() == 0
    assert "superseded: attempt 7.1 has begun" in old["n3"].said()[0]
    new.order("finish")
    assert new.codes() == {"n1": 0, "n2": 0}
    for job in (old, new):
        job.assert_no_orphans()


def test_14_an_old_attempt_that_still_trains_ends_when_the_new_one_begins(
    start_job: StartJob, outside: dict[str, str], tmp_path: pathlib.Path
) -> None:
    old = start_job(**outside, nnodes="1", torch=False, attempt="first")
    old.start("n1")
    old.wait_for_round({"n1": 0})
    assert publishes(old, tmp_path / "channel", 1).startswith("c000001-")
    new = start_job(**outside, nnodes="1", torch=False, attempt="second")
    new.start("n1")
    new.wait_for_round({"n1": 0})
    assert old["n1"].code() == 1
    assert publishes(new, tmp_path / "channel", 2).startswith("c000002-")
    new.order("finish")
    assert new["n1"].code() == 0
    for job in (old, new):
        job.assert_no_orphans()


def test_14_an_ended_run_without_an_attempt_is_not_begun_again_by_mistake(
    start_job: StartJob, outside: dict[str, str]
) -> None:
    job = start_job(**outside, nnodes="1", torch=False)
    job.start("n1")
    job.wait_for_round({"n1": 0})
    job.order("finish")
    assert job["n1"].code() == 0
    job.start("n2")
    code = job["n2"].code()
    [line] = job["n2"].said()
    if outside["endpoint"].startswith("etcd"):
        assert code == 2
        assert "has ended (succeeded" in line
        assert "--attempt" in line
    else:
        assert (code, line) == (0, "holdfast: succeeded: all 1 nodes are done")
    assert set(job.rounds()) == {1}
    job.assert_no_orphans()
