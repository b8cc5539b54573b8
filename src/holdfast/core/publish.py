"""Publish: claim the channel, then commit versions one after the other, until closed or fenced.

    NEW        --ClaimsRead-->  CLAIMING   do: CreateClaim                         (admitted, see claims.py)
    CLAIMING   --ClaimMade-->   OPEN       nothing of a lower cycle is seen from here on
               --ClaimLost-->   NEW        do: ReadClaims; ask again, never count on
    OPEN       --Publish-->     STAGING    do: Stage (payload files, each synced; STABLE; the manifest in memory)
    STAGING    --Staged-->      GUARDING   do: ReadClaims
    GUARDING   --ClaimsRead-->  COMMITTING do: Commit (manifest, directories, rename, versions/: durable and visible)
    COMMITTING --Committed-->   POINTING   do: Link (legacy name), PutCurrent (a hint), then Published
    POINTING   --Pointed-->     OPEN
    any        --ClaimsRead, a higher claim--> FENCED

The check in GUARDING keeps a replaced trainer from growing the channel; safety does not rest on it. A commit
that slips through after a higher claim is outside every consumer's lineage (lineage.py).

Steps never go down within a cycle, nor below the version that the cycle starts from: that is what makes the
order of names the order of training. The same step again is the same version if its bytes are equal (and nobody
announced its removal), else a new version with the next attempt number.
"""

from __future__ import annotations

import enum
import operator
from typing import SupportsIndex

import msgspec

from holdfast.core.claims import fenced
from holdfast.core.names import ATTEMPT_MAX, STEP_MAX, Version
from holdfast.errors import FencedError, UsageError


class Phase(enum.Enum):
    NEW = "new"
    CLAIMING = "claiming"
    OPEN = "open"
    STAGING = "staging"
    GUARDING = "guarding"
    COMMITTING = "committing"
    POINTING = "pointing"
    FENCED = "fenced"


class Publisher(msgspec.Struct, frozen=True, kw_only=True):
    """One publisher. `last` is the newest version that it committed, `making` the one under way."""

    phase: Phase = Phase.NEW
    cycle: int = 0
    starts_from: Version | None = None
    last: Version | None = None
    making: Version | None = None

    @property
    def parent(self) -> Version | None:
        """What the next version descends from."""
        return self.last or self.starts_from


class Admitted(msgspec.Struct, frozen=True):
    """claims.admit said yes to `cycle`."""

    cycle: int


class ClaimMade(msgspec.Struct, frozen=True):
    """Our claim stands, read back."""


class ClaimLost(msgspec.Struct, frozen=True):
    """Somebody else's claim stands there."""


class Publish(msgspec.Struct, frozen=True):
    """The user's call. `nonce`: six random hex digits for the name."""

    step: int
    nonce: str


class Staged(msgspec.Struct, frozen=True):
    """Every payload file and STABLE are durable in staging/."""


class Abandoned(msgspec.Struct, frozen=True):
    """Writing failed; nothing is visible and the step may be published again."""


class ClaimsRead(msgspec.Struct, frozen=True):
    """The highest cycle in a fresh listing of cycles/."""

    highest: int


class Committed(msgspec.Struct, frozen=True):
    """The version is visible and durable."""


class Unsure(msgspec.Struct, frozen=True):
    """Whether the commit happened cannot be told: its name is spent, and the next version may descend from it."""


class Pointed(msgspec.Struct, frozen=True):
    """The legacy link and CURRENT were written, or could not be (they are hints)."""


Event = Admitted | ClaimMade | ClaimLost | Publish | Staged | Abandoned | ClaimsRead | Committed | Unsure | Pointed


class CreateClaim(msgspec.Struct, frozen=True):
    """Make cycles/`cycle`.json whole, durably, if nothing stands there; read back; tell ClaimMade or ClaimLost."""

    cycle: int
    starts_from: Version | None


class ReadClaims(msgspec.Struct, frozen=True):
    """List the channel, then cycles/, afresh; tell ClaimsRead."""


class Stage(msgspec.Struct, frozen=True):
    """Write the payload of `version` where nobody sees it, each file synced; tell Staged or Abandoned."""

    version: Version
    parent: Version | None


