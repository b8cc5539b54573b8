"""Lineage: which versions the present trainer descends from.

A channel's claims form a chain. Each says where its publisher started: from a version of a lower cycle, or from
nothing. So the lineage of the highest claim is

    all of its own cycle, then what its `starts_from` names and all before that in *that* cycle, and so on down,

and it can be told from claims and names alone: within a cycle one publisher never goes down, so whatever it wrote
after the version that a later claim starts from (a zombie's late versions too) has a higher place, and is outside.
Manifests record the same parents; they are for people and for tools, no decision waits for them.

    cycle 1   s4 ── s8 ── s12 ── s16 (written by a zombie)
                     └── cycle 2   s9 ── s13          lineage of cycle 2: c1-s4, c1-s8, c2-s9, c2-s13

Along a lineage the natural order of names is the order of training.
"""

from __future__ import annotations

import msgspec

from holdfast.core.names import Version
from holdfast.core.records import Term


class Claim(msgspec.Struct, frozen=True):
    """One claim as read. `term` is None where the file stands but cannot be read: then nobody follows it down."""

    cycle: int
    term: Term | None
    starts_from: Version | None


class Lineage(msgspec.Struct, frozen=True):
    """`spans` from the newest cycle down: (cycle, last) with `last` the version it ends with, None for no end."""

    spans: tuple[tuple[int, Version | None], ...] = ()
    readable: bool = True

    @property
    def cycle(self) -> int:
        """The followed claim; 0 while nobody has claimed."""
        return self.spans[0][0] if self.spans else 0

    @property
    def start(self) -> Version | None:
        """The version that the followed claim starts from."""
        return self.spans[1][1] if len(self.spans) > 1 else None

    def __contains__(self, version: Version) -> bool:
        for cycle, last in self.spans:
            if version.cycle == cycle:
                return last is None or version.order < last.order or version == last
        return False


def trace(claims: tuple[Claim, ...]) -> Lineage:
    """The lineage of the highest of `claims` (any order)."""
    by_cycle = {claim.cycle: claim for claim in claims}
    spans: list[tuple[int, Version | None]] = []
    claim = by_cycle.get(max(by_cycle, default=0))
    last: Version | None = None
    while claim is not None:
        spans.append((claim.cycle, last))
        if claim.term is None:
            return Lineage(tuple(spans), readable=False)
        last = claim.starts_from
        if last is None or last.cycle >= claim.cycle:  # nothing below, or a claim that no publisher of ours writes
            break
        claim = by_cycle.get(last.cycle, Claim(last.cycle, None, None))
    return Lineage(tuple(spans))


def candidates(lineage: Lineage, versions: frozenset[Version]) -> tuple[Version, ...]:
    """What a consumer may be given, newest first.

    Empty while the followed claim started from nothing and has published nothing: nothing of a lower cycle is
    taken any more. Empty too while the highest claim cannot be read.
    """
    if not lineage.spans or (not lineage.readable and len(lineage.spans) == 1):
        return ()
    return tuple(sorted((version for version in versions if version in lineage), reverse=True))


def fresh(lineage: Lineage, versions: frozenset[Version]) -> Version | None:
    """What a consumer that knows nothing would be given now (I5 keeps it)."""
    return next(iter(candidates(lineage, versions)), None)
