"""Room below `max_bytes`: publish waits for the sweeper, then fails and names who holds what."""

from __future__ import annotations

import threading
from collections.abc import Callable

from holdfast.channel.beats import clock_s
from holdfast.channel.channel import Channel
from holdfast.channel.checking import read_manifest
from holdfast.channel.observe import Observer
from holdfast.core.names import Version
from holdfast.errors import IntegrityError, NotVisibleError, UnavailableError, UsageError

POLL_S = 0.5


class Room:
    """Counts the bytes of the versions of `channel`."""

    def __init__(self, channel: Channel, observer: Observer, limit_bytes: int | None, timeout_s: float) -> None:
        self._channel = channel
        self._observer = observer
        self._limit = limit_bytes
        self._timeout_s = timeout_s
        self._sizes: dict[Version, int] = {}
        self._closing = threading.Event()

    def close(self) -> None:
        """Whoever waits gives up now."""
        self._closing.set()

    def wait_for(self, num_bytes: int, meanwhile: Callable[[], None]) -> float:
        """Return once `num_bytes` more fit; for how long that was waited for (seconds; 0: not at all).

        `meanwhile` is called between two looks and may raise.

        Raises:
            UsageError: code "over_max_bytes": it can never fit.
            UnavailableError: code "no_room", naming the holders. Release something, then publish again.
        """
        if self._limit is None:
            return 0.0
        if num_bytes > self._limit:
            raise UsageError(
                f"one version of {num_bytes} bytes is over max_bytes={self._limit}",
                code="over_max_bytes",
                hint="raise max_bytes",
            )
        began_s = clock_s()
        waited_s = 0.0
        while (used := self._used()) + num_bytes > self._limit:
            if waited_s >= self._timeout_s or self._closing.is_set():
                raise UnavailableError(
                    f"no room for {num_bytes} bytes: {used} of {self._limit} are used; {self._holders()}",
                    code="no_room",
                    hint="release versions, raise max_bytes, or see `holdfast status`",
                    used_bytes=used,
                )
            meanwhile()
            self._closing.wait(POLL_S)
            waited_s = clock_s() - began_s
        return waited_s

    def _used(self) -> int:
        versions = self._observer.versions()
        self._sizes = {version: size for version, size in self._sizes.items() if version in versions}
        for version in versions - self._sizes.keys():
            try:
                self._sizes[version] = read_manifest(self._channel.store, version)[0].num_bytes
            except (IntegrityError, NotVisibleError):
                continue
        return sum(self._sizes.values())

    def _holders(self) -> str:
        holders = [
            f"{life.name} holds {', '.join(seen.record.holds)}"
            for life, seen in sorted(self._observer.consumers().items())
            if seen.record is not None and seen.record.holds
        ]
        return "; ".join(holders) or "nobody holds anything, retention keeps them"
