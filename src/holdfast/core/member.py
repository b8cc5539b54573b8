"""Member: one life of one node, from its arrival to its exit code.

Level-triggered, like everything here: what a member does follows from what it is doing now (`State`), from `control` as
it saw it last, and from the seat that it found there. Nothing depends on having seen every change of `control`.

    PARKED      no workers. A proposal: look for the own seat; one found, and healthy: say yes, which makes it
    READY       the plan is committed: begin, which makes it
    RUNNING     a newer round, any proposal, or the outcome: the bell rings, the agent ends its workers, which makes it
    STOPPING    the agent is back, with no workers: PARKED
    DONE        the workers have succeeded; nothing but the outcome moves it: it cannot start them again
    UNHEALTHY   as PARKED, but it says no to everything until its health check passes
    LEFT        it has said good-bye

M2: workers begin only with a seat in the plan that is committed. Exit codes (M5): whoever has a seat in the committed
round leaves with the outcome's code, everybody else with 0.

Everybody watches the coordinator's beat; who finds it silent for a lease, or gone, stands for coordinator: the earlier,
the lower its group rank, so that seldom two stand at once. Compare-and-set decides.
"""

from __future__ import annotations

import zlib

import msgspec

from holdfast.core import liveness
from holdfast.core.membership import Beat, Control, Ending, Head, State, credit_s, lease_s

STAND_STEPS = 20
HEALTH_FRESH_S = 60.0
HEALTH_RETRY_S = 30.0


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """A group rank in the round of one plan."""

    head: Head
    group_rank: int

    @property
    def plan(self) -> str:
        return self.head.plan

    @property
    def round(self) -> int:
        return self.head.round


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """What a member knows.

    Attributes:
        beat: what it says of itself (`count` is the shell's).
        seat: its seat in the last round that was committed with one for it.
        looked: the plan whose seat it has looked for last; `offered` is what it found there.
        checks: whether there is a health check; `healthy_s`: when it passed last, on the own clock; None: it did not.
        checking: the check is running; `check_at_s`: not to be started before.
        standing: it tries to become coordinator.
        watch: of the coordinator `watched`; `deserted`: it has said that it leaves.
        leaving: what it leaves with, once it has said so.
    """

    member: str
    checks: bool = False
    beat: Beat = Beat(count=0)
    control: Control | None = None
    seat: Seat | None = None
    looked: str = ""
    offered: Seat | None = None
    healthy_s: float | None = None
    checking: bool = False
    check_at_s: float = 0.0
    standing: bool = False
    released: bool = False
    leaving: int | None = None
    watch: liveness.Watch = liveness.Watch()
    watched: str = ""
    deserted: bool = False


# Events


class Entered(msgspec.Struct, frozen=True):
    """The agent waits for a round; it has no workers. `failed`: it comes because they failed."""

    failed: bool = False


class Saw(msgspec.Struct, frozen=True):
    """`control` as it stands; None: nobody has begun this job yet."""

    control: Control | None


class SeatFound(msgspec.Struct, frozen=True):
    """What stands there for us in a plan; None: no seat."""

    plan: str
    seat: Seat | None


class Checked(msgspec.Struct, frozen=True):
    """The health check is over. `reason`: what is wrong."""

    ok: bool
    reason: str = ""


class Rang(msgspec.Struct, frozen=True):
    """The agent has heard the bell, and ends its workers."""


class Finished(msgspec.Struct, frozen=True):
    """The workers have succeeded."""


class Signalled(msgspec.Struct, frozen=True):
    """The agent was told to leave, or gives up. `failed`: because its workers failed."""

    reason: str
    failed: bool = False


class DrainReady(msgspec.Struct, frozen=True):
    """Whether all own workers say that now is a good time to be stopped."""

    ready: bool


class CoordinatorSeen(msgspec.Struct, frozen=True):
    """The coordinator's beat as just read; None: there is none."""

    member: str
    beat: Beat | None


class Stood(msgspec.Struct, frozen=True):
    """The attempt to become coordinator is over, well or not; `Saw` tells."""


Event = Entered | Saw | SeatFound | Checked | Rang | Finished | Signalled | DrainReady | CoordinatorSeen | Stood


# Effects, in the order in which they are to be carried out


class Say(msgspec.Struct, frozen=True):
    """Put the beat, now."""

    beat: Beat


