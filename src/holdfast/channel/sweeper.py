"""The sweeper: deletes what nobody needs, as `holdfast.core.sweep` decides; part of a publisher, or on its own.

One works at a time: of several that are alive the one with the higher cycle, then the smaller key; the others stand by.
That is for thrift only. Safety does not rest on it, nor on the sweeper's own life: it may die or freeze anywhere.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from types import TracebackType

import msgspec

from holdfast.channel.beats import Beater, clock_s
from holdfast.channel.channel import Channel
from holdfast.channel.garbage import Garbage
from holdfast.channel.observe import Seen
from holdfast.channel.older import Older
from holdfast.core import liveness
from holdfast.core import sweep as protocol
from holdfast.core.bounds import BEATS_PER_LEASE, bound_s, settle_s
from holdfast.core.names import Incarnation, Version, parse_version
from holdfast.core.records import ConsumerRecord, SweeperRecord, encode, versions_in
from holdfast.core.retention import Retention
from holdfast.errors import HoldfastError, UnavailableError

logger = logging.getLogger(__name__)

RESERVE_BYTES = 64 * 1024
TICK_S_MIN = 0.5
TICKS_PER_LEASE = 60


class Swept(msgspec.Struct, frozen=True):
    """What one pass did. `reasons` names every version that is there: why it stays, or why it went."""

    removed: tuple[str, ...] = ()
    reasons: dict[str, str] = {}
    garbage: tuple[str, ...] = ()
    standing_by: str = ""
    fenced_by: int = 0


class Sweeper:
    """Sweeps `channel` by `retention`, in a thread of its own (`start`, `stop`) or pass by pass (`sweep`).

    Args:
        cycle: whose sweeper it is: it stops when a higher cycle is claimed. Default: the highest at the first pass.
        writing: given by a publisher: the nonces in staging/ that it is writing to just now.
    """

    def __init__(
        self,
        channel: Channel,
        retention: Retention,
        *,
        cycle: int | None = None,
        writing: Callable[[], frozenset[str]] | None = None,
    ) -> None:
        self.channel = channel
        self.retention = retention
        self._cycle = cycle
        self._key = ""
        self._state: protocol.Sweep | None = None
        self._observer = channel.observer()
        self._older = Older(channel)
        self._watch = liveness.Watch()
        self._rivals = liveness.Watch()
        self._ages: dict[Version, float] = {}
        self._beats = 0
        self._writes_fail = False
        self._parties: list[tuple[str, object]] = []
        self._bound_s = 0.0
        self._reasons: dict[str, str] = {}
        self._reserved = False
        self._events = channel.event_log("sweeper")
        self._garbage = Garbage(channel, self._observer, self._events, writing)
        self._passing = threading.Lock()
        self._writing_lock = threading.Lock()
        self._stopping = threading.Event()
        self._due = threading.Event()
        self._thread: threading.Thread | None = None
        self._beater = Beater("holdfast-sweeper-beat", channel.beat_s, self._beat)

    def start(self) -> None:
        """Sweep again and again in a thread, until `stop` or a higher claim."""
        self._thread = threading.Thread(target=self._run, name="holdfast-sweeper", daemon=True)
        self._beater.start()
        self._thread.start()

    def wake(self) -> None:
        """There is something to look at: begin the next pass now."""
        self._due.set()

    def stop(self) -> None:
        """End the thread, withdraw what was announced and not done, remove the own file; idempotent."""
        self._stopping.set()
        self._due.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._beater.stop()
        with self._passing:
            self._leave()
        self._events.close()

    def __enter__(self) -> Sweeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def plan(self, expired: frozenset[str] = frozenset()) -> dict[str, protocol.Verdict]:
        """What a pass would do now, with the reason for each version; changes nothing (`--dry-run`).

        Args:
            expired: consumers that hold nothing any more because another sweeper says so.
        """
        with self._passing:
            view = self._look()
            expired |= self._state.expired if self._state is not None else view.silent
            return {str(v): verdict for v, verdict in protocol.judge(view, self.retention, expired).items()}

    def sweep(self) -> Swept:
        """One whole pass: look, announce, let two visibility bounds pass, look again, remove.

        Raises:
            UnavailableError: the storage failed; what was announced stands, and the next pass goes on with it.
        """
        with self._passing:
            rival = self._rival()
            if rival:
                return Swept(standing_by=f"sweeper {rival} is at work")
            return self._sweep()

    # The thread

    def _run(self) -> None:
        tick_s = max(TICK_S_MIN, self.channel.lease_s / TICKS_PER_LEASE)
        while not self._stopping.is_set():
            try:
                swept = self.sweep()
                if swept.fenced_by:
                    return
            except HoldfastError as error:
                self._writes_fail = True
                self._events.emit("sweep_failed", str(error), code=error.code)
                logger.warning("sweep failed: %s", error)
            self._due.wait(tick_s)
            self._due.clear()

    def _sweep(self) -> Swept:
        state = self._state if self._state is not None else self._enter()
        removed: frozenset[Version] = frozenset()
        events: list[protocol.Event] = [protocol.Begin()]
        try:
            while events:
                state, effects = protocol.step(state, events.pop(0), self.retention)
                self._state = state
                for effect in effects:
                    event, gone = self._do(effect)
                    removed |= gone
                    if event is not None:
                        events.append(event)
        except (HoldfastError, _Stopped) as error:
            # Between two passes the machine is idle again; what its record announces stands until the next pass.
            self._state = msgspec.structs.replace(state, phase=protocol.Phase.IDLE, doomed=frozenset())
            if isinstance(error, _Stopped):
                return Swept(reasons=self._reasons)
            raise
        garbage = self._garbage.collect(state.cycle, self._key, self._watch, self._lease_s())
        self._older.tidy(self._observer.versions)
        if not self._reserved:
            self._reserve()
        if state.phase is protocol.Phase.STOPPED:
            self._events.emit("fenced", f"cycle {state.cycle} was replaced by cycle {state.fenced_by}")
            self._leave()
        return Swept(
            removed=tuple(str(version) for version in sorted(removed)),
            reasons=self._reasons,
            garbage=garbage,
            fenced_by=state.fenced_by,
        )

    def _do(self, effect: protocol.Effect) -> tuple[protocol.Event | None, frozenset[Version]]:
        nothing: frozenset[Version] = frozenset()
        match effect:
            case protocol.Look():
                view = self._look()
                assert self._state is not None
                verdicts = protocol.judge(view, self.retention, self._state.expired)
                self._reasons = {str(version): verdict.reason for version, verdict in sorted(verdicts.items())}
                return protocol.Looked(view), nothing
            case protocol.WriteRecord(tombstones, _, expired):
                self._write()
                for version in sorted(tombstones):
                    self._events.emit("tombstone", self._reasons.get(str(version), ""), version=version)
                self._garbage.bury_consumers(expired, self._watch, self._lease_s())
                return protocol.Written(), nothing
            case protocol.Settle():
                if self._stopping.wait(settle_s(self._bound_s)):
                    raise _Stopped
                return protocol.Settled(), nothing
            case protocol.Remove(versions):
                failed = frozenset(version for version in sorted(versions) if not self._remove(version))
                return protocol.Removed(failed), versions - failed
        raise AssertionError(effect)

    # Looking

    def _look(self) -> protocol.View:
        lineage = self._observer.lineage()
        versions = self._observer.versions()
        consumers = self._observer.consumers()
        sweepers = self._observer.sweepers()
        now_s = clock_s()
        self._ages = {version: self._ages.get(version, now_s) for version in versions}
        records = [seen.record for seen in consumers.values() if seen.record is not None]
        others = [seen.record for key, seen in sweepers.items() if seen.record is not None and key != self._key]
        self._bound_s = bound_s([self.channel.party(), *(r.party for r in records), *(r.party for r in others)])
        self._observe(consumers, sweepers, now_s)
        return protocol.View(
            lineage=lineage,
            versions=versions,
            consumers=tuple(_consumer(life, seen) for life, seen in sorted(consumers.items())),
            silent=frozenset(str(life) for life in consumers) & liveness.silent(self._watch, self._lease_s()),
            blocked=frozenset().union(*(versions_in(record.tombstones) for record in others)),
            acknowledged=frozenset(
                v for r in records if r.acknowledged and (v := parse_version(r.acknowledged)) is not None
            )
            | self._older.loaded(lineage.cycle, versions),
            pinned=self._observer.pins(),
            ages_s={version: now_s - since_s for version, since_s in self._ages.items()},
        )

    def _lease_s(self) -> float:
        """The own lease, or more where somebody's visibility bound asks for it: two bounds and three beats."""
        return max(self.channel.lease_s, 2.0 * self._bound_s / (1.0 - 3.0 / BEATS_PER_LEASE))

    def _observe(
        self, consumers: dict[Incarnation, Seen[ConsumerRecord]], sweepers: dict[str, Seen[SweeperRecord]], now_s: float
    ) -> None:
        """Count silence. While its own writes fail it counts none: it could not tell anybody."""
        if self._writes_fail:
            self._watch = liveness.Watch()
            return
        tokens = {str(life): seen.token for life, seen in consumers.items()}
        tokens |= {key: seen.token for key, seen in sweepers.items()}
        tokens |= self._garbage.tokens()
        self._watch = liveness.look(self._watch, tokens, now_s, gap_s=self._lease_s() / 4)

    def _rival(self) -> str | None:
        """Another sweeper that works while this one stands by."""
        sweepers = self._observer.sweepers()
        cycle = self._cycle if self._cycle is not None else max(self._observer.cycles(), default=0)
        # A watch of its own: what `_observe` is not shown it forgets, and consumers would never fall silent.
        tokens = {key: seen.token for key, seen in sweepers.items()}
        self._rivals = liveness.look(self._rivals, tokens, clock_s(), gap_s=self._lease_s() / 4)
        silent = liveness.silent(self._rivals, self._lease_s())
        for key, seen in sorted(sweepers.items()):
            if key == self._key or seen.record is None or seen.record.closed or key in silent:
                continue
            if (-seen.record.cycle, key) < (-cycle, self._key or "~"):
                return key
        return None

    # Writing

    def _enter(self) -> protocol.Sweep:
        cycle = self._cycle if self._cycle is not None else max(self._observer.cycles(), default=0)
        self._cycle = cycle
        self._key = f"{cycle:06d}-{secrets.token_hex(4)}"
        self._state = protocol.Sweep(cycle)
        self._reserve()
        return self._state

    def _beat(self) -> None:
        if self._state is not None and self._key:
            self._write()

    def _write(self) -> None:
        """The own record, durably. On a full disk the reserve is spent on it."""
        state = self._state
        if state is None or not self._key:
            return
        with self._writing_lock:
            self._beats += 1
            record = SweeperRecord(
                beat=self._beats,
                cycle=state.cycle,
                tombstones=tuple(str(version) for version in sorted(state.tombstones)),
                seen=tuple(sorted(state.seen)),
                expired=tuple(sorted(state.expired)),
                reasons={str(v): self._reasons.get(str(v), "") for v in sorted(state.tombstones)},
                party=self.channel.party(),
                retention=msgspec.to_builtins(self.retention),
            )
            self._writes_fail = True
            try:
                self.channel.claims.replace(self._path("json"), encode(record))
            except UnavailableError as error:
                if error.code not in ("errno_enospc", "errno_edquot"):
                    raise
                self.channel.claims.delete(self._path("reserve"))
                self._reserved = False
                self._events.emit("reserve_spent", str(error), code=error.code)
                self.channel.claims.replace(self._path("json"), encode(record))
            self._writes_fail = False

    def _path(self, suffix: str) -> str:
        return f"sweepers/{self._key}.{suffix}"

    def _reserve(self) -> None:
        """Keep some space, to be spent on announcements when the disk is full."""
        try:
            self.channel.claims.replace(self._path("reserve"), bytes(RESERVE_BYTES))
            self._reserved = True
        except UnavailableError as error:
            self._events.emit("no_reserve", str(error), code=error.code)

    def _remove(self, version: Version) -> bool:
        reason = self._reasons.get(str(version), "")
        try:
            self.channel.store.retire_tree(str(version), secrets.token_hex(8))
        except HoldfastError as error:
            self._events.emit("remove_failed", str(error), version=version, code=error.code)
            return False
        self._events.emit("swept", reason, version=version)
        return True

    def _leave(self) -> None:
        if not self._key:
            return
        key_path, reserve = self._path("json"), self._path("reserve")
        self._key, self._state = "", None
        try:
            self.channel.claims.delete(key_path)
            self.channel.claims.delete(reserve)
        except HoldfastError as error:
            self._events.emit("close_failed", str(error), code=error.code)


class _Stopped(Exception):
    """`stop` was called while a pass was waiting."""


def _consumer(life: Incarnation, seen: Seen[ConsumerRecord]) -> protocol.Consumer:
    if seen.record is None:
        return protocol.Consumer(str(life), readable=False)
    return protocol.Consumer(str(life), versions_in(seen.record.holds))
