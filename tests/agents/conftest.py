"""Jobs over either store. Those that harm an etcd start one of their own."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.etcds import Etcd, one_etcd
from tests.support.jobs import Job

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


@pytest.fixture(params=["tcp", "etcd"])
def endpoint(request: pytest.FixtureRequest) -> str | None:
    """A store's endpoint: None has the first agent serve it; else etcd's, where every job needs a run id of its own."""
    if request.param == "tcp":
        return None
    etcd: Etcd = request.getfixturevalue("shared_etcd")
    return f"etcd://127.0.0.1:{etcd.port}"
