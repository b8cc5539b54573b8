"""Metrics for Prometheus: a publisher's, for the registry that a trainer has already, and a page to serve any of them.

    from holdfast.metrics import PublisherCollector, serve

    publisher = channel.publisher(...)
    prometheus_client.REGISTRY.register(PublisherCollector(publisher))     # beside the trainer's own metrics
    page = serve("127.0.0.1:9400", PublisherCollector(publisher))          # or a page of their own

Nothing is served unless it is asked for, and then on the loopback, unless another host is given: whoever can read the
page learns paths and step numbers. docs/metrics.md lists all metrics. Imported only where it is used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from holdfast.core.names import Version
from holdfast.errors import UsageError
from holdfast.events import Event
from holdfast.net.listening import parse_listen

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class MetricsPage:
    """A page that is served until it is closed, or the process ends. `url`: with the real port."""

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        host, port = parse_listen(address)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UsageError(
                f"metrics cannot be served at {address}: {why}",
                code="cannot_listen",
                hint="give another HOST:PORT; port 0 takes a free one",
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"
        self._closing = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Stop serving; idempotent."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._server.shutdown()
                self._thread.join()
                self._server.server_close()

    def __enter__(self) -> MetricsPage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(address: str, *collectors: Collector) -> MetricsPage:
    """Serve these collectors' metrics at "HOST:PORT", by a daemon thread; "PORT" alone is the loopback's, 0 a free one.

    Raises:
        UsageError: code "bad_listen", "cannot_listen": the port is taken, or the host is not one of this machine's.
    """
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return MetricsPage(address, registry)


def gauge(name: str, documentation: str, value: float, **labels: str) -> GaugeMetricFamily:
    """A gauge of one series."""
    family = GaugeMetricFamily(name, documentation, labels=tuple(labels))
    family.add_metric(tuple(labels.values()), value)
    return family


class _Sweeper(Protocol):
    @property
    def num_versions(self) -> int: ...
    @property
    def num_tombstones(self) -> int: ...


class _Channel(Protocol):
    @property
    def name(self) -> str: ...


class _Publisher(Protocol):
    """What is asked of a `holdfast.channel.publisher.Publisher`."""

    @property
    def channel(self) -> _Channel: ...
    @property
    def cycle(self) -> int: ...
    @property
    def last(self) -> Version | None: ...
    @property
    def starts_from(self) -> Version | None: ...
    @property
    def sweeper(self) -> _Sweeper | None: ...
    def listen(self, hear: Callable[[Event], None]) -> None: ...


class PublisherCollector(Collector):
    """The metrics of one or several publishers, told apart by their channel; made before they are opened.

    A later publisher of the same channel, given to `add`, takes the place of the one before; what is counted goes on.
    Never asks the storage.
    """

    def __init__(self, *publishers: _Publisher) -> None:
        self._lock = threading.Lock()
        self._publishers: dict[str, _Publisher] = {}
        self._fenced: dict[str, int] = {}
        self._versions = _counter("versions_published", "Versions that this process has committed.")
        self._bytes = _counter("published_bytes", "Bytes of the versions that this process has committed.")
        self._seconds = Histogram(
            "holdfast_publisher_publish_seconds",
            "How long a publish took, the wait for room aside (seconds).",
            ("channel",),
            buckets=SECONDS,
            registry=None,
        )
        self._failures = _counter("publish_failures", "Publishes that failed, by the error's code.", "code")
        self._waits = _counter("room_waits", "Publishes that had to wait for room below max_bytes.")
        self._waited_s = _counter("room_wait_seconds", "Time that publishes waited for room (seconds).")
        self._tombstones = _counter("tombstones", "Removals that the sweeper has announced.")
        self._swept = _counter("versions_swept", "Versions that the sweeper has removed.")
        self._sweep_failures = _counter(
            "sweep_failures", "Passes of the sweeper, or removals, that failed, by the error's code.", "code"
        )
        for publisher in publishers:
            self.add(publisher)

    def add(self, publisher: _Publisher) -> None:
        """Tell of `publisher` too, or instead of the one before on its channel."""
        channel = publisher.channel.name
        with self._lock:
            self._publishers[channel] = publisher
            self._fenced[channel] = 0
        for metric in (self._versions, self._bytes, self._seconds, self._waits, self._waited_s):
            metric.labels(channel)  # a series that begins at 0 shows its first increase
        for metric in (self._tombstones, self._swept):
            metric.labels(channel)
        publisher.listen(partial(self._hear, channel, publisher))

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            publishers, fenced = dict(self._publishers), dict(self._fenced)
        yield from self._gauges(publishers, fenced)
        counted = (self._versions, self._bytes, self._seconds, self._failures, self._waits, self._waited_s)
        for metric in (*counted, self._tombstones, self._swept, self._sweep_failures):
            yield from metric.collect()

    def _gauges(self, publishers: dict[str, _Publisher], fenced: dict[str, int]) -> Iterator[Metric]:
        cycle = _gauge("cycle", "The cycle that this publisher claimed; 0: it is not open.")
        step = _gauge("newest_step", "The step of the newest version that it published, or starts from.")
        replaced = _gauge("fenced", "1 once a newer publisher has taken its place.")
        versions = _gauge("versions_kept", "Versions that were there when the sweeper last looked.")
        tombstones = _gauge("tombstones_standing", "Removals that are announced and not done yet.")
        for channel, publisher in sorted(publishers.items()):
            cycle.add_metric((channel,), publisher.cycle)
            replaced.add_metric((channel,), fenced[channel])
            newest = publisher.last if publisher.last is not None else publisher.starts_from
            if newest is not None:
                step.add_metric((channel,), newest.step)
            sweeper = publisher.sweeper
            if sweeper is not None:
                versions.add_metric((channel,), sweeper.num_versions)
                tombstones.add_metric((channel,), sweeper.num_tombstones)
        yield from (cycle, step, replaced, versions, tombstones)

    def _hear(self, channel: str, publisher: _Publisher, event: Event) -> None:
        fields = event.fields
        match event.event:
            case "published":
                self._versions.labels(channel).inc()
                self._bytes.labels(channel).inc(fields["bytes"])
                self._seconds.labels(channel).observe(fields["took_s"])
                if fields["waited_s"] > 0:
                    self._waits.labels(channel).inc()
                    self._waited_s.labels(channel).inc(fields["waited_s"])
            case "publish_failed":
                self._failures.labels(channel, fields["code"]).inc()
            case "fenced":
                with self._lock:
                    self._fenced[channel] = int(self._publishers[channel] is publisher)
            case "tombstone":
                self._tombstones.labels(channel).inc()
            case "swept":
                self._swept.labels(channel).inc()
            case "sweep_failed" | "remove_failed":
                self._sweep_failures.labels(channel, fields["code"]).inc()


def _counter(name: str, documentation: str, *labels: str) -> Counter:
    return Counter(f"holdfast_publisher_{name}", documentation, ("channel", *labels), registry=None)


def _gauge(name: str, documentation: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"holdfast_publisher_{name}", documentation, labels=("channel",))
