"""A consumer's own file, and its look at the sweepers' files.

The file says what this consumer holds; it is written by this life of the consumer alone. A younger life of the
same name takes over what the older one holds: it writes its own file first, then removes the older one's. Where a
sweeper elsewhere may not have noticed the new file yet, the older one stands and goes on beating until it has.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import msgspec

from holdfast.channel.beats import clock_s
from holdfast.channel.channel import Channel, is_read_only
from holdfast.channel.observe import Seen
from holdfast.core import liveness
from holdfast.core.consume import Consume, Mode, SweepersRead, unseen_by
from holdfast.core.names import Incarnation, Version
from holdfast.core.records import ConsumerRecord, SweeperRecord, encode, versions_in
from holdfast.errors import ConflictError, HoldfastError, UnavailableError

REFUSED_MAX = 1000
TRIES_MAX = 100
LOOK_GAP_LEASES = 0.25  # looks that lie further apart than this share of a lease count no silence


class Register:
    """One consumer's entry in consumers/."""

    def __init__(self, channel: Channel, name: str, mode: Mode) -> None:
        self._channel = channel
        self._name = name
        self._mode = mode
        self._observer = channel.observer()
        self._lock = threading.RLock()
        self._life: Incarnation | None = None
        # Own lives, those as well whose file may or may not have been written.
        self._tries: deque[Incarnation] = deque(maxlen=TRIES_MAX)
        self._beats = 0
        # Earlier lives whose files still speak for what was taken over, because some sweeper has not listed this one.
        self._elders: dict[Incarnation, ConsumerRecord] = {}
        self._written_at_s = 0.0
        self._watch = liveness.Watch()

    @property
    def key(self) -> str:
        """This life's name: `<id>.<number>-<nonce>`."""
        return str(self._life)

    def refused_by(self, error: HoldfastError) -> bool:
        """Whether `error` says that this process may never write here."""
        return is_read_only(error)

    def enter(self, state: Consume, *, copies: frozenset[str] = frozenset()) -> Consume:
        """Begin a new life: write an own file with the holds of `state` and of earlier lives, then remove theirs.

        Returns the state with what could be kept; what a sweeper has announced meanwhile is given up.
        `copies`: names of staged versions that an earlier life left; they are taken over where it served them.
        """
        with self._lock:
            self._channel.claims.list("")
            older = self._observer.incarnations(self._name)
            if self._life is not None:
                self._check_younger(older)
            records = {life: seen for life, seen in self._observer.consumers().items() if life.name == self._name}
            number = max((life.number for life in older), default=0) + 1
            before, self._elders = self._life, {}
            self._life = Incarnation(self._name, number, secrets.token_hex(4))
            self._tries.append(self._life)
            inherited = _inherit(state, [seen.record for _, seen in sorted(records.items()) if seen.record], copies)
            if self._mode.every and inherited.last is None:
                # It goes on after what it has done with; else a consumer that dies often would begin anew each time,
                # and everything after its beginning would wait for it.
                inherited = msgspec.structs.replace(inherited, last=inherited.acknowledged)
            try:
                read = self._appear(inherited, older)
            except HoldfastError:
                self._take_back(before)  # else each try would leave a file behind
                raise
            lost = inherited.holds & read.tombstoned
            if any(str(life) in expired for life in older for expired in [self._expired_names()]):
                lost = inherited.holds  # whoever was taken for dead has lost its holds, in the next life too
            kept = msgspec.structs.replace(
                inherited,
                holds=inherited.holds - lost,
                given=inherited.given - lost,
                serving=inherited.serving - lost,
            )
            try:
                self._keep_elders(records if kept.holds and read.unseen_by else {})
                self._end(tuple(life for life in older if life not in self._elders))
            except UnavailableError as error:
                if is_read_only(error) and self._all_stand(older):
                    self._take_back(before)  # they are another user's, and that one goes on
                raise
            if lost:
                self.write(lambda: kept)
            return kept

    def _take_back(self, before: Incarnation | None) -> None:
        """This life is none: `before` goes on. What can't be removed of it now is ended with the next life."""
        with suppress(HoldfastError):
            self._channel.claims.delete(self._path)
        self._life = before

    def _keep_elders(self, records: dict[Incarnation, Seen[ConsumerRecord]]) -> None:
        """Let the files of these lives stand, and beat for them, until every sweeper has listed the present life."""
        self._elders = {life: seen.record for life, seen in records.items() if seen.record is not None}
        self._beat_elders()

    def _beat_elders(self) -> None:
        for life, record in self._elders.items():
            self._elders[life] = msgspec.structs.replace(record, beat=record.beat + 1)
            self._channel.claims.replace(f"consumers/{life}.json", encode(self._elders[life]))

    def _part_from_elders(self, lives: tuple[Incarnation, ...]) -> None:
        """Remove the files of earlier lives once no sweeper needs them.

        Raises:
            ConflictError: code "lease_lost": one of them was taken for dead, and what it held may be gone.
        """
        read = self._read_sweepers(lives)
        if read.expired:
            raise ConflictError(
                f"an earlier life of {self._name} was taken for dead, and what it held with it",
                code="lease_lost",
                hint="it starts again by itself",
            )
        if not read.unseen_by:
            self._end(tuple(self._elders))
            self._elders = {}

    def _end(self, older: tuple[Incarnation, ...]) -> None:
        """Remove the files of earlier lives."""
        for life in older:
            self._channel.claims.delete(f"consumers/{life}.json")

    def _all_stand(self, older: tuple[Incarnation, ...]) -> bool:
        """Whether the files of these lives are still there, as far as can be seen."""
        try:
            return set(older) <= set(self._observer.incarnations(self._name))
        except UnavailableError:
            return False

    def _appear(self, state: Consume, older: tuple[Incarnation, ...]) -> SweepersRead:
        """Write the file of a new life, durably; then look at the sweepers' files."""
        assert self._life is not None
        self._beats = 1
        began_s = clock_s()
        self._channel.claims.create(self._path, encode(self._record(state)))
        self._written_at_s = began_s
        return self._read_sweepers(lives=(*older, self._life))

    def write(self, state: Callable[[], Consume]) -> None:
        """Put the file as `state` has it now. Durability: survives a crash once this returned.

        Raises:
            ConflictError: code "lease_lost": this process was silent for a lease; what it holds may be gone.
        """
        with self._lock:
            self._check_silence()
            self._beats += 1
            began_s = clock_s()
            self._channel.claims.replace(self._path, encode(self._record(state())))
            self._written_at_s = began_s  # others may have counted from any moment of the call on
            self._beat_elders()

    def beat(self, state: Callable[[], Consume]) -> ConflictError | None:
        """Beat, unless this life is over: then the reason, code "lease_lost" or "superseded_consumer"."""
        try:
            with self._lock:
                lives = self._observer.incarnations(self._name)
                self._check_alone(lives)
                self.write(state)
                if self._elders:
                    self._part_from_elders(lives)
        except ConflictError as error:
            return error
        return None

    def look(self) -> SweepersRead:
        """Every sweeper's file, read afresh, as the machine wants it.

        Raises:
            UnavailableError: code "sweeper_unreadable": it may announce anything. Look again.
            ConflictError: code "superseded_consumer".
        """
        with self._lock:
            lives = self._observer.incarnations(self._name)
            self._check_younger(lives)
            return self._read_sweepers(lives)

    def lost(self) -> bool:
        """Whether this life is over: it was silent for a lease, or a sweeper says so, read afresh.

        Raises: as `look`.
        """
        try:
            self._check_silence()
        except ConflictError:
            return True
        return self.look().expired

    def tombstones(self) -> frozenset[Version]:
        """All tombstones that stand now."""
        with self._lock:
            return self._read_sweepers(None).tombstoned

    def leave(self, state: Consume, *, keep: bool) -> None:
        """End this life: remove the file, or leave it to the next life."""
        with self._lock:
            if keep:
                self.write(lambda: state)
            else:
                self._channel.claims.delete(self._path)
                self._end(tuple(self._elders))

    @property
    def _path(self) -> str:
        return f"consumers/{self._life}.json"

    def _record(self, state: Consume) -> ConsumerRecord:
        refused = sorted(state.refused, reverse=True)[:REFUSED_MAX]
        return ConsumerRecord(
            beat=self._beats,
            holds=tuple(str(version) for version in sorted(state.holds)),
            acknowledged=str(state.acknowledged) if state.acknowledged is not None else None,
            acknowledged_cycle=state.acknowledged_cycle,
            serving=tuple(str(version) for version in sorted(state.serving)),
            refused={str(version): reason for version, reason in refused},
            party=self._channel.party(),
            in_place=self._mode.in_place,
            every=self._mode.every,
            last=str(state.last) if state.last is not None else None,
        )

    def _check_silence(self) -> None:
        silent_s = clock_s() - self._written_at_s
        if silent_s > self._channel.lease_s:
            raise ConflictError(
                f"{self._name} has not written its file for {silent_s:.1f} s, longer than the lease",
                code="lease_lost",
                hint="what it held may be gone; it starts again by itself",
                silent_s=round(silent_s, 3),
            )

    def _check_younger(self, lives: tuple[Incarnation, ...]) -> None:
        younger = self._younger_of(lives)
        if younger:
            raise ConflictError(
                f"another process has taken over the name {self._name}: {younger[-1]}",
                code="superseded_consumer",
                hint="stop this one, or give each process a name of its own",
                younger=str(younger[-1]),
            )

    def _younger_of(self, lives: tuple[Incarnation, ...]) -> tuple[Incarnation, ...]:
        if self._life is None:
            return ()
        others = tuple(life for life in lives if life not in self._tries)
        if self._life not in lives:  # its file was removed, and numbers may have begun anew
            return others
        return tuple(life for life in others if life.number > self._life.number)

    def _check_alone(self, lives: tuple[Incarnation, ...]) -> None:
        self._check_younger(lives)
        gone = [life for life in (self._life, *self._elders) if life not in lives]
        if gone:
            raise ConflictError(
                f"the file of {gone[0]} is gone: it was taken for dead",
                code="lease_lost",
                hint="it starts again by itself",
            )

    def _sweepers(self) -> dict[str, Seen[SweeperRecord]]:
        found = self._observer.sweepers()
        tokens = {key: seen.token for key, seen in found.items()}
        gap_s = self._channel.lease_s * LOOK_GAP_LEASES
        self._watch = liveness.look(self._watch, tokens, clock_s(), gap_s=gap_s)
        return found

    def _expired_names(self) -> frozenset[str]:
        return frozenset(
            name for seen in self._observer.sweepers().values() if seen.record for name in seen.record.expired
        )

    def _read_sweepers(self, lives: tuple[Incarnation, ...] | None) -> SweepersRead:
        sweepers = self._sweepers()
        silent = liveness.silent(self._watch, self._channel.lease_s)
        unreadable = [key for key, seen in sweepers.items() if seen.record is None and key not in silent]
        if unreadable:
            raise UnavailableError(
                f"the file of sweeper {unreadable[0]} cannot be read: it may announce anything",
                code="sweeper_unreadable",
                hint="it is ignored once its bytes have not changed for a lease",
            )
        records = {key: seen.record for key, seen in sweepers.items() if seen.record is not None}
        own = {self.key, *map(str, self._elders)}
        expired = any(not own.isdisjoint(record.expired) for record in records.values())
        return SweepersRead(
            tombstoned=frozenset().union(*(versions_in(record.tombstones) for record in records.values())),
            expired=expired or (lives is not None and self._life is not None and self._life not in lives),
            unseen_by=unseen_by(self.key, self._channel.party(), self._mode, records, silent),
        )


def _inherit(state: Consume, records: list[ConsumerRecord], copies: frozenset[str]) -> Consume:
    """`state` with the holds, refusals and acknowledgement that earlier lives wrote down."""
    for record in records:
        holds = versions_in(record.holds)
        serving = versions_in(record.serving)
        staged = frozenset(version for version in serving if str(version) in copies)
        kept = versions_in((record.acknowledged,)) if record.acknowledged is not None else frozenset()
        state = msgspec.structs.replace(
            state,
            holds=state.holds | holds,
            given=state.given | holds | staged,
            serving=state.serving | (serving & (holds | staged)),
            refused=state.refused
            | {(version, reason) for name, reason in record.refused.items() for version in versions_in((name,))},
            acknowledged=next(iter(kept), state.acknowledged),
            acknowledged_cycle=record.acknowledged_cycle or state.acknowledged_cycle,
            claim=max(state.claim, record.acknowledged_cycle),
        )
    return state
