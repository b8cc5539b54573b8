"""Consume: find the newest version of the lineage, hold it, look, verify, give; acknowledge; release.

Taking one version goes through these phases (`taking` is that version):

    IDLE      --Looked-->        HOLDING    do: WriteRecord (with the hold); or IDLE: nothing to take, with the reason
    HOLDING   --Written-->       LOOKING    do: ReadSweepers
    LOOKING   --SweepersRead-->  CHECKING   do: Check (open the manifest, every size and digest; copy when staging)
                                 IDLE       tombstoned: do WriteRecord (without the hold)
                                 UNSEEN     a live sweeper has not listed this consumer: nothing is loaded in place yet
    UNSEEN    --Looked-->        LOOKING    do: ReadSweepers; or IDLE as below
    CHECKING  --Checked-->       IDLE       do: Give
              --NotVisible-->    CHECKING   do: Check again through fresh listings, until `patience_s` without progress
              --Looked-->        IDLE       rewound, or swept before the hold stood: do WriteRecord (without the hold)
              --Damaged-->       IDLE       do: WriteRecord (refused, with the reason)

Acknowledge, release, reject and fail are the user's, for versions that were given, in any phase:

    Acknowledge: CheckLease first (a consumer that was expired may not say that its bytes are live), then WriteRecord.
    Expired at any look: every hold is gone; do: Drop. The shell starts again as a new incarnation. What was given in
    place is lost; a staged copy is the consumer's own and stays.

The order of hold and look is the consumer's half of the argument in sweep.py. `position` never falls (I3): under
one claim only later versions of the lineage are given; under a higher claim whatever its lineage says, and if what
was given last is outside it, the Give says so: a rewind.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from holdfast.core.lineage import Lineage, candidates
from holdfast.core.names import Version
from holdfast.core.records import Party, SweeperRecord

HOLD_AHEAD_MAX = 64


class Phase(enum.Enum):
    IDLE = "idle"
    HOLDING = "holding"
    LOOKING = "looking"
    UNSEEN = "unseen"
    CHECKING = "checking"


class Mode(msgspec.Struct, frozen=True, kw_only=True):
    """How this consumer takes versions.

    Attributes:
        every: every version of the lineage in order, else the newest only.
        staged: checked while it is copied, and given as that copy; the hold ends when the copy is complete.
        in_place: loads from the channel itself (see `unseen_by`).
        writes: it can write its file. If not it must be staged, and nothing but min_age_s protects it.
        patience_s: how long "not visible yet" may last without progress (seconds).
    """

    every: bool = False
    staged: bool = False
    in_place: bool = True
    writes: bool = True
    patience_s: float = 90.0


class Consume(msgspec.Struct, frozen=True, kw_only=True):
    """One consumer.

    `holds` is what its file says once the last WriteRecord is done; `given` what the user has; `serving` what the user
    acknowledged and has not released; `again` what failed and may be given once more.
    """

    phase: Phase = Phase.IDLE
    claim: int = 0
    last: Version | None = None
    again: Version | None = None
    holds: frozenset[Version] = frozenset()
    given: frozenset[Version] = frozenset()
    serving: frozenset[Version] = frozenset()
    acknowledged: Version | None = None
    acknowledged_cycle: int = 0
    refused: frozenset[tuple[Version, str]] = frozenset()
    taking: Version | None = None
    rewound: bool = False
    progress: int = 0
    progress_s: float = 0.0


class Looked(msgspec.Struct, frozen=True):
    """A poll: the lineage of the highest claim, the committed versions, and tombstones as far as they are known."""

    lineage: Lineage
    versions: frozenset[Version]
    tombstoned: frozenset[Version] = frozenset()


class Written(msgspec.Struct, frozen=True):
    """The record of the last WriteRecord is durable."""


class SweepersRead(msgspec.Struct, frozen=True):
    """Every sweeper's file, read afresh: all tombstones; whether this consumer is expired; who has not seen it."""

    tombstoned: frozenset[Version]
    expired: bool = False
    unseen_by: tuple[str, ...] = ()


class LeaseRead(msgspec.Struct, frozen=True):
    """Whether any sweeper's file, read afresh after `version` was loaded, lists this consumer as expired."""

    version: Version
    expired: bool = False


