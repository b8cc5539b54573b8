"""What is wrong is said in one line, at once, and the process ends with 2, or with 1 where nobody answers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.agents.conftest import StartJob
from tests.support.etcds import free_ports

pytestmark = [pytest.mark.agents, pytest.mark.timeout(120)]


@pytest.fixture
def stranger() -> Iterator[int]:
    """A port that somebody listens at who has nothing to say."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield listener.getsockname()[1]


def test_nobody_is_at_the_endpoint(start_job: StartJob) -> None:
    job = start_job(endpoint=f"etcd://127.0.0.1:{free_ports(1)[0]}", join=1, torch=False)
    job.start("n1")
    assert job["n1"].code() == 1
    [line] = job["n1"].said()
    assert line.startswith("holdfast: error: ")
    assert "Traceback" not in job["n1"].output


def test_a_stranger_listens_at_the_endpoint(start_job: StartJob, stranger: int) -> None:
    job = start_job(endpoint=f"127.0.0.1:{stranger}", torch=False)
    job.start("n1")
    assert job["n1"].code() == 2
    [line] = job["n1"].said()
    assert f"what listens at 127.0.0.1:{stranger} is no store of Holdfast" in line
    assert "Traceback" not in job["n1"].output


@pytest.mark.parametrize("launcher", ["torchrun", "holdfast"])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"endpoint": "no-such-host.invalid:29512"}, "does not resolve"),
        ({"endpoint": "ftp://127.0.0.1:29512"}, "is no endpoint"),
        ({"segment": 3}, "segments of 3 do not divide 2 nodes"),
        ({"replacement_group": "4"}, "has no id, or no size"),
        ({"node": "a/b"}, "cannot be a node's name"),
    ],
    ids=["host", "scheme", "segment", "group", "node"],
)
def test_a_setting_is_wrong(start_job: StartJob, launcher: str, words: dict[str, Any], says: str) -> None:
    job = start_job(launcher=launcher, torch=False)
    job.start("n1" if "node" not in words else "unused", **words)
    [life] = job.lives.values()
    assert life.code() == 2
    assert says in life.output
    assert "Traceback" not in life.output
    assert len(life.output.strip().splitlines()) <= 2


def test_torchrun_is_told_a_word_that_there_is_not(start_job: StartJob) -> None:
    job = start_job(torch=False)
    job.start("n1", spare=1)
    assert job["n1"].code() == 2
    [line] = job["n1"].said()
    assert "--rdzv-conf has no 'spare'" in line
    assert "spares" in line
    assert "Traceback" not in job["n1"].output


def test_more_nodes_are_needed_than_there_may_be(start_job: StartJob) -> None:
    job = start_job(launcher="holdfast", nnodes="3:2", torch=False)
    job.start("n1")
    assert job["n1"].code() == 2
    assert "Traceback" not in job["n1"].output
