"""Who comes, under which name, and when (design 5.3, M1)."""

from __future__ import annotations

import pytest

from tests.agents.conftest import StartJob

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]


def test_10_more_agents_than_seats_and_spares_and_late_ones_are_all_parked(start_job: StartJob) -> None:
    job = start_job(torch=False, spares=1, last_call=30)
    job.start("n1", "n2", "n3", "n4")
    job.wait(lambda: bool(job.rounds()), "no round")
    job.start("n0")
    job.wait_for_members(5)
    job.wait_for_steps()
    [(number, ranks)] = job.rounds().items()
    assert number == 1
    assert sorted(ranks.values()) == [0, 1]
    job.order("finish")
    assert job.codes() == dict.fromkeys(("n0", "n1", "n2", "n3", "n4"), 0)
    job.assert_no_orphans()


def test_10_a_node_that_comes_back_under_its_name_gets_its_old_group_rank(start_job: StartJob) -> None:
    job = start_job(torch=False)
    job.start_first("n2", infra_rank=1)
    job.start("n9", infra_rank=0)
    first = job.wait_for_round({"n9": 0, "n2": 1})
    job["n9"].kill()
    job["n2"].wait_for("waiting", "1 of 2 nodes")
    job.start("n9", infra_rank=7)
    job.wait_for_round({"n9": 0, "n2": 1}, after=first)
    job.order("finish")
    assert job.codes() == {"n2": 0, "n9": 0}
    job.assert_no_orphans()


def test_10_of_two_agents_with_one_name_one_has_a_seat(start_job: StartJob) -> None:
    job = start_job(torch=False, spares=1, last_call=1)
    job.start_first("n1")
    job.start("n2", "n2")
    first = job.wait_for_round({"n1": 0, "n2": 1})
    job.wait_for_members(3)
    job.wait_for_steps()
    assert len(job.lines("began")) == 2
    seated = next(life for life in job.lives.values() if life.name == "n2" and life.workers())
    seated.kill()
    job.wait_for_round({"n1": 0, "n2": 1}, after=first)
    job.order("finish")
    assert [life.code() for life in job.lives.values() if life is not seated] == [0, 0]
    job.assert_no_orphans()
