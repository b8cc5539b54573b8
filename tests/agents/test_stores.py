"""What befalls the store while a job trains (design 5.3, M7)."""

from __future__ import annotations

import pathlib

import pytest

from tests.agents.conftest import StartJob
from tests.support.etcds import Etcd, three_etcds
from tests.support.jobs import Job
from tests.support.tcp_server import TcpServer

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]

LONG_STEPS = 300  # of 0.03 s at least, so that they take about ten seconds


def endpoint(*etcds: Etcd) -> str:
    return "etcd://" + ",".join(f"127.0.0.1:{etcd.port}" for etcd in etcds)


def goes_on(job: Job) -> None:
    """There was one round; a node is killed, and a second one comes."""
    assert job.rounds() == {1: {"n1": 0, "n2": 1}}
    job["n2"].kill()
    job.wait_for_round({"n1": 0, "n3": 1}, after=1)
    job.order("finish")
    assert {name: job[name].code() for name in ("n1", "n3")} == {"n1": 0, "n3": 0}
    job.assert_no_orphans()


def start(job: Job) -> None:
    job.start("n1", "n2", "n3")
    assert job.wait_for_round({"n1": 0, "n2": 1}) == 1


@pytest.mark.parametrize("how", ["frozen", "killed"])
def test_9_training_goes_on_while_etcd_is_away_for_ten_seconds(start_job: StartJob, own_etcd: Etcd, how: str) -> None:
    job = start_job(endpoint=endpoint(own_etcd), spares=1, last_call=30)
    start(job)
    own_etcd.freeze() if how == "frozen" else own_etcd.kill()
    for name in ("n1", "n2", "n3"):
        job[name].wait_for("store_away")
    job.wait_for_steps(LONG_STEPS)
    own_etcd.thaw() if how == "frozen" else own_etcd.restart()
    for name in ("n1", "n2", "n3"):
        job[name].wait_for("store_back")
    job.wait_for_steps(100)
    goes_on(job)


def test_9_training_goes_on_while_a_tcpstore_does_not_answer_for_ten_seconds(start_job: StartJob) -> None:
    with TcpServer() as server:
        job = start_job(endpoint=f"127.0.0.1:{server.port}", torch=False, spares=1, last_call=30)
        start(job)
        server.freeze()
        for name in ("n1", "n2", "n3"):
            job[name].wait_for("store_away")
        job.wait_for_steps(LONG_STEPS)
        server.thaw()
        for name in ("n1", "n2", "n3"):
            job[name].wait_for("store_back")
        job.wait_for_steps(100)
        goes_on(job)


def test_9_training_goes_on_while_etcd_restarts(start_job: StartJob, own_etcd: Etcd) -> None:
    job = start_job(endpoint=endpoint(own_etcd), torch=False, spares=1, last_call=30)
    start(job)
    for _ in range(2):
        own_etcd.restart()
        job.wait_for_steps(100)
    goes_on(job)


@pytest.mark.parametrize("lost", [0, 2])
def test_9_a_node_dies_with_the_etcd_member_that_it_carries(
    start_job: StartJob, tmp_path: pathlib.Path, lost: int
) -> None:
    with three_etcds(tmp_path) as etcds:
        job = start_job(endpoint=endpoint(*etcds), torch=False, spares=1, last_call=30)
        start(job)
        job["n2"].freeze()
        etcds[lost].kill()
        goes_on(job)


def test_9_the_death_of_an_embedded_stores_host_is_said_in_one_line_everywhere(start_job: StartJob) -> None:
    job = start_job(spares=1, last_call=30)
    job.start_first("n1")
    job.start("n2", "n3")
    job.wait_for_round({"n1": 0, "n2": 1})
    job["n1"].kill()
    for name in ("n2", "n3"):
        assert job[name].code() == 1
        [line] = job[name].said()
        assert line.startswith("holdfast: error: ")
        assert "is gone" in line
    assert "Traceback" not in job["n3"].output
    job.assert_no_orphans()
