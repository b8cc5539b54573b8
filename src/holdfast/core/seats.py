"""Seats: what the beats of those with a seat say of the present round, and whether the job has ended."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from holdfast.core import liveness
from holdfast.core.membership import Beat, Control, Ending, Outcome, Roster, State, lease_s


class Seats(msgspec.Struct, frozen=True, kw_only=True):
    """The seats of the committed round.

    Attributes:
        done: their workers have succeeded; that outranks all that comes after.
        failed: their workers have failed.
        lost: member -> why it is lost: silent, gone, or never begun.
        away: without workers though no other round is proposed, and not because they failed.
        stopped: how many have ended their workers, or are about to.
        all_running: each of them runs.
        drain_ready: all say that now is a good time to be stopped.
    """

    done: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    lost: dict[str, str] = {}
    away: tuple[str, ...] = ()
    stopped: int = 0
    all_running: bool = False
    drain_ready: bool = False

    def broken(self, roster: Roster) -> str:
        """Why the round can't go on, in words; "": it can."""
        reasons = [f"{member} {why}" for member, why in self.lost.items()]
        reasons += [f"the workers of {member} failed" for member in self.failed]
        reasons += [f"{member} has ended its workers" for member in self.away]
        if len(reasons) > 3:
            reasons[2:] = [f"{len(reasons) - 2} more of {len(roster.seats)}"]
        return "; ".join(reasons)


def look(
    control: Control, roster: Roster, beats: Mapping[str, Beat], watch: liveness.Watch, committed_for_s: float
) -> Seats:
    """What `beats` say of the seats of `roster`, the committed round's, which is so old (seconds)."""
    if control.round == 0:
        return Seats()
    lease = lease_s(control.policy)
    done, failed, away = [], [], []
    lost: dict[str, str] = {}
    running = stopped = ready = 0
    for member in roster.seats:
        beat = beats.get(member)
        seen = watch.watched.get(member)
        here = beat is not None and beat.round == control.round
        if beat is not None and here and beat.done:
            done.append(member)
        elif beat is not None and here and beat.failed:
            failed.append(member)
        elif beat is None or beat.state is State.LEFT:
            lost[member] = f"has left: {beat.reason}" if beat is not None and beat.reason else "has left"
        elif seen is None or seen.silent_s >= lease:
            lost[member] = f"last heard {seen.silent_s if seen is not None else lease:.1f} s ago"
        elif not here:
            if committed_for_s >= control.policy.stop_s:
                lost[member] = f"did not begin for {committed_for_s:.0f} s"
        elif beat.state is State.RUNNING:
            running += 1
            ready += beat.drain_ready
        else:
            stopped += 1
            if beat.state is not State.STOPPING and not control.proposed:
                away.append(member)
    return Seats(
        done=tuple(done),
        failed=tuple(failed),
        lost=lost,
        away=tuple(away),
        stopped=stopped,
        all_running=running == len(roster.seats),
        drain_ready=ready == len(roster.seats),
    )


def ending(control: Control, roster: Roster, view: Seats) -> Outcome | None:
    """The outcome that the seats make plain; None: the job goes on."""
    if control.round == 0 or not view.done:
        return None
    if len(view.done) == len(roster.seats):
        return Outcome(ending=Ending.SUCCEEDED, code=0, reason=f"all {len(view.done)} nodes are done")
    why = view.broken(roster)
    if not why and control.proposed and view.stopped:
        why = f"{view.stopped} nodes end their workers for a new round"
    if why:
        return Outcome(ending=Ending.FAILED, code=1, reason=f"{why}, after {view.done[0]} was done")
    return None


def may_sit(beat: Beat | None, control: Control) -> bool:
    """Whether a member that beats may be given a seat: it has no workers, or only those of the committed round."""
    if beat is None or beat.done:
        return False
    if beat.state in (State.RUNNING, State.STOPPING):
        return beat.round == control.round
    return beat.state in (State.PARKED, State.READY)


def says_yes(beat: Beat | None, plan: str) -> bool:
    return beat is not None and beat.state is State.READY and beat.plan == plan
