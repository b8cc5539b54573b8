"""What goes on in a channel, for people and tools: one look at all of it, and what several looks tell of who is alive.

Reading changes nothing, and needs no right to write. Nothing is decided here: the reasons are those of
`holdfast.core.sweep`, by the retention that the working sweeper has written into its own record. Whether somebody
lives is told as the protocol tells it, by beats that change while they are watched: never by a clock elsewhere.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from holdfast.channel.beats import clock_s
from holdfast.channel.channel import Channel
from holdfast.channel.observe import Seen
from holdfast.channel.older import Older
from holdfast.core import liveness
from holdfast.core.lineage import Claim, Lineage, candidates
from holdfast.core.names import Incarnation, Version, parse_version
from holdfast.core.records import BeatRecord, ConsumerRecord, Party, SweeperRecord, versions_in
from holdfast.core.retention import Retention
from holdfast.errors import UsageError

SILENT_AFTER_BEATS = 3.0


class Survey(msgspec.Struct, frozen=True):
    """One look at a channel, as a sweeper looks. `line`: what a consumer may be given, oldest first."""

    lineage: Lineage
    versions: frozenset[Version]
    consumers: dict[Incarnation, Seen[ConsumerRecord]]
    sweepers: dict[str, Seen[SweeperRecord]]
    pinned: frozenset[Version]
    line: tuple[Version, ...]

    @property
    def newest(self) -> Version | None:
        """What a fresh consumer would be given now."""
        return self.line[-1] if self.line else None

    def holders(self, version: Version) -> list[str]:
        """The consumers' lives whose files hold `version`."""
        return [str(life) for life, record in self.records() if version in versions_in(record.holds)]

    def serving(self, version: Version) -> list[str]:
        """Those that have acknowledged `version` and not released it."""
        return [str(life) for life, record in self.records() if version in versions_in(record.serving)]

    def refused_by(self, version: Version) -> dict[str, str]:
        """Those that refused `version`, with their reasons."""
        return {
            str(life): record.refused[str(version)] for life, record in self.records() if str(version) in record.refused
        }

    def tombstoned_by(self, version: Version) -> list[str]:
        """The sweepers that have announced the removal of `version`."""
        return [
            key
            for key, seen in sorted(self.sweepers.items())
            if seen.record is not None and version in versions_in(seen.record.tombstones)
        ]

    def parties(self) -> list[Party]:
        """Where the consumers and sweepers whose files can be read see the channel from."""
        sweepers = [seen.record.party for seen in self.sweepers.values() if seen.record is not None]
        return [record.party for _, record in self.records()] + sweepers

    def records(self) -> Iterable[tuple[Incarnation, ConsumerRecord]]:
        """The consumers' files that can be read."""
        return [(life, seen.record) for life, seen in sorted(self.consumers.items()) if seen.record is not None]


def survey(channel: Channel) -> Survey:
    """Look once: claims, versions, consumers, sweepers, pins, each part read afresh."""
    observer = channel.observer()
    lineage, versions = observer.lineage(), observer.versions()
    return Survey(
        lineage,
        versions,
        observer.consumers(),
        observer.sweepers(),
        observer.pins(),
        candidates(lineage, versions)[::-1],
    )


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """What watching a beat has told so far.

    Attributes:
        state: "beats" (it changed while it was watched), "silent" (unchanged for a lease), "closed" (left in order),
            "unknown" (not watched for long enough to tell), "unreadable", or "none" (there is no beat).
        silent_s: for how long (seconds) it has stood still, as watched.
        text: the same in words.
    """

    state: str
    silent_s: float
    text: str


class PublisherStatus(msgspec.Struct, frozen=True, kw_only=True):
    cycle: int
    job: str | None
    round: int | None
    starts_from: str | None
    life: Life


class ConsumerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`behind_versions`, `behind_steps`: how far what it serves (or acknowledged last) lies behind the newest version;
    null where it serves nothing, or something outside the lineage."""

    name: str
    incarnation: str
    life: Life
    in_place: bool
    holds: list[str] = []
    serving: list[str] = []
    acknowledged: str | None = None
    behind_versions: int | None = None
    behind_steps: int | None = None
    outside_lineage: bool = False
    refused: dict[str, str] = {}
    bound_s: float | None = None
    expired_by: list[str] = []
    unseen_by: list[str] = []


class ReaderStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A reader of the legacy directory that says what it has loaded. It holds nothing: only min_age_s protects it."""

    file: str
    step: int
    version: str | None


class SweeperStatus(msgspec.Struct, frozen=True, kw_only=True):
    sweeper: str
    cycle: int | None
    life: Life
    tombstones: dict[str, str] = {}
    expired: list[str] = []
    retention: dict[str, Any] = {}


class VersionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`stays` and `reason` as the next pass of a sweeper would judge; `tombstoned_by`: sweepers that announced it."""

    version: str
    step: int
    cycle: int
    in_lineage: bool
    stays: bool
    reason: str
    tombstoned_by: list[str] = []


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A channel at one moment; `watched_s` says for how long beats have been watched."""

    channel: str
    run: str
    cycle: int
    newest: str | None
    visibility_bound_s: float | None
    lease_s: float
    watched_s: float
    publisher: PublisherStatus | None
    retention: dict[str, Any]
    retention_of: str | None
    consumers: list[ConsumerStatus]
    readers: list[ReaderStatus]
    sweepers: list[SweeperStatus]
    versions: list[VersionStatus]
    problems: list[str]


class StatusReader:
    """Looks at `channel` again and again; the more often, the more it can say of who is alive."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._observer = channel.observer()
        self._older = Older(channel)
        self._watch = liveness.Watch()
        self._watched_s = 0.0
        self._lease_s = channel.lease_s

    def look(self) -> Status:
        """One look. Raises UnavailableError where the storage fails: look again."""
        seen = survey(self._channel)
        beat = self._observer.beat(seen.lineage.cycle) if seen.lineage.cycle else Seen[BeatRecord](None, None)
        self._count(seen, beat)
        policy, policy_of = _policy(seen)
        sweepers = [self._sweeper(key, found) for key, found in sorted(seen.sweepers.items())]
        consumers = [self._consumer(life, found, seen) for life, found in sorted(seen.consumers.items())]
        return Status(
            channel=self._channel.name,
            run=self._channel.record.run,
            cycle=seen.lineage.cycle,
            newest=_text(seen.newest),
            visibility_bound_s=self._channel.record.visibility_bound_s,
            lease_s=self._lease_s,
            watched_s=round(self._watched_s, 3),
            publisher=self._publisher(seen, beat),
            retention=msgspec.to_builtins(policy),
            retention_of=policy_of,
            consumers=consumers,
            readers=self._readers(seen),
            sweepers=sweepers,
            versions=self._versions(seen, policy, sweepers),
            problems=_problems(seen, consumers),
        )

    def _count(self, seen: Survey, beat: Seen[BeatRecord]) -> None:
        now_s = clock_s()
        before_s = self._watch.looked_at_s
        gap_s = self._lease_s / 4
        if before_s is not None and now_s - before_s <= gap_s:
            self._watched_s += now_s - before_s
        tokens: dict[str, object] = {f"consumers/{life}": found.token for life, found in seen.consumers.items()}
        tokens |= {f"sweepers/{key}": found.token for key, found in seen.sweepers.items()}
        tokens[f"cycles/{seen.lineage.cycle}"] = beat.token
        self._watch = liveness.look(self._watch, tokens, now_s, gap_s=gap_s)

    def _life(self, key: str, *, closed: bool = False, readable: bool = True) -> Life:
        watched = self._watch.watched[key]
        silent_s = round(watched.silent_s, 3)
        if closed:
            return Life(state="closed", silent_s=silent_s, text="closed")
        if watched.silent_s >= self._lease_s:
            return Life(state="silent", silent_s=silent_s, text=f"silent for {silent_s:.0f} s: counts as gone")
        if not readable:
            return Life(state="unreadable", silent_s=silent_s, text="its file cannot be read")
        if watched.beaten:
            late = watched.silent_s > SILENT_AFTER_BEATS * self._channel.beat_s
            text = f"{'silent' if late else 'beats, last'} {silent_s:.1f} s{'' if late else ' ago'}"
            return Life(state="beats", silent_s=silent_s, text=text)
        return Life(state="unknown", silent_s=silent_s, text=f"no beat in {silent_s:.1f} of {self._lease_s:.0f} s")

    def _publisher(self, seen: Survey, beat: Seen[BeatRecord]) -> PublisherStatus | None:
        cycle = seen.lineage.cycle
        if not cycle:
            return None
        claim: Claim = self._observer.claim(cycle)
        if beat.token is None:
            life = Life(state="none", silent_s=0.0, text="has claimed, and not beaten yet")
        else:
            closed = beat.record is not None and beat.record.closed
            life = self._life(f"cycles/{cycle}", closed=closed, readable=beat.record is not None)
        return PublisherStatus(
            cycle=cycle,
            job=claim.term.job if claim.term is not None else None,
            round=claim.term.round if claim.term is not None else None,
            starts_from=_text(claim.starts_from),
            life=life,
        )

    def _sweeper(self, key: str, found: Seen[SweeperRecord]) -> SweeperStatus:
        record = found.record
        life = self._life(f"sweepers/{key}", closed=record is not None and record.closed, readable=record is not None)
        if record is None:
            return SweeperStatus(sweeper=key, cycle=None, life=life)
        return SweeperStatus(
            sweeper=key,
            cycle=record.cycle,
            life=life,
            tombstones={str(v): record.reasons.get(str(v), "") for v in sorted(versions_in(record.tombstones))},
            expired=list(record.expired),
            retention=record.retention,
        )

    def _consumer(self, life: Incarnation, found: Seen[ConsumerRecord], seen: Survey) -> ConsumerStatus:
        record = found.record
        key = str(life)
        alive = self._life(f"consumers/{key}", closed=record is not None and record.closed, readable=record is not None)
        working = {name: other.record for name, other in seen.sweepers.items() if other.record is not None}
        if record is None:
            return ConsumerStatus(name=life.name, incarnation=key, life=alive, in_place=True)
        uses = versions_in(record.serving) or versions_in((record.acknowledged,) if record.acknowledged else ())
        best = max((version for version in uses if version in seen.lineage), default=None)
        known = best is not None and seen.newest is not None
        return ConsumerStatus(
            name=life.name,
            incarnation=key,
            life=alive,
            in_place=record.in_place,
            holds=[str(version) for version in sorted(versions_in(record.holds))],
            serving=[str(version) for version in sorted(versions_in(record.serving))],
            acknowledged=record.acknowledged if record.acknowledged and parse_version(record.acknowledged) else None,
            behind_versions=len(seen.line) - bisect_right(seen.line, best) if known and best is not None else None,
            behind_steps=seen.newest.step - best.step if best is not None and seen.newest is not None else None,
            outside_lineage=bool(uses) and best is None,
            refused=dict(record.refused),
            bound_s=record.party.bound_s,
            expired_by=[name for name, other in sorted(working.items()) if key in other.expired],
            unseen_by=[
                name for name, o in sorted(working.items()) if not o.closed and record.in_place and key not in o.seen
            ],
        )

    def _readers(self, seen: Survey) -> list[ReaderStatus]:
        cycle = seen.lineage.cycle
        by_step = {version.step: version for version in sorted(seen.versions) if version.cycle == cycle}
        return [
            ReaderStatus(file=name, step=step, version=_text(by_step.get(step)))
            for name, step in sorted(self._older.readers(cycle).items())
        ]

    def _versions(self, seen: Survey, policy: Retention, sweepers: list[SweeperStatus]) -> list[VersionStatus]:
        """Every version, newest first, judged as the working sweeper's next pass would judge it."""
        # How old a version is, only who watched it knows: age is left out here, and told in the reason instead.
        ageless = msgspec.structs.replace(policy, min_age_s=0.0)
        expired = frozenset(key for sweeper in sweepers for key in sweeper.expired)
        verdicts = self._channel.sweeper(ageless).plan(expired)
        announced: dict[Version, list[str]] = {}
        for key, found in sorted(seen.sweepers.items()):
            for version in versions_in(found.record.tombstones) if found.record is not None else ():
                announced.setdefault(version, []).append(key)
        rows = []
        for version in sorted(seen.versions, reverse=True):
            verdict = verdicts.get(str(version))
            if verdict is None:
                continue  # swept between the two looks
            old = f", once it is {policy.min_age_s:g} s old" if policy.min_age_s and not verdict.stays else ""
            rows.append(
                VersionStatus(
                    version=str(version),
                    step=version.step,
                    cycle=version.cycle,
                    in_lineage=version in seen.lineage,
                    stays=verdict.stays,
                    reason=verdict.reason + old,
                    tombstoned_by=announced.get(version, []),
                )
            )
        return rows


