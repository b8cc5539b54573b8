"""A simulated node: its process, its agent's thread, and its main thread; the production cores decide.

The agent's thread makes one call to the store after the other, as the production one does, and is a generator: it
yields calls, and is sent their answers or thrown `Unavailable`. A frozen process answers nothing until it wakes, and
then goes on where it was. Looks that could find nothing new are not simulated; what they would have counted is put into
the machines' watches when it matters (`catch_up`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from holdfast.core import coordinator, liveness, member
from holdfast.core.coordinator import Coordinator, Forget, Known, Looked, Prepare, Reply, Stands, Swap
from holdfast.core.member import (
    Begin,
    Check,
    Checked,
    CoordinatorSeen,
    DrainReady,
    Entered,
    Find,
    Finished,
    Leave,
    Member,
    Rang,
    Release,
    Saw,
    Say,
    Seat,
    SeatFound,
    Signalled,
    Stand,
    Stood,
)
from holdfast.core.membership import Head, Node, Rank, Roster, State, beat_s, lease_s, round_key, seat_key
from tests.sim.store import Cell, Entry, Unavailable

if TYPE_CHECKING:
    from tests.sim.world import World

POLL_S = 0.1
COORDINATE_S = 0.1
AGAIN_S = 0.2
TIMELY = 0.25
LEAVE_S = 2.0


class Call(NamedTuple):
    """`act` happens at the store, at one instant. `swap`: it may land late. `what`: for the traps."""

    act: Callable[[float], Any]
    what: str = "get"


Task = Generator[Call, Any, None]


class Clock:
    """A node's monotonic clock: its own origin and rate, and it may stand still for a while."""

    def __init__(self, origin_s: float) -> None:
        self.at_s, self.shows_s, self.rate = 0.0, origin_s, 1.0

    def __call__(self, now_s: float) -> float:
        return self.shows_s + max(0.0, now_s - self.at_s) * self.rate

    def set(self, now_s: float, *, rate: float, stall_s: float) -> None:
        shows_s = self(now_s)
        self.at_s, self.shows_s, self.rate = now_s + stall_s, shows_s, rate


