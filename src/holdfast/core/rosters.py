"""Rosters: what the next round is charged with, whom it may seat, and what is written of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from holdfast.core import liveness
from holdfast.core.membership import (
    Beat,
    Control,
    Head,
    Node,
    Policy,
    Rank,
    Roster,
    State,
    Timing,
    round_key,
    seat_key,
)
from holdfast.core.placement import Candidate, Placed, Short, place
from holdfast.core.seats import Seats


def charge(control: Control, roster: Roster, view: Seats, watch: liveness.Watch) -> Roster:
    """The next round's roster, without its seats: what has failed so far.

    A cut costs the budget one restart, however many nodes it takes. To blame are the nodes that were lost; if none was,
    the one whose workers failed before all others: the rest only lost their peer.
    """
    broken = view.broken(roster)
    to_blame = tuple(view.lost) or (view.failed if len(view.failed) == 1 else ())
    failures = dict(roster.failures)
    for member in to_blame:
        node = node_of(member)
        failures[node] = failures.get(node, 0) + 1
    silence = [watch.watched[member].silent_s for member in view.lost if member in watch.watched]
    return Roster(
        round=control.round + 1,
        failures=failures,
        restarts=control.restarts + (1 if broken else 0),
        reason=broken,
        replaced={**view.lost, **dict.fromkeys(view.failed, "its workers failed")},
        lost_s=max(silence, default=0.0),
    )


def charge_again(now: Roster, proposal: Roster, *, lost: bool) -> Roster:
    """The roster of another proposal for the same round: the first to fail stays to blame, unless a node turns out to
    be lost, or the first proposal was made of free will."""
    if lost or (proposal.voluntary and now.reason):
        return msgspec.structs.replace(now, replaced={**proposal.replaced, **now.replaced})
    return msgspec.structs.replace(proposal, replaced={**proposal.replaced, **now.replaced})


def choose(
    usable: Iterable[str], nodes: Mapping[str, Node], failures: Mapping[str, int], previous: Roster, policy: Policy
) -> Placed | Short:
    """Who could sit where. Nodes that failed too often are set aside, if others can take their place."""
    usable = list(usable)
    aside = {node for node, count in failures.items() if count >= policy.node_budget}
    trusted = [member for member in usable if nodes[member].node not in aside]
    if len(trusted) < len(usable):
        placed = place(candidates(trusted, nodes), previous.seats, policy)
        if isinstance(placed, Placed):
            return placed
    return place(candidates(usable, nodes), previous.seats, policy)


def candidates(members: Iterable[str], nodes: Mapping[str, Node]) -> list[Candidate]:
    return [
        Candidate(
            member=member,
            node=nodes[member].node,
            infra_rank=nodes[member].infra_rank,
            domain=nodes[member].domain,
            group=nodes[member].group,
            group_size=nodes[member].group_size,
        )
        for member in members
    ]


def seat_all(roster: Roster, plan: str, placed: Placed, beats: Mapping[str, Beat]) -> Roster:
    taken = frozenset(placed.seats)
    parked = [m for m, beat in beats.items() if m not in taken and beat.state in (State.PARKED, State.READY)]
    return msgspec.structs.replace(roster, plan=plan, seats=placed.seats, spares=tuple(sorted(parked)))


def writings(roster: Roster) -> dict[str, msgspec.Struct]:
    """What has to stand before the plan is named in `control`."""
    head = Head(
        round=roster.round,
        plan=roster.plan,
        world_size=len(roster.seats),
        spares=len(roster.spares),
        restarts=roster.restarts,
        reason=roster.reason,
    )
    return {
        round_key(roster.round, roster.plan, "head"): head,
        round_key(roster.round, roster.plan, "roster"): roster,
        **{seat_key(roster.round, roster.plan, member): Rank(rank) for rank, member in enumerate(roster.seats)},
    }


def timing(roster: Roster, *, stopped_s: float, started_s: float) -> dict[str, msgspec.Struct]:
    """How long the change to this round took; for people."""
    written = Timing(
        round=roster.round,
        noticed_s=round(roster.lost_s, 3),
        stopped_s=round(stopped_s, 3),
        started_s=round(started_s, 3),
    )
    return {round_key(roster.round, roster.plan, "timing"): written}


def keys(roster: Roster) -> tuple[str, ...]:
    """All that was ever written of a plan."""
    if not roster.plan:
        return ()
    names = [round_key(roster.round, roster.plan, what) for what in ("head", "roster", "timing")]
    return (*names, *(seat_key(roster.round, roster.plan, member) for member in roster.seats))


def node_of(member: str) -> str:
    return member.rpartition(".")[0]
