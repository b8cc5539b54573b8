"""One consumer's machine and what it does: holds written, sweepers read, versions checked and handed out.

Straight lines around `holdfast.core.consume`: what to do next, and why, is decided there. The steps of the machine are
short and under a lock; their effects (reading, writing, checking) are not, so that a version can be released while
another one is being checked.
"""

from __future__ import annotations

import os
import pathlib
import threading
from collections.abc import Callable

import msgspec

from holdfast.channel.beats import Beater
from holdfast.channel.channel import Channel
from holdfast.channel.checking import Checker
from holdfast.channel.copies import Copies
from holdfast.channel.register import Register
from holdfast.core import consume
from holdfast.core.consume import Consume, Mode
from holdfast.core.manifest import Manifest
from holdfast.core.names import Version
from holdfast.errors import (
    ConflictError,
    HoldfastError,
    NotVisibleError,
    OutcomeUnknownError,
    UnavailableError,
    UsageError,
)
from holdfast.events import EventLog

_OF_GIVEN = (consume.Acknowledge, consume.Release, consume.Fail, consume.Reject)


class Given(msgspec.Struct, frozen=True):
    """What the machine gave: a checked version, its copy's directory (None: in place), and what it replaces."""

    version: Version
    manifest: Manifest
    path: pathlib.Path | None
    rewound_from: Version | None = None


