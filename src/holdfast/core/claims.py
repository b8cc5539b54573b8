"""Claims and fencing: who may publish.

A claim is exactly the highest cycle + 1, made whole in one step (put-if-absent), so of many claimants one wins and
the others ask again. It is admitted when the highest claim is

    of the same job and a lower round                      the launcher replaced that trainer
    of the same job and round, and closed                  that trainer left in order
    of another job, which is closed, silent for a lease,   and this job has never claimed here before:
      or told to be taken over                             a superseded job never claims again

From the moment a higher claim is visible the older publisher is fenced: its next call says so, nobody sees what
it wrote since, and its sweeper stops.
"""

from __future__ import annotations

import msgspec

from holdfast.core.lineage import Claim
from holdfast.core.names import CYCLE_MAX
from holdfast.core.records import Term
from holdfast.errors import ConflictError, FencedError, UsageError


class Standing(msgspec.Struct, frozen=True):
    """The highest claim's publisher, as far as the observer can tell. `silent_s`: on the observer's own clock."""

    closed: bool = False
    silent_s: float = 0.0
    beaten: bool = False  # its beat changed while it was watched: alive


class Admit(msgspec.Struct, frozen=True):
    """Claim `cycle` now."""

    cycle: int
    reason: str


class Wait(msgspec.Struct, frozen=True):
    """Not yet: go on watching the highest claim's beat."""

    reason: str


Decision = Admit | Wait


def admit(
    term: Term, claims: tuple[Claim, ...], standing: Standing, *, lease_s: float, take_over: bool = False
) -> Decision:
    """Whether `term` may claim, given all `claims` and the `standing` of the highest.

    Raises:
        FencedError: code "superseded": this job or round was replaced. Stop.
        ConflictError: code "publisher_alive": somebody publishes here. Stop it, or take over explicitly.
        UsageError: code "cycles_exhausted".
    """
    highest = max(claims, key=lambda claim: claim.cycle, default=None)
    if highest is None:
        return Admit(1, "first claim of the channel")
    if highest.cycle >= CYCLE_MAX:
        raise UsageError(f"all {CYCLE_MAX} cycles are used", code="cycles_exhausted", hint="start a new channel")
    if highest.term is not None and highest.term.job == term.job:
        return _same_job(term, highest.term, highest.cycle, standing)
    if any(claim.term is not None and claim.term.job == term.job for claim in claims):
        raise _superseded(term, highest)
    return _other_job(highest, standing, lease_s, take_over)


def _same_job(term: Term, theirs: Term, cycle: int, standing: Standing) -> Decision:
    if theirs.round < term.round:
        return Admit(cycle + 1, f"round {term.round} follows round {theirs.round} of job {term.job}")
    if theirs.round > term.round:
        raise _superseded(term, Claim(cycle, theirs, None))
    if standing.closed:
        return Admit(cycle + 1, f"the publisher of cycle {cycle} has closed")
    raise ConflictError(
        f"cycle {cycle} is held by round {theirs.round} of this same job {term.job}, which has not closed",
        code="publisher_alive",
        hint="one round has one publisher: close it, or publish from the next round",
        cycle=cycle,
    )


def _other_job(highest: Claim, standing: Standing, lease_s: float, take_over: bool) -> Decision:
    job = highest.term.job if highest.term is not None else "unreadable"
    who = f"the publisher of cycle {highest.cycle} (job {job})"
    if standing.closed:
        return Admit(highest.cycle + 1, f"{who} has closed")
    if take_over:
        return Admit(highest.cycle + 1, f"{who} is taken over as told")
    if standing.silent_s >= lease_s:
        return Admit(highest.cycle + 1, f"{who} has been silent for {standing.silent_s:.1f} s")
    if standing.beaten:
        raise ConflictError(
            f"{who} is alive",
            code="publisher_alive",
            hint="stop it first, or open with take_over=True, which fences it",
            cycle=highest.cycle,
        )
    return Wait(f"waiting: {who} last heard {standing.silent_s:.1f} s ago, free after {lease_s:.0f} s")


def fenced(cycle: int, highest: int) -> FencedError | None:
    """The error for the publisher of `cycle` once a higher claim is visible, else None."""
    if highest <= cycle:
        return None
    return FencedError(
        f"cycle {cycle} was replaced by cycle {highest}",
        code="fenced",
        hint="stop this trainer: nothing that it publishes is seen any more",
        cycle=cycle,
        highest=highest,
    )


def _superseded(term: Term, highest: Claim) -> FencedError:
    by = f"job {highest.term.job}, round {highest.term.round}" if highest.term is not None else "another job"
    return FencedError(
        f"job {term.job}, round {term.round} was replaced by {by} in cycle {highest.cycle}",
        code="superseded",
        hint="stop this trainer; a new job may claim under a new job name",
        cycle=highest.cycle,
    )
