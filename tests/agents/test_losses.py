"""What is lost, and who takes its place (design 5.3, M2, M7)."""

from __future__ import annotations

import os
import pathlib
import signal

import pytest

from tests.agents.conftest import StartJob
from tests.support.jobs import Job

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]

THREE = {"spares": 1, "last_call": 30}


def finish(job: Job, *names: str) -> None:
    """The job succeeds, on these nodes."""
    job.order("finish")
    assert {name: job[name].code() for name in names} == dict.fromkeys(names, 0)
    job.assert_no_orphans()


def begin(job: Job, first: str, *others: str) -> int:
    """The first one hosts the store; n1 and n2 train, n3 is the spare."""
    job.start_first(first)
    job.start(*others)
    return job.wait_for_round({"n1": 0, "n2": 1})


def test_4_a_spare_that_is_told_to_go_leaves_with_0(start_job: StartJob) -> None:
    job = start_job(**THREE)
    begin(job, "n1", "n2", "n3")
    job["n3"].terminate()
    assert job["n3"].code() == 0
    job.wait_for_steps()
    assert set(job.rounds()) == {1}
    finish(job, "n1", "n2")


def test_4_a_spare_that_hosts_the_store_and_is_told_to_go_keeps_the_store_until_the_outcome(
    start_job: StartJob,
) -> None:
    job = start_job(torch=False, **THREE)
    begin(job, "n3", "n1", "n2")
    job["n3"].terminate()
    job["n3"].wait_for("left")
    job.wait_for_steps(100)
    assert not job["n3"].ended()
    assert set(job.rounds()) == {1}
    finish(job, "n1", "n2", "n3")


@pytest.mark.parametrize(("launcher", "number"), [("torchrun", signal.SIGTERM), ("holdfast", signal.SIGINT)])
def test_4_an_active_node_that_is_told_to_go_is_replaced(
    start_job: StartJob, launcher: str, number: signal.Signals
) -> None:
    job = start_job(launcher=launcher, **THREE)
    first = begin(job, "n1", "n2", "n3")
    job["n2"].terminate(number)
    second = job.wait_for_round({"n1": 0, "n3": 1}, after=first)
    code = job["n2"].code()
    assert code == 128 + number if launcher == "holdfast" else code != 0  # torchrun ends in an exception of its own
    assert f"told to by {number.name}" in job.lines("began", round=second)[0]["told"]["HOLDFAST_REASON"]
    finish(job, "n1", "n3")


def test_4_the_stores_host_that_is_told_to_go_is_replaced_but_keeps_the_store_until_the_outcome(
    start_job: StartJob,
) -> None:
    job = start_job(**THREE)
    first = begin(job, "n1", "n2", "n3")
    job["n1"].terminate()
    job.wait_for_round({"n3": 0, "n2": 1}, after=first)
    job.wait(lambda: not job["n1"].workers(), "the workers of n1 live on")
    job.wait_for_steps()
    assert not job["n1"].ended()
    job.order("finish")
    assert {name: job[name].code() for name in ("n2", "n3")} == {"n2": 0, "n3": 0}
    assert job["n1"].code() != 0
    job.assert_no_orphans()


def test_5_a_worker_is_killed_and_all_begin_anew(start_job: StartJob) -> None:
    job = start_job(**THREE)
    first = begin(job, "n1", "n2", "n3")
    job["n2"].kill_workers()
    second = job.wait_for_round({"n1": 0, "n2": 1}, after=first)
    told = job.lines("began", round=second)[0]["told"]
    assert "failed" in told["HOLDFAST_REASON"]
    assert (told["HOLDFAST_RESTARTS"], told["HOLDFAST_SPARES"]) == ("1", "1")
    finish(job, "n1", "n2", "n3")


@pytest.mark.parametrize("lost", ["n1", "n2"])
def test_6_a_spare_takes_the_group_rank_of_a_node_that_was_killed(
    start_job: StartJob, store: dict[str, str], lost: str
) -> None:
    stays = "n2" if lost == "n1" else "n1"
    job = start_job(**store, **THREE)
    first = begin(job, stays, lost, "n3")
    job[lost].kill()
    rank = {"n1": 0, "n2": 1}
    second = job.wait_for_round({stays: rank[stays], "n3": rank[lost]}, after=first)
    assert lost in job.lines("began", round=second)[0]["told"]["HOLDFAST_REASON"]
    assert len(job.rounds()) == 2
    finish(job, stays, "n3")


