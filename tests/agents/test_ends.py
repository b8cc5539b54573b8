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


@pytest.mark.parametrize("launcher", ["torchrun", "holdfast"])
def test_2_a_job_that_fails_for_good_fails_everywhere_but_not_on_spares(start_job: StartJob, launcher: str) -> None:
    job = start_job(launcher=launcher, spares=1, last_call=30, restart_budget=1)
    job.start("n1", "n2", "n3")
    first = job.wait_for_round({"n1": 0, "n2": 1})
    job.order("fail", node="n2", round=first)
    second = job.wait_for_round({"n1": 0, "n2": 1}, after=first)
    job.order("fail", node="n1", round=second)
    assert job.codes() == {"n1": 1, "n2": 1, "n3": 0}
    for name in ("n1", "n2", "n3"):
        [line] = job[name].said()
        assert "the restart budget of 1 is used up" in line
        assert line.startswith("holdfast: error:") == (name != "n3")
    assert set(job.rounds()) == {first, second}
    job.assert_no_orphans()


def test_3_who_comes_after_the_end_reads_the_outcome_and_leaves_with_0(
    start_job: StartJob, outside: dict[str, str]
) -> None:
    job = start_job(**outside, torch=False, attempt="a")
    job.start("n1", "n2")
    job.wait_for_round({"n1": 0, "n2": 1})
    job.order("finish")
    assert job.codes() == {"n1": 0, "n2": 0}
    job.start("n3")
    assert job["n3"].code() == 0
    assert job["n3"].said() == ["holdfast: succeeded: all 2 nodes are done"]
    assert job.rounds() == {1: {"n1": 0, "n2": 1}}
    job.assert_no_orphans()


def test_3_the_host_of_the_store_waits_for_a_spare_that_has_not_heard_yet(start_job: StartJob) -> None:
    job = start_job(torch=False, spares=1, last_call=30, lease=20)
    job.start_first("n1")
    job.start("n2", "n3")
    job.wait_for_round({"n1": 0, "n2": 1})
    job["n3"].freeze()
    job.order("finish")
    assert job["n2"].code() == 0
    assert not job["n1"].ended()
    job["n3"].wake()
    assert job.codes() == {"n1": 0, "n2": 0, "n3": 0}
    job.assert_no_orphans()


def test_12_a_node_whose_health_check_fails_stays_out_and_says_why(start_job: StartJob) -> None:
    job = start_job(nnodes="1", torch=False, timeout=600)
    job.start("n1", health_check="echo disk is broken; exit 3")
    job["n1"].wait_for("unhealthy", "disk is broken")
    job.start("n2")
    job.wait_for_round({"n2": 0})
    job.order("finish")
    assert job.codes() == {"n1": 0, "n2": 0}
    job.assert_no_orphans()


def test_12_some_are_done_and_one_fails_then_the_job_has_failed_everywhere(start_job: StartJob) -> None:
    job = start_job(torch=False, spares=1, last_call=30)
    job.start("n1", "n2", "n3")
    job.wait_for_round({"n1": 0, "n2": 1})
    job.order("finish", node="n1")
    job["n1"].wait_for("done")
    job.order("fail", node="n2")
    assert job.codes() == {"n1": 1, "n2": 1, "n3": 0}
    [line] = job["n2"].said()
    assert "the workers of n2" in line
    assert "was done" in line
    job.assert_no_orphans()


def test_15_the_exit_barrier_holds_a_node_until_the_others_are_done_and_no_longer(start_job: StartJob) -> None:
    job = start_job(torch=False, spares=1, last_call=30)
    job.start("n1", "n2", "n3")
    job.wait_for_round({"n1": 0, "n2": 1})
    job.order("finish", node="n1")
    job["n1"].wait_for("done")
    job.wait_for_steps(100)
    assert not job["n1"].ended()
    job.order("finish", node="n2")
    assert job.codes() == {"n1": 0, "n2": 0, "n3": 0}
    assert job.rounds() == {1: {"n1": 0, "n2": 1}}
    job.assert_no_orphans()


def test_15_a_node_lost_while_others_wait_in_the_barrier_fails_the_job_at_once(start_job: StartJob) -> None:
    job = start_job(torch=False, spares=1, last_call=30)
    job.start_first("n1")
    job.start("n2", "n3")
    job.wait_for_round({"n1": 0, "n2": 1})
    job.order("finish", node="n1")
    job["n1"].wait_for("done")
    job["n2"].kill()
    assert job["n1"].code() == 1
    assert job["n3"].code() == 0
    assert job.rounds() == {1: {"n1": 0, "n2": 1}}
    job.assert_no_orphans()


@pytest.mark.parametrize("how", ["killed", "told to go"])
def test_15_done_outranks_what_becomes_of_the_node_later(start_job: StartJob, how: str) -> None:
    job = start_job(torch=False, spares=1, last_call=30)
    job.start_first("n1")
    job.start("n2", "n3")
    job.wait_for_round({"n1": 0, "n2": 1})
    job.order("finish", node="n2")
    job["n2"].wait_for("done")
    if how == "killed":
        job["n2"].kill()
    else:
        job["n2"].terminate()
        assert job["n2"].code() != 0
    job.wait_for_steps(100)
    job.order("finish", node="n1")
    assert job["n1"].code() == 0
    assert job["n3"].code() == 0
    assert job.rounds() == {1: {"n1": 0, "n2": 1}}
    job.assert_no_orphans()
