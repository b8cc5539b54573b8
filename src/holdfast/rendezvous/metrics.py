"""An agent's metrics: what it knows when it is asked, and what it has counted. docs/metrics.md lists them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from holdfast.core.membership import Ending, State
from holdfast.events import Event, EventLog
from holdfast.metrics import gauge, serve
from holdfast.rendezvous.clerk import Clerk
from holdfast.rendezvous.counted import CountedStore
from holdfast.rendezvous.kv import KeyValueStore
from holdfast.rendezvous.words import Glance

CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
PHASES = ("noticed", "stopped", "started")


class AgentMetrics(Collector):
    """Counts what one agent does, and serves it at `address` until closed. Safe from several threads.

    UsageError: as `holdfast.metrics.serve`.
    """

    def __init__(self, address: str) -> None:
        self._clerk: Clerk | None = None
        self._calls = Histogram(
            "holdfast_agent_store_call_seconds",
            "How long calls of the job's store took (seconds).",
            ("call",),
            buckets=CALL_SECONDS,
            registry=None,
        )
        self._failures = Counter(
            "holdfast_agent_store_failures", "Calls of the job's store that failed.", ("call",), registry=None
        )
        self._begun = Counter("holdfast_agent_rounds_begun", "Rounds in which this node's workers ran.", registry=None)
        self._changes = Counter(
            "holdfast_job_failovers", "Changes of round after a failure, while this node coordinated.", registry=None
        )
        self._failover_s = Gauge(
            "holdfast_job_last_failover_seconds",
            "How long the last change of round took, as the coordinator told it, by phase (seconds).",
            ("phase",),
            registry=None,
        )
        self._page = serve(address, self)
        self.url = self._page.url

    def close(self) -> None:
        """Stop serving; idempotent."""
        self._page.close()

    def tell_of(self, clerk: Clerk, events: EventLog) -> None:
        """From now on it is this clerk's knowledge that is told."""
        self._clerk = clerk
        events.listen(self._hear)

    def count(self, store: KeyValueStore) -> KeyValueStore:
        """`store`, its calls counted."""
        return CountedStore(store, self._called)

    def collect(self) -> Iterator[Metric]:
        clerk = self._clerk
        if clerk is not None:
            now = clerk.glance
            yield _info(clerk, now)
            yield from _agent(now)
            yield from _job(now)
        for metric in (self._calls, self._failures, self._begun, self._changes, self._failover_s):
            yield from metric.collect()

    def _called(self, call: str, took_s: float, ok: bool) -> None:
        self._calls.labels(call).observe(took_s)
        if not ok:
            self._failures.labels(call).inc()

    def _hear(self, event: Event) -> None:
        if event.event == "running":
            self._begun.inc()
        elif event.event == "round_committed" and event.fields["replaced"]:
            self._changes.inc()
        elif event.event == "round_running":
            for phase in PHASES:
                self._failover_s.labels(phase).set(event.fields[f"{phase}_s"])


def _info(clerk: Clerk, now: Glance) -> Metric:
    control, node = now.state.control, clerk.node
    who = {"node": node.node, "member": node.member, "host": node.host, "version": node.version}
    if control is not None:
        who |= {"run": control.run, "attempt": control.attempt}
    return InfoMetricFamily("holdfast_agent", "Who this is.", value=who)


def _agent(now: Glance) -> Iterator[Metric]:
    beat = now.state.beat
    states = GaugeMetricFamily("holdfast_agent_state", "1 for what this node is doing.", labels=("state",))
    for state in State:
        states.add_metric((state.value,), float(beat.state is state))
    yield states
    yield gauge("holdfast_agent_seated", "1 while this node has a seat in the committed round.", float(now.seated))
    if now.seated and now.state.seat is not None:
        rank = now.state.seat.group_rank
        yield gauge("holdfast_agent_group_rank", "Its group rank; absent without a seat.", rank)
    yield gauge("holdfast_agent_coordinates", "1 while this node coordinates.", float(now.num_spares is not None))
    beats = CounterMetricFamily("holdfast_agent_beats", "Beats that this node has written.")
    beats.add_metric((), now.beats)
    yield beats
    if now.beat_age_s is not None:
        yield gauge("holdfast_agent_beat_age_seconds", "How long ago the last beat was (seconds).", now.beat_age_s)
    away = "For how long the job's store has not answered (seconds); 0: it answers."
    yield gauge("holdfast_agent_store_away_seconds", away, now.away_s)


def _job(now: Glance) -> Iterator[Metric]:
    control, seat = now.state.control, now.state.seat
    if control is None:
        return
    policy = control.policy
    yield gauge("holdfast_job_round", "The committed round; 0: none yet.", control.round)
    yield gauge("holdfast_job_term", "How often the coordinator has changed, and one.", control.term)
    yield gauge("holdfast_job_restarts", "Rounds that failures have ended.", control.restarts)
    yield gauge("holdfast_job_restart_budget", "How many they may end; -1: any number.", policy.restart_budget)
    yield gauge("holdfast_job_nodes_max", "How many nodes may train.", policy.max_nodes)
    yield gauge("holdfast_job_spares_wanted", "How many spares are wanted.", policy.spares)
    if now.num_spares is not None:
        yield gauge("holdfast_job_spares", "Nodes that could take a seat; told by the coordinator.", now.num_spares)
    if now.seated and seat is not None:
        yield gauge("holdfast_job_nodes", "Nodes with a seat in the committed round.", seat.head.world_size)
    endings = GaugeMetricFamily("holdfast_job_over", "1 once the job has ended so.", labels=("ending",))
    for ending in Ending:
        endings.add_metric((ending.value,), float(control.outcome is not None and control.outcome.ending is ending))
    yield endings
