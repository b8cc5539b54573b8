"""An agent's metrics: parsed as Prometheus parses them, and true to what the agent does."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from holdfast.core.member import Entered, Finished, Signalled
from holdfast.core.membership import Node, Policy
from holdfast.errors import UnavailableError, UsageError
from holdfast.events import EventLog
from holdfast.rendezvous.clerk import Clerk
from holdfast.rendezvous.joining import join
from holdfast.rendezvous.local import Local
from holdfast.rendezvous.memory import MemoryServer, MemoryStore
from holdfast.rendezvous.metrics import AgentMetrics
from holdfast.rendezvous.settings import Settings
from holdfast.rendezvous.words import Released, Round
from tests.support.promlint import fetch, lint

ALONE = Policy(min_nodes=1, max_nodes=1, spares=1, lease_s=5.0, last_call_s=0.0)


class Shy(MemoryStore):
    """A store that does not answer while it is told so."""

    away = False

    def put_listed(self, collection: str, name: str, value: bytes) -> None:
        if self.away:
            raise UnavailableError("no answer", code="store_unavailable")
        super().put_listed(collection, name, value)


class Node0:
    """A node with its metrics, its clerk driven by the test."""

    def __init__(self) -> None:
        self.store = Shy(MemoryServer(), "job/")
        self.node = Node(node="n0", incarnation="aaaaaaaa", host="gpu0", address="127.0.0.1", version="1.2.3")
        self.metrics = AgentMetrics("127.0.0.1:0")
        events = EventLog(None, "agent-n0")
        self.clerk = Clerk(
            self.metrics.count(self.store),
            self.node,
            Local(Settings(), self.node, secrets.token_hex(16)),
            run="train",
            attempt=None,
            policy=ALONE,
            server=None,
            events=events,
        )
        self.metrics.tell_of(self.clerk, events)
        self.clerk.open()
        self.clerk.tell(Entered())

    def now(self) -> dict[str, float]:
        return lint(fetch(self.metrics.url))

    def until_it_begins(self) -> Round:
        while not isinstance(word := self.clerk.word(wait=False), Round):
            self.clerk.turn()
            self.clerk.listen(0.001)
        return word


@pytest.fixture
def node() -> Iterator[Node0]:
    made = Node0()
    yield made
    made.clerk.close()
    made.metrics.close()


def test_before_anything_is_known_the_page_is_sound(node: Node0) -> None:
    now = node.now()
    assert now['holdfast_agent_state{state="parked"}'] == 1
    assert now["holdfast_agent_beats_total"] == 0
    assert "holdfast_job_round" not in now


def test_an_agent_tells_its_round_its_seat_and_its_job(node: Node0) -> None:
    node.until_it_begins()
    now = node.now()
    who = {"attempt": "0", "host": "gpu0", "member": "n0.aaaaaaaa", "node": "n0", "run": "train", "version": "1.2.3"}
    assert now["holdfast_agent_info{" + ",".join(f'{name}="{value}"' for name, value in who.items()) + "}"] == 1
    assert now['holdfast_agent_state{state="running"}'] == 1
    assert now["holdfast_agent_seated"] == now["holdfast_agent_coordinates"] == now["holdfast_job_nodes"] == 1
    assert (now["holdfast_agent_group_rank"], now["holdfast_job_round"], now["holdfast_job_term"]) == (0, 1, 1)
    assert (now["holdfast_job_spares"], now["holdfast_job_spares_wanted"]) == (0, 1)
    assert (now["holdfast_job_restarts"], now["holdfast_job_restart_budget"]) == (0, 10)
    assert now["holdfast_agent_rounds_begun_total"] == 1
    assert now["holdfast_agent_beats_total"] >= 2
    assert 0 <= now["holdfast_agent_beat_age_seconds"] < 30
    assert now['holdfast_agent_store_call_seconds_count{call="put_listed"}'] >= 3
    assert now["holdfast_agent_store_away_seconds"] == 0


def test_a_failover_is_counted_with_its_phases(node: Node0) -> None:
    node.until_it_begins()
    node.clerk.tell(Entered(failed=True))
    node.until_it_begins()
    while "holdfast_job_last_failover_seconds" not in "".join(now := node.now()) or now["holdfast_job_round"] < 2:
        node.clerk.turn()
        node.clerk.listen(0.001)
    assert now["holdfast_job_failovers_total"] == now["holdfast_job_restarts"] == 1
    assert {name for name in now if name.startswith("holdfast_job_last_failover_seconds")} == {
        f'holdfast_job_last_failover_seconds{{phase="{phase}"}}' for phase in ("noticed", "stopped", "started")
    }


def test_a_store_that_is_away_is_told_and_so_is_the_end(node: Node0) -> None:
    node.until_it_begins()
    node.store.away = True
    while node.clerk.glance.away_s == 0:
        node.clerk.turn()
        node.clerk.listen(0.001)
    now = node.now()
    assert now["holdfast_agent_store_away_seconds"] > 0
    assert now['holdfast_agent_store_failures_total{call="put_listed"}'] >= 1
    node.store.away = False
    node.clerk.tell(Finished())
    while not node.clerk.over:
        node.clerk.turn()
        if isinstance(node.clerk.word(wait=False), Released):
            node.clerk.tell(Signalled("succeeded"))
        node.clerk.listen(0.001)
    now = node.now()
    assert now['holdfast_job_over{ending="succeeded"}'] == 1
    assert now['holdfast_agent_state{state="left"}'] == 1


def test_a_port_in_use_ends_the_agent_before_it_serves_a_store() -> None:
    first = AgentMetrics("127.0.0.1:0")
    try:
        taken = first.url.split("/")[2]
        with pytest.raises(UsageError, match="metrics cannot be served at"):
            join(Settings(endpoint="127.0.0.1:1", metrics=taken, join_s=0.1))
    finally:
        first.close()
