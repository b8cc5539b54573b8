"""Jobs over either store. Those that harm an etcd start one of their own."""

from __future__ import annotations

import pathlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.etcds import Etcd, one_etcd
from tests.support.jobs import Job
from tests.support.tcp_server import TcpServer

StartJob = Callable[..., Job]


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with one_etcd(tmp_path_factory.mktemp("shared-etcd")) as etcd:
        yield etcd


@pytest.fixture
def own_etcd(tmp_path: pathlib.Path) -> Iterator[Etcd]:
    with one_etcd(tmp_path) as etcd:
        yield etcd


@pytest.fixture
def start_job(tmp_path: pathlib.Path) -> Iterator[StartJob]:
    """Makes jobs, and ends what is left of them."""
    with ExitStack() as stack:
        number = 0

        def start(**options: Any) -> Job:
            nonlocal number
            number += 1
            return stack.enter_context(Job(tmp_path / f"job-{number}", **options))

        yield start


@pytest.fixture(params=["embedded", "etcd"])
def store(request: pytest.FixtureRequest) -> dict[str, str]:
    """For a job: a TCPStore that its first agent serves, or etcd."""
    return {} if request.param == "embedded" else _in_etcd(request)


@pytest.fixture(params=["tcp", "etcd"])
def outside(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """For a job: a store that no agent serves, so that any of them may die."""
    if request.param == "etcd":
        yield _in_etcd(request)
        return
    with TcpServer() as server:
        yield {"endpoint": f"127.0.0.1:{server.port}"}


def _in_etcd(request: pytest.FixtureRequest) -> dict[str, str]:
    etcd: Etcd = request.getfixturevalue("shared_etcd")
    return {"endpoint": f"etcd://127.0.0.1:{etcd.port}", "run": f"job-{secrets.token_hex(4)}"}