class Find(msgspec.Struct, frozen=True):
    """Read head and own seat of this plan."""

    round: int
    plan: str


class Check(msgspec.Struct, frozen=True):
    """Start the health check."""


class Begin(msgspec.Struct, frozen=True):
    """Start workers with this seat."""

    seat: Seat
    control: Control


class Release(msgspec.Struct, frozen=True):
    """Let the agent out of its exit barrier: all have succeeded."""


class Leave(msgspec.Struct, frozen=True):
    """End the agent's process with this exit code."""

    code: int
    reason: str


class Stand(msgspec.Struct, frozen=True):
    """Try to become coordinator by one compare-and-set on `control`: not if another one has been seen since, for its
    coordinator may be well. None: begin the job."""

    control: Control | None
    reason: str


Effect = Say | Find | Check | Begin | Release | Leave | Stand


def step(state: Member, event: Event, now_s: float) -> tuple[Member, tuple[Effect, ...]]:
    """One transition. A beat that changed is said before anything that follows from it."""
    before = state.beat
    state = _take(state, event, now_s)
    state, effects = _settle(state, now_s)
    said: tuple[Effect, ...] = (Say(state.beat),) if state.beat != before else ()
    return state, said + effects


def rings(state: Member) -> bool:
    """Whether the agent has to end its workers and come back: asked for whenever they run."""
    control = state.control
    if state.beat.state is not State.RUNNING or control is None or state.seat is None:
        return False
    return bool(control.proposed) or control.plan != state.seat.plan or control.outcome is not None


def seated(state: Member) -> bool:
    """Whether it has a seat in the committed round."""
    return state.seat is not None and state.control is not None and state.seat.plan == state.control.plan


def _say(state: Member, doing: State, **changes: object) -> Member:
    return msgspec.structs.replace(state, beat=msgspec.structs.replace(state.beat, state=doing, **changes))


def _take(state: Member, event: Event, now_s: float) -> Member:
    """What the event tells us, before anything is decided."""
    match event:
        case Entered(failed):
            state = msgspec.structs.replace(state, looked="", offered=None)
            return _say(state, State.PARKED, failed=failed, plan="", drain_ready=False, reason="")
        case Saw(control):
            mine = state.offered is not None and control is not None and state.offered.plan == control.plan
            if _reign(control) != _reign(state.control):  # whoever coordinates again is watched anew
                state = msgspec.structs.replace(state, watch=liveness.Watch(), watched="")
            return msgspec.structs.replace(state, control=control, seat=state.offered if mine else state.seat)
        case SeatFound(plan, seat):
            return msgspec.structs.replace(state, looked=plan, offered=seat)
        case Checked(ok, reason):
            again_s = state.check_at_s if ok else now_s + HEALTH_RETRY_S
            state = msgspec.structs.replace(state, checking=False, healthy_s=now_s if ok else None, check_at_s=again_s)
            if state.beat.state is State.UNHEALTHY and ok:
                return _say(state, State.PARKED, reason="")
            if state.beat.state in (State.PARKED, State.READY) and not ok:
                return _say(state, State.UNHEALTHY, plan="", reason=reason)
            return state
        case Rang():
            return _say(state, State.STOPPING)
        case Finished():
            return _say(state, State.DONE, done=True)
        case Signalled() if state.beat.state is State.LEFT:
            return state
        case Signalled(reason, failed):
            failed = state.beat.failed or (failed and not state.beat.done)
            return _say(state, State.LEFT, failed=failed, reason=reason)
        case DrainReady(ready):
            return _say(state, state.beat.state, drain_ready=ready)
        case CoordinatorSeen(member, beat):
            return _watch(state, member, beat, now_s)
        case Stood():
            return msgspec.structs.replace(state, standing=False)
    raise AssertionError(event)


def _settle(state: Member, now_s: float) -> tuple[Member, tuple[Effect, ...]]:
    """What follows from where it stands."""
    control, doing = state.control, state.beat.state
    if doing is State.LEFT or state.leaving is not None:
        return state, ()
    if control is None:
        return _stand(state, "nobody has begun this job yet")
    if control.outcome is not None:
        return _end(state, control)
    if doing in (State.PARKED, State.READY, State.UNHEALTHY):
        if state.member in control.draining and not seated(state):
            return _leave(state, 0, "drained")
        state, effects = _park(state, control, now_s)
        if effects:
            return state, effects
    if _alone(state, control, now_s):
        return _stand(state, _why_alone(state, control))
    return state, ()


