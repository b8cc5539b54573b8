"""What crashes leave behind, and whose it is.

Whether something may still belong to somebody at work is told by name and by beats, never by age on a clock:

    staging/c000002-…    a publisher of cycle 2: garbage once a higher cycle is claimed, or that publisher has closed or
                         is silent for a lease; its own sweeper knows what it is writing
    staging/retired-…    a removal that stopped half-way, and temporary files (.tmp-…) of writers that died: garbage
                         once they lay there for a lease (a slow disk keeps a live writer busy for seconds)
    consumers/…          expired, durably, and silent for two leases
    sweepers/…           silent for two leases, and all that it announced is gone
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from holdfast.channel.channel import Channel
from holdfast.channel.observe import Observer
from holdfast.channel.storage import Storage
from holdfast.core.liveness import Watch
from holdfast.core.records import versions_in
from holdfast.events import EventLog


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
        self._closed = False

    def tokens(self) -> dict[str, object]:
        """What is to be watched beside the participants: the beat of the highest cycle's publisher, and leftovers."""
        cycle = max(self._observer.cycles(), default=0)
        beat = self._observer.beat(cycle)
        self._closed = beat.record is not None and beat.record.closed
        left: dict[str, object] = {_left(nonce): None for store in self._stores() for nonce in store.list_garbage()}
        return left if self._closed else {_publisher(cycle): beat.token, **left}

    def collect(self, cycle: int, sweeper: str, watch: Watch, lease_s: float) -> tuple[str, ...]:
        """Remove leftovers as a sweeper of `cycle`; their names."""
        highest = max(self._observer.cycles(), default=0)
        silent = _silent_s(watch, _publisher(highest)) >= lease_s
        over = self._writing is not None or self._closed or silent
        gone: list[str] = []
        for store in self._stores():
            listed = store.list_garbage()
            busy = self._writing() if self._writing is not None else frozenset()  # after the listing: it may just begin
            for nonce in listed:
                owner = _owner(nonce)
                if owner is None:
                    dead = _silent_s(watch, _left(nonce)) >= lease_s
                else:
                    dead = nonce not in busy and (owner < highest or (owner == highest == cycle and over))
                if dead:
                    store.remove_garbage(nonce)
                    gone.append(nonce)
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
                self._channel.claims.delete(f"sweepers/{key}.reserve")  # first: nobody would find it without the record
                self._channel.claims.delete(f"sweepers/{key}.json")
                self._events.emit("buried", "a sweeper silent for two leases, its work done", sweeper=key)

    def _stores(self) -> tuple[Storage, ...]:
        if self._channel.claims is self._channel.store:
            return (self._channel.store,)
        return (self._channel.store, self._channel.claims)


def _left(nonce: str) -> str:
    return f"leftover {nonce}"


def _publisher(cycle: int) -> str:
    return f"publisher of cycle {cycle}"


def _owner(nonce: str) -> int | None:
    """The cycle whose publisher writes to this staging place; None for what is nobody's."""
    return int(nonce[1:7]) if nonce[:1] == "c" and nonce[1:7].isdecimal() and nonce[7:8] == "-" else None


def _silent_s(watch: Watch, key: str) -> float:
    watched = watch.watched.get(key)
    return watched.silent_s if watched is not None else 0.0