class Commit(msgspec.Struct, frozen=True):
    """Make `version` visible in one step, durably; tell Committed or Abandoned."""

    version: Version


class Point(msgspec.Struct, frozen=True):
    """The legacy link, then CURRENT; tell Pointed."""

    version: Version


class Published(msgspec.Struct, frozen=True):
    version: Version


class Fenced(msgspec.Struct, frozen=True):
    """Throw away what is staged; every call from now on raises `error`."""

    error: FencedError


Effect = CreateClaim | ReadClaims | Stage | Commit | Point | Published | Fenced


def step(state: Publisher, event: Event) -> tuple[Publisher, tuple[Effect, ...]]:
    """One transition; see the table above.

    Raises:
        UsageError: code "step_went_down", "bad_step" or "too_many_attempts"; the state is unchanged.
    """
    replace = msgspec.structs.replace
    match state.phase, event:
        case Phase.NEW, Admitted(cycle):
            return replace(state, phase=Phase.CLAIMING, cycle=cycle), (CreateClaim(cycle, state.starts_from),)
        case Phase.CLAIMING, ClaimMade():
            return replace(state, phase=Phase.OPEN), ()
        case Phase.CLAIMING, ClaimLost():
            return replace(state, phase=Phase.NEW, cycle=0), (ReadClaims(),)
        case Phase.OPEN, Publish(number, nonce):
            version = next_version(state, number, nonce)
            return replace(state, phase=Phase.STAGING, making=version), (Stage(version, state.parent),)
        case Phase.STAGING, Staged():
            return replace(state, phase=Phase.GUARDING), (ReadClaims(),)
        case Phase.OPEN | Phase.GUARDING, ClaimsRead(highest):
            return _guard(state, highest)
        case Phase.COMMITTING, Committed():
            assert state.making is not None
            return replace(state, phase=Phase.POINTING, last=state.making), (Point(state.making),)
        case Phase.COMMITTING, Unsure():
            return replace(state, phase=Phase.OPEN, last=state.making, making=None), ()
        case Phase.POINTING, Pointed():
            assert state.making is not None
            return replace(state, phase=Phase.OPEN, making=None), (Published(state.making),)
        case Phase.STAGING | Phase.GUARDING | Phase.COMMITTING, Abandoned():
            return replace(state, phase=Phase.OPEN, making=None), ()
    raise AssertionError(f"{event!r} in phase {state.phase}")


def _guard(state: Publisher, highest: int) -> tuple[Publisher, tuple[Effect, ...]]:
    error = fenced(state.cycle, highest)
    if error is not None:
        return msgspec.structs.replace(state, phase=Phase.FENCED, making=None), (Fenced(error),)
    if state.phase is Phase.OPEN:
        return state, ()
    assert state.making is not None
    return msgspec.structs.replace(state, phase=Phase.COMMITTING), (Commit(state.making),)


def _check_step(step: object) -> int:
    """`step` as the int that names take; numpy's integers count as such, True and 3.0 don't."""
    number = operator.index(step) if isinstance(step, SupportsIndex) and not isinstance(step, bool) else -1
    if not 0 <= number <= STEP_MAX:
        raise UsageError(f"step {step!r} is no step", code="bad_step", hint=f"use an integer from 0 to {STEP_MAX}")
    return number


def next_version(state: Publisher, number: int, nonce: str) -> Version:
    """The name that the next version at step `number` gets. UsageError: see `step`."""
    number = _check_step(number)
    parent = state.parent
    if parent is not None and number < parent.step:
        raise UsageError(
            f"step {number} is below step {parent.step} of {parent}, which it would descend from",
            code="step_went_down",
            hint="to go back, open a new publisher with resume_from= the version to start from",
            step=number,
            last=str(parent),
        )
    attempt = 0
    if state.last is not None and state.last.step == number:
        attempt = state.last.attempt + 1
    if attempt > ATTEMPT_MAX:
        raise UsageError(f"step {number} was published {attempt} times", code="too_many_attempts", hint="go on a step")
    return Version(state.cycle, number, attempt, nonce)