class Lost(msgspec.Struct, frozen=True):
    """The own silence was longer than a lease, or the own file is gone: as if a sweeper had said so."""


class Checked(msgspec.Struct, frozen=True):
    """Every size and digest fits (and the copy is complete and durable, when staging)."""


class NotVisible(msgspec.Struct, frozen=True):
    """Missing, short or wrong bytes, at `now_s` on the own clock, after `progress` bytes were right."""

    reason: str
    progress: int
    now_s: float


class Damaged(msgspec.Struct, frozen=True):
    """It will never fit: refuse it."""

    reason: str


class Acknowledge(msgspec.Struct, frozen=True):
    version: Version


class Release(msgspec.Struct, frozen=True):
    version: Version


class Fail(msgspec.Struct, frozen=True):
    """The user could not use it this time: release it, and give it again."""

    version: Version


class Reject(msgspec.Struct, frozen=True):
    """The user will never use it: release it, and never give it again."""

    version: Version
    reason: str


Event = (
    Looked
    | Written
    | SweepersRead
    | LeaseRead
    | Lost
    | Checked
    | NotVisible
    | Damaged
    | Acknowledge
    | Release
    | Fail
    | Reject
)


class WriteRecord(msgspec.Struct, frozen=True):
    """Put this consumer's file (holds, acknowledged, refused, serving), durably, then tell it by Written."""


class ReadSweepers(msgspec.Struct, frozen=True):
    """Read every sweeper's file afresh and the own lease, then tell it by SweepersRead."""


class CheckLease(msgspec.Struct, frozen=True):
    """Read every sweeper's file afresh and the own lease, then tell it by LeaseRead."""

    version: Version


class Check(msgspec.Struct, frozen=True):
    """Open the manifest, check every size and digest (copying, when staging), then tell how it went.

    `again`: list every directory on the way afresh, and wait a little, before the next try.
    """

    version: Version
    again: bool = False


class Give(msgspec.Struct, frozen=True):
    """Hand it to the user. `rewound_from`: what was given last lies outside the lineage now."""

    version: Version
    rewound_from: Version | None = None


class Acknowledged(msgspec.Struct, frozen=True):
    version: Version


class Drop(msgspec.Struct, frozen=True):
    """Every hold is lost: a sweeper took this consumer for dead. Tell the user, start again as a new incarnation."""


class Idle(msgspec.Struct, frozen=True):
    """Nothing to do until the next poll. `stale`: what is served is outside the lineage, and nothing follows yet."""

    reason: str
    stale: bool = False


Effect = WriteRecord | ReadSweepers | CheckLease | Check | Give | Acknowledged | Drop | Idle


def pending(state: Consume, mode: Mode, looked: Looked) -> tuple[Version, ...]:
    """What may be given, the next one first: the newest, or every version after the last given one in order."""
    line = candidates(looked.lineage, looked.versions)
    refused = {version for version, _ in state.refused}
    last = state.last
    if last is not None and last in looked.lineage:
        line = tuple(version for version in line if version > last or version == state.again)
    elif last is not None and mode.every:  # rewound: go on from the youngest common ancestor, that one included
        fork = max((version for version in line if version < last), default=None)
        line = tuple(version for version in line if fork is None or version >= fork)
    line = tuple(version for version in line if version not in refused and version not in looked.tombstoned)
    return line[::-1] if mode.every else line


def step(state: Consume, event: Event, mode: Mode) -> tuple[Consume, tuple[Effect, ...]]:
    """One transition; see the table above."""
    match state.phase, event:
        case Phase.IDLE, Looked():
            return _choose(state, event, mode)
        case Phase.UNSEEN | Phase.CHECKING, Looked():
            return _still_wanted(state, event, mode)
        case Phase.HOLDING, Written():
            return _to(state, Phase.LOOKING), (ReadSweepers(),)
        case Phase.LOOKING, SweepersRead(expired=True):
            return _drop(state, mode)
        case Phase.LOOKING, SweepersRead():
            return _looked_again(state, event, mode)
        case Phase.CHECKING, Checked():
            return _give(state, mode)
        case Phase.CHECKING, NotVisible():
            return _not_visible(state, event, mode)
        case Phase.CHECKING, Damaged(reason):
            return _refuse(state, reason, mode)
        case _, Lost():
            return _drop(state, mode)
        case _, Acknowledge(version):
            assert version in state.given
            return (state, (CheckLease(version),)) if mode.writes else _acknowledged(state, version, mode)
        case _, LeaseRead(version, expired):
            return _drop(state, mode) if expired else _acknowledged(state, version, mode)
        case _, Release(version) | Fail(version) | Reject(version):
            return _let_go(state, event, version, mode)
        case _, Written():
            return state, ()
    raise AssertionError(f"{event!r} in phase {state.phase}")