class Life:
    """A consumer from its registration on, through all its incarnations. `wake` is called when something is up."""

    def __init__(
        self,
        channel: Channel,
        name: str,
        mode: Mode,
        stage: str | os.PathLike[str] | None,
        events: EventLog,
        wake: Callable[[], None],
        stage_bytes: int | None = None,
    ) -> None:
        self._channel = channel
        self._name = name
        self._events = events
        self._wake = wake
        self._register = Register(channel, name, mode)
        self._checker = Checker(channel.store, None if stage is None else Copies(stage, name, stage_bytes))
        self._beater = Beater(f"holdfast-{name}", self._beat)
        self._lock = threading.RLock()
        self._problem: ConflictError | None = None
        self._unseen_since_s: dict[Version, float] = {}  # holds of the life before that can't be checked yet
        self._lives = 0  # how often the state was begun anew: what was read for an earlier one is void
        self.mode = mode
        self.state = Consume()
        self.given: dict[Version, Given] = {}
        self.idle = ""

    def begin(self) -> None:
        """Register, take over what earlier lives held, and beat.

        Raises:
            UsageError: code "cannot_hold": no right to write, and no staging.
        """
        before = self.state
        self._checker.open()
        while True:
            try:
                self._enter(before)
                break
            except ConflictError as error:
                if error.code != "lease_lost":
                    raise
                self.given.clear()  # frozen for a lease in the middle of it: what was taken over is looked at anew
        self._beater.start(self._channel.beat_s)

    def be_patient(self, patience_s: float) -> None:
        """How long what is not visible yet is looked at again (seconds)."""
        self.mode = msgspec.structs.replace(self.mode, patience_s=patience_s)

    def end(self, *, keep: bool) -> None:
        """Stop beating and leave; the holds end, or stay for the next life (`keep`)."""
        self._beater.stop()
        if self.mode.writes and not self._superseded():
            try:
                self._register.leave(self.state, keep=keep)
            except HoldfastError as error:
                self._events.emit("close_failed", str(error), code=error.code)
        if not keep and not self._superseded():
            for version in tuple(self.given):
                self._checker.drop(version)
        self._checker.close()

    def tombstones(self) -> frozenset[Version]:
        """All tombstones that stand now, as far as this consumer has to care."""
        return self._register.tombstones() if self.mode.writes else frozenset()

    def run(self, event: consume.Event) -> Given | None:
        """Feed `event` to the machine and carry out its effects, in order, until none is left; what it gave.

        One thread takes (Looked and what follows from it). What users say comes from others, and may end the life
        that the taking thread works for; then that thread stops.
        """
        taking = isinstance(event, consume.Looked)
        lives: int | None = None
        given: Given | None = None
        events: list[consume.Event] = [event]
        while events:
            with self._lock:
                event = events.pop(0)
                if taking and lives not in (None, self._lives):
                    return given
                if isinstance(event, _OF_GIVEN) and event.version not in self.state.given:
                    return None
                lives, before = self._lives, self.state.refused
                self.state, effects = consume.step(self.state, event, self.mode)
                refused = self.state.refused - before
            for version, reason in refused if not isinstance(event, consume.Reject) else ():
                self._events.emit("refused", reason, version=version)
            for effect in effects:
                try:
                    follows = self._do(effect)
                except (UnavailableError, OutcomeUnknownError, ConflictError) as error:
                    if given is None:
                        raise
                    self._late(given.version, error)  # what is given is given
                    continue
                if isinstance(follows, Given):
                    given = follows
                elif isinstance(follows, consume.Written) and not taking:
                    continue  # the machine waits for the taking thread's own writes only
                elif follows is not None:
                    events.append(follows)
        return given

    def change(self, **fields: object) -> None:
        """Replace fields of the machine's state between two events."""
        with self._lock:
            self.state = msgspec.structs.replace(self.state, **fields)

    def interrupt(self) -> None:
        """An effect failed: what was being taken is taken anew at the next poll."""
        with self._lock:
            self._lives += 1
            self.state = consume.interrupted(self.state)

    def holds(self, version: Version) -> bool:
        """Whether `version` is given, and this life has not ended meanwhile (a staged copy outlives a silence)."""
        over = self._superseded() or (self._problem is not None and not self.mode.staged)
        return version in self.state.given and not over

    def lost(self) -> bool:
        """Whether the holds of this life are gone, read afresh."""
        return self._problem is not None or self._register.lost()

    def let_go(self, version: Version, event: consume.Event, word: str, reason: str) -> None:
        """Release, fail or reject `version`, if it is given."""
        with self._lock:
            if not self.holds(version) or self.given.pop(version, None) is None:
                return
        try:
            self.run(event)
        except (UnavailableError, OutcomeUnknownError, ConflictError) as error:
            self._late(version, error)
        self._checker.drop(version)
        self._events.emit(word, reason, version=version)

    def _late(self, version: Version, error: HoldfastError) -> None:
        """The end of a hold could not be written: the next beat writes it; or the hold is gone with this life."""
        if isinstance(error, ConflictError):
            self.end_life(error)
        else:
            self._events.emit("release_late", str(error), version=version, code=error.code)

    def end_life(self, problem: ConflictError) -> None:
        """Note that this life is over; `check_problem` tells, or starts a new one."""
        self.interrupt()
        if self._problem is None or problem.code != "lease_lost":
            self._problem = problem

    def _superseded(self) -> bool:
        return self._problem is not None and self._problem.code != "lease_lost"

    def check_problem(self) -> None:
        """Raise what the beats found out, or start a new life after a silence.

        Raises:
            ConflictError: code "superseded_consumer": a younger process has this name. Stop.
        """
        problem = self._problem
        if problem is None:
            return
        if problem.code != "lease_lost":
            raise problem
        self.interrupt()
        self.run(consume.Lost())
        self._problem = None

    def say_idle(self, reason: str, **fields: object) -> None:
        """Note why there is nothing to give; told once for each reason."""
        if reason != self.idle:
            self.idle = reason
            self._events.emit("waiting", reason, **fields)

    def _do(self, effect: consume.Effect) -> consume.Event | Given | None:
        match effect:
            case consume.WriteRecord():
                self._register.write(lambda: self.state)
                return consume.Written()
            case consume.ReadSweepers():
                return self._register.look()
            case consume.CheckLease(version):
                return consume.LeaseRead(version, self._register.look().expired)
            case consume.Check(version, again):
                return self._checker.check(version, again=again)
            case consume.Give(version, rewound_from):
                return self._give(version, rewound_from)
            case consume.Acknowledged(version):
                self._events.emit("acknowledged", version=version)
            case consume.Drop():
                self._start_again()
            case consume.Idle(reason, stale):
                self.say_idle(reason, stale=stale)
        return None

    def _give(self, version: Version, rewound_from: Version | None) -> Given:
        manifest, path = self._checker.result(version)
        given = Given(version, manifest, path, rewound_from)
        with self._lock:
            self.given[version] = given
        self.idle = ""
        reason = f"rewound from {rewound_from}" if rewound_from is not None else "next of the lineage"
        self._events.emit("given", reason, version=version, followed=self.state.claim)
        return given

    def _enter(self, state: Consume) -> None:
        """Register as a new incarnation, with the holds that `state` and earlier lives have."""
        try:
            taken = self._register.enter(state, copies=self._checker.copies())
        except UnavailableError as error:
            if not self._register.refused_by(error):
                raise
            if not self.mode.staged:
                raise UsageError(
                    f"consumer {self._name} cannot write a hold: {error}",
                    code="cannot_hold",
                    hint="give stage=DIRECTORY to work on copies, or Channel(…, claims=PLACE) where it may write",
                ) from error
            self.mode = msgspec.structs.replace(self.mode, writes=False)
            self._checker.tidy(frozenset())
            self._events.emit("unprotected", f"no holds: {error}", code=error.code)
            return
        with self._lock:
            self._lives += 1
            self.state = taken
        self._checker.tidy(taken.given)
        for version in sorted(taken.given - self.given.keys()):
            self._adopt(version)
        self._events.emit("registered", incarnation=self._register.key, holds=[str(v) for v in taken.holds])

    def _adopt(self, version: Version) -> None:
        """Take over a hold of the life before, once its bytes are checked anew: it may have died before it did so."""
        verdict = self._checker.check_again(version)
        if isinstance(verdict, consume.NotVisible):
            since_s = self._unseen_since_s.setdefault(version, verdict.now_s)
            if verdict.now_s - since_s < self.mode.patience_s:  # an engine may serve it: one stale look ends no hold
                raise NotVisibleError(f"{version}, held by the life before: {verdict.reason}", code="not_visible_yet")
        self._unseen_since_s.pop(version, None)
        if not isinstance(verdict, consume.Checked):
            self.run(consume.Release(version))
            self._events.emit("released", f"hold of the life before: {verdict.reason}", version=version)
            return
        manifest, path = self._checker.result(version)
        with self._lock:
            self.given[version] = Given(version, manifest, path)
        self._events.emit("taken_over", "held by the life before", version=version)

    def _start_again(self) -> None:
        """The machine dropped every hold: begin a new incarnation."""
        with self._lock:
            self._lives += 1
            self.given = {version: given for version, given in self.given.items() if version in self.state.given}
        self._events.emit("expired", "a sweeper took this consumer for dead; its holds are gone")
        try:
            self._enter(self.state)
        except ConflictError as error:
            self.end_life(error)
            raise

    def _beat(self) -> None:
        if self.mode.writes and self._problem is None:
            self._problem = self._register.beat(lambda: self.state)
            if self._problem is not None:
                self._events.emit(self._problem.code, str(self._problem))
                self._wake()
