"""What a sync process counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from holdfast.core.servers import Action, Canary, Label, Load, Pause, Reload, Resume, Server, Status, Unload
from holdfast.engines.contract import EngineError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_TIMED = (Load, Unload, Pause, Reload, Label, Resume, Canary)


class Metrics:
    """Safe from several threads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        where = ("server", "adapter")
        self._state = Gauge(
            "holdfast_sync_state", "1 for the state that a server is in", (*where, "state"), registry=self._registry
        )
        self._step = Gauge("holdfast_sync_served_step", "the step that is served", where, registry=self._registry)
        self._cycle = Gauge("holdfast_sync_served_cycle", "the cycle that is served", where, registry=self._registry)
        self._changes = Counter("holdfast_sync_changes", "versions that became served", where, registry=self._registry)
        self._refused = Gauge(
            "holdfast_sync_refused", "versions that the server refuses", where, registry=self._registry
        )
        self._failures = Counter(
            "holdfast_sync_failures", "actions that failed, by code", (*where, "code"), registry=self._registry
        )
        self._seconds = Histogram(
            "holdfast_sync_action_seconds",
            "how long the server took",
            (*where, "action"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._served: dict[tuple[str, str], object] = {}

    def state(self, server: str, adapter: str, state: Server) -> None:
        for status in Status:
            self._state.labels(server, adapter, status.value).set(state.status is status)
        self._refused.labels(server, adapter).set(len(state.refused))
        if state.serving is None:
            return
        self._step.labels(server, adapter).set(state.serving.step)
        self._cycle.labels(server, adapter).set(state.serving.cycle)
        if self._served.get((server, adapter)) != state.serving:
            self._served[server, adapter] = state.serving
            self._changes.labels(server, adapter).inc()

    def did(self, server: str, adapter: str, action: Action, took_s: float) -> None:
        if isinstance(action, _TIMED):
            self._seconds.labels(server, adapter, type(action).__name__.lower()).observe(took_s)

    def failed(self, server: str, adapter: str, error: EngineError) -> None:
        self._failures.labels(server, adapter, error.code).inc()

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)
