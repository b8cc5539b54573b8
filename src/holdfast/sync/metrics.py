"""What a sync process tells Prometheus: how each server and channel is when asked, and what was counted.

docs/metrics.md lists the metrics. Series of a channel that has ended go, so that there are never more than there are
servers and channels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from holdfast.core.names import Version
from holdfast.core.servers import Action, Canary, Label, Load, Pause, Reload, Resume, Server, Status, Unload
from holdfast.engines.contract import EngineError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_TIMED = (Load, Unload, Pause, Reload, Label, Resume, Canary)
_WHERE = ("server", "adapter")

M = TypeVar("M", Counter, Histogram)


class ChannelNow(msgspec.Struct, frozen=True, kw_only=True):
    """One channel as it is now.

    Attributes:
        newest: the newest version that was taken from it.
        taken: the last versions that were taken, oldest first.
        held: how many versions are held, or kept as copies; failed: it cannot be followed just now.
        servers: every server's state.
        outside: what the present trainer does not descend from.
    """

    adapter: str
    newest: Version | None
    taken: tuple[Version, ...]
    held: int
    failed: bool
    outside: frozenset[Version]
    servers: dict[str, Server]


class Metrics(Collector):
    """Safe from several threads. `look`: how all channels are now, asked for at each scrape."""

    def __init__(self, look: Callable[[], Iterable[ChannelNow]]) -> None:
        self._look = look
        self._registry = CollectorRegistry()
        self._changes = Counter("holdfast_sync_changes", "versions that became served", _WHERE, registry=None)
        self._failures = Counter(
            "holdfast_sync_failures", "actions that failed, by code", (*_WHERE, "code"), registry=None
        )
        self._seconds = Histogram(
            "holdfast_sync_action_seconds",
            "how long the server took (seconds)",
            (*_WHERE, "action"),
            buckets=_SECONDS,
            registry=None,
        )
        self._lock = threading.Lock()
        self._served: dict[tuple[str, str], object] = {}
        self._forget: dict[tuple[str, str], dict[tuple[object, ...], Callable[[], None]]] = {}
        self._registry.register(self)

    def state(self, server: str, adapter: str, state: Server) -> None:
        if state.serving is not None and self._served.get((server, adapter)) != state.serving:
            self._served[server, adapter] = state.serving
            self._labelled(self._changes, server, adapter).inc()

    def did(self, server: str, adapter: str, action: Action, took_s: float) -> None:
        if isinstance(action, _TIMED):
            self._labelled(self._seconds, server, adapter, type(action).__name__.lower()).observe(took_s)

    def failed(self, server: str, adapter: str, error: EngineError) -> None:
        self._labelled(self._failures, server, adapter, error.code).inc()

    def forget(self, server: str, adapter: str) -> None:
        """The channel has ended."""
        with self._lock:
            removals = self._forget.pop((server, adapter), {})
            self._served.pop((server, adapter), None)
        for remove in removals.values():
            remove()

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        now = list(self._look())
        yield from _of_servers(now)
        yield from _of_channels(now)
        for metric in (self._changes, self._failures, self._seconds):
            yield from metric.collect()

    def _labelled(self, metric: M, server: str, adapter: str, *more: str) -> M:
        with self._lock:
            removals = self._forget.setdefault((server, adapter), {})
            removals[metric, *more] = partial(metric.remove, server, adapter, *more)
        return metric.labels(server, adapter, *more)


def _of_servers(now: Iterable[ChannelNow]) -> Iterator[Metric]:
    state = _gauge("state", "1 for the state that a server is in", *_WHERE, "state")
    step = _gauge("served_step", "the step that is served", *_WHERE)
    cycle = _gauge("served_cycle", "the cycle that is served", *_WHERE)
    steps = _gauge("behind_steps", "steps that the newest version taken is ahead of what is served", *_WHERE)
    versions = _gauge("behind_versions", "versions taken that are newer than what is served", *_WHERE)
    outside = _gauge("outside_lineage", "1 while what is served lies outside the present lineage", *_WHERE)
    refused = _gauge("refused", "versions that the server refuses", *_WHERE)
    draining = _gauge("draining", "versions unloaded whose last requests are not done yet", *_WHERE)
    for one in now:
        for server, is_now in one.servers.items():
            where = (server, one.adapter)
            for status in Status:
                state.add_metric((*where, status.value), float(is_now.status is status))
            refused.add_metric(where, len(is_now.refused))
            draining.add_metric(where, len(is_now.draining))
            serving = is_now.serving
            if serving is None:
                continue
            step.add_metric(where, serving.step)
            cycle.add_metric(where, serving.cycle)
            outside.add_metric(where, float(serving in one.outside))
            if one.newest is not None and serving not in one.outside:
                steps.add_metric(where, max(0, one.newest.step - serving.step))
                versions.add_metric(where, sum(serving < version <= one.newest for version in one.taken))
    yield from (state, step, cycle, steps, versions, outside, refused, draining)


def _of_channels(now: Iterable[ChannelNow]) -> Iterator[Metric]:
    newest = _gauge("newest_step", "the step of the newest version that was taken from the channel", "adapter")
    held = _gauge("held_versions", "versions that are held, or kept as copies", "adapter")
    failed = _gauge("channel_failed", "1 while the channel cannot be followed", "adapter")
    for one in now:
        if one.newest is not None:
            newest.add_metric((one.adapter,), one.newest.step)
        held.add_metric((one.adapter,), one.held)
        failed.add_metric((one.adapter,), float(one.failed))
    yield from (newest, held, failed)


def _gauge(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"holdfast_sync_{name}", documentation, labels=labels)
