"""The consumer: brings versions from a channel to the program that uses them, held and verified.

Straight lines around `holdfast.core.consume`: this file reads, writes, waits and hands out; what to do next, and why,
is decided there. One thread takes at a time; acknowledge, release and reject may come from others meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import msgspec

from holdfast.channel.beats import Beater, clock_s
from holdfast.channel.checking import Checker
from holdfast.channel.held import HeldVersion
from holdfast.channel.register import Register
from holdfast.channel.waiting import Waiter
from holdfast.core import consume
from holdfast.core.consume import Consume, Mode
from holdfast.core.lineage import Lineage, candidates
from holdfast.core.names import Version, check_participant, require_version
from holdfast.errors import (
    ConflictError,
    HoldfastError,
    IntegrityError,
    NotVisibleError,
    OutcomeUnknownError,
    RewoundError,
    TimedOutError,
    UnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    from holdfast.channel.channel import Channel

logger = logging.getLogger(__name__)

FULL_LOOK_S = 5.0  # CURRENT is only a hint: list versions/ at least this often


class Consumer:
    """A consumer of `channel` named `name`; use it in a `with` (or `async with`) block.

    Iterating yields `HeldVersion`s, blocking until there is one, until `close` is called. Storage that is away, or a
    channel that is not there yet, is waited for; the reason is in the log and in the event file.

    Args:
        name: letters, digits, '.', '_', '-'. A restart under the same name takes over the holds of the life before.
        stage: a local directory; versions are copied there while they are checked, and the hold ends when the copy is
            complete. Needed where this process cannot write to the channel, or the storage has no directories.
        every: every version of the lineage in order; default: the newest only.
        on_close: "release" ends all holds; "keep" leaves them to the next life under this name, for a lease.
        patience_s: how long a version may stay "not visible yet" without progress before it is refused (seconds).
        poll_s: longest time between two looks (seconds); default 2 where local changes wake it, else 1.
        in_place: False for a program that never opens the files while it holds them: it need not be seen by sweepers.
    """

    def __init__(
        self,
        channel: Channel,
        name: str,
        *,
        stage: str | os.PathLike[str] | None = None,
        every: bool = False,
        on_close: Literal["release", "keep"] = "release",
        patience_s: float = 90.0,
        poll_s: float | None = None,
        in_place: bool = True,
    ) -> None:
        if on_close not in ("release", "keep"):
            raise UsageError(f"on_close={on_close!r} is neither 'release' nor 'keep'", code="bad_on_close")
        self.channel = channel
        self.name = check_participant(name)
        self._mode = Mode(
            every=every, staged=stage is not None, in_place=in_place and stage is None, patience_s=patience_s
        )
        self._state = Consume()
        self._on_close = on_close
        self._observer = channel.observer()
        self._events = channel.event_log(f"consumer-{name}")
        self._register = Register(channel, name, in_place=self._mode.in_place)
        self._checker = Checker(channel.store, None if stage is None else os.path.join(os.fspath(stage), name))
        self._waiter = Waiter(channel.store, poll_s)
        self._beater = Beater(f"holdfast-{name}", channel.beat_s, self._beat)
        self._lock = threading.RLock()  # guards _state and _out
        self._taking = threading.Lock()  # one thread takes at a time
        self._out: dict[Version, HeldVersion] = {}
        self._opened = False
        self._closed = False
        self._listed: frozenset[Version] = frozenset()
        self._listed_for: object = None
        self._listed_at_s = 0.0
        self._seen_head: tuple[int, Version] | None = None
        self._idle = ""
        self._problem: HoldfastError | None = None

    # Opening and closing

    def open(self) -> None:
        """Register with the channel if it is there already; idempotent.

        Raises:
            UsageError: code "not_a_channel", "newer_format"; "cannot_hold": no right to write here, and no staging.
        """
        if self._closed:
            raise UsageError(f"consumer {self.name} is closed", code="closed", hint="make a new one")
        if self._opened:
            return
        try:
            self.channel.open()
        except NotVisibleError as error:
            self._say_idle(f"waiting: {error}")
            return
        self._begin_life(Consume())
        self._opened = True
        self._waiter.attach()
        self._beater.start()

    def close(self) -> None:
        """End the iteration, the holds (or leave them, on_close="keep") and the beats; idempotent."""
        self._closed = True
        self._waiter.wake()
        with self._taking:
            self._beater.stop()
            if self._opened and self._mode.writes:
                try:
                    self._register.leave(self._state, keep=self._on_close == "keep")
                except HoldfastError as error:
                    self._events.emit("close_failed", str(error), code=error.code)
            if self._opened and self._on_close == "release":
                for version in tuple(self._out):
                    self._checker.drop(version)
            self._waiter.close()
            self._events.emit("closed", f"holds {self._on_close}", holds=[str(v) for v in self._state.holds])
            self._events.close()
            self._opened = False

    def __enter__(self) -> Consumer:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Consumer:
        await asyncio.to_thread(self.open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    # Taking versions

    def __iter__(self) -> Iterator[HeldVersion]:
        while (version := self.take()) is not None:
            yield version

    async def __aiter__(self) -> AsyncIterator[HeldVersion]:
        while (version := await self.atake()) is not None:
            yield version

    def take(self, timeout_s: float | None = None) -> HeldVersion | None:
        """The next version, or None once closed or (with a timeout, seconds) when nothing came in time."""
        return self._take(None if timeout_s is None else clock_s() + timeout_s, threading.Event())

    async def atake(self, timeout_s: float | None = None) -> HeldVersion | None:
        """As `take`, without blocking the event loop. Cancelling it leaves nothing held."""
        stop = threading.Event()
        deadline = None if timeout_s is None else clock_s() + timeout_s
        work = asyncio.ensure_future(asyncio.to_thread(self._take, deadline, stop))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            self._waiter.wake()
            version = await work
            if version is not None:
                await asyncio.to_thread(version.fail)
            raise

    def latest(self) -> HeldVersion | None:
        """The newest version there is, without waiting: the one already held if it still is the newest; None if none."""
        with self._lock:
            last = self._state.last
            if last is not None and last not in self._state.given:
                self._state = msgspec.structs.replace(self._state, again=last)
        version = self.take(timeout_s=0.0)
        with self._lock:
            return version if version is not None else self._out.get(last) if last is not None else None

    def wait_for(self, min_step: int, timeout_s: float | None = None) -> HeldVersion:
        """The newest version once its step is at least `min_step`.

        Raises:
            TimedOutError: not within `timeout_s` seconds; nothing is held by this call.
            RewoundError: the trainer went back below `min_step`: what was waited for is made anew, or never.
            UsageError: code "closed".
        """
        deadline = None if timeout_s is None else clock_s() + timeout_s
        with self._lock:
            newest = max(self._out.values(), key=lambda held: (held.cycle, held.name), default=None)
        if newest is not None and newest.step >= min_step and newest.name == self._state.last:
            return newest
        version = self._take(deadline, threading.Event(), min_step=min_step)
        if version is not None:
            return version
        if self._closed:
            raise UsageError(f"consumer {self.name} is closed", code="closed")
        raise TimedOutError(
            f"no version of step {min_step} or later within {timeout_s} s: {self._idle or 'nothing newer was published'}",
            code="wait_timed_out",
            min_step=min_step,
        )

    def hold(self, version: Version | str) -> HeldVersion:
        """Hold and verify the very version that is named, whatever the lineage says (to resume from it).

        Raises:
            NotVisibleError: code "version_gone": it is not there (any more), or about to be swept.
            IntegrityError: its bytes are not what its manifest promises.
        """
        version = require_version(version) if isinstance(version, str) else version
        self._require_open()
        with self._taking:
            state = self._state
            self._state = msgspec.structs.replace(state, claim=0, last=None, again=None, refused=frozenset())
            only = consume.Looked(Lineage(((version.cycle, None),)), frozenset({version}) & self._observer.versions())
            try:
                held = self._run(msgspec.structs.replace(only, tombstoned=self._register.tombstones()))
                while held is None and self._state.taking is not None:
                    self._waiter.wait(None, looking_again=True)
                    held = self._run(only)
                refused = dict(self._state.refused).get(version)
            finally:
                self._state = msgspec.structs.replace(
                    consume.interrupted(self._state),
                    claim=state.claim,
                    last=state.last,
                    again=state.again,
                    refused=state.refused,
                )
        if held is None:
            if refused is not None:
                raise IntegrityError(f"{version}: {refused}", code="refused", version=str(version))
            raise NotVisibleError(
                f"{version} is not in the channel, or about to be swept",
                code="version_gone",
                hint="`holdfast ls CHANNEL` lists what is there",
                version=str(version),
            )
        return held

    @property
    def held(self) -> tuple[HeldVersion, ...]:
        """Everything that is given and not released, oldest first; after a restart what the life before held."""
        with self._lock:
            return tuple(self._out[version] for version in sorted(self._out))

    @property
    def status(self) -> str:
        """What it waits for, in words."""
        return self._idle

    # What the user says of a version

    def holds(self, version: Version) -> bool:
        """Whether `version` is given and neither released nor lost."""
        return version in self._state.given

    def acknowledge(self, version: Version) -> None:
        """See `HeldVersion.acknowledge`."""
        self._check_life()
        if not self.holds(version):
            raise ConflictError(
                f"{version} is not held any more by {self.name}",
                code="lease_lost",
                hint="stop using its path and take the next version",
                version=str(version),
            )
        self._step(consume.Acknowledge(version))
        if version not in self._state.serving:
            raise ConflictError(
                f"{self.name} was silent for a lease and lost {version}",
                code="lease_lost",
                hint="stop using its path and take the next version",
                version=str(version),
            )

    def release(self, version: Version) -> None:
        """See `HeldVersion.release`."""
        self._let_go(version, consume.Release(version), "released", "")

    def fail(self, version: Version) -> None:
        """See `HeldVersion.fail`."""
        self._let_go(version, consume.Fail(version), "failed", "the user could not use it this time")

    def reject(self, version: Version, reason: str) -> None:
        """See `HeldVersion.reject`."""
        self._let_go(version, consume.Reject(version, reason), "rejected", reason)

    def _let_go(self, version: Version, event: consume.Event, word: str, reason: str) -> None:
        with self._lock:
            if not self.holds(version):
                return
            self._out.pop(version, None)
        try:
            self._step(event)
        except UnavailableError as error:  # the file still says that it is held; the next beat writes it anew
            logger.warning("release of %s is not written yet: %s", version, error)
        self._checker.drop(version)
        self._events.emit(word, reason, version=version)

    # The loop: poll, choose, hold, look, check, give

    def _take(self, deadline: float | None, stop: threading.Event, min_step: int | None = None) -> HeldVersion | None:
        with self._taking:
            while not self._closed and not stop.is_set():
                self._check_life()
                try:
                    given = self._poll(min_step)
                except (UnavailableError, OutcomeUnknownError) as error:
                    with self._lock:
                        self._state = consume.interrupted(self._state)
                    self._say_idle(f"waiting: {error}", code=error.code)
                    given = None
                if given is not None:
                    return given
                left = None if deadline is None else deadline - clock_s()
                if left is not None and left <= 0:
                    return None
                self._waiter.wait(left, looking_again=self._state.taking is not None)
            return None

    def _poll(self, min_step: int | None) -> HeldVersion | None:
        """One look and what follows from it; the version that was given, or None."""
        if not self._opened:
            self.open()
            if not self._opened:
                return None
        lineage, versions = self._look()
        line = candidates(lineage, versions)
        if min_step is not None and not self._reached(lineage, line, min_step):
            return None
        looked = consume.Looked(lineage, versions)
        if consume.pending(self._state, self._mode, looked) and self._mode.writes:
            looked = consume.Looked(lineage, versions, self._register.tombstones())
        return self._run(looked)

    def _look(self) -> tuple[Lineage, frozenset[Version]]:
        lineage = self._observer.lineage()
        current = self._observer.current()
        due = clock_s() - self._listed_at_s >= FULL_LOOK_S
        if due or self._listed_for != (lineage, current) or self._state.taking is not None:
            self._listed = self._observer.versions()
            self._listed_for, self._listed_at_s = (lineage, current), clock_s()
        return lineage, self._listed

    def _reached(self, lineage: Lineage, line: tuple[Version, ...], min_step: int) -> bool:
        """Whether the newest version has `min_step`. RewoundError if the lineage fell below it."""
        head = line[0] if line else None
        before, self._seen_head = self._seen_head, (lineage.cycle, head) if head is not None else self._seen_head
        if head is None:
            return False
        if head.step < min_step and before is not None and before[0] < lineage.cycle and before[1] not in lineage:
            raise RewoundError(
                f"the trainer went back from {before[1]} to {head}, below step {min_step}",
                code="rewound",
                hint="drop what was made with later versions, and wait for a lower step",
                newest=str(head),
                before=str(before[1]),
            )
        return head.step >= min_step

    def _step(self, event: consume.Event) -> HeldVersion | None:
        """One event of the user's, with its effects."""
        return self._run(event)

    def _run(self, event: consume.Event) -> HeldVersion | None:
        """Feed `event` to the machine and carry out its effects, in order, until none is left."""
        given: HeldVersion | None = None
        events: list[consume.Event] = [event]
        while events:
            with self._lock:
                self._state, effects = consume.step(self._state, events.pop(0), self._mode)
            for effect in effects:
                follows = self._do(effect)
                if isinstance(follows, HeldVersion):
                    given = follows
                elif follows is not None:
                    events.append(follows)
        return given

    def _do(self, effect: consume.Effect) -> consume.Event | HeldVersion | None:
        match effect:
            case consume.WriteRecord():
                self._register.write(lambda: self._state)
                return consume.Written()
            case consume.ReadSweepers():
                return self._register.look()
            case consume.CheckLease(version):
                return consume.LeaseRead(version, self._register.look().expired)
            case consume.Check(version, again):
                return self._check(version, again)
            case consume.Give(version, rewound_from):
                return self._give(version, rewound_from)
            case consume.Acknowledged(version):
                self._events.emit("acknowledged", version=version)
            case consume.Drop():
                self._expired()
            case consume.Idle(reason, stale):
                self._say_idle(reason, stale=stale)
        return None

    def _check(self, version: Version, again: bool) -> consume.Event:
        verdict = self._checker.check(version, again=again)
        if isinstance(verdict, consume.Damaged | consume.NotVisible):
            self._say_idle(f"{version}: {verdict.reason}")
        if isinstance(verdict, consume.Damaged):
            self._events.emit("refused", verdict.reason, version=version)
        return verdict

    def _give(self, version: Version, rewound_from: Version | None) -> HeldVersion:
        manifest, path = self._checker.result(version)
        held = HeldVersion(self, version, manifest, path, rewound_from)
        with self._lock:
            self._out[version] = held
            self._seen_head = (self._state.claim, version)
        self._idle = ""
        self._waiter.busy()
        reason = f"rewound from {rewound_from}" if rewound_from is not None else "newest of the lineage"
        self._events.emit("given", reason, version=version, cycle_followed=self._state.claim)
        return held

    # Life: registering, beating, being expired or replaced

    def _begin_life(self, state: Consume) -> None:
        """Register as a new incarnation, with the holds that `state` and earlier lives have."""
        try:
            taken = self._register.enter(state, copies=self._checker.copies())
        except UnavailableError as error:
            if not self._register.refused_by(error):
                raise
            if not self._mode.staged:
                raise UsageError(
                    f"consumer {self.name} cannot write a hold: {error}",
                    code="cannot_hold",
                    hint="give stage=DIRECTORY to work on copies, or Channel(…, claims=PLACE) where it may write",
                ) from error
            self._mode = msgspec.structs.replace(self._mode, writes=False)
            self._checker.tidy(frozenset())
            self._events.emit("unprotected", f"no holds: {error}", code=error.code)
            return
        with self._lock:
            self._state = taken
        self._checker.tidy(taken.given)
        for version in sorted(taken.given - self._out.keys()):
            self._adopt(version)
        self._events.emit("registered", incarnation=self._register.key, holds=[str(v) for v in taken.holds])

    def _adopt(self, version: Version) -> None:
        """Take over a hold of the life before, once its bytes are checked anew: that life may have died before it did."""
        verdict = self._checker.check(version, again=True)
        if not isinstance(verdict, consume.Checked):
            self._run(consume.Release(version))
            self._events.emit("released", f"hold of the life before: {verdict.reason}", version=version)
            return
        manifest, path = self._checker.result(version)
        with self._lock:
            self._out[version] = HeldVersion(self, version, manifest, path, None)
        self._events.emit("taken_over", "held by the life before", version=version)

    def _expired(self) -> None:
        """The machine dropped every hold: start again as a new incarnation."""
        with self._lock:
            self._out = {version: held for version, held in self._out.items() if version in self._state.given}
            state = self._state
        self._events.emit("expired", "a sweeper took this consumer for dead; its holds are gone")
        self._begin_life(state)

    def _beat(self) -> None:
        if self._mode.writes and self._problem is None:
            self._problem = self._register.beat(lambda: self._state)
            if self._problem is not None:
                self._events.emit(self._problem.code, str(self._problem))
                self._waiter.wake()

    def _check_life(self) -> None:
        """Raise what the beats found out, or start a new life after a silence."""
        problem, self._problem = self._problem, None
        if problem is None:
            return
        if problem.code == "lease_lost":
            with self._lock:
                self._state, _ = consume.step(consume.interrupted(self._state), consume.Lost(), self._mode)
            self._expired()
            return
        self._problem = problem
        raise problem

    def _require_open(self) -> None:
        self.open()
        if not self._opened:
            raise NotVisibleError(f"{self.channel.name}: there is no channel here (yet)", code="no_channel")

    def _say_idle(self, reason: str, **fields: object) -> None:
        if reason != self._idle:
            self._idle = reason
            self._events.emit("waiting", reason, **fields)