class Coordinating:
    """What `rendezvous.coordinating` does, as a generator of calls."""

    def __init__(self, node: SimNode, cell: Cell, plans: dict[str, Roster]) -> None:
        self.node = node
        self.revision = cell.revision
        self.unsure = False
        self.state = Coordinator(member=node.name, control=cell.control, plans=plans)
        self.due_s = 0.0
        self.slept_s: float | None = None  # since when no looks were simulated
        self.touched = False
        self.looked_s = 0.0  # by the clock of the world, as all times here
        self.deaf_s = 0.0  # for how long it could not speak to the store until then

    @property
    def look_s(self) -> float:
        return max(COORDINATE_S, lease_s(self.state.control.policy) / 10.0)

    def saw(self, cell: Cell) -> Task:
        if cell.revision > self.revision:
            yield from self._stands(cell)

    def look(self) -> Task:
        world, node = self.node.world, self.node
        if self.unsure:
            cell = yield Call(lambda _: world.store.cell)
            yield from self._stands(cell)
        self._catch_up(world.now_s)
        began_s, began_local_s = world.now_s, node.clock(world.now_s)
        self.looked_s, self.deaf_s = began_s, node.deaf_in_all_s(began_s)
        known = yield Call(self._know)
        timely = node.clock(world.now_s) - began_local_s <= TIMELY * lease_s(self.state.control.policy)
        self.state, effects = coordinator.step(self.state, Looked(known, world.fresh(), timely), began_local_s)
        self.unsure = self.state.writing
        for effect in effects:
            yield from self._carry_out(effect)
        self.due_s = world.now_s + self.look_s
        if not effects and timely and not self.touched:
            self._sleep(began_s)

    def _know(self, now_s: float) -> Known:
        store = self.node.world.store
        self.touched = False
        return Known(
            nodes=store.nodes,
            beats=store.beats(now_s),
            requests=dict(store.requests),
            answered=frozenset(store.answers) if store.requests else frozenset(),
        )

    def _carry_out(self, effect: coordinator.Effect) -> Task:
        store, node = self.node.world.store, self.node
        match effect:
            case Prepare(values):
                yield Call(lambda now_s: store.put(values, now_s), "prepare")
            case Swap(control):
                revision = self.revision
                cell = yield Call(lambda _: store.swap(revision, control, node.name), "swap")
                yield from self._stands(cell)
            case Reply(request, answer):
                yield Call(lambda _: store.answers.update({request: answer}))
            case Forget(keys):
                yield Call(lambda _: [store.plain.pop(key, None) for key in keys])

    def _stands(self, cell: Cell) -> Task:
        self.revision = cell.revision
        self.state, effects = coordinator.step(self.state, Stands(cell.control), self.node.clock(self.node.world.now_s))
        self.unsure = self.state.writing
        for effect in effects:
            yield from self._carry_out(effect)

    # Looks that find nothing

    def _sleep(self, looked_s: float) -> None:
        """Until something changes (`touch`), or a time is over that the machine waits for."""
        world, state = self.node.world, self.state
        if not world.skip or not self.node.quiet():
            return
        policy, local_s = state.control.policy, self.node.clock(looked_s)
        lease = lease_s(policy)
        due = [state.committed_s + policy.stop_s, state.proposed_s + policy.last_call_s]
        due += [state.proposed_s + policy.stop_s]
        due += [state.more_s + policy.last_call_s] if state.more_s is not None else []
        if state.short_s is not None or state.control.round == 0:
            due += [local_s + 0.5]
        requests = world.store.requests
        due += [since_s + requests[name].timeout_s for name, since_s in state.drains.items() if name in requests]
        for name, seen in state.watch.watched.items():
            entry = world.store.entries[name]
            if seen.silent_s < lease and not entry.beating:
                due.append(local_s + lease - seen.silent_s)
        wait_s = min([(at_s - local_s) / self.node.clock.rate for at_s in due if at_s > local_s], default=1e9)
        looks = math.floor(wait_s / self.look_s) - 1
        if looks >= 1:
            self.slept_s, self.due_s = looked_s, self.due_s + looks * self.look_s

    def touch(self, now_s: float) -> None:
        """Something changed: look when the next look would have been."""
        self.touched = True
        if self.slept_s is not None:
            pace = self.look_s
            self.due_s = min(self.due_s, self.slept_s + math.ceil((now_s - self.slept_s) / pace) * pace)

    def _catch_up(self, now_s: float) -> None:
        """The watch as it would be after all the looks that were not simulated."""
        if self.slept_s is None:
            return
        slept_s, self.slept_s = self.slept_s, None
        looks = math.ceil((now_s - slept_s) / self.look_s - 1e-6) - 1
        if looks >= 1:
            at_s = slept_s + looks * self.look_s
            watch = catch_up(self.node, self.state.watch, slept_s, at_s, self.look_s)
            self.state = msgspec.structs.replace(self.state, watch=watch, looked_s=self.node.clock(at_s))

    def interrupt(self, now_s: float) -> None:
        """From now on looks fail: those before have been made."""
        if self.slept_s is not None:
            self._catch_up(now_s)
            self.due_s = now_s
            self.node.wake(self.look_s)


def catch_up(node: SimNode, watch: liveness.Watch, slept_s: float, at_s: float, pace_s: float) -> liveness.Watch:
    """`watch` after looks at every `pace_s` from `slept_s` on, the last of them at `at_s`; each a good one."""
    watched: dict[str, liveness.Watched] = {}
    scale = node.clock.rate
    entries = node.world.store.entries
    for name, seen in watch.watched.items():
        entry = entries[name]
        changed_s = entry.changed_s(at_s)
        token = _token(entry, at_s, seen.token)
        if changed_s <= slept_s or token == seen.token:
            watched[name] = liveness.Watched(token, seen.silent_s + (at_s - slept_s) * scale, seen.beaten)
        else:
            first_s = min(at_s, slept_s + math.ceil((changed_s - slept_s) / pace_s) * pace_s)
            watched[name] = liveness.Watched(token, (at_s - first_s) * scale, beaten=True)
    return liveness.Watch(node.clock(at_s), watched)


def _token(entry: Entry, at_s: float, like: object) -> object:
    """A beat's token in the form in which the machine keeps it: the coordinator's, or a member's."""
    count = entry.count_at(at_s)
    return (count, entry.said.state) if isinstance(like, tuple) else count


