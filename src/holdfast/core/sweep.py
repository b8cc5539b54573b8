"""Sweep: delete what nobody needs, and never what somebody does.

One pass goes through these phases; an event that is not in its phase's row is a bug in the shell, not a case:

    IDLE      --Begin-->    ENTERING    do: WriteRecord (nothing yet: "I am here"), in a sweeper's first pass
                            LOOKING     do: Look
    ENTERING  --Written-->  ENTERING    do: Settle (two visibility bounds)
              --Settled-->  LOOKING     do: Look
    LOOKING   --Looked-->   MARKING     do: WriteRecord (tombstones, consumers seen and expired); or IDLE: nothing to do
    MARKING   --Written-->  SETTLING    do: Settle (two visibility bounds); or IDLE: no tombstones
    SETTLING  --Settled-->  RELOOKING   do: Look
    RELOOKING --Looked-->   REMOVING    do: Remove each version that still nobody holds or needs; or SETTLING: somebody
                                        new sees things later than was waited for; do: Settle
    REMOVING  --Removed-->  CLEARING    do: WriteRecord (without the removed and the withdrawn)
    CLEARING  --Written-->  IDLE
    any       --Looked, a higher claim--> CLEARING then STOPPED: the sweeper was fenced, and withdraws what it announced

Why it is safe. A consumer writes its hold, durably, and *then* reads every sweeper's file; a sweeper writes its
tombstone, durably, and *then* (two bounds later) reads every consumer's file. Whichever came second sees the
other: the consumer gives the version up, or the sweeper withdraws. Nothing between the second look and the
unlink can change that, so a sweeper may freeze there for an hour. For the same reason a tombstone is withdrawn
by its writer alone: to everybody else, a standing tombstone means that its version may vanish at any moment.

A sweeper says that it is here before it looks for the first time, so that no consumer falls between the two: either
it sees the sweeper, and loads nothing in place until it is listed as seen; or its file is older than that look.

A consumer counts as gone only if it stands in `expired` in this sweeper's record as it was *before* the second
look, durably, so that a consumer which wakes up can find itself there before it says anything.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from holdfast.core.lineage import Lineage, candidates
from holdfast.core.names import Version
from holdfast.core.retention import Known, Retention, keep

EXPIRED_MAX = 1000


class Phase(enum.Enum):
    IDLE = "idle"
    ENTERING = "entering"
    LOOKING = "looking"
    MARKING = "marking"
    SETTLING = "settling"
    RELOOKING = "relooking"
    REMOVING = "removing"
    CLEARING = "clearing"
    STOPPED = "stopped"


class Sweep(msgspec.Struct, frozen=True):
    """One sweeper. `seen` and `expired` hold incarnations; `tombstones` are this sweeper's own.

    `bound_s` is the visibility bound (seconds) that the present tombstones wait for; `entered`: all see its record.
    """

    cycle: int
    phase: Phase = Phase.IDLE
    tombstones: frozenset[Version] = frozenset()
    doomed: frozenset[Version] = frozenset()
    seen: frozenset[str] = frozenset()
    expired: frozenset[str] = frozenset()
    fenced_by: int = 0
    bound_s: float = 0.0
    entered: bool = False


class Consumer(msgspec.Struct, frozen=True):
    """One consumer's file as read. `readable` False: it may hold anything, so it holds everything.

    `every`: it takes every version of the lineage, and was given all up to `last`; the others wait for it.
    """

    key: str
    holds: frozenset[Version] = frozenset()
    readable: bool = True
    every: bool = False
    last: Version | None = None


class View(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the channel, each part read afresh in this order: claims, versions, consumers, sweepers."""

    lineage: Lineage
    versions: frozenset[Version]
    consumers: tuple[Consumer, ...] = ()
    silent: frozenset[str] = frozenset()  # incarnations whose beat stood still for a lease, as this observer watched
    blocked: frozenset[Version] = frozenset()  # tombstones of other sweepers
    acknowledged: frozenset[Version] = frozenset()
    pinned: frozenset[Version] = frozenset()
    ages_s: Mapping[Version, float] = {}
    bound_s: float = 0.0  # the visibility bound between everybody who is seen in this look

    @property
    def highest(self) -> int:
        return self.lineage.cycle


class Begin(msgspec.Struct, frozen=True):
    """Start a pass. `bound_s`: the visibility bound (seconds) to go by before anybody was looked at."""

    bound_s: float = 0.0


class Looked(msgspec.Struct, frozen=True):
    view: View


class Written(msgspec.Struct, frozen=True):
    """The record of the last WriteRecord is durable."""


class Settled(msgspec.Struct, frozen=True):
    """Two visibility bounds have passed since the record was durable."""


class Removed(msgspec.Struct, frozen=True):
    """The removals were tried; `failed` are still there, their tombstones stay for the next pass."""

    failed: frozenset[Version] = frozenset()


Event = Begin | Looked | Written | Settled | Removed


class Look(msgspec.Struct, frozen=True):
    """Read a View afresh, then tell it by Looked."""


class WriteRecord(msgspec.Struct, frozen=True):
    """Put this sweeper's record, durably, then tell it by Written. `reasons`: version -> why it goes or came back."""

    tombstones: frozenset[Version]
    seen: frozenset[str]
    expired: frozenset[str]


class Settle(msgspec.Struct, frozen=True):
    """Let two visibility bounds of `bound_s` seconds pass, then tell it by Settled."""

    bound_s: float


class Remove(msgspec.Struct, frozen=True):
    """Take these out of versions/ and unlink them (each on its own), then tell it by Removed."""

    versions: frozenset[Version]


Effect = Look | WriteRecord | Settle | Remove


class Verdict(msgspec.Struct, frozen=True):
    """What this look says of one version."""

    stays: bool
    reason: str