def test_7_the_workers_of_an_agent_that_was_killed_are_ended_and_a_spare_takes_its_place(start_job: StartJob) -> None:
    job = start_job(torch=False, workers=2, **THREE)
    first = begin(job, "n1", "n2", "n3")
    assert len(job["n2"].workers()) == 2
    job["n2"].kill_agent()
    job.wait(lambda: not job["n2"].pids(), "the workers of n2, or their guardian, live on")
    job.wait_for_round({"n1": 0, "n3": 1}, after=first)
    finish(job, "n1", "n3")


def test_7_workers_that_ignore_signals_die_with_their_agent_too(start_job: StartJob) -> None:
    job = start_job(torch=False, **THREE)
    job.order("stubborn", node="n2")
    first = begin(job, "n1", "n2", "n3")
    job["n2"].kill_agent()
    job.wait_for_round({"n1": 0, "n3": 1}, after=first)
    job.wait(lambda: not job["n2"].pids(), "the workers of n2, or their guardian, live on")
    finish(job, "n1", "n3")


def test_8_the_coordinators_node_is_killed_and_another_one_goes_on(
    start_job: StartJob, outside: dict[str, str]
) -> None:
    job = start_job(**outside, **THREE)
    first = begin(job, "n1", "n2", "n3")
    job["n1"].kill()
    job.wait_for_round({"n3": 0, "n2": 1}, after=first)
    terms = [
        event.fields["term"] for name in ("n2", "n3") for event in job[name].events() if event.event == "coordinator"
    ]
    assert terms
    assert min(terms) == 2
    finish(job, "n2", "n3")


def test_11_without_a_spare_the_job_shrinks_and_grows_again_when_a_node_comes(start_job: StartJob) -> None:
    job = start_job(nnodes="1:2", last_call=2, stop=2)
    first = begin(job, "n1", "n2")
    job["n2"].kill()
    second = job.wait_for_round({"n1": 0}, after=first)
    job.start("n3")
    third = job.wait_for_round({"n1": 0, "n3": 1}, after=second)
    told = job.lines("began", round=third)[0]["told"]
    assert told["HOLDFAST_REASON"] == "2 nodes can train instead of 1"
    assert told["HOLDFAST_RESTARTS"] == "1"
    finish(job, "n1", "n3")


def test_11_without_a_spare_the_job_waits_for_a_node_and_says_so(start_job: StartJob) -> None:
    job = start_job()
    first = begin(job, "n1", "n2")
    job["n2"].kill()
    job["n1"].wait_for("waiting", "1 of 2 nodes")
    job.start("n3")
    job.wait_for_round({"n1": 0, "n3": 1}, after=first)
    finish(job, "n1", "n3")


def test_11_a_job_that_waits_too_long_for_nodes_has_failed(start_job: StartJob) -> None:
    job = start_job(torch=False, timeout=10)
    job.start("n1", "n2")
    job.wait_for_round({"n1": 0, "n2": 1})
    host, other = ("n1", "n2") if job["n1"].last("coordinator") else ("n2", "n1")
    job[other].kill()
    assert job[host].code() == 1
    assert "nobody came for 10 s" in job[host].said()[0]
    job.assert_no_orphans()


def test_12_with_torchruns_own_restarts_at_0_a_node_whose_workers_fail_is_lost(start_job: StartJob) -> None:
    job = start_job(torch=False, max_restarts=None, **THREE)
    first = begin(job, "n1", "n2", "n3")
    job.order("fail", node="n2", code=7)
    job.wait_for_round({"n1": 0, "n3": 1}, after=first)
    assert job["n2"].code() == 1
    assert "--max-restarts is 0" in job["n2"].output
    finish(job, "n1", "n3")