def _policy(seen: Survey) -> tuple[Retention, str | None]:
    """The retention of the sweeper that works (the first in line), and that sweeper; the default where none says."""
    records = [(key, found.record) for key, found in seen.sweepers.items() if found.record is not None]
    for key, record in sorted(records, key=lambda item: (item[1].closed, -item[1].cycle, item[0])):
        policy = retention_from(record.retention)
        if policy is not None:
            return policy, key
    return Retention(), None


def retention_from(fields: Mapping[str, Any]) -> Retention | None:
    """The retention that a sweeper's record tells, or None where it tells none."""
    if not fields:
        return None
    try:
        return msgspec.convert(dict(fields), Retention)
    except (msgspec.ValidationError, UsageError):
        return None


def _problems(seen: Survey, consumers: list[ConsumerStatus]) -> list[str]:
    """What a person should look at."""
    found = []
    if not seen.lineage.readable:
        found.append(f"the claim of cycle {seen.lineage.spans[-1][0]} cannot be read: nothing is swept")
    found += [
        f"the file of consumer {c.incarnation} cannot be read: it holds everything"
        for c in consumers
        if c.life.state == "unreadable"
    ]
    found += [f"the file of sweeper {k} cannot be read" for k, s in sorted(seen.sweepers.items()) if s.record is None]
    newest = _text(seen.newest)
    found += [f"{c.name} refuses the newest version: {c.refused[newest]}" for c in consumers if newest in c.refused]
    found += [f"{c.name} was taken for dead by {', '.join(c.expired_by)}" for c in consumers if c.expired_by]
    return found


def _text(version: Version | None) -> str | None:
    return str(version) if version is not None else None