def judge(view: View, policy: Retention, expired: frozenset[str]) -> dict[Version, Verdict]:
    """Every version's verdict: held, then kept by retention, else it goes. `expired` consumers hold nothing."""
    kept = keep(
        policy,
        Known(
            lineage=view.lineage,
            versions=view.versions,
            acknowledged=view.acknowledged,
            pinned=view.pinned,
            blocked=view.blocked,
            ages_s=view.ages_s,
        ),
    )
    live = [consumer for consumer in view.consumers if consumer.key not in expired]
    holders: dict[Version, list[str]] = {}
    for consumer in live:
        for version in consumer.holds:
            holders.setdefault(version, []).append(consumer.key)
    for consumer in live:
        if consumer.every:
            for version in candidates(view.lineage, view.versions):
                if consumer.last is None or version > consumer.last:
                    kept.setdefault(version, f"kept: {consumer.key} takes every version")
    unreadable = [consumer.key for consumer in live if not consumer.readable]
    verdicts: dict[Version, Verdict] = {}
    for version in view.versions:
        if version in holders:
            verdicts[version] = Verdict(True, f"held by {', '.join(holders[version])}")
        elif unreadable:
            verdicts[version] = Verdict(True, f"kept: the file of {', '.join(unreadable)} cannot be read")
        elif version.cycle > view.highest:  # a late listing: whoever may not see that claim yet must not judge its work
            verdicts[version] = Verdict(True, f"kept: the claim of cycle {version.cycle} is not visible here yet")
        elif version in kept:
            verdicts[version] = Verdict(True, kept[version])
        elif version in view.lineage:
            verdicts[version] = Verdict(False, "goes: nobody holds it and newer versions are kept")
        else:
            verdicts[version] = Verdict(False, f"goes: outside the lineage of cycle {view.highest}")
    return verdicts


def step(state: Sweep, event: Event, policy: Retention) -> tuple[Sweep, tuple[Effect, ...]]:
    """One transition; see the table above."""
    match state.phase, event:
        case Phase.IDLE, Begin(bound_s):
            if not state.entered:
                entering = msgspec.structs.replace(state, bound_s=bound_s)
                return _record(entering, Phase.ENTERING, tombstones=frozenset())
            return msgspec.structs.replace(state, phase=Phase.LOOKING), (Look(),)
        case Phase.ENTERING, Written():
            return state, (Settle(state.bound_s),)
        case Phase.ENTERING, Settled():
            return msgspec.structs.replace(state, phase=Phase.LOOKING, entered=True), (Look(),)
        case Phase.LOOKING, Looked(view):
            return _first_look(state, view, policy)
        case Phase.MARKING, Written():
            if not state.tombstones:
                return msgspec.structs.replace(state, phase=Phase.IDLE), ()
            return msgspec.structs.replace(state, phase=Phase.SETTLING), (Settle(state.bound_s),)
        case Phase.SETTLING, Settled():
            return msgspec.structs.replace(state, phase=Phase.RELOOKING), (Look(),)
        case Phase.RELOOKING, Looked(view):
            return _second_look(state, view, policy)
        case Phase.REMOVING, Removed(failed):
            return _record(state, Phase.CLEARING, tombstones=failed)
        case Phase.CLEARING, Written():
            phase = Phase.STOPPED if state.fenced_by else Phase.IDLE
            return msgspec.structs.replace(state, phase=phase), ()
    raise AssertionError(f"{event!r} in phase {state.phase}")


def _first_look(state: Sweep, view: View, policy: Retention) -> tuple[Sweep, tuple[Effect, ...]]:
    if view.highest > state.cycle:
        return _fenced(state, view)
    present = frozenset(consumer.key for consumer in view.consumers)
    expired = state.expired | (view.silent & present)
    if len(expired) > EXPIRED_MAX:  # whoever is forgotten here has no file any more, and knows its own silence
        expired &= present
    # Judged as if the newly expired were gone already: their names go into the same record as the tombstones.
    verdicts = judge(view, policy, expired)
    goes = frozenset(version for version, verdict in verdicts.items() if not verdict.stays)
    known = msgspec.structs.replace(state, seen=present, expired=expired, bound_s=view.bound_s)
    # Its own tombstones of an earlier pass (a removal that failed) go through both looks again.
    if goes == state.tombstones == frozenset() and known == state:
        return msgspec.structs.replace(state, phase=Phase.IDLE), ()
    return _record(known, Phase.MARKING, tombstones=goes)


def _second_look(state: Sweep, view: View, policy: Retention) -> tuple[Sweep, tuple[Effect, ...]]:
    if view.highest > state.cycle:
        return _fenced(state, view)
    if view.bound_s > state.bound_s:
        later = msgspec.structs.replace(state, phase=Phase.SETTLING, bound_s=view.bound_s)
        return later, (Settle(view.bound_s),)
    verdicts = judge(view, policy, state.expired)
    doomed = frozenset(v for v in state.tombstones if v in verdicts and not verdicts[v].stays)
    removing = msgspec.structs.replace(state, phase=Phase.REMOVING, doomed=doomed)
    return removing, (Remove(doomed),)


def _fenced(state: Sweep, view: View) -> tuple[Sweep, tuple[Effect, ...]]:
    return _record(msgspec.structs.replace(state, fenced_by=view.highest), Phase.CLEARING, tombstones=frozenset())


def _record(state: Sweep, phase: Phase, *, tombstones: frozenset[Version]) -> tuple[Sweep, tuple[Effect, ...]]:
    after = msgspec.structs.replace(state, phase=phase, tombstones=tombstones, doomed=frozenset())
    return after, (WriteRecord(tombstones, after.seen, after.expired),)