def _park(state: Member, control: Control, now_s: float) -> tuple[Member, tuple[Effect, ...]]:
    """Without workers: towards a seat."""
    ready = state.beat.state is State.READY and state.beat.plan == control.plan
    seat = state.seat
    if ready and seat is not None and seated(state) and not control.proposed:
        state = _say(state, State.RUNNING, round=control.round, failed=False, done=False)
        return state, (Begin(seat, control),)
    if not state.checking and not _healthy(state, now_s) and now_s >= state.check_at_s:
        return msgspec.structs.replace(state, checking=True), (Check(),)
    if not control.proposed:
        return state, ()
    if state.looked != control.proposed:
        return state, (Find(control.round + 1, control.proposed),)
    said_yes = state.beat.state is State.READY and state.beat.plan == control.proposed
    if state.offered is not None and not said_yes and not state.checking and _healthy(state, now_s):
        state = _say(state, State.READY, plan=control.proposed, reason="")
    return state, ()


def _healthy(state: Member, now_s: float) -> bool:
    """A check that passed a while ago is repeated only where it counts: when there is a seat to say yes to."""
    if not state.checks:
        return True
    if state.healthy_s is None:
        return False
    idle = state.offered is None or state.beat.plan == state.offered.plan
    return idle or now_s - state.healthy_s <= HEALTH_FRESH_S


def _end(state: Member, control: Control) -> tuple[Member, tuple[Effect, ...]]:
    """The outcome stands: out, each with its code."""
    outcome = control.outcome
    assert outcome is not None
    if state.beat.state in (State.RUNNING, State.STOPPING):  # the bell rings; the workers are ended first
        return state, ()
    if state.beat.state is State.DONE and outcome.ending is Ending.SUCCEEDED:
        if state.released:
            return state, ()
        return msgspec.structs.replace(state, released=True), (Release(),)
    return _leave(state, outcome.code if seated(state) else 0, f"{outcome.ending.value}: {outcome.reason}")


def _leave(state: Member, code: int, reason: str) -> tuple[Member, tuple[Effect, ...]]:
    state = msgspec.structs.replace(_say(state, State.LEFT, reason=reason), leaving=code)
    return state, (Leave(code, reason),)


def _stand(state: Member, reason: str) -> tuple[Member, tuple[Effect, ...]]:
    if state.standing:
        return state, ()
    return msgspec.structs.replace(state, standing=True), (Stand(state.control, reason),)


def _watch(state: Member, member: str, beat: Beat | None, now_s: float) -> Member:
    """The coordinator's beat, counted on the own clock across own timely looks."""
    if state.control is None or member != state.control.coordinator:
        return state
    watch = state.watch if state.watched == member else liveness.Watch()
    lease = lease_s(state.control.policy)
    deserted = beat is not None and beat.state is State.LEFT
    token = None if beat is None or deserted else beat.count  # the host of a store has left, and beats on
    watch = liveness.look(watch, {member: token}, now_s, gap_s=lease / 2.0, full_lease=True, credit_s=credit_s(lease))
    return msgspec.structs.replace(state, watch=watch, watched=member, deserted=deserted)


def _reign(control: Control | None) -> tuple[str, int] | None:
    return None if control is None else (control.coordinator, control.term)


def _alone(state: Member, control: Control, now_s: float) -> bool:
    """Whether the coordinator is lost and it is our turn."""
    if control.coordinator == state.member or state.watched != control.coordinator:
        return False
    seen = state.watch.watched.get(control.coordinator)
    if seen is None:
        return False
    lease = lease_s(control.policy)
    return seen.silent_s >= (0.0 if state.deserted else lease) + stagger_s(state, control, lease)


def stagger_s(state: Member, control: Control, lease: float) -> float:
    """How much later than others this member stands (seconds), at most half a lease."""
    rank = state.seat.group_rank if seated(state) and state.seat is not None else None
    place = rank if rank is not None else 4 + zlib.crc32(state.member.encode()) % (STAND_STEPS - 4)
    return lease / 2.0 * min(place, STAND_STEPS) / STAND_STEPS


def _why_alone(state: Member, control: Control) -> str:
    seen = state.watch.watched[control.coordinator]
    return f"coordinator {control.coordinator} last heard {seen.silent_s:.1f} s ago"
