"""Coordinator: who has a seat, and how the job ends.

Whoever `control` names decides; its successor reads the same records and goes on. One look at the records, one
decision, at most one new `control`, by compare-and-set (M4):

    every seat runs, or is done           nothing
    a seat is lost (silent for a lease,   place, and *propose* a new round
      or it said so), its workers failed,
      it is drained, more nodes can train
    a proposal, and every seat said yes   *commit* it
    a seat of it is silent or unhealthy   place and propose again
    a seat of it is not back in time      the last call over: place and propose again, if a spare can take its place
    it cannot be placed                   wait for nodes; too long: outcome *failed*
    every seat is done                    outcome *succeeded*
    some are done, one failed or is lost  outcome *failed*
    budget used up; told to stop          outcome *failed*; *stopped*

The order that matters: head, seats and roster of a plan stand before the `control` that names it. A plan's name is
never used twice, so what a coordinator wrote that `control` does not name is never read.

A node that beats may come back: it is proposed again and given the last call, or, without a spare, `stop_s`. Late
joiners do not restart a proposal. Silence counts across own timely looks only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from holdfast.core import liveness, rosters, seats
from holdfast.core.membership import (
    Answer,
    Beat,
    Control,
    Ending,
    Node,
    Outcome,
    Request,
    Roster,
    State,
    Wish,
    credit_s,
    lease_s,
)
from holdfast.core.placement import Placed, Short

SAY_EVERY_S = 2.0
NO_ROSTER = Roster()


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What one look at the store found. `answered`: the requests that have their answer."""

    nodes: Mapping[str, Node] = {}
    beats: Mapping[str, Beat] = {}
    requests: Mapping[str, Request] = {}
    answered: frozenset[str] = frozenset()


class Coordinator(msgspec.Struct, frozen=True, kw_only=True):
    """What a coordinator knows.

    Attributes:
        control: as it stands.
        plans: the rosters of the plans that `control` may name.
        writing: a `control` is being written; nothing is decided until it is known what stands.
        looked_s: when it looked last. Times that are waited for count, as silence does, across own looks only.
        proposed_s, ready_s, committed_s: when, on the own clock. `told`: that time was written down.
        late: members that did not come back in time for this proposal.
        more_s: since when more nodes could train than do; `short_s`: since when there are too few.
        drains: request -> since when.
        said_s: when `control` last changed only to say why we wait.
        dismissed: somebody else is coordinator.
    """

    member: str
    control: Control
    plans: dict[str, Roster] = {}
    writing: bool = False
    watch: liveness.Watch = liveness.Watch()
    looked_s: float | None = None
    proposed_s: float = 0.0
    ready_s: float = 0.0
    committed_s: float = 0.0
    told: bool = True
    late: frozenset[str] = frozenset()
    more_s: float | None = None
    short_s: float | None = None
    drains: dict[str, float] = {}
    said_s: float = -SAY_EVERY_S
    dismissed: bool = False

    @property
    def roster(self) -> Roster:
        return self.plans.get(self.control.plan, NO_ROSTER)

    @property
    def proposal(self) -> Roster | None:
        return self.plans.get(self.control.proposed)


class Looked(msgspec.Struct, frozen=True):
    """A look at the records.

    Attributes:
        fresh: a name that was never used before, for what may be written now.
        timely: it took so little time that what it found is of now.
    """

    known: Known
    fresh: str
    timely: bool = True


class Stands(msgspec.Struct, frozen=True):
    """What stands in `control`, after a Swap or because it was seen to have changed."""

    control: Control


Event = Looked | Stands


class Prepare(msgspec.Struct, frozen=True):
    """Put these plain keys; durable before the Swap that follows."""

    values: Mapping[str, msgspec.Struct]


class Swap(msgspec.Struct, frozen=True):
    """Compare-and-set `control`, and tell by Stands what stands there then."""

    control: Control


class Reply(msgspec.Struct, frozen=True):
    """Put the answer to a request."""

    request: str
    answer: Answer


class Forget(msgspec.Struct, frozen=True):
    """Delete these plain keys: nobody can still be reading them."""

    keys: tuple[str, ...]


Effect = Prepare | Swap | Reply | Forget
Step = tuple[Coordinator, tuple[Effect, ...]]


