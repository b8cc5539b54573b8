"""What must be true at every event: the invariants M1 to M7 of membership, told by somebody who sees everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from holdfast.core.member import Seat
from holdfast.core.membership import (
    Beat,
    Control,
    Ending,
    Head,
    Rank,
    Roster,
    State,
    lease_s,
    round_key,
    seat_key,
)

if TYPE_CHECKING:
    from tests.sim.node import SimNode
    from tests.sim.world import World

SLACK = 0.75  # of a lease: how long somebody must have been silent at least, by the clock of the world


class Violation(AssertionError):
    """An invariant does not hold."""


class Checks:
    """Watches one world. `rosters`: of every plan that was ever named, members by group rank."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rosters: dict[str, tuple[str, ...]] = {}
        self.records: dict[str, Roster] = {}
        self.committed: dict[str, int] = {}
        self.yes: dict[str, set[str]] = {}
        self.done: dict[str, int] = {}
        self.blamed: dict[str, set[str]] = {}
        self.history: list[Control] = []
        self.committed_s: list[float] = []
        self.term_s = 0.0
        self.deaf_term: dict[str, float] = {}
        self.last_proposed, self.proposed_s, self.pending = "", 0.0, False
        self.deaf_proposed: dict[str, float] = {}
        self.deaf_committed: dict[str, float] = {}

    def want(self, truth: bool, what: str) -> None:
        if not truth:
            raise Violation(f"at {self.world.now_s:.4f} s: {what}")

    # control

    def changed(self, before: Control | None, after: Control, writer: str) -> None:
        """M3, M4, M5 and what a commit needs."""
        if before is None:
            self.want(after.coordinator == writer and after.term == 1 and after.round == 0, "founded by somebody else")
        else:
            self._transition(before, after, writer)
        self.history.append(after)
        self.pending = self.pending and bool(after.proposed)
        if after.proposed and (before is None or after.proposed != before.proposed):
            self._proposed(after)
        if after.round > 0 and (before is None or after.round != before.round):
            self._committed(before, after)
        if after.outcome is not None:
            self._ended(after)

    def _transition(self, before: Control, after: Control, writer: str) -> None:
        self.want(before.outcome is None, "M5: control changed after the outcome")
        if (after.coordinator, after.term) == (before.coordinator, before.term):
            self.want(writer == before.coordinator, f"M4: {writer} decides in the place of {before.coordinator}")
        else:
            self.term_s, self.deaf_term = self.world.now_s, self._deaf()
            self.want(after.term == before.term + 1, "M4: a term that is not the next one")
            self.want(after.coordinator == writer and writer != before.coordinator, "M4: taken over for somebody else")
            mine = {"coordinator": "", "term": 0, "nonce": "", "reason": ""}
            same = msgspec.structs.replace(before, **mine) == msgspec.structs.replace(after, **mine)
            self.want(same, "M4: whoever takes over changes nothing else")
        self.want(after.policy == before.policy and after.job == before.job, "the job's rules changed")
        self.want(after.restarts >= before.restarts, "restarts were given back")
        budget = after.policy.restart_budget
        self.want(budget < 0 or after.restarts <= budget, "the restart budget is exceeded")
        self.want(after.round in (before.round, before.round + 1), "M3: a round that is not the next one")
        if after.round == before.round:
            self.want((after.plan, after.port) == (before.plan, before.port), "M3: a round was committed twice")
        else:
            self.want(after.plan == before.proposed and after.proposed == "", "M3: committed, but not proposed before")

    def _proposed(self, control: Control) -> None:
        plan, number = control.proposed, control.round + 1
        self.want(plan not in self.rosters, f"M3: the name {plan} is used twice")
        plain = self.world.store.plain
        roster = plain.get(round_key(number, plan, "roster"))
        head = plain.get(round_key(number, plan, "head"))
        self.want(isinstance(roster, Roster) and isinstance(head, Head), f"{plan} was named before it stood")
        assert isinstance(roster, Roster)
        assert isinstance(head, Head)
        seats = roster.seats
        self.want(head.world_size == len(seats) and head.round == number and head.plan == plan, "M1: a wrong head")
        for rank, member in enumerate(seats):
            self.want(plain.get(seat_key(number, plan, member)) == Rank(rank), f"M1: no seat {rank} for {member}")
        nodes = [member.rpartition(".")[0] for member in seats]
        self.want(len(set(nodes)) == len(seats), "M1: one node has two seats")
        policy = control.policy
        self.want(policy.min_nodes <= len(seats) <= policy.max_nodes, "a round of a size that nobody wants")
        self.rosters[plan] = seats
        self.records[plan] = roster
        self._same_ranks(control, roster)
        decided_s = self.world.store.put_s[round_key(number, plan, "roster")]
        if self.world.now_s - decided_s < 1.0:  # or it landed late, and much has changed
            self._last_call(control, roster)
            self._justly_replaced(control, roster)
        self.blamed.setdefault(control.plan, set()).update(roster.replaced)
        self.last_proposed, self.proposed_s, self.pending = plan, self.world.now_s, True
        self.deaf_proposed = self._deaf()

    def _same_ranks(self, control: Control, roster: Roster) -> None:
        """Survivors keep their group ranks, where nothing but their number counts."""
        records = self.world.store.nodes
        before = self.rosters.get(control.plan, ())
        if control.policy.segment > 1 or any(records[member].group for member in (*roster.seats, *before)):
            return
        size = len(roster.seats)
        for rank, member in enumerate(before[:size]):
            if member in roster.seats:
                self.want(roster.seats[rank] == member, f"{member} lost its group rank {rank}")

    def _justly_replaced(self, control: Control, roster: Roster) -> None:
        """Nobody who is well is replaced because the store, or a coordinator, was away."""
        lease = lease_s(control.policy)
        for member, why in roster.replaced.items():
            node = self.world.nodes[member]
            told = self.blamed.setdefault(control.plan, set())
            if why.startswith("last heard") and member in self.rosters.get(control.plan, ()) and member not in told:
                told.add(member)
                since_s = node.unwell_s if node.unwell_s is not None else node.last_unwell_s
                recent = self.world.now_s - since_s
                self.want(
                    node.unwell_s is not None or recent < 3 * lease + 2.0,
                    f"{member} is replaced ({why}), but it was well all the time",
                )

    def _waited_s(self, control: Control, since_s: float, deaf: dict[str, float]) -> float:
        """For how long its coordinator could watch a wait that began then; `deaf`: as it was then."""
        node = self.world.nodes[control.coordinator]
        if node.co is None:  # it was another one's swap, and landed late
            return self.world.now_s - since_s
        deaf = self.deaf_term if self.term_s > since_s else deaf
        waited_s = node.co.looked_s - max(since_s, self.term_s) - (node.co.deaf_s - deaf.get(node.name, 0.0))
        return waited_s + lease_s(control.policy) / 2.0  # so short a gap is none

    def _deaf(self) -> dict[str, float]:
        now_s = self.world.now_s
        return {name: deaf_s for name, node in self.world.nodes.items() if (deaf_s := node.deaf_in_all_s(now_s))}

    def _last_call(self, control: Control, roster: Roster) -> None:
        """Who had a seat and comes back in time is proposed again, and has its time to begin."""
        policy, world = control.policy, self.world
        for member, why in roster.replaced.items():
            told = self.blamed.setdefault(control.plan, set())
            if why.startswith("did not begin") and member not in told:
                told.add(member)
                waited_s = self._waited_s(control, self.committed_s[-1], self.deaf_committed)
                self.want(waited_s > 0.8 * policy.stop_s, f"{member} had {waited_s:.1f} s to begin")
        before = self.rosters.get(self.last_proposed, ())
        records = world.store.nodes
        if world.troubles or world.now_s - world.trouble_over_s < 10.0:  # then looks don't come in time
            return
        if not self.pending or policy.segment > 1 or any(records[member].group for member in before):
            return
        waited_s = self._waited_s(control, self.proposed_s, self.deaf_proposed)
        entries, had = world.store.entries, set(self.rosters.get(control.plan, ()))
        draining = {request.member for request in world.store.requests.values()}
        for member in had.intersection(before).difference(roster.seats, draining):
            node, entry = world.nodes[member], entries[member]
            well = node.well() and world.now_s - node.last_unwell_s > 2 * lease_s(policy)
            can = entry.said.state in (State.PARKED, State.READY, State.RUNNING, State.STOPPING) and not entry.said.done
            failed = roster.failures.get(node.record.node, 0) >= policy.node_budget
            if well and can and not failed:
                self.want(waited_s > 0.8 * policy.last_call_s, f"{member} had {waited_s:.1f} s of last call")

    def _committed(self, before: Control | None, after: Control) -> None:
        plan, roster = after.plan, self.rosters[after.plan]
        self.want(plan not in self.committed, f"M3: {plan} is committed twice")
        missing = [member for member in roster if member not in self.yes.get(plan, ())]
        self.want(not missing, f"round {after.round} is committed without the yes of {missing}")
        self.want(before is not None, "committed by its founder")
        charged = self.records[plan].restarts
        self.want(after.restarts == charged, "another number of restarts than the plan's is charged")
        self.committed[plan] = after.round
        self.committed_s.append(self.world.now_s)
        self.deaf_committed = self._deaf()

    def _ended(self, after: Control) -> None:
        outcome = after.outcome
        assert outcome is not None
        roster = self.rosters.get(after.plan, ())
        done = [member for member in roster if self.done.get(member) == after.round]
        if outcome.ending is Ending.SUCCEEDED:
            self.want(outcome.code == 0 and len(done) == len(roster) > 0, "succeeded, though not all are done")
        if outcome.ending is Ending.FAILED:
            self.want(outcome.code != 0, "failed with code 0")
            entries = self.world.store.entries
            said = [m for m in roster if m in entries and entries[m].said.done and entries[m].said.round == after.round]
            self.want(not roster or len(said) < len(roster), f"a job that is done is made to fail: {outcome.reason}")
            if "nobody came" in outcome.reason:
                self._really_short(after)

    def _really_short(self, control: Control) -> None:
        policy = control.policy
        records = self.world.store.nodes.values()
        if policy.segment > 1 or any(record.group for record in records):
            return
        well = self.world.usable_for(20.0)
        self.want(
            len(well) < policy.min_nodes, f"failed for want of nodes, though {len(well)} are well: {sorted(well)[:8]}"
        )

    # members

    def said(self, node: SimNode, beat: Beat) -> None:
        """A beat has landed in the store."""
        if beat.state is State.READY:
            self.yes.setdefault(beat.plan, set()).add(node.name)
        if beat.done:
            self.done[node.name] = beat.round

    def read_plan(self, node: SimNode, plan: str, *, found: bool) -> None:
        self.want(plan in self.rosters, f"M4: {node.name} reads {plan}, which control never named")
        control = self.history[-1]
        named = plan in (control.proposed, control.plan)
        self.want(found or not named, f"{plan} is forgotten, though control names it")

    def begins(self, node: SimNode, seat: Seat, control: Control) -> None:
        """M1, M2."""
        plan = seat.plan
        self.want(control.plan == plan, f"M2: {node.name} begins {plan}, but {control.plan} is the committed plan")
        self.want(any(control is one for one in self.history), "M2: it goes by a control that never stood")
        self.want(not control.proposed and control.outcome is None, "M2: it begins though it is to stop")
        self.want(plan in self.committed, f"M2: {node.name} begins {plan}, which was never committed")
        roster = self.rosters[plan]
        rank = seat.group_rank
        self.want(rank < len(roster) and roster[rank] == node.name, f"M1: {node.name} has not group rank {rank}")
        self.want(seat.head.world_size == len(roster), "M1: another world size")
        self.want(seat.round == self.committed[plan], "M1: another round")
        # Its main thread may have left meanwhile, told to by a signal: then nobody hears that it might begin.
        self.want(node.doing in ("waiting", "gone"), f"M2: {node.name} has workers already")
        self.want(plan not in node.begun, f"M2: {node.name} begins {plan} twice")
        node.begun.add(plan)

    def released(self, node: SimNode) -> None:
        outcome = self.world.outcome
        good = outcome is not None and outcome.ending is Ending.SUCCEEDED
        self.want(good, f"M5: {node.name} is let out of the exit barrier without success")

    def exits(self, node: SimNode, code: int, *, signalled: bool) -> None:
        """M5: the code follows from the outcome."""
        if signalled:
            return
        outcome = self.world.outcome
        control = self.history[-1]
        seated = node.name in self.rosters.get(control.plan, ())
        if outcome is None:
            seen = node.state.control
            drained = seen is not None and node.name in seen.draining
            self.want(drained and code == 0, f"M5: {node.name} leaves with {code} before the outcome")
            self.want(seen is not None and node.name not in self.rosters.get(seen.plan, ()), "drained with a seat")
        else:
            drained = node.state.control is not None and node.state.control.outcome is None
            self.want(
                code == (outcome.code if seated else 0) or (drained and code == 0),
                f"M5: {node.name} ({'with' if seated else 'without'} a seat) leaves with {code}, outcome {outcome}",
            )

    def stands(self, node: SimNode, control: Control) -> None:
        """Somebody is about to take over: its coordinator was silent for a lease, or has left."""
        other = self.world.nodes.get(control.coordinator)
        if other is None:
            return
        entry = self.world.store.entries.get(other.name)
        left = entry is not None and entry.said.state is State.LEFT
        lease = lease_s(control.policy)
        recent = self.world.now_s - other.last_unwell_s
        self.want(
            left or other.unwell_s is not None or recent < 3 * lease + 2.0,
            f"{node.name} takes over from {other.name}, which was well all the time",
        )