def test_12_a_node_that_fails_too_often_is_set_aside(start_job: StartJob) -> None:
    job = start_job(torch=False, node_budget=1, **THREE)
    first = begin(job, "n1", "n2", "n3")
    job.order("fail", node="n2")
    job.wait_for_round({"n1": 0, "n3": 1}, after=first)
    finish(job, "n1", "n2", "n3")


def test_workers_that_ignore_signals_are_killed_after_the_stop_grace(start_job: StartJob) -> None:
    job = start_job(torch=False, workers=2, stop_grace=1, **THREE)
    job.order("stubborn", node="n2")
    first = begin(job, "n1", "n2", "n3")
    job.wait_for_steps()
    job.order("fail", rank=1, round=first)
    job.wait_for_round({"n1": 0, "n2": 1}, after=first)
    finish(job, "n1", "n2", "n3")


def test_after_the_last_call_a_spare_takes_the_place_of_a_node_whose_workers_are_slow_to_end(
    start_job: StartJob,
) -> None:
    job = start_job(torch=False, spares=1, last_call=3, stop_grace=100)
    job.start("n1", "n2", "n3")
    first = job.wait_for_round({"n1": 0, "n2": 1})
    job.order("lingering", node="n2")
    job.wait_for_steps(20)
    job.order("fail", node="n1", round=first)
    second = job.wait_for_round({"n1": 0, "n3": 1}, after=first)
    job.order("let_go")
    job["n2"].wait_for("parked")
    job.wait_for_steps()
    assert set(job.rounds()) == {first, second}
    finish(job, "n1", "n2", "n3")


def test_13_a_node_that_was_frozen_finds_itself_replaced_and_becomes_a_spare(
    start_job: StartJob, store: dict[str, str]
) -> None:
    job = start_job(**store, **THREE)
    first = begin(job, "n1", "n2", "n3")
    job["n2"].freeze()
    second = job.wait_for_round({"n1": 0, "n3": 1}, after=first)
    job["n2"].wake()
    job.wait(lambda: not job["n2"].workers(), "the workers of n2 live on")
    job["n2"].wait_for("parked")
    job.wait_for_steps()
    assert set(job.rounds()) == {first, second}
    job["n3"].kill()
    job.wait_for_round({"n1": 0, "n2": 1}, after=second)
    finish(job, "n1", "n2")


def test_13_a_coordinator_that_was_frozen_finds_itself_replaced_in_both_parts(
    start_job: StartJob, outside: dict[str, str]
) -> None:
    job = start_job(**outside, torch=False, **THREE)
    first = begin(job, "n1", "n2", "n3")
    job["n1"].freeze()
    second = job.wait_for_round({"n3": 0, "n2": 1}, after=first)
    job["n1"].wake()
    job["n1"].wait_for("parked")
    job.wait(lambda: not job["n1"].workers(), "the workers of n1 live on")
    job.wait_for_steps(50)
    assert set(job.rounds()) == {first, second}
    assert [event.event for event in job["n1"].events()].count("round_committed") == 1
    finish(job, "n1", "n2", "n3")


def test_13_what_the_trainer_of_a_frozen_node_publishes_is_fenced(
    start_job: StartJob, store: dict[str, str], tmp_path: pathlib.Path
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "w.bin").write_bytes(b"weights")
    publish = {"channel": str(tmp_path / "channel"), "weights": str(weights)}
    job = start_job(**store, torch=False, **THREE)
    first = begin(job, "n2", "n1", "n3")
    job.order("publish", rank=0, number=1, **publish)
    job.wait_for_line("published", node="n1", number=1)
    job["n1"].freeze()
    job.withdraw("publish")
    job.order("publish", node="n3", number=2, **publish)
    second = job.wait_for_round({"n3": 0, "n2": 1}, after=first)
    job.wait_for_line("published", node="n3", number=2)
    job.withdraw("publish")
    job.order("publish", node="n1", number=3, **publish)
    for pid in job["n1"].workers():
        os.kill(pid, signal.SIGCONT)
    assert job.wait_for_line("refused", node="n1", number=3)["kind"] == "FencedError"
    assert not job.lines("published", number=3)
    job["n1"].wake()
    job["n1"].wait_for("parked")
    assert set(job.rounds()) == {first, second}
    finish(job, "n1", "n2", "n3")
