"""A job as it is seen while it runs: from one directory of event files, and by a page of metrics for each agent."""

from __future__ import annotations

import re
import socket

import pytest

from holdfast.eventfiles import find_event_files
from holdfast.overview.fold import tell
from holdfast.overview.now import JobNow
from holdfast.overview.tails import TailReader
from tests.agents.conftest import StartJob
from tests.support.jobs import Job
from tests.support.promlint import fetch, lint

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]


def seen(job: Job) -> JobNow | None:
    directory = job.root / "channel" / "events"
    return tell(TailReader([directory]).look()).job if directory.is_dir() else None


@pytest.mark.parametrize("launcher", ["torchrun", "holdfast"])
def test_a_job_is_seen_from_one_directory_that_came_late(start_job: StartJob, launcher: str) -> None:
    job = start_job(launcher=launcher, torch=False, spares=1, last_call=30, metrics="127.0.0.1:0")
    directory = job.root / "channel" / "events"
    for name in ("n1", "n2", "n3"):
        job.start(name, events=f"{directory}/")
    job.wait(lambda: len(job.lines("began")) == 2, "round 1 does not begin")
    ((first, ranks),) = job.rounds().items()
    directory.mkdir(parents=True)

    def all_run() -> bool:
        now = seen(job)
        return now is not None and (now.running, now.seats, now.spares) == (2, 2, 1)

    job.wait(all_run, "the job is not seen as it is")
    now = seen(job)
    assert now is not None
    assert {node.node: node.group_rank for node in now.nodes if node.group_rank is not None} == ranks
    assert (now.run, now.attempt, now.waiting) == ("job", "0", "")
    lost = next(name for name, rank in ranks.items() if rank == 1)
    pages = {name: re.search(r"metrics at (http://\S+)", "\n".join(job[name].said())) for name in ("n1", "n2", "n3")}
    told = {name: lint(fetch(page[1])) for name, page in pages.items() if page is not None}
    assert {name: now["holdfast_agent_seated"] for name, now in told.items()} == {
        name: float(name in ranks) for name in ("n1", "n2", "n3")
    }
    assert [now["holdfast_job_spares"] for now in told.values() if now["holdfast_agent_coordinates"]] == [1]
    job[lost].kill_workers()
    job.wait_for_round(ranks, after=first)
    job.wait(lambda: (n := seen(job)) is not None and n.round == 2 and n.running == 2, "round 2 is not seen")
    now = seen(job)
    assert now is not None
    assert now.last_failover is not None
    job.order("finish")
    assert job.codes() == dict.fromkeys(("n1", "n2", "n3"), 0)
    now = seen(job)
    assert now is not None
    assert now.outcome is not None
    assert now.outcome.ending == "succeeded"
    assert len(find_event_files([directory])) == 3
    job.assert_no_orphans()


@pytest.mark.parametrize("launcher", ["torchrun", "holdfast"])
def test_a_port_for_metrics_that_is_taken_is_one_line(start_job: StartJob, launcher: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        job = start_job(launcher=launcher, torch=False)
        job.start("n1", metrics=address)
        assert job["n1"].code() == 2
    [line] = job["n1"].said()
    assert f"metrics cannot be served at {address}" in line
    assert "Traceback" not in job["n1"].output
