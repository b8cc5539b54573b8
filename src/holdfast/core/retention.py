"""Retention: which versions stay although nobody holds them, each with its reason.

Held versions are no matter of retention: they stay, always. Beyond them the policy keeps what a fresh consumer
would be given, the newest acknowledged version, and what the user asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from holdfast.core.lineage import Lineage, candidates
from holdfast.core.names import Version
from holdfast.errors import UsageError


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """What a channel keeps.

    Attributes:
        keep_recent: this many newest versions of the lineage (at least 1).
        keep_every: versions whose step is a multiple of this stay for good; None for none.
        min_age_s: nothing younger than this many seconds goes (as watched by the sweeper; the only protection of
            readers that cannot write a hold).
        max_bytes: publish waits, then fails, while the versions on storage would take more than this many bytes.
    """

    keep_recent: int = 2
    keep_every: int | None = None
    min_age_s: float = 0.0
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        counts: dict[str, object] = {
            "keep_recent": self.keep_recent,
            "keep_every": self.keep_every,
            "max_bytes": self.max_bytes,
        }
        for name, value in counts.items():
            if value is None and name != "keep_recent":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise _bad(f"{name}={value!r} is no count from 1 up")
        age: object = self.min_age_s
        if not isinstance(age, int | float) or not age >= 0.0:
            raise _bad(f"min_age_s={age!r} is no length of time")


def _bad(problem: str) -> UsageError:
    return UsageError(f"bad retention: {problem}", code="bad_retention", hint="see holdfast.Retention")


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What retention looks at: the lineage, the versions on storage, and what was said of them."""

    lineage: Lineage
    versions: frozenset[Version]
    acknowledged: frozenset[Version] = frozenset()  # by anybody, within the followed claim or its lineage
    pinned: frozenset[Version] = frozenset()
    blocked: frozenset[Version] = frozenset()  # tombstoned by other sweepers: no consumer takes them
    ages_s: Mapping[Version, float] = {}


def keep(policy: Retention, known: Known) -> dict[Version, str]:
    """The versions that stay, with the reason; whatever of `known.versions` is missing here may go."""
    if not known.lineage.readable:
        return dict.fromkeys(known.versions, "kept: the highest claim cannot be read")
    kept: dict[Version, str] = {}
    line = candidates(known.lineage, known.versions)
    for version in line[: policy.keep_recent]:
        kept[version] = f"kept: one of the {policy.keep_recent} newest"
    if policy.keep_every is not None:
        for version in line:
            if version.step % policy.keep_every == 0:
                kept[version] = f"kept: every {policy.keep_every} steps"
    if policy.min_age_s > 0:
        for version in known.versions:
            if known.ages_s.get(version, 0.0) < policy.min_age_s:
                kept[version] = f"kept: younger than {policy.min_age_s:g} s"
    acknowledged = max((version for version in known.acknowledged if version in known.lineage), default=None)
    if acknowledged is not None and acknowledged in known.versions:
        kept[acknowledged] = "kept: the newest acknowledged version"
    for version in known.pinned & known.versions:
        kept[version] = "kept: pinned"
    start = known.lineage.start
    if start is not None and start in known.versions and not any(v.cycle == known.lineage.cycle for v in line):
        kept[start] = f"kept: cycle {known.lineage.cycle} starts from it"
    for version in line[:1] + tuple(version for version in line if version not in known.blocked)[:1]:
        kept[version] = "kept: a fresh consumer would be given it"
    return kept