def step(state: Coordinator, event: Event, now_s: float) -> Step:
    """One transition."""
    match event:
        case Stands(control):
            return _stands(state, control, now_s)
        case Looked(known, fresh, timely):
            if state.dismissed or state.writing or state.control.outcome is not None:
                return state, ()
            state = _resume(state, now_s)
            state = _watch(state, known, now_s, timely=timely)
            state, replies = _requests(state, known, now_s)
            state, effects = _Look(state, known, fresh, now_s).decide()
            return state, (*replies, *effects)
    raise AssertionError(event)


def _stands(state: Coordinator, control: Control, now_s: float) -> Step:
    """What stands is what counts, also if it is a write of ours that was thought lost."""
    before = state.control
    dismissed = (control.coordinator, control.term) != (state.member, before.term)
    state = msgspec.structs.replace(state, control=control, writing=False, dismissed=dismissed)
    if dismissed or control.plan == before.plan:
        return state, ()
    named = (control.plan, before.plan, control.proposed)
    old = [rosters.keys(roster) for plan, roster in state.plans.items() if plan not in named]
    state = msgspec.structs.replace(
        state,
        plans={plan: roster for plan, roster in state.plans.items() if plan in named},
        committed_s=now_s,
        told=False,
        late=frozenset(),
        short_s=None,
        more_s=None,
    )
    return state, ((Forget(tuple(key for keys in old for key in keys)),) if old else ())


def _resume(state: Coordinator, now_s: float) -> Coordinator:
    """Whoever begins, or could not look for a while, gives everybody the time that passed without it."""
    looked_s = state.looked_s
    state = msgspec.structs.replace(state, looked_s=now_s)
    if looked_s is None:
        return msgspec.structs.replace(state, proposed_s=now_s, ready_s=now_s, committed_s=now_s)
    away_s = now_s - looked_s
    if away_s <= lease_s(state.control.policy) / 2.0:
        return state
    return msgspec.structs.replace(
        state,
        proposed_s=state.proposed_s + away_s,
        ready_s=state.ready_s + away_s,
        committed_s=state.committed_s + away_s,
        more_s=None if state.more_s is None else state.more_s + away_s,
        short_s=None if state.short_s is None else state.short_s + away_s,
        drains={name: since_s + away_s for name, since_s in state.drains.items()},
    )


def _watch(state: Coordinator, known: Known, now_s: float, *, timely: bool) -> Coordinator:
    tokens = {member: beat.count for member, beat in known.beats.items() if beat.state is not State.LEFT}
    watch = state.watch if timely else liveness.Watch()
    lease = lease_s(state.control.policy)
    watch = liveness.look(watch, tokens, now_s, gap_s=lease / 2.0, full_lease=True, credit_s=credit_s(lease))
    return msgspec.structs.replace(state, watch=watch)


def _requests(state: Coordinator, known: Known, now_s: float) -> Step:
    """Drains that are under way, and the answers to those that are over."""
    replies: list[Effect] = []
    drains: dict[str, float] = {}
    for name, request in known.requests.items():
        if request.wish is not Wish.DRAIN or name in known.answered:
            continue
        member, beat = request.member, known.beats.get(request.member)
        if beat is None or member not in known.nodes:
            replies.append(Reply(name, Answer(done=False, reason=f"{member} is not in this job")))
        elif beat.state is State.LEFT:
            replies.append(Reply(name, Answer(done=True, reason=f"{member} has left: {beat.reason}")))
        else:
            drains[name] = state.drains.get(name, now_s)
    return msgspec.structs.replace(state, drains=drains), tuple(replies)


