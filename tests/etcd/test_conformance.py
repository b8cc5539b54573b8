"""The suite of all stores, over a real etcd."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from holdfast.rendezvous.etcd import EtcdOptions, open_etcd
from holdfast.rendezvous.kv import KeyValueStore
from tests.conformance.test_stores import LONG_S, StoreBench, StoreSuite
from tests.support.etcds import Etcd
from tests.support.relay import Relay

pytestmark = pytest.mark.etcd


class TestEtcd(StoreSuite):
    @pytest.fixture
    def bench(self, shared_etcd: Etcd, request: pytest.FixtureRequest) -> Iterator[StoreBench]:
        stores: list[KeyValueStore] = []

        def connect(url: str, prefix: str) -> KeyValueStore:
            options = EtcdOptions(endpoints=(url,))
            stores.append(open_etcd(options, f"{request.node.nodeid}//{prefix}", timeout_s=LONG_S))
            return stores[-1]

        with Relay(shared_etcd.port) as relay:
            yield StoreBench(
                lambda prefix: connect(shared_etcd.url, prefix),
                lambda prefix: connect(f"http://127.0.0.1:{relay.port}", prefix),
                relay.lose_answer,
                tells=True,
            )
            for store in stores:
                store.close()
