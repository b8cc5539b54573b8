"""The clerk: does what is due for one member, turn by turn; the only one of a node who speaks to the store.

It beats, looks whether `control` has changed, watches the coordinator's beat, coordinates when that is this member's
turn, and carries out what `core.member` decides. Everything is a state to reach, not a message to send: a call to the
store that failed is made again at the next turn.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

import msgspec

from holdfast.core import member as core
from holdfast.core.member import (
    Begin,
    Check,
    Checked,
    CoordinatorSeen,
    DrainReady,
    Event,
    Find,
    Leave,
    Member,
    Release,
    Saw,
    Say,
    Seat,
    SeatFound,
    Signalled,
    Stand,
    Stood,
)
from holdfast.core.membership import (
    Beat,
    Control,
    Head,
    Node,
    Outcome,
    Policy,
    Rank,
    State,
    beat_s,
    decode,
    decode_all,
    encode,
    lease_s,
    round_key,
    seat_key,
)
from holdfast.errors import HoldfastError, UnavailableError, UsageError
from holdfast.events import EventLog
from holdfast.rendezvous.coordinating import Coordinating
from holdfast.rendezvous.founding import Keys, found, take_over
from holdfast.rendezvous.hosting import Keeper
from holdfast.rendezvous.kv import Cell, KeyValueStore
from holdfast.rendezvous.local import Local
from holdfast.rendezvous.words import Glance, Left, Released, Round, Word

logger = logging.getLogger(__name__)

LEAVE_S = 2.0  # how long a good-bye is tried
AGAIN_S = 0.2
LOOKS_PER_S_MAX = 10_000  # of all members together; a TCPStore bears some 30 000 calls a second
LOST, USAGE = 1, 2


class Clerk:
    """One member of one job. `tell` is for any thread and for signal handlers, `word` for the main thread; the rest is
    for the one thread that calls `turn`.

    Args:
        store: a client of the job's store, opened with the run as its prefix. Closed at the end.
        node: who this is.
        local: this machine's side: ports, health check, workers.
        server: the store's server, if this process is its host; kept for as long as the agent is.
        run, attempt, policy: which job, and its rules should this node found it.
    """

    def __init__(
        self,
        store: KeyValueStore,
        node: Node,
        local: Local,
        *,
        run: str,
        attempt: str | None,
        policy: Policy,
        server: object | None,
        events: EventLog,
    ) -> None:
        self.node = node
        self._run = run
        self._store = store
        self._local = local
        self._attempt = attempt
        self.keys = Keys(attempt)
        self._policy = policy
        self._keeper = Keeper(store, self.keys, node.member) if server is not None else None
        self._server = server
        self._events = events
        self._inbox: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._words: queue.SimpleQueue[Word] = queue.SimpleQueue()
        self._state = Member(member=node.member, checks=local.checks)
        self._cell: Cell | None = None
        self._coordinating: Coordinating | None = None
        self._joined = False
        self._dirty = False
        self._count = 0
        self._find: Find | None = None
        self._stand: Stand | None = None
        self._lost: Left | None = None
        self._free = False
        self._away_since_s: float | None = None
        self._beaten_s: float | None = None
        self._left_s: float | None = None
        self._due: dict[str, float] = {"local": 0.0}
        self._rings = False
        self._stop_watching: Callable[[], None] = lambda: None

    def tell(self, event: Event | None) -> None:
        """Something has happened; None: the store may have news."""
        self._inbox.put(event)

    def word(self, *, wait: bool = True) -> Word | None:
        """What the main thread is to do next; None: nothing yet."""
        try:
            return self._words.get(block=wait)
        except queue.Empty:
            return None

    @property
    def rings(self) -> bool:
        """Whether workers have to be ended, for whatever reason."""
        return self._rings

    @property
    def lost(self) -> bool:
        """Whether it has given up: the store is gone, or something is wrong."""
        return self._lost is not None

    @property
    def keeps(self) -> bool:
        """Whether it has left, and still keeps the store for the others."""
        return self._keeper is not None and self._state.beat.state is State.LEFT

    @property
    def seated(self) -> bool:
        """Whether it has a seat in the committed round."""
        return core.seated(self._state)

    @property
    def glance(self) -> Glance:
        """What it knows now; for any thread."""
        now_s, coordinating = time.monotonic(), self._coordinating
        beaten_s, away_s = self._beaten_s, self._away_since_s
        return Glance(
            state=self._state,
            seated=self.seated,
            beats=self._count,
            beat_age_s=None if beaten_s is None else now_s - beaten_s,
            away_s=0.0 if away_s is None else now_s - away_s,
            num_spares=None if coordinating is None else coordinating.num_spares,
        )

    def open(self) -> None:
        self._stop_watching = self._store.watch(self.keys.control, lambda: self.tell(None))

    def close(self) -> None:
        """Whatever it was that ended the thread: the main thread must not wait for ever."""
        if self._state.beat.state is not State.LEFT:
            self._lose("the agent's thread has ended too early; see above")
        self._stop_watching()
        self._local.close()
        self._store.close()
        self._events.close()

    def turn(self) -> None:
        """Do what is due."""
        self.listen(0.0)
        try:
            self._turn()
            self._back()
        except UnavailableError as error:
            self._away(error)
        except UsageError as error:
            self._lose(str(error), USAGE)
        except HoldfastError as error:
            self._lose(str(error))

    @property
    def due_s(self) -> float:
        """When the next turn is due, on this process's monotonic clock."""
        return min(self._due.values())

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do: it has left, and nobody needs it."""
        if self._state.beat.state is not State.LEFT:
            return self._lost is not None and not threading.main_thread().is_alive()
        if self._lost is not None:
            return True
        if self._dirty:  # the good-bye is not said yet
            return self._left_s is not None and time.monotonic() - self._left_s >= LEAVE_S
        return self._free

    def _turn(self) -> None:
        if not threading.main_thread().is_alive() and self._state.beat.state is not State.LEFT:
            self._step(Signalled("its process has ended"))
        if self._is_due("local", AGAIN_S):
            self._look_around()
        if self._lost is not None:
            return
        if not self._joined:
            self._store.put_listed(self.keys.nodes, self.node.member, encode(self.node))
            self._beat()
            self._joined = True
            said = {"run": self._run, "attempt": self.keys.attempt, "member": self.node.member}
            self._events.emit("joined", host=self.node.host, **said)
            if self._state.beat.state is State.PARKED:
                self._events.emit("parked", self._state.beat.reason, round=0)
        lease = lease_s(self._rules)
        left = self._state.beat.state is State.LEFT  # who has left beats no more, even if it keeps the store
        if self._dirty or (not left and self._is_due("beat", beat_s(lease))):
            self._beat()
        if left:
            self._keep()
            return
        if self._is_due("look", self._look_s()):
            self._look()
        if self._find is not None:
            self._look_for_seat(self._find)
        if self._stand is not None:
            self._try_to_stand(self._stand)
        self._coordinate()
        if self._coordinating is not None:
            self._due.pop("watch", None)
        elif self._is_due("watch", beat_s(lease)):
            self._watch_coordinator()

    @property
    def _rules(self) -> Policy:
        return self._state.control.policy if self._state.control is not None else self._policy

    def _keep(self) -> None:
        """It has said good-bye; a host stays for the others' sake."""
        for what in ("beat", "look", "watch", "coordinate"):
            self._due.pop(what, None)
        if self._is_due("keep", AGAIN_S):
            self._free = self._keeper is None or self._keeper.may_end()

    def _look_s(self) -> float:
        """How often to look whether `control` has changed: half as often while there is nothing to hurry for."""
        idle = 2.0 if self._state.beat.state is State.PARKED else 1.0
        size = self._rules.max_nodes + self._rules.spares
        return max(idle * self._store.traits.look_s, size / LOOKS_PER_S_MAX)

    def _is_due(self, what: str, every_s: float) -> bool:
        now_s = time.monotonic()
        if now_s < self._due.get(what, 0.0):
            return False
        self._due[what] = now_s + every_s
        return True

    def listen(self, timeout_s: float) -> None:
        """What the main thread and the store have to say, waited for so long."""
        try:
            while True:
                event = self._inbox.get(timeout=timeout_s) if timeout_s > 0 else self._inbox.get_nowait()
                timeout_s = 0.0
                if event is None:
                    self._due["look"] = 0.0
                else:
                    self._step(event)
        except queue.Empty:
            return

    def _step(self, event: Event) -> None:
        before = self._state.beat.state
        self._state, effects = core.step(self._state, event, time.monotonic())
        for effect in effects:
            self._carry_out(effect)
        self._rings = self._lost is not None or core.rings(self._state)
        if self._state.beat.state is not before:
            self._local.now(self._state.beat)
            self._events.emit(self._state.beat.state.value, self._state.beat.reason, round=self._state.beat.round)
            if self._state.beat.state is State.LEFT:
                self._left_s = time.monotonic()

    def _carry_out(self, effect: core.Effect) -> None:
        match effect:
            case Say():
                self._dirty = True
            case Find():
                self._find = effect
            case Stand():
                self._stand = effect
            case Check():
                self._local.start_check()
            case Begin(seat, control):
                self._words.put(Round(seat=seat, control=control))
            case Release():
                self._words.put(Released())
            case Leave(code, reason):
                self._words.put(Left(code=code, reason=reason))

    def _beat(self) -> None:
        beat = self._state.beat
        self._count += 1
        port = self._local.port(beat.plan) if beat.state is State.READY else 0
        said = msgspec.structs.replace(beat, count=self._count, port=port)
        self._store.put_listed(self.keys.beats, self.node.member, encode(said))
        self._beaten_s = time.monotonic()
        self._dirty = self._state.beat is not beat

    def _look(self) -> None:
        """`control`, if it has changed."""
        if self._cell is None:
            self._cell = self._store.read(self.keys.control)
            if self._cell is None:
                self._step(Saw(None))
                return
        else:
            cell = self._store.newer(self.keys.control, self._cell.revision)
            if cell is None:
                return
            self._cell = cell
        self._saw(self._cell)

    def _saw(self, cell: Cell) -> None:
        self._cell = cell
        control = decode(cell.value, Control, key=self.keys.control)
        if control.outcome is not None and self._state.control is None:
            self._check_new(control.outcome)
        if self._coordinating is not None:
            self._coordinating.saw(cell)
        self._local.tell(control)
        self._step(Saw(control))

    def _check_new(self, outcome: Outcome) -> None:
        """The job had ended before this node came. Where the store remembers, that may be yesterday's job."""
        if self._attempt is None and self._store.traits.survives:
            raise UsageError(
                f"run {self._run} has ended ({outcome.ending.value}: {outcome.reason})",
                code="run_ended",
                hint="give a new --rdzv-id, or --attempt to run it again",
            )

    def _look_for_seat(self, find: Find) -> None:
        keys = {
            "head": self.keys.plain(round_key(find.round, find.plan, "head")),
            "seat": self.keys.plain(seat_key(find.round, find.plan, self.node.member)),
        }
        there = self._store.get(keys.values())
        self._find = None
        seat = None
        if keys["seat"] in there and keys["head"] in there:
            head = decode(there[keys["head"]], Head, key=keys["head"])
            seat = Seat(head=head, group_rank=decode(there[keys["seat"]], Rank, key=keys["seat"]).group_rank)
        self._step(SeatFound(find.plan, seat))

    def _try_to_stand(self, stand: Stand) -> None:
        """One compare-and-set; whoever won, what stands then is what is gone by."""
        if stand.control is None:
            cell = found(self._store, self._run, self._attempt, self._policy, self.node.member)
        elif self._cell is None or self._state.control is None or self._state.control.nonce != stand.control.nonce:
            self._stand = None  # `control` has changed since: whoever it names now may well be alive
            self._step(Stood())
            return
        else:
            cell = take_over(self._store, self.keys, self._cell, self.node.member, stand.reason)
        self._stand = None
        self._saw(cell)
        self._step(Stood())

    def _coordinate(self) -> None:
        control = self._state.control
        if self._coordinating is not None and self._coordinating.dismissed:
            self._coordinating = None
        if control is None or control.coordinator != self.node.member or self._cell is None:
            self._coordinating = None
            self._due.pop("coordinate", None)
            return
        if self._coordinating is None:
            self._coordinating = Coordinating(
                self._store, self.keys, self.node.member, self._cell, self._events, watch=self._state.watch
            )
        if self._is_due("coordinate", self._coordinating.look_s):
            self._coordinating.look()
            self._due["look"] = 0.0

    def _watch_coordinator(self) -> None:
        control = self._state.control
        if control is None:
            return
        there = self._store.get_listed(self.keys.beats, [control.coordinator])
        beat = decode_all(there, Beat).get(control.coordinator)
        self._step(CoordinatorSeen(control.coordinator, beat))

    def _look_around(self) -> None:
        """This machine's side: workers, health."""
        verdict = self._local.look_around()
        if verdict is not None:
            self._step(Checked(verdict.ok, verdict.reason))
        if self._state.beat.state is State.RUNNING:
            ready = self._local.drain_ready(self._state.beat.round)
            if ready != self._state.beat.drain_ready:
                self._step(DrainReady(ready))

    # When the store does not answer

    def _away(self, error: UnavailableError) -> None:
        if error.code == "store_lost":
            self._lose(str(error))
        elif self._away_since_s is None:
            self._away_since_s = time.monotonic()
            logger.warning("the store does not answer, workers go on: %s", error)
            self._events.emit("store_away", str(error))

    def _back(self) -> None:
        if self._away_since_s is not None:
            away_s = time.monotonic() - self._away_since_s
            self._away_since_s = None
            logger.warning("the store answers again after %.1f s", away_s)
            self._events.emit("store_back", away_s=round(away_s, 3))

    def _lose(self, reason: str, code: int = LOST) -> None:
        """For good: the workers are ended, and the agent leaves with an error."""
        if self._lost is None:
            self._lost = Left(code=code, reason=reason)
            self._events.emit("lost", reason)
            self._words.put(self._lost)
            self._rings = True