class SimNode:
    """One life of one node."""

    def __init__(self, world: World, record: Node, traits: Traits, seed: int) -> None:
        self.world = world
        self.record = record
        self.name = record.member
        self.traits = traits
        self.rng = random.Random(seed)
        self.phase = self.rng.random()
        self.clock = Clock(self.rng.uniform(0.0, 1e5))
        self.state = Member(member=self.name, checks=traits.checks)
        self.co: Coordinating | None = None
        self.cell: Cell | None = None
        # the process
        self.alive = True
        self.frozen = False
        self.partitioned = False
        self.blocked = False
        self.unwell_s: float | None = None  # since when it does not beat, through no fault of the store
        self.last_unwell_s = -math.inf
        self.deaf_since_s: float | None = None
        self.deaf_s = 0.0  # for how long, in all, it could not speak to the store
        self.begun: set[str] = set()
        self.held_back: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        # the agent's thread
        self.task: Task | None = None
        self.inbox: list[member.Event] = []
        self.joined = False
        self.dirty = False
        self.looks = True
        self.find: Find | None = None
        self.stand: Stand | None = None
        self.watching = False
        self.watch_due_s = 0.0
        self.watch_slept_s: float | None = None
        self.turn_s = math.inf
        # the main thread
        self.doing = "waiting"
        self.seat: Seat | None = None
        self.hearing = False
        self.exit: int | None = None
        self.life = 0
        self.drain_asked = False

    # The process

    def start(self) -> None:
        self.enter(failed=False)
        self.world.touch()

    def at(self, delay_s: float, act: Callable[..., None], *what: Any) -> None:
        """`act` after `delay_s`, by this process: not if it is dead, and later if it is frozen."""
        self.world.at(self.world.now_s + delay_s, self._now, act, what)

    def _now(self, act: Callable[..., None], what: tuple[Any, ...]) -> None:
        if not self.alive:
            return
        if self.frozen:
            self.held_back.append((act, what))
        else:
            act(*what)

    def deaf_in_all_s(self, now_s: float) -> float:
        return self.deaf_s + (now_s - self.deaf_since_s if self.deaf_since_s is not None else 0.0)

    def well(self) -> bool:
        return self.alive and self.joined and not (self.frozen or self.partitioned or self.blocked)

    def reaches(self) -> bool:
        return not self.partitioned and not self.world.store.away

    def quiet(self) -> bool:
        return self.well() and self.reaches() and not self.world.trouble(self)

    def update(self) -> None:
        """Tell the store whether this node beats from now on."""
        now_s = self.world.now_s
        if self.well():
            if self.unwell_s is not None:
                self.last_unwell_s = now_s
            self.unwell_s = None
        elif self.unwell_s is None:
            self.unwell_s = now_s
        if not (self.well() and self.reaches()):
            self.deaf_since_s = now_s if self.deaf_since_s is None else self.deaf_since_s
        elif self.deaf_since_s is not None:
            self.deaf_s, self.deaf_since_s = self.deaf_s + now_s - self.deaf_since_s, None
        if not self.quiet():
            if self.co is not None:
                self.co.interrupt(now_s)
            self._watch_catch_up()
        entry = self.world.store.entries.get(self.name)
        if entry is None:
            return
        beating = self.well() and self.reaches() and self.exit is None
        if beating != entry.beating:
            entry.set_beating(beating, now_s)
            self.world.beating_changed(self)
        if beating and not self.watching and not self.world.skip:
            self.watch()

    def kill(self) -> None:
        self.alive = False
        self.update()
        self.world.trains_not(self)

    def freeze(self) -> None:
        self.frozen = True
        self.update()
        self.world.paused(self)

    def thaw(self) -> None:
        self.frozen = False
        self.looks = True
        self.update()
        held, self.held_back = self.held_back, []
        for act, what in held:
            self._now(act, what)
        self.world.paused(self)
        self.wake(0.001)

    # The agent's thread

    def wake(self, delay_s: float) -> None:
        """Take a turn after `delay_s`, if none is taken before."""
        due_s = self.world.now_s + delay_s
        if due_s < self.turn_s - 1e-9:
            self.turn_s = due_s
            self.world.at(due_s, self._now, self._turn_due, (due_s,))

    def _turn_due(self, due_s: float) -> None:
        if due_s == self.turn_s:
            self.turn_s = math.inf
            if self.task is None:
                self.task = self._turn()
                self._advance(None, None)

    def _advance(self, value: Any, error: Unavailable | None) -> None:
        assert self.task is not None
        try:
            call = self.task.throw(error) if error is not None else self.task.send(value)
        except StopIteration:
            self.task = None
            self._rest()
        except Unavailable:
            self.task = None
            self._handle_inbox()
            self.wake(AGAIN_S)
        else:
            self.world.call(self, call)

    def answer(self, value: Any, error: Unavailable | None) -> None:
        """A call is over."""
        if self.blocked:
            self.blocked = False
            self.update()
        if self.task is not None:
            self._advance(value, error)

    def _rest(self) -> None:
        """Until something is due."""
        self._handle_inbox()
        if self.task is not None:
            return
        now_s = self.world.now_s
        if self.dirty or self.looks or self.find is not None or self.stand is not None:
            self.wake(0.002)
            return
        due_s = self.watch_due_s if self.watching else math.inf
        if self.co is not None and not self.co.state.dismissed and self.world.outcome is None:
            due_s = min(due_s, self.co.due_s)
        if due_s < math.inf:
            self.wake(max(0.001, due_s - now_s))

    def post(self, event: member.Event) -> None:
        """What the main thread says, or this machine's side."""
        self.inbox.append(event)
        if self.task is None:
            self._handle_inbox()
            self._rest()

    def _handle_inbox(self) -> None:
        while self.inbox:
            self.step(self.inbox.pop(0))

    def _turn(self) -> Task:
        world, store = self.world, self.world.store
        if not self.joined:
            yield Call(lambda _: store.nodes.__setitem__(self.name, self.record), "join")
            yield Call(self._put_beat(), "beat")
            self.joined = True
            self.update()
        if self.dirty:
            beat = self.state.beat
            yield Call(self._put_beat(), "beat")
            self.dirty = self.state.beat is not beat
        if self.state.beat.state is State.LEFT:
            return
        if self.looks:
            yield from self._look()
        if self.find is not None:
            yield from self._look_for_seat(self.find)
        if self.stand is not None:
            yield from self._try_to_stand(self.stand)
        control = self.state.control
        if control is None or control.coordinator != self.name or self.cell is None:
            self.co = None
        else:
            yield from self._coordinate(self.cell)
        if self.co is None and self.watching and world.now_s >= self.watch_due_s:
            yield from self._look_at_coordinator()

    def _put_beat(self) -> Callable[[float], None]:
        said, store = self.state.beat, self.world.store

        def put(now_s: float) -> None:
            entry = store.entries.get(self.name)
            if entry is None:
                policy = self.state.control.policy if self.state.control is not None else self.world.policy
                entry = store.entries[self.name] = Entry(said, now_s, beat_s(lease_s(policy)) * self.traits.slow)
                self.world.beating_changed(self)
            else:
                entry.say(said, now_s)
            self.world.checks.said(self, said)
            self.world.touch()
            if said is not self.state.beat:  # it landed late: the next beat tells better
                self.at(entry.every_s, self._beat_again)

        return put

    def _beat_again(self) -> None:
        self.dirty = True
        self.wake(0.0)

    def _look(self) -> Task:
        revision = self.cell.revision if self.cell is not None else 0
        cell = yield Call(lambda _: self.world.store.cell)
        self.looks = False
        if cell is None:
            self.step(Saw(None))
        elif cell.revision != revision:
            yield from self._saw(cell)
        elif self.rng.random() < 0.02:
            self.step(Saw(cell.control))  # nothing is to depend on being told once only

    def _saw(self, cell: Cell) -> Task:
        self.cell = cell
        if self.co is not None:
            yield from self.co.saw(cell)
        self.step(Saw(cell.control))
        self.watch_if_needed()
        if cell.control.draining and not self.drain_asked:
            self.drain_asked = True
            if self.doing == "working" and self.rng.random() < 0.8:
                self.at(self.rng.uniform(0.0, 4.0), self._drain_ready)

    def _drain_ready(self) -> None:
        if self.doing == "working" and self.state.beat.state is State.RUNNING:
            self.post(DrainReady(True))

    def _look_for_seat(self, find: Find) -> Task:
        plain = self.world.store.plain
        head_key, own_key = round_key(find.round, find.plan, "head"), seat_key(find.round, find.plan, self.name)
        head, rank = yield Call(lambda _: (plain.get(head_key), plain.get(own_key)))
        if self.find is find:
            self.find = None
        seat = None
        if isinstance(head, Head) and isinstance(rank, Rank):
            seat = Seat(head=head, group_rank=rank.group_rank)
        self.world.checks.read_plan(self, find.plan, found=head is not None)
        self.step(SeatFound(find.plan, seat))
        if self.rng.random() < 0.02:
            self.step(SeatFound(find.plan, seat))

    def _try_to_stand(self, stand: Stand) -> Task:
        world = self.world
        if stand.control is None:
            cell = yield Call(lambda _: world.store.swap(0, world.founding(self), self.name), "swap")
        else:
            assert self.cell is not None
            revision, control = self.cell.revision, self.cell.control
            if control.nonce == stand.control.nonce:  # else it is not this coordinator that was silent
                ours = msgspec.structs.replace(
                    control, term=control.term + 1, coordinator=self.name, nonce=world.fresh(), reason=stand.reason
                )
                world.checks.stands(self, control)
                cell = yield Call(lambda _: world.store.swap(revision, ours, self.name), "swap")
            else:
                cell = self.cell
        yield from self._saw(cell)
        self.stand = None
        self.step(Stood())

    def _coordinate(self, cell: Cell) -> Task:
        if self.co is None or self.co.state.dismissed:
            control, plain = cell.control, self.world.store.plain
            named = {control.plan: control.round, control.proposed: control.round + 1}
            keys = {plan: round_key(number, plan, "roster") for plan, number in named.items() if plan}
            found = yield Call(lambda _: {plan: plain[key] for plan, key in keys.items() if key in plain})
            self.co = Coordinating(self, cell, found)
        if (
            self.world.now_s >= self.co.due_s - 1e-9
            and not self.co.state.dismissed
            and self.co.state.control.outcome is None
        ):
            self.co.due_s = self.world.now_s + self.co.look_s
            yield from self.co.look()
            self.looks = self.co is not None and self.cell is not None and self.co.revision != self.cell.revision

    # Watching the coordinator

    def watch_if_needed(self) -> None:
        control = self.state.control
        if control is None or control.outcome is not None or control.coordinator == self.name:
            self.watching = False
            return
        entry = self.world.store.entries.get(control.coordinator)
        gone = entry is None or not entry.beating or entry.said.state is State.LEFT
        if gone or not self.world.skip or not self.quiet():
            self.watch()

    def watch(self) -> None:
        control = self.state.control
        if self.watching or control is None or control.coordinator == self.name:
            return
        self._watch_catch_up()
        self.watching = True
        pace = beat_s(lease_s(control.policy))
        self.watch_due_s = self.world.now_s + pace * self.phase
        if self.task is None:
            self._rest()

    def _watch_catch_up(self) -> None:
        control, since_s = self.state.control, self.watch_slept_s
        self.watch_slept_s = None
        if control is None or since_s is None or self.state.watched != control.coordinator:
            return
        pace = beat_s(lease_s(control.policy))
        looks = math.floor((self.world.now_s - since_s) / pace)
        if looks >= 1 and all(name in self.world.store.entries for name in self.state.watch.watched):
            watch = catch_up(self, self.state.watch, since_s, since_s + looks * pace, pace)
            self.state = msgspec.structs.replace(self.state, watch=watch)

    def _look_at_coordinator(self) -> Task:
        control, store = self.state.control, self.world.store
        if control is None:
            return
        name = control.coordinator
        pace = beat_s(lease_s(control.policy))
        self.watch_due_s = self.world.now_s + pace
        beat = yield Call(lambda now_s: store.entries[name].at(now_s) if name in store.entries else None)
        self.step(CoordinatorSeen(name, beat))
        entry = store.entries.get(name)
        well = entry is not None and entry.beating and entry.said.state is not State.LEFT
        if self.state.control is not None and self.state.control.outcome is not None:
            self.watching = False
        elif well and self.world.skip and self.quiet() and self.stand is None:
            self.watching = False
            self.watch_slept_s = self.world.now_s

    # The machine

    def step(self, event: member.Event) -> None:
        self.state, effects = member.step(self.state, event, self.clock(self.world.now_s))
        for effect in effects:
            self._carry_out(effect)
        if self.doing == "working" and not self.hearing and member.rings(self.state):
            self.hearing = True
            self.at(self.rng.uniform(0.0, POLL_S), self._hear, self.life)
        if self.task is None:
            self._rest()

    def _carry_out(self, effect: member.Effect) -> None:
        self.world.note(self.name, type(effect).__name__)
        match effect:
            case Say(beat):
                self.dirty = True
                if beat.state is State.LEFT:
                    self.at(LEAVE_S, self._gone)
            case Find():
                self.find = effect
            case Stand():
                self.stand = effect
            case Check():
                self.at(self.rng.uniform(0.05, 1.0), self._checked)
            case Begin(seat, control):
                self.world.checks.begins(self, seat, control)
                self.at(self.rng.uniform(0.001, 0.02), self._begin, seat)
            case Release():
                self.world.checks.released(self)
                self._exit(0, "released")
            case Leave(code, reason):
                self._exit(code, reason)

    def _checked(self) -> None:
        sick = self.world.sick(self)
        self.post(Checked(not sick, "its health check failed" if sick else ""))

    # The main thread

    def enter(self, *, failed: bool) -> None:
        self.doing, self.seat = "waiting", None
        self.post(Entered(failed))
        self.wake(0.001)

    def _begin(self, seat: Seat) -> None:
        if self.doing != "waiting" or self.exit is not None:
            return
        self.doing, self.seat, self.hearing = "working", seat, False
        self.life += 1
        self.drain_asked = False
        self.world.trains(self, seat)
        if member.rings(self.state):
            self.hearing = True
            self.at(self.rng.uniform(0.0, POLL_S), self._hear, self.life)

    def _hear(self, life: int) -> None:
        if self.life != life or self.doing != "working" or self.exit is not None:
            return
        if not member.rings(self.state):
            self.hearing = False
            return
        self.doing = "stopping"
        self.post(Rang())
        self.world.trains_not(self)
        self.at(self.stop_s(), self._stopped, life, False)

    def stop_s(self) -> float:
        hung = self.rng.random() < self.traits.hangs
        return self.rng.uniform(8.0, 30.0) if hung else self.rng.uniform(0.05, 1.5)

    def _stopped(self, life: int, failed: bool) -> None:
        if self.life == life and self.doing == "stopping" and self.exit is None:
            self.enter(failed=failed)

    def workers_fail(self, life: int) -> None:
        """They end with an error, by themselves."""
        if self.life != life or self.doing != "working" or self.exit is not None:
            return
        self.world.note(self.name, "fail")
        self.world.trains_not(self)
        if self.traits.no_restarts:
            self.checks_signal("its workers failed", failed=True, code=1)
            return
        self.doing = "stopping"
        self.at(self.rng.uniform(0.05, 1.0), self._stopped, life, True)

    def workers_succeed(self, life: int) -> None:
        if self.life == life and self.doing == "working" and self.exit is None:
            self.doing = "barrier"
            self.world.note(self.name, "done")
            self.post(Finished())

    def checks_signal(self, reason: str, *, failed: bool = False, code: int = 143) -> None:
        """Told to leave, from outside or by torchrun itself. Its code is torchrun's, but for a node without a seat."""
        if self.exit is not None:
            return
        seated = member.seated(self.state)
        self.post(Signalled(reason, failed))
        if self.exit is None:
            self._exit(code if seated else 0, reason, signalled=True)

    def _exit(self, code: int, reason: str, *, signalled: bool = False) -> None:
        self.exit = code
        self.doing = "gone"
        self.world.note(self.name, f"exit {code}")
        self.world.checks.exits(self, code, signalled=signalled)
        self.world.trains_not(self)
        if self.state.beat.state is not State.LEFT:
            self.at(0.05, self._gone)  # released: the process ends

    def _gone(self) -> None:
        self.alive = False
        self.update()


class Traits(NamedTuple):
    """How a node behaves. `slow`: times as long between beats; `hangs`: how often its workers don't stop at once."""

    checks: bool = False
    slow: float = 1.0
    hangs: float = 0.0
    no_restarts: bool = False
