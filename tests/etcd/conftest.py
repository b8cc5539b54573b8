"""One etcd for all tests that only use it; those that harm it start their own."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from tests.support.etcds import Etcd, one_etcd


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with one_etcd(tmp_path_factory.mktemp("shared-etcd")) as etcd:
        yield etcd


@pytest.fixture
def own_etcd(tmp_path: pathlib.Path) -> Iterator[Etcd]:
    with one_etcd(tmp_path) as etcd:
        yield etcd
