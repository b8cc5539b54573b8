"""How far behind a version is: which newer ones were published in the present lineage, as far as that is known."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

import msgspec

from holdfast.core.lineage import Claim, Lineage, trace
from holdfast.core.names import Version, parse_version
from holdfast.core.records import Term
from holdfast.events import Event
from holdfast.overview.tails import Tail
from holdfast.story.telling import number


class Line(msgspec.Struct, frozen=True):
    """The versions of the present lineage, oldest first, as far as they are known.

    Attributes:
        newest: what servers should serve; None: not known, or nothing is published.
        lineage: as claims tell it; without spans: not known.
    """

    newest: Version | None
    versions: Sequence[Version]
    lineage: Lineage = Lineage()

    def outside(self, version: Version) -> bool:
        """Whether `version` is known to lie outside of the lineage."""
        return bool(self.lineage.spans) and version not in self.lineage

    def behind(self, version: Version) -> tuple[int | None, int | None]:
        """By how many versions and steps `version` lies behind; None: not known."""
        if self.newest is None or self.outside(version):
            return None, None
        whole = bool(self.versions) and self.versions[0] <= version
        count = len(self.versions) - bisect_right(self.versions, version)
        return (count if whole else None), max(0, self.newest.step - version.step)


def line(tails: Iterable[Tail], newest: str | None = None, present: Iterable[str] = ()) -> Line:
    """From what publishers said; `newest` and `present`: what the channel itself shows of its lineage."""
    published: set[Version] = set()
    claims: dict[int, Claim] = {}
    for tail in tails:
        for event in tail.events:
            if event.event == "published" and event.version:
                version = parse_version(event.version)
                if version is not None:
                    published.add(version)
            elif event.event == "claimed":
                claim = _claim(event)
                if claim is not None:
                    claims[claim.cycle] = claim
    lineage = trace(tuple(claims.values()))
    best = parse_version(newest) if newest else None
    highest = max((version.cycle for version in published), default=0)
    if lineage.cycle < max(highest, best.cycle if best is not None else 0):
        lineage = Lineage()  # the newest claim was not read: what is of an older cycle may be outside
    if lineage.spans:
        mine = {version for version in published if version in lineage}
    else:
        mine = {version for version in published if version.cycle == highest}
    best = best if best is not None else max(mine, default=None)
    there = {version for name in present if (version := parse_version(name)) is not None}
    known = sorted(version for version in mine | there if best is None or version <= best)
    return Line(best, known, lineage)


def _claim(event: Event) -> Claim | None:
    cycle = number(event.fields.get("cycle"))
    if cycle is None or not 0 < cycle < 1e6:
        return None
    start = event.fields.get("starts_from")
    starts_from = parse_version(start) if isinstance(start, str) else None
    return Claim(int(cycle), Term(job="", round=0, nonce=""), starts_from)