def _to(state: Consume, phase: Phase) -> Consume:
    return msgspec.structs.replace(state, phase=phase)


def _written(mode: Mode) -> tuple[Effect, ...]:
    return (WriteRecord(),) if mode.writes else ()


def _choose(state: Consume, looked: Looked, mode: Mode) -> tuple[Consume, tuple[Effect, ...]]:
    lineage = looked.lineage
    if lineage.cycle < state.claim:
        return state, (Idle(f"waiting: cycle {state.claim} was followed, only cycle {lineage.cycle} is visible here"),)
    state = msgspec.structs.replace(state, claim=lineage.cycle)
    rewound = state.last is not None and state.last not in lineage
    wanted = pending(state, mode, looked)
    if not wanted:
        return state, (Idle(_why_idle(state, lineage, rewound), stale=rewound),)
    ahead = wanted[:HOLD_AHEAD_MAX] if mode.every and not mode.staged else wanted[:1]
    taking = msgspec.structs.replace(
        state,
        phase=Phase.HOLDING,
        taking=wanted[0],
        rewound=rewound,
        holds=(state.holds & state.given) | frozenset(ahead) if mode.writes else state.holds,
        progress=0,
        progress_s=-1.0,
    )
    if mode.writes:
        return taking, (WriteRecord(),)
    return _to(taking, Phase.CHECKING), (Check(wanted[0]),)


def _why_idle(state: Consume, lineage: Lineage, rewound: bool) -> str:
    if not lineage.spans:
        return "waiting: nobody has claimed the channel yet"
    if not lineage.readable:
        return f"waiting: the claim of cycle {lineage.cycle} cannot be read"
    if rewound:
        return f"stale: {state.last} is outside the lineage of cycle {lineage.cycle}, which has nothing to give yet"
    if state.last is None:
        return f"waiting: cycle {lineage.cycle} has nothing to give yet"
    return f"up to date: {state.last} is the newest of cycle {lineage.cycle}"


def _still_wanted(state: Consume, looked: Looked, mode: Mode) -> tuple[Consume, tuple[Effect, ...]]:
    """A poll while the version is not visible, or this consumer not seen: is the version still worth waiting for?

    Not after a rewind; nor if it was swept before the hold stood: then a listing has newer ones, and not this one.
    """
    assert state.taking is not None
    lineage, taking = looked.lineage, state.taking
    rewound = lineage.cycle > state.claim and taking not in lineage
    swept = taking not in looked.versions and any(v > taking for v in candidates(lineage, looked.versions))
    if rewound or swept:
        return _give_up(state, taking), _written(mode)
    if state.phase is Phase.UNSEEN:
        return _to(state, Phase.LOOKING), (ReadSweepers(),)
    return state, (Check(state.taking, again=True),)


def _looked_again(state: Consume, read: SweepersRead, mode: Mode) -> tuple[Consume, tuple[Effect, ...]]:
    assert state.taking is not None
    if state.taking in read.tombstoned:
        return _give_up(state, state.taking), (WriteRecord(),)
    if read.unseen_by and not mode.staged:
        reason = f"waiting: sweeper {', '.join(read.unseen_by)} has not listed this consumer yet"
        return _to(state, Phase.UNSEEN), (Idle(reason),)
    return _to(state, Phase.CHECKING), (Check(state.taking),)


def _give_up(state: Consume, version: Version) -> Consume:
    return msgspec.structs.replace(state, phase=Phase.IDLE, taking=None, holds=state.holds - ({version} - state.given))


