"""How late things may become visible, and what follows for waits and leases.

Every participant states a bound for its own mount: measured by `holdfast doctor`, given by the user, or 90 s. The
bound between participants is the largest that anybody states; it is zero only if all of them are on one machine
and one device, where one kernel's cache answers everybody.
"""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.core.records import Party
from holdfast.errors import UsageError

LEASE_LOCAL_S = 60.0
LEASE_NETWORK_S = 300.0
BEATS_PER_LEASE = 12
BOUND_S_MAX = 3600.0  # what a record may state; no mount is later, and an absurd one must not stop all sweeping
SECONDS_MAX = 1e9


def bound_s(parties: Iterable[Party], *, local: bool = True) -> float:
    """The visibility bound (seconds) that holds between all of `parties`.

    Args:
        local: only this machine sees the storage. If not, a party that is not known yet may be elsewhere.
    """
    parties = tuple(parties)
    if local and len({(party.host, party.device) for party in parties}) <= 1:
        return 0.0
    return max(min(max(0.0, party.bound_s), BOUND_S_MAX) for party in parties)


def settle_s(bound: float) -> float:
    """How long a tombstone stands before the second look: either side may read stale by `bound` seconds."""
    return 2.0 * bound


def beat_s(lease_s: float) -> float:
    """Time between two beats (seconds)."""
    return lease_s / BEATS_PER_LEASE


def check_seconds(name: str, value: object) -> float:
    """`value` if it is a length of time. UsageError code "bad_seconds": negative, endless or no number."""
    if not isinstance(value, int | float) or not 0.0 <= value <= SECONDS_MAX:
        raise UsageError(f"{name}={value!r} is no length of time", code="bad_seconds", hint="give seconds, 0 or more")
    return float(value)


def check_lease(lease_s: float, bound: float) -> float:
    """`lease_s` if it is at least two bounds and three beats. UsageError code "lease_too_short" otherwise."""
    check_seconds("lease_s", lease_s)
    check_seconds("visibility_bound_s", bound)
    shortest = 2.0 * bound + 3.0 * beat_s(lease_s)
    if lease_s == 0.0 or lease_s < shortest:
        raise UsageError(
            f"a lease of {lease_s:g} s is too short for a visibility bound of {bound:g} s",
            code="lease_too_short",
            hint=f"give lease_s of at least {2.0 * bound / (1 - 3 / BEATS_PER_LEASE) + 0.1:.1f}, "
            "or measure the bound with `holdfast doctor`",
            lease_s=lease_s,
            bound_s=bound,
        )
    return lease_s
