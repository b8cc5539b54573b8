"""Coordinating: carries out what `core.coordinator` decides, for the member that `control` names."""

from __future__ import annotations

import secrets
import time

import msgspec

from holdfast.core import coordinator, liveness
from holdfast.core.coordinator import Coordinator, Effect, Event, Forget, Known, Looked, Prepare, Reply, Stands, Swap
from holdfast.core.membership import (
    Beat,
    Control,
    Node,
    Request,
    Roster,
    State,
    Timing,
    decode,
    decode_all,
    encode,
    encode_over,
    lease_s,
    round_key,
)
from holdfast.errors import IntegrityError, UnavailableError
from holdfast.events import EventLog
from holdfast.rendezvous.founding import Keys
from holdfast.rendezvous.kv import Cell, KeyValueStore

LOOK_S = 0.02  # at least; five looks or more in the gap that still counts as silence
HURRY_S = 0.2  # reading the beats of 10 000 nodes takes 0.03
TIDY_S = 60.0
IDLE = (State.PARKED, State.READY)
LATE = 0.25  # a look that takes longer than this part of a lease says nothing of now


class Coordinating:
    """The coordinator's part of one member. Every call may raise UnavailableError; `look` is then called again.

    Args:
        cell: `control`, which names `member`.
        watch: what this member knows of its predecessor's silence.
    """

    def __init__(
        self,
        store: KeyValueStore,
        keys: Keys,
        member: str,
        cell: Cell,
        events: EventLog,
        *,
        watch: liveness.Watch,
    ) -> None:
        self._store = store
        self._keys = keys
        self._events = events
        self._nodes: dict[str, Node] = {}
        self._beats: dict[str, tuple[bytes, Beat]] = {}
        self._cell = cell
        self._unsure = False
        self._tidy_s = time.monotonic()
        control = decode(cell.value, Control, key=keys.control)
        self._state = Coordinator(member=member, control=control, plans=self._load(control), watch=watch)
        events.emit("coordinator", control.reason, term=control.term)

    @property
    def dismissed(self) -> bool:
        return self._state.dismissed

    @property
    def num_spares(self) -> int:
        """How many members could take a seat, as far as their beats were seen. For any thread."""
        state = self._state
        seats, watched, lease = set(state.roster.seats), state.watch.watched, lease_s(state.control.policy)
        idle = [member for member, (_, beat) in list(self._beats.items()) if beat.state in IDLE and member not in seats]
        return sum(member in watched and watched[member].silent_s < lease for member in idle)

    @property
    def look_s(self) -> float:
        """How often to look (seconds): more often while everybody waits for a proposal's last yes."""
        lease = lease_s(self._state.control.policy)
        return max(LOOK_S, min(lease / 10.0, HURRY_S) if self._state.control.proposed else lease / 10.0)

    def saw(self, cell: Cell) -> None:
        """`control` stands so, as somebody has read."""
        if cell.revision > self._cell.revision:
            self._stands(cell)

    def look(self) -> None:
        """One look at the records, and what follows from it."""
        if self._unsure:
            cell = self._store.read(self._keys.control)
            if cell is None:
                raise UnavailableError("control is gone from the store", code="store_lost", hint="start the job anew")
            self._stands(cell)
        began_s = time.monotonic()
        known = self._know()
        timely = time.monotonic() - began_s <= LATE * lease_s(self._state.control.policy)
        self._step(Looked(known, secrets.token_hex(4), timely), began_s)
        if time.monotonic() - self._tidy_s >= TIDY_S:
            self._tidy_s = time.monotonic()
            self._store.tidy()

    def _load(self, control: Control) -> dict[str, Roster]:
        """The rosters of the plans that `control` names."""
        named = {control.plan: control.round, control.proposed: control.round + 1}
        keys = {plan: self._keys.plain(round_key(number, plan, "roster")) for plan, number in named.items() if plan}
        found = self._store.get(keys.values())
        return {plan: decode(found[key], Roster, key=key) for plan, key in keys.items() if key in found}

    def _know(self) -> Known:
        raw = self._store.list_all(self._keys.beats)
        for member, data in raw.items():
            before = self._beats.get(member)
            if before is None or before[0] != data:
                try:
                    self._beats[member] = (data, decode(data, Beat, key=member))
                except IntegrityError:
                    continue
        new = [member for member in raw if member not in self._nodes]
        if new:
            self._nodes |= decode_all(self._store.get_listed(self._keys.nodes, new), Node)
        requests = decode_all(self._store.list_all(self._keys.requests), Request)
        answered = self._store.names(self._keys.answers) if requests else frozenset()
        beats = {member: beat for member, (_, beat) in self._beats.items() if member in raw}
        return Known(nodes=self._nodes, beats=beats, requests=requests, answered=answered)

    def _step(self, event: Event, now_s: float) -> None:
        self._state, effects = coordinator.step(self._state, event, now_s)
        self._unsure = self._state.writing  # until it is known what stands, whatever fails on the way
        for effect in effects:
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Prepare(values):
                self._store.put({self._keys.plain(key): encode(value) for key, value in values.items()})
                for timing in (value for value in values.values() if isinstance(value, Timing)):
                    self._events.emit("round_running", "all workers run", **_phases(timing))
            case Swap(control):
                key, before = self._keys.control, self._cell
                value = encode_over(control, before.value, key=key)
                self._stands(self._store.compare_and_set(key, before.revision, value))
            case Reply(request, answer):
                self._store.put_listed(self._keys.answers, request, encode(answer))
            case Forget(keys):
                self._store.delete([self._keys.plain(key) for key in keys])

    def _stands(self, cell: Cell) -> None:
        before = self._state.control
        control = decode(cell.value, Control, key=self._keys.control)
        self._cell = cell
        self._step(Stands(control), time.monotonic())
        if control.nonce == before.nonce or self._state.dismissed:
            return
        if control.round != before.round:
            roster = self._state.roster
            self._events.emit("round_committed", control.reason, **_shown(roster))
        elif control.proposed and control.proposed != before.proposed:
            self._events.emit("round_proposed", control.reason, round=control.round + 1, plan=control.proposed)
        elif control.outcome is not None:
            outcome = control.outcome
            self._events.emit("outcome", outcome.reason, ending=outcome.ending.value, code=outcome.code)
        elif control.reason != before.reason:
            self._events.emit("waiting", control.reason)


def _shown(roster: Roster) -> dict[str, object]:
    shown = msgspec.to_builtins(roster)
    names = ("round", "plan", "seats", "spares", "replaced", "restarts", "voluntary", "lost_s")
    return {name: shown[name] for name in names}


def _phases(timing: Timing) -> dict[str, object]:
    shown: dict[str, object] = msgspec.to_builtins(timing)
    return {name: shown[name] for name in ("round", "noticed_s", "stopped_s", "started_s")}
