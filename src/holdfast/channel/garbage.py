"""What crashes leave behind, and whose it is.

Whether something may still belong to somebody at work is told by name and by beats, never by age on a clock:

    staging/c000002-…    a publisher of cycle 2: garbage once a higher cycle is claimed, or that publisher has closed or
                         is silent for a lease; its own sweeper knows what it is writing
    staging/retired-…    a removal that stopped half-way; temporary files (.tmp-…) of writers that died: garbage when
                         two passes in a row find them (a writer takes milliseconds, and tries again if one is gone)
    consumers/…          expired, durably, and silent for two leases
    sweepers/…           silent for two leases, and all that it announced is gone
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from holdfast.channel.channel import Channel
from holdfast.channel.events import EventLog
from holdfast.channel.observe import Observer
from holdfast.core.liveness import Watch
from holdfast.core.records import versions_in


class Garbage:
    """The clean-up at the end of each pass. `writing`: what the own publisher writes just now, None without one."""

    def __init__(
        self,
        channel: Channel,
        observer: Observer,
        events: EventLog,
        writing: Callable[[], frozenset[str]] | None,
    ) -> None:
        self._channel = channel
        self._observer = observer
        self._events = events
        self._writing = writing
        self._found: frozenset[str] = frozenset()
        self._closed = False

    def tokens(self) -> dict[str, object]:
        """The beat of the highest cycle's publisher, to be watched beside the others'."""
        cycle = max(self._observer.cycles(), default=0)
        beat = self._observer.beat(cycle)
        self._closed = beat.record is not None and beat.record.closed
        return {_publisher(cycle): beat.token}

    def collect(self, cycle: int, sweeper: str, watch: Watch, lease_s: float) -> tuple[str, ...]:
        """Remove leftovers as a sweeper of `cycle`; their names."""
        highest = max(self._observer.cycles(), default=0)
        silent = _silent_s(watch, _publisher(highest)) >= lease_s
        over = self._writing is not None or self._closed or silent
        stores = [self._channel.store]
        if self._channel.claims is not self._channel.store:
            stores.append(self._channel.claims)
        gone: list[str] = []
        found: set[str] = set()
        for store in stores:
            listed = store.list_garbage()
            busy = self._writing() if self._writing is not None else frozenset()  # after the listing: it may just begin
            for nonce in listed:
                found.add(nonce)
                owner = _owner(nonce)
                if owner is None:
                    dead = nonce in self._found
                else:
                    dead = nonce not in busy and (owner < highest or (owner == highest == cycle and over))
                if dead:
                    store.remove_garbage(nonce)
                    gone.append(nonce)
        self._found = frozenset(found)
        self._bury_sweepers(sweeper, watch, lease_s)
        if gone:
            self._events.emit("garbage", f"{len(gone)} leftovers removed", names=gone[:100])
        return tuple(gone)

    def bury_consumers(self, expired: Collection[str], watch: Watch, lease_s: float) -> None:
        """Remove the files of `expired` consumers that have not stirred for another lease."""
        for key in sorted(expired):
            if _silent_s(watch, key) >= 2 * lease_s:
                self._channel.claims.delete(f"consumers/{key}.json")
                self._events.emit("buried", "expired, and silent for two leases", consumer=key)

    def _bury_sweepers(self, own: str, watch: Watch, lease_s: float) -> None:
        versions = self._observer.versions()
        for key, seen in self._observer.sweepers().items():
            if key == own or _silent_s(watch, key) < 2 * lease_s:
                continue
            if seen.record is None or not versions_in(seen.record.tombstones) & versions:
                self._channel.claims.delete(f"sweepers/{key}.json")
                self._channel.claims.delete(f"sweepers/{key}.reserve")
                self._events.emit("buried", "a sweeper silent for two leases, its work done", sweeper=key)


def _publisher(cycle: int) -> str:
    return f"publisher of cycle {cycle}"


def _owner(nonce: str) -> int | None:
    """The cycle whose publisher writes to this staging place; None for what is nobody's."""
    return int(nonce[1:7]) if nonce[:1] == "c" and nonce[1:7].isdecimal() and nonce[7:8] == "-" else None


def _silent_s(watch: Watch, key: str) -> float:
    watched = watch.watched.get(key)
    return watched.silent_s if watched is not None else 0.0
