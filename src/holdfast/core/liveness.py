"""Silence, without comparing two machines' clocks.

A beat is a counter in a file; it proves life while it changes. The observer counts, on its own monotonic clock,
how long a beat has stood still *across its own timely looks*: time between two looks that lie further apart than
`gap_s` does not count, since the observer itself (or the storage) was away. So a new observer, or one that woke
up, watches a full lease before it can call anybody silent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec


class Watched(msgspec.Struct, frozen=True):
    """One participant: its last beat (any value that changes), for how long it stood still, whether it ever moved."""

    token: object
    silent_s: float = 0.0
    beaten: bool = False


class Watch(msgspec.Struct, frozen=True):
    """What one observer knows of everybody. `looked_at_s`: its own monotonic clock at the last good look."""

    looked_at_s: float | None = None
    watched: dict[str, Watched] = {}


def look(
    watch: Watch,
    tokens: Mapping[str, object],
    now_s: float,
    *,
    gap_s: float,
    full_lease: bool = False,
    credit_s: float = math.inf,
) -> Watch:
    """The watch after a look that found `tokens` (participant -> beat). Call it for good looks only.

    Args:
        full_lease: after a gap everybody has a full lease again, for what kept the observer from looking may have kept
            them from beating.
        credit_s: one look adds no more silence than this: what kept the observer for longer may have kept others, too.
    """
    passed = now_s - watch.looked_at_s if watch.looked_at_s is not None else 0.0
    timely = 0.0 <= passed <= gap_s
    if full_lease and not timely:
        watch = Watch()
    counted = min(passed, credit_s) if timely else 0.0
    after: dict[str, Watched] = {}
    for name, token in tokens.items():
        before = watch.watched.get(name)
        if before is None:
            after[name] = Watched(token)
        elif before.token != token:
            after[name] = Watched(token, 0.0, beaten=True)
        else:
            after[name] = Watched(token, before.silent_s + counted, before.beaten)
    return Watch(now_s, after)


def silent(watch: Watch, lease_s: float) -> frozenset[str]:
    """Everybody whose beat stood still for a whole lease."""
    return frozenset(name for name, watched in watch.watched.items() if watched.silent_s >= lease_s)