def _give(state: Consume, mode: Mode) -> tuple[Consume, tuple[Effect, ...]]:
    assert state.taking is not None
    version = state.taking
    give = Give(version, state.last if state.rewound else None)
    given = msgspec.structs.replace(
        state,
        phase=Phase.IDLE,
        taking=None,
        rewound=False,
        last=version,
        again=None,
        given=state.given | {version},
        holds=state.holds - {version} if mode.staged else state.holds,
    )
    # The copy is the user's whether or not the end of its hold can be written just now.
    return given, (give, *(_written(mode) if mode.staged else ()))


def _not_visible(state: Consume, event: NotVisible, mode: Mode) -> tuple[Consume, tuple[Effect, ...]]:
    assert state.taking is not None
    if state.progress_s < 0 or event.progress > state.progress:
        state = msgspec.structs.replace(state, progress=event.progress, progress_s=event.now_s)
    waited_s = event.now_s - state.progress_s
    if waited_s >= mode.patience_s:
        return _refuse(state, f"{event.reason}, for {waited_s:.0f} s", mode)
    return state, (Idle(f"waiting: {event.reason}, {waited_s:.1f} of {mode.patience_s:g} s"),)


def _refuse(state: Consume, reason: str, mode: Mode) -> tuple[Consume, tuple[Effect, ...]]:
    assert state.taking is not None
    refused = state.refused | {(state.taking, reason)}
    return msgspec.structs.replace(_give_up(state, state.taking), refused=refused), _written(mode)


def _acknowledged(state: Consume, version: Version, mode: Mode) -> tuple[Consume, tuple[Effect, ...]]:
    if version not in state.given:  # released, or lost, while the lease was read
        return state, ()
    after = msgspec.structs.replace(
        state, acknowledged=version, acknowledged_cycle=state.claim, serving=state.serving | {version}
    )
    return after, (*_written(mode), Acknowledged(version))


def _drop(state: Consume, mode: Mode) -> tuple[Consume, tuple[Effect, ...]]:
    kept = state.given if mode.staged else frozenset()
    after = Consume(
        claim=state.claim,
        last=state.last,
        again=state.last if state.last not in kept else None,
        given=kept,
        serving=state.serving & kept,
        acknowledged=state.acknowledged,
        acknowledged_cycle=state.acknowledged_cycle,
        refused=state.refused,
    )
    return after, (Drop(),)


def unseen_by(
    key: str, party: Party, mode: Mode, sweepers: Mapping[str, SweeperRecord], silent: frozenset[str]
) -> tuple[str, ...]:
    """The live sweepers that may not know of the hold of consumer `key`, which sees the channel from `party`.

    A sweeper on the same machine and device sees every file at once. One elsewhere has to have listed it before
    anything is loaded in place, since listings there may be late beyond any bound. Who holds without loading (a
    publisher, what it starts from) is content with a sweeper that waits for a sufficient bound.
    """
    unseen = []
    for name, record in sorted(sweepers.items()):
        beside = (record.party.host, record.party.device) == (party.host, party.device)
        waits = not mode.in_place and record.bound_s >= max(party.bound_s, record.party.bound_s)
        if not (record.closed or name in silent or key in record.seen or beside or waits):
            unseen.append(name)
    return tuple(unseen)


def interrupted(state: Consume) -> Consume:
    """The state after an effect failed (storage away, disk full): the taking starts again at the next poll."""
    idle = msgspec.structs.replace(state, phase=Phase.IDLE, rewound=False)
    return _give_up(idle, state.taking) if state.taking is not None else idle


def _let_go(
    state: Consume, event: Release | Fail | Reject, version: Version, mode: Mode
) -> tuple[Consume, tuple[Effect, ...]]:
    assert version in state.given
    after = msgspec.structs.replace(
        state,
        given=state.given - {version},
        serving=state.serving - {version},
        holds=state.holds - ({version} - {state.taking}),  # after a rewind it may be on its way again
    )
    if isinstance(event, Fail) and version == state.last:
        kept = after.holds | {version} if mode.every and mode.writes else after.holds  # it must not be swept meanwhile
        after = msgspec.structs.replace(after, again=version, holds=kept)
    if isinstance(event, Reject):
        after = msgspec.structs.replace(after, refused=state.refused | {(version, event.reason)})
    return after, _written(mode)
