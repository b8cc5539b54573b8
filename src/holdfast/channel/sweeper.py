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

from holdfast.channel.announcing import Announcement
from holdfast.channel.beats import Beater, clock_s
from holdfast.channel.channel import Channel
from holdfast.channel.garbage import Garbage
from holdfast.channel.observe import Seen
from holdfast.channel.older import Older
from holdfast.core import liveness
from holdfast.core import sweep as protocol
from holdfast.core.bounds import BEATS_PER_LEASE, bound_s, settle_s
from holdfast.core.names import Incarnation, Version, parse_version
from holdfast.core.records import ConsumerRecord, SweeperRecord, versions_in
from holdfast.core.retention import Retention
from holdfast.errors import HoldfastError, NotVisibleError
from holdfast.events import Event

logger = logging.getLogger(__name__)

TICK_S_MIN = 0.5
TICKS_PER_LEASE = 60
LOOKS_PER_LEASE = 8
PASSES_WHEN_KNOWN = 2  # one removes what the dead had needed, the next the links to it


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
        cycle: the publisher's whose part it is: it stops when a higher cycle is claimed. Default: nobody's; it follows
            the highest claim.
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
        self._publishers = cycle is not None
        self._rival = ""
        self._state: protocol.Sweep | None = None
        self._observer = channel.observer()
        self._older = Older(channel)
        self._watch = liveness.Watch()
        self._rivals = liveness.Watch()
        self._ages: dict[Version, float] = {}
        self._bound_s = 0.0
        self._reasons: dict[str, str] = {}
        self._events = channel.event_log("sweeper")
        self._own = Announcement(channel, self._events)
        self._garbage = Garbage(channel, self._observer, self._events, writing)
        self._passing = threading.Lock()
        self._stopping = threading.Event()
        self._due = threading.Event()
        self._thread: threading.Thread | None = None
        self._beating = False
        self._beater = Beater("holdfast-sweeper-beat", self._beat)

    def start(self) -> None:
        """Sweep again and again in a thread, until `stop`; a publisher's sweeper until a higher claim."""
        self._thread = threading.Thread(target=self._run, name="holdfast-sweeper", daemon=True)
        self._start_beats()
        self._thread.start()

    def listen(self, hear: Callable[[Event], None]) -> None:
        """Tell `hear` every event; see `EventLog.listen`."""
        self._events.listen(hear)

    @property
    def num_versions(self) -> int:
        """How many versions there were when it last looked."""
        return len(self._ages)

    @property
    def num_tombstones(self) -> int:
        """How many removals it has announced that are not done yet."""
        state = self._state
        return 0 if state is None else len(state.tombstones)

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

    def sweep(self, *, thorough: bool = False) -> Swept:
        """One whole pass: look, announce, let two visibility bounds pass, look again, remove.

        A new sweeper cannot tell the dead from the living at once: what the dead hold or left behind stays, and another
        sweeper's file makes this one stand by.

        Args:
            thorough: watch until everybody who is dead has been told from the living, pass after pass; then nothing is
                left of them. Takes two leases and a little where anybody died, one or two beats where nobody did.

        Raises:
            UnavailableError: the storage failed; what was announced stands, and the next pass goes on with it.
        """
        swept = self._pass()
        if thorough:
            self._start_beats()
            left = PASSES_WHEN_KNOWN
            while left and not (swept.fenced_by and self._publishers) and not self._stopping.wait(self._tick_s):
                left -= self._all_known()  # before the pass, which then acts on it
                swept = _together(swept, self._pass())
        return swept

    def _pass(self) -> Swept:
        with self._passing:
            self._rival = self._find_rival()
            if self._rival:
                # It watches all the same: if that one dies, it knows already who else is silent.
                self._observe(self._observer.consumers(), self._observer.sweepers(), clock_s())
                return Swept(standing_by=f"sweeper {self._rival} is at work")
            return self._sweep()

    def _all_known(self) -> bool:
        """Whether more looks would tell no more: everybody has moved since the first look, or is silent for good."""
        if self._rival:
            return self._rivals.watched[self._rival].beaten
        watched = self._watch.watched
        forever_s = 2 * self._lease_s()
        return all(one.beaten or one.silent_s >= forever_s for key, one in watched.items() if key != self._own.key)

    # The thread

    @property
    def _tick_s(self) -> float:
        """Between two passes: seldom enough for the storage, and several in a lease, else no silence would count."""
        tick_s = max(TICK_S_MIN, self.channel.lease_s / TICKS_PER_LEASE)
        return min(tick_s, self.channel.lease_s / LOOKS_PER_LEASE)

    def _start_beats(self) -> None:
        if not self._beating:
            self._beating = True
            self._beater.start(self.channel.beat_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                swept = self._pass()
                if swept.fenced_by and self._publishers:
                    return
            except HoldfastError as error:
                self._events.emit("sweep_failed", str(error), code=error.code)
                logger.warning("sweep failed: %s", error)
            self._due.wait(self._tick_s)
            self._due.clear()

    def _sweep(self) -> Swept:
        state = self._state if self._state is not None else self._enter()
        if self._own.failing:
            self._own.write(self._record)  # first of all: what the last pass had to say may not be durable
        # Before the look, so that this pass keeps nothing for their sake. That they are expired was written earlier.
        self._garbage.bury_consumers(state.expired, self._watch, self._lease_s())
        removed: frozenset[Version] = frozenset()
        events: list[protocol.Event] = [protocol.Begin(0.0 if state.entered else self._first_bound_s())]
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
        garbage = self._garbage.collect(state.cycle, self._own.key, self._watch, self._lease_s())
        self._older.tidy(self._observer.versions)
        self._own.reserve()
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
            case protocol.WriteRecord(tombstones):
                self._own.write(self._record)
                for version in sorted(tombstones):
                    self._events.emit("tombstone", self._reasons.get(str(version), ""), version=version)
                return protocol.Written(), nothing
            case protocol.Settle(bound):
                self._settle(bound)
                return protocol.Settled(), nothing
            case protocol.Remove(versions):
                failed = frozenset(version for version in sorted(versions) if not self._remove(version))
                return protocol.Removed(failed), versions - failed
        raise AssertionError(effect)

    def _settle(self, bound: float) -> None:
        """Let two visibility bounds pass. It goes on watching meanwhile: they may be most of a lease.

        Raises: _Stopped.
        """
        left_s, slice_s = settle_s(bound), self._lease_s() / LOOKS_PER_LEASE
        while left_s > 0:
            if self._stopping.wait(min(left_s, slice_s)):
                raise _Stopped
            left_s -= slice_s
            self._observe(self._observer.consumers(), self._observer.sweepers(), clock_s())

    # Looking

    def _look(self) -> protocol.View:
        lineage = self._observer.lineage()
        versions = self._observer.versions()
        if lineage.cycle < max(self._cycle or 0, 1 if versions else 0):
            raise NotVisibleError(
                f"the claim of cycle {self._cycle or '?'} is not visible here (any more): nothing may go",
                code="claim_not_visible",
                hint="is the storage mounted? cycles/ was there before",
            )
        consumers = self._observer.consumers()
        sweepers = self._observer.sweepers()
        now_s = clock_s()
        self._ages = {version: self._ages.get(version, now_s) for version in versions}
        records = [seen.record for seen in consumers.values() if seen.record is not None]
        others = [seen.record for key, seen in sweepers.items() if seen.record is not None and key != self._own.key]
        parties = [self.channel.party(), *(r.party for r in records), *(r.party for r in others)]
        self._bound_s = bound_s(parties, local=self.channel.local)
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
            bound_s=self._bound_s,
        )

    def _first_bound_s(self) -> float:
        """The bound to enter with. No consumer is looked at yet: one listed too early might be missed for good."""
        records = [seen.record for seen in self._observer.sweepers().values() if seen.record is not None]
        return bound_s([self.channel.party(), *(record.party for record in records)], local=self.channel.local)

    def _lease_s(self) -> float:
        """The own lease, or more where somebody's visibility bound asks for it: two bounds and three beats."""
        return max(self.channel.lease_s, 2.0 * self._bound_s / (1.0 - 3.0 / BEATS_PER_LEASE))

    def _observe(
        self, consumers: dict[Incarnation, Seen[ConsumerRecord]], sweepers: dict[str, Seen[SweeperRecord]], now_s: float
    ) -> None:
        """Count silence. While its own writes fail it counts none: it could not tell anybody."""
        if self._own.failing:
            self._watch = liveness.Watch()
            return
        tokens = {str(life): seen.token for life, seen in consumers.items()}
        tokens |= {key: seen.token for key, seen in sweepers.items()}
        tokens |= self._garbage.tokens()
        self._watch = liveness.look(self._watch, tokens, now_s, gap_s=self._lease_s() / 4)

    def _find_rival(self) -> str:
        """Another sweeper that works while this one stands by, or ""."""
        sweepers = self._observer.sweepers()
        cycle = self._cycle if self._cycle is not None else max(self._observer.cycles(), default=0)
        # A watch of its own: what `_observe` is not shown it forgets, and consumers would never fall silent.
        tokens = {key: seen.token for key, seen in sweepers.items()}
        self._rivals = liveness.look(self._rivals, tokens, clock_s(), gap_s=self._lease_s() / 4)
        silent = liveness.silent(self._rivals, self._lease_s())
        for key, seen in sorted(sweepers.items()):
            if key == self._own.key or seen.record is None or seen.record.closed or key in silent:
                continue
            if (-seen.record.cycle, key) < (-cycle, self._own.key or "~"):
                return key
        return ""

    # Writing

    def _enter(self) -> protocol.Sweep:
        cycle = self._cycle if self._cycle is not None else max(self._observer.cycles(), default=0)
        self._cycle = cycle
        self._state = protocol.Sweep(cycle, bound_s=self._first_bound_s())
        self._own.enter(cycle, self._record)
        return self._state

    def _beat(self) -> None:
        self._own.write(self._record)

    def _record(self) -> SweeperRecord:
        state = self._state
        assert state is not None
        return SweeperRecord(
            beat=0,
            cycle=state.cycle,
            tombstones=tuple(str(version) for version in sorted(state.tombstones)),
            seen=tuple(sorted(state.seen)),
            expired=tuple(sorted(state.expired)),
            reasons={str(v): self._reasons.get(str(v), "") for v in sorted(state.tombstones)},
            party=self.channel.party(),
            bound_s=state.bound_s,
            retention=msgspec.to_builtins(self.retention),
        )

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
        self._own.leave()
        self._state = None
        if not self._publishers:
            self._cycle = None


def _together(before: Swept, after: Swept) -> Swept:
    return msgspec.structs.replace(
        after,
        removed=before.removed + after.removed,
        garbage=before.garbage + after.garbage,
        reasons=after.reasons or before.reasons,
    )


class _Stopped(Exception):
    """`stop` was called while a pass was waiting."""


def _consumer(life: Incarnation, seen: Seen[ConsumerRecord]) -> protocol.Consumer:
    if seen.record is None:
        return protocol.Consumer(str(life), readable=False)
    record = seen.record
    last = parse_version(record.last) if record.last is not None else None
    return protocol.Consumer(str(life), versions_in(record.holds), every=record.every, last=last)
