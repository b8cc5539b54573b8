"""The consumer: brings versions from a channel to the program that uses them, held and verified.

One thread takes at a time; acknowledge, release and reject may come from others meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from holdfast.channel.beats import clock_s
from holdfast.channel.held import HeldVersion
from holdfast.channel.life import Given, Life
from holdfast.channel.waiting import Waiter
from holdfast.core import consume
from holdfast.core.bounds import check_seconds
from holdfast.core.consume import Mode
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

LOOKS_PER_LEASE = 8  # silence counts only between looks that lie close together, see core/liveness.py
PATIENCE_S = 90.0
PATIENCE_LOCAL_S = 1.0
PATIENCE_BOUNDS = 30.0
FULL_LOOK_S = 5.0  # CURRENT is only a hint: list versions/ at least this often


class Consumer:
    """A consumer of `channel` named `name`; use it in a `with` (or `async with`) block.

    Iterating yields `HeldVersion`s, blocking until there is one, until `close` is called. Storage that is away, or a
    channel that is not there yet, is waited for; the reason is in `status` and in the event file.

    Args:
        name: letters, digits, '.', '_', '-'. A restart under the same name takes over the holds of the life before.
        stage: a local directory; versions are copied there while they are checked, and the hold ends when the copy is
            complete. Needed where this process cannot write to the channel, or the storage has no directories.
        every: every version of the lineage in order; default: the newest only.
        on_close: "release" ends all holds; "keep" leaves them to the next life under this name, for a lease.
        patience_s: how long a version may stay "not visible yet" without progress before it is refused (seconds);
            default: 1 where only this machine sees the channel, else 30 of this mount's visibility bounds, at most 90.
        poll_s: longest time between two looks (seconds); default 2 where local changes wake it, else 1.
        stage_bytes: how much the copies in `stage` may take; while there is no room for one more, nothing is given.
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
        patience_s: float | None = None,
        poll_s: float | None = None,
        stage_bytes: int | None = None,
        in_place: bool = True,
    ) -> None:
        if on_close not in ("release", "keep"):
            raise UsageError(f"on_close={on_close!r} is neither 'release' nor 'keep'", code="bad_on_close")
        if patience_s is not None:
            check_seconds("patience_s", patience_s)
        if poll_s is not None and check_seconds("poll_s", poll_s) == 0.0:
            raise UsageError("poll_s=0 would never rest", code="bad_seconds", hint="give seconds above 0")
        self.channel = channel
        self.name = check_participant(name)
        self._on_close = on_close
        self._waiter = Waiter(channel.store, poll_s)
        self._events = channel.event_log(f"consumer-{name}")
        staged = stage is not None
        self._patience_s = patience_s
        mode = Mode(every=every, staged=staged, in_place=in_place and not staged)
        self._life = Life(channel, name, mode, stage, self._events, self._waiter.wake, stage_bytes)
        self._observer = channel.observer()
        self._taking = threading.Lock()  # one thread takes at a time
        self._thread: ThreadPoolExecutor | None = None
        self._look_s = math.inf
        self._opened = False
        self._closed = False
        self._listed: frozenset[Version] = frozenset()
        self._listed_for: object = None
        self._listed_at_s = 0.0
        self._seen_head: tuple[int, Version] | None = None

    # Opening and closing

    def open(self) -> None:
        """Register with the channel; where it is not there yet, or its storage is away, the iteration does. Idempotent.

        Raises:
            UsageError: code "not_a_channel", "newer_format"; "cannot_hold": no right to write here, and no staging.
        """
        try:
            self._open()
        except UnavailableError as error:
            self._life.say_idle(f"waiting: {error}", code=error.code)

    def _open(self) -> None:
        if self._closed:
            raise UsageError(f"consumer {self.name} is closed", code="closed", hint="make a new one")
        if not self._opened:
            self.channel.open()
            self._look_s = self.channel.lease_s / LOOKS_PER_LEASE
            self._life.be_patient(self._patience())
            self._life.begin()
            self._opened = True
            self._waiter.attach()

    def _patience(self) -> float:
        """While one version is waited for, no other is taken: so not much longer than things are late here."""
        if self._patience_s is not None:
            return self._patience_s
        bound_s = 0.0 if self.channel.local else self.channel.party().bound_s
        return min(PATIENCE_S, PATIENCE_LOCAL_S + PATIENCE_BOUNDS * bound_s)

    def close(self) -> None:
        """End the iteration, the holds (or leave them, on_close="keep") and the beats; idempotent."""
        self._closed = True
        self._waiter.wake()
        with self._taking:
            if self._opened:
                self._opened = False
                self._life.end(keep=self._on_close == "keep")
            self._waiter.close()
            if self._thread is not None:
                self._thread.shutdown(wait=False)
            self._events.emit("closed", f"on_close={self._on_close}")
            self._events.close()

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
        while (held := self.take()) is not None:
            yield held

    async def __aiter__(self) -> AsyncIterator[HeldVersion]:
        while (held := await self.atake()) is not None:
            yield held

    def take(self, timeout_s: float | None = None) -> HeldVersion | None:
        """The next version, or None once closed or (with a timeout, seconds) when nothing came in time.

        Raises:
            ConflictError: code "superseded_consumer": a younger process has this name. Stop.
            UsageError: the channel is none, or this process may not hold. Fix the set-up.
        """
        return self._take(None if timeout_s is None else clock_s() + timeout_s, threading.Event())

    async def atake(self, timeout_s: float | None = None) -> HeldVersion | None:
        """As `take`, without blocking the event loop. Cancelling it leaves nothing held."""
        if self._closed:
            return None
        if self._thread is None:  # its own, since a waiting consumer would use up the event loop's shared ones
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"holdfast-{self.name}")
        stop = threading.Event()
        deadline_s = None if timeout_s is None else clock_s() + timeout_s
        taking = self._thread.submit(self._take, deadline_s, stop)
        try:
            return await asyncio.wrap_future(taking)
        except asyncio.CancelledError:
            stop.set()
            self._waiter.wake()
            await _give_back(taking)
            raise

    def latest(self) -> HeldVersion | None:
        """The newest version there is, without waiting: the one already given if it still is the newest; or None."""
        last = self._life.state.last
        if last is not None and not self.holds(last):
            self._life.change(again=last)
        held = self.take(timeout_s=0.0)
        if held is not None or last is None:
            return held
        given = self._life.given.get(last)
        return self._handle(given) if given is not None else None

    def wait_for(self, min_step: int, timeout_s: float | None = None) -> HeldVersion:
        """The newest version once its step is at least `min_step`.

        Raises:
            TimedOutError: not within `timeout_s` seconds; nothing is held by this call.
            RewoundError: the trainer went back below `min_step`: what was waited for is made anew, or never.
            UsageError: code "closed".
        """
        held = self._take(None if timeout_s is None else clock_s() + timeout_s, threading.Event(), min_step)
        if held is not None:
            return held
        if self._closed:
            raise UsageError(f"consumer {self.name} is closed", code="closed", hint="make a new one")
        raise TimedOutError(
            f"no version of step {min_step} or later within {timeout_s:g} s: {self.status or 'nothing newer came'}",
            code="wait_timed_out",
            min_step=min_step,
        )

    def hold(self, version: Version | str) -> HeldVersion:
        """Hold and verify the very version that is named, whatever the lineage says (to resume from it).

        Raises:
            NotVisibleError: code "version_gone": it is not there (any more), or about to be swept.
            IntegrityError: code "refused": its bytes are not what its manifest promises.
        """
        version = version if isinstance(version, Version) else require_version(version)
        with self._taking:
            self._open()
            given, refused = self._hold(version)
        if given is not None:
            return self._handle(given)
        if self._closed:
            raise UsageError(f"consumer {self.name} is closed", code="closed", hint="make a new one")
        if refused is not None:
            raise IntegrityError(f"{version}: {refused}", code="refused", version=str(version))
        raise NotVisibleError(
            f"{version} is not in the channel, or about to be swept",
            code="version_gone",
            hint="`holdfast ls CHANNEL` lists what is there",
            version=str(version),
        )

    @property
    def held(self) -> tuple[HeldVersion, ...]:
        """Everything that is given and not released, oldest first; after a restart what the life before held."""
        return tuple(self._handle(given) for _, given in sorted(self._life.given.items()))

    @property
    def status(self) -> str:
        """What it waits for, in words; "" while it has something to give."""
        return self._life.idle

    # What the user says of a version (see HeldVersion)

    def holds(self, version: Version) -> bool:
        """Whether `version` is given and neither released nor lost."""
        return self._life.holds(version)

    def lost_lease(self) -> bool:
        """Whether this consumer was taken for dead, or may have been, as the sweepers' files say now.

        Raises:
            UnavailableError: it can't be told. Ask again.
            ConflictError: code "superseded_consumer".
        """
        return self._life.lost()

    def acknowledge(self, version: Version) -> None:
        """See `HeldVersion.acknowledge`."""
        self._life.check_problem()
        if self.holds(version):
            try:
                self._life.run(consume.Acknowledge(version))
                if version in self._life.state.given and version not in self._life.state.serving:
                    self._life.run(consume.Acknowledge(version))  # a staged copy outlived its consumer's silence
            except ConflictError as error:
                self._life.end_life(error)
                raise
        if version not in self._life.state.serving:
            raise ConflictError(
                f"{self.name} does not hold {version} any more",
                code="lease_lost",
                hint="stop using its path and take the next version",
                version=str(version),
            )

    def release(self, version: Version) -> None:
        """See `HeldVersion.release`."""
        self._life.let_go(version, consume.Release(version), "released", "")

    def fail(self, version: Version) -> None:
        """See `HeldVersion.fail`."""
        self._life.let_go(version, consume.Fail(version), "failed", "the user could not use it this time")

    def reject(self, version: Version, reason: str) -> None:
        """See `HeldVersion.reject`."""
        self._life.let_go(version, consume.Reject(version, reason), "rejected", reason)

    # The loop: look, choose, hold, look again, check, give

    def _handle(self, given: Given) -> HeldVersion:
        return HeldVersion(self, given.version, given.manifest, given.path, given.rewound_from)

    def _take(self, deadline_s: float | None, stop: threading.Event, min_step: int | None = None) -> HeldVersion | None:
        with self._taking:
            while not self._closed and not stop.is_set():
                refused = self._life.state.refused
                try:
                    self._life.check_problem()
                    given = self._poll(min_step)
                except (UnavailableError, OutcomeUnknownError) as error:
                    self._life.interrupt()
                    self._life.say_idle(f"waiting: {error}", code=error.code)
                    given = None
                except ConflictError as error:
                    self._life.end_life(error)
                    if error.code != "lease_lost":
                        raise
                    continue
                if given is not None:
                    self._waiter.busy()
                    return self._handle(given)
                left_s = None if deadline_s is None else deadline_s - clock_s()
                if self._life.state.refused != refused:
                    continue  # the one before it may be had at once
                if left_s is not None and left_s <= 0:
                    return None
                pause_s = min(self._look_s, math.inf if left_s is None else left_s)
                self._waiter.wait(pause_s, looking_again=self._life.state.taking is not None)
            return None

    def _poll(self, min_step: int | None) -> Given | None:
        """One look and what follows from it; what was given, or None."""
        self.open()
        if not self._opened:
            return None
        lineage, versions = self._look()
        if min_step is not None:
            versions, given = self._aim(lineage, versions, min_step)
            if given is not None or not versions:
                return given
        looked = consume.Looked(lineage, versions)
        if consume.pending(self._life.state, self._life.mode, looked):
            looked = consume.Looked(lineage, versions, self._life.tombstones())
        given = self._life.run(looked)
        if given is not None:
            self._seen_head = (lineage.cycle, given.version)
        return given

    def _aim(
        self, lineage: Lineage, versions: frozenset[Version], min_step: int
    ) -> tuple[frozenset[Version], Given | None]:
        """Nothing but the newest version that can be had, if it has `min_step`; or what is given already."""
        refused = {version for version, _ in self._life.state.refused}
        line = candidates(lineage, versions - refused)
        if not self._reached(lineage, line, min_step):
            return frozenset(), None
        newest, state = line[0], self._life.state
        if newest in self._life.given:
            return frozenset(), self._life.given[newest]
        if state.taking not in (None, newest):
            self._life.interrupt()
        if newest == state.last:
            self._life.change(again=newest)
        return frozenset({newest}), None

    def _look(self) -> tuple[Lineage, frozenset[Version]]:
        lineage = self._observer.lineage()
        current = self._observer.current()
        due = clock_s() - self._listed_at_s >= FULL_LOOK_S
        if due or self._listed_for != (lineage, current) or self._life.state.taking is not None:
            self._listed = self._observer.versions()
            self._listed_for, self._listed_at_s = (lineage, current), clock_s()
        return lineage, self._listed

    def _reached(self, lineage: Lineage, line: tuple[Version, ...], min_step: int) -> bool:
        """Whether the newest version has `min_step`. RewoundError if the lineage fell below it."""
        if not line:
            return False
        head, before = line[0], self._seen_head
        self._seen_head = (lineage.cycle, head)
        if head.step < min_step and before is not None and before[0] < lineage.cycle and before[1] not in lineage:
            raise RewoundError(
                f"the trainer went back from {before[1]} to {head}, below step {min_step}",
                code="rewound",
                hint="drop what was made with later versions, and wait for a lower step",
                newest=str(head),
                before=str(before[1]),
            )
        return head.step >= min_step

    def _hold(self, version: Version) -> tuple[Given | None, str | None]:
        """`version` taken by name, or why it was refused; the machine's place in the lineage is as before."""
        life, before = self._life, self._life.state
        life.change(claim=0, last=None, again=None, refused=frozenset())
        looked = consume.Looked(Lineage(((version.cycle, None),)), frozenset({version}) & self._observer.versions())
        try:
            given = life.run(consume.Looked(looked.lineage, looked.versions, life.tombstones()))
            while given is None and life.state.taking is not None and not self._closed:
                self._waiter.wait(None, looking_again=True)
                given = life.run(looked)
            return given, dict(life.state.refused).get(version)
        finally:
            life.interrupt()
            said = frozenset(pair for pair in life.state.refused if pair[0] != version)  # rejected meanwhile
            life.change(claim=before.claim, last=before.last, again=before.again, refused=before.refused | said)


async def _give_back(taking: Future[HeldVersion | None]) -> None:
    """Wait for a taking that was told to stop; what it still took is to be given again."""
    giving_back = asyncio.ensure_future(asyncio.to_thread(_fail_taken, taking))
    while not giving_back.done():
        with suppress(asyncio.CancelledError):  # told once is enough
            await asyncio.shield(giving_back)


def _fail_taken(taking: Future[HeldVersion | None]) -> None:
    with suppress(HoldfastError, CancelledError):
        held = taking.result()
        if held is not None:
            held.fail()