class _Look:
    """One decision: the state, what was found, and what follows from both. Lives for one call of `step`."""

    def __init__(self, state: Coordinator, known: Known, fresh: str, now_s: float) -> None:
        self.state = state
        self.known = known
        self.fresh = fresh
        self.now_s = now_s
        self.control = state.control
        self.policy = state.control.policy
        self.silent = liveness.silent(state.watch, lease_s(self.policy))
        self.draining = frozenset(known.requests[name].member for name in state.drains) - self.silent
        self.view = seats.look(self.control, state.roster, known.beats, state.watch, now_s - state.committed_s)
        self.broken = self.view.broken(state.roster)

    def decide(self) -> Step:
        stop = next((request for request in self.known.requests.values() if request.wish is Wish.STOP), None)
        if stop is not None:
            return self._finish(Ending.STOPPED, stop.code, f"told to stop{' by ' + stop.by if stop.by else ''}")
        proposal = self.state.proposal
        outcome = seats.ending(self.control, self.state.roster, self.view)
        if outcome is not None:
            return self._finish(outcome.ending, outcome.code, outcome.reason)
        if self.view.done and self.control.proposed:
            return self._write(proposed="", reason=f"round {self.control.round} goes on: {self.view.done[0]} is done")
        charged = rosters.charge(self.control, self.state.roster, self.view, self.state.watch)
        if self.broken and 0 <= self.policy.restart_budget < charged.restarts:
            reason = f"{self.broken}; the restart budget of {self.policy.restart_budget} is used up"
            return self._finish(Ending.FAILED, 1, reason)
        if proposal is not None:
            return self._pursue(proposal, charged)
        if self.control.round == 0 or self.broken or self.control.proposed:
            return self._cut(charged)
        return self._go_on(charged)

    # Without a proposal

    def _cut(self, charged: Roster) -> Step:
        """There is no round, or it can't go on: propose one."""
        placed = self._place(charged.failures)
        if isinstance(placed, Short):
            return self._wait(f"{self.broken}; {placed.reason}" if self.broken else placed.reason)
        if self.control.round == 0:
            wanted = self.policy.max_nodes + self.policy.spares
            here = len(self._usable())
            self._more(here < wanted or len(placed.seats) < self.policy.max_nodes)
            if self.state.more_s is not None and self.now_s - self.state.more_s < self.policy.last_call_s:
                return self._wait(f"waiting: {here} of {wanted} nodes are here; last call", too_few=False)
        return self._propose(placed, msgspec.structs.replace(charged, reason=self.broken or "the job begins"))

    def _go_on(self, charged: Roster) -> Step:
        """The round is sound: is there a better one? A node that is to leave, more that could train."""
        state = self.state
        if not state.told and (self.view.all_running or self.view.done):
            stopped_s, started_s = state.ready_s - state.proposed_s, self.now_s - state.committed_s
            told = rosters.timing(state.roster, stopped_s=stopped_s, started_s=started_s)
            return msgspec.structs.replace(state, told=True), (Prepare(told),)
        small = len(state.roster.seats) < self.policy.max_nodes
        leaving = sorted(self.draining & frozenset(state.roster.seats))
        replies: tuple[Effect, ...] = ()
        if (small or leaving) and not self.view.done:
            placed = self._place(charged.failures)
            self._more(isinstance(placed, Placed) and len(placed.seats) > len(state.roster.seats))
            reason = self._better(placed, leaving)
            if isinstance(placed, Placed) and reason:
                return self._propose(placed, msgspec.structs.replace(charged, reason=reason, voluntary=True))
            if isinstance(placed, Short):
                replies = self._refuse(placed)
        if self.draining != frozenset(self.control.draining):
            state, effects = self._write(reason=f"to be drained: {', '.join(sorted(self.draining)) or 'nobody'}")
            return state, (*replies, *effects)
        return self.state, replies

    def _better(self, placed: Placed | Short, leaving: list[str]) -> str:
        """Why a sound round is cut; "": it is not."""
        if isinstance(placed, Short):
            return ""
        if leaving and self.view.drain_ready:
            return f"{', '.join(leaving)} is drained, at a step boundary"
        if leaving:
            overdue = [self._drain_of(member) for member in leaving if self._overdue(self._drain_of(member))]
            return f"{', '.join(leaving)} is drained, with its time over" if overdue else ""
        since_s = self.state.more_s
        if since_s is None or self.now_s - since_s < self.policy.last_call_s or not self.view.all_running:
            return ""
        if self.now_s - self.state.committed_s < self.policy.stop_s:
            return ""  # else those who are slow to stop are left out, come back, and the job does nothing but grow
        return f"{len(placed.seats)} nodes can train instead of {len(self.state.roster.seats)}"

    def _drain_of(self, member: str) -> str:
        return next(name for name in self.state.drains if self.known.requests[name].member == member)

    def _overdue(self, drain: str) -> bool:
        return self.now_s - self.state.drains[drain] >= self.known.requests[drain].timeout_s

    def _refuse(self, short: Short) -> tuple[Effect, ...]:
        """Drains whose time is over and for whose seat there is nobody are called off."""
        seated = frozenset(self.state.roster.seats)
        over = [
            name for name in self.state.drains if self.known.requests[name].member in seated and self._overdue(name)
        ]
        drains = {name: since_s for name, since_s in self.state.drains.items() if name not in over}
        self.state = msgspec.structs.replace(self.state, drains=drains)
        self.draining = frozenset(self.known.requests[name].member for name in drains)
        answer = Answer(done=False, reason=f"nobody can take its place: {short.reason}")
        return tuple(Reply(name, answer) for name in over)

    # With a proposal

    def _pursue(self, proposal: Roster, charged: Roster) -> Step:
        """Commit it once all have said yes; mend it when somebody can't, or does not come back in time."""
        beats = self.known.beats
        missing = [m for m in proposal.seats if not seats.says_yes(beats.get(m), proposal.plan)]
        gone = [m for m in proposal.seats if m in self.silent or not seats.may_sit(beats.get(m), self.control)]
        if not missing and not gone:
            return self._commit(proposal)
        roster = rosters.charge_again(charged, proposal, lost=bool(self.view.lost))
        if not gone:
            waited_s = self.now_s - self.state.proposed_s
            if waited_s < self.policy.last_call_s:
                return self.state, ()
            before = self.state
            self.state = msgspec.structs.replace(before, late=before.late | frozenset(missing))
            placed = self._place(roster.failures)
            full = isinstance(placed, Placed) and len(placed.seats) >= len(proposal.seats)
            if not full and waited_s < self.policy.stop_s:
                return before, ()
        placed = self._place(roster.failures)
        if isinstance(placed, Short):
            self.state = msgspec.structs.replace(self.state, late=frozenset())
            return self._wait(f"{roster.reason}; {placed.reason}")
        return self._propose(placed, roster)

    def _commit(self, proposal: Roster) -> Step:
        first = proposal.seats[0]
        self.state = msgspec.structs.replace(self.state, ready_s=self.now_s)
        return self._write(
            round=proposal.round,
            plan=proposal.plan,
            address=self.known.nodes[first].address,
            port=self.known.beats[first].port,
            proposed="",
            restarts=proposal.restarts,
            reason=f"round {proposal.round}: {proposal.reason}",
        )

    # Both

    def _usable(self) -> list[str]:
        """Who may be given a seat."""
        out = self.silent | self.draining | self.state.late | frozenset(self.view.lost)
        return [
            member
            for member, beat in self.known.beats.items()
            if member in self.known.nodes and member not in out and seats.may_sit(beat, self.control)
        ]

    def _place(self, failures: Mapping[str, int]) -> Placed | Short:
        return rosters.choose(self._usable(), self.known.nodes, failures, self.state.roster, self.policy)

    def _propose(self, placed: Placed, roster: Roster) -> Step:
        """Write the plan, then name it."""
        roster = rosters.seat_all(roster, self.fresh, placed, self.known.beats)
        plans = {**self.state.plans, roster.plan: roster}
        self.state = msgspec.structs.replace(self.state, plans=plans, proposed_s=self.now_s)
        state, effects = self._write(proposed=roster.plan, reason=f"round {roster.round}: {roster.reason}")
        return state, (Prepare(rosters.writings(roster)), *effects)

    def _more(self, more: bool) -> None:
        since_s = self.now_s if self.state.more_s is None else self.state.more_s
        self.state = msgspec.structs.replace(self.state, more_s=since_s if more else None)

    def _wait(self, reason: str, *, too_few: bool = True) -> Step:
        """Nothing can be proposed: say why, and give up after a while. What was proposed is off."""
        since_s = self.now_s if self.state.short_s is None else self.state.short_s
        self.state = msgspec.structs.replace(self.state, short_s=since_s if too_few else None)
        if too_few and self.now_s - since_s >= self.policy.wait_s:
            return self._finish(Ending.FAILED, 1, f"{reason}; nobody came for {self.policy.wait_s:g} s")
        news = _wording(reason) != _wording(self.control.reason) and self.now_s - self.state.said_s >= SAY_EVERY_S
        if news or self.control.proposed or self.draining != frozenset(self.control.draining):
            self.state = msgspec.structs.replace(self.state, said_s=self.now_s)
            return self._write(proposed="", reason=reason)
        return self.state, ()

    def _finish(self, ending: Ending, code: int, reason: str) -> Step:
        """M5: the outcome, once and for all."""
        return self._write(outcome=Outcome(ending=ending, code=code, reason=reason), reason=reason)

    def _write(self, **changes: object) -> Step:
        changes = {"nonce": self.fresh, "draining": tuple(sorted(self.draining)), **changes}
        control = msgspec.structs.replace(self.control, **changes)
        return msgspec.structs.replace(self.state, writing=True), (Swap(control),)


def _wording(reason: str) -> str:
    """A reason without its seconds: that they pass is no news for everybody."""
    return re.sub(r"\d+\.\d+ s", "", reason)
