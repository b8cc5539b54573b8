"""The channel of the model: claims, versions, both publishers, and what publisher 2 holds while it resumes.

Publisher 1 reigns from the start. Publisher 2 may claim at any time: from nothing, or from a version that it holds as a
consumer holds (it runs the consumer's machine for that); it lets go after its first version. From then on publisher 1
is a zombie that goes on.

A publisher is always as far as its next commit: whoever still stages or reads the claims can do less than one that
commits in the next moment, and it may wait there for ever.
"""

from __future__ import annotations

from typing import NamedTuple

from holdfast.core import claims, consume, publish
from holdfast.core.lineage import Claim, Lineage, candidates, fresh
from holdfast.core.names import Version
from holdfast.core.publish import Phase, Publisher
from tests.model import consumers
from tests.model.consumers import Consumers, Sight
from tests.model.sweepers import Holder, Holders, Reign
from tests.model.tables import Step
from tests.model.world import (
    CLAIMANT,
    FIRST,
    NAMES,
    SETTLED,
    TERMS,
    Size,
    lineage_of,
    short,
    versions_of,
)

NEVER, PRESENT, GONE = 0, 9, 99  # a version's status; between them: instants since it came (+1), since it went (+10)
CAME, WENT = 1, 11


class Channel(NamedTuple):
    """`claimed`: instants since claim 2 was made, or -1. `status`: of each of NAMES."""

    status: tuple[int, ...]
    one: Publisher
    two: Publisher | None = None
    holder: consumers.Actor | None = None
    claimed: int = -1

    @property
    def present(self) -> int:
        return sum(1 << i for i, status in enumerate(self.status) if CAME <= status <= PRESENT)

    @property
    def used(self) -> int:
        return sum(status != NEVER for status in self.status)

    @property
    def claim(self) -> tuple[int, Version | None]:
        """The highest claim: (cycle, where it starts)."""
        if self.claimed < 0:
            return 1, None
        assert self.two is not None
        return 2, self.two.starts_from

    def tick(self) -> Channel:
        claimed = min(self.claimed + 1, SETTLED) if self.claimed >= 0 else -1
        holder = self.holder._replace(file=self.holder.file.tick()) if self.holder is not None else None
        return self._replace(status=tuple(map(_older, self.status)), claimed=claimed, holder=holder)

    def without(self, version: Version, size: Size) -> Channel:
        return self._with(version, WENT + SETTLED - size.stale if size.late_listings and size.stale else GONE)

    def having(self, version: Version, size: Size) -> Channel:
        return self._with(version, CAME + SETTLED - size.stale if size.late_listings and size.stale else PRESENT)

    def _with(self, version: Version, status: int) -> Channel:
        at = NAMES.index(version)
        if status >= WENT and not CAME <= self.status[at] <= PRESENT:
            return self
        return self._replace(status=(*self.status[:at], status, *self.status[at + 1 :]))

    # What others see

    def claims_ever(self) -> tuple[tuple[int, Version | None], ...]:
        return ((1, None),) if self.claimed < 0 else ((1, None), self.claim)

    def reign(self) -> Reign:
        claims_ = [self.claim]
        if 0 <= self.claimed < SETTLED:
            claims_.append((1, None))
        views = [0]
        for i, status in enumerate(self.status):
            maybe = status != PRESENT and (CAME <= status < PRESENT or WENT <= status < GONE)
            if maybe:
                views += [view | 1 << i for view in views]
            elif status == PRESENT:
                views = [view | 1 << i for view in views]
        return Reign(tuple(claims_), tuple(views))

    def holders(self) -> Holders:
        """Publisher 2's file, as that of a consumer."""
        if self.holder is None or not self.holder.file.now:
            return ()
        return (Holder(CLAIMANT, self.holder.file.readable),)


def _older(status: int) -> int:
    if CAME <= status < PRESENT:
        return status + 1 if status - CAME < SETTLED - 1 else PRESENT
    if WENT <= status < GONE:
        return status + 1 if status - WENT < SETTLED - 1 else GONE
    return status


class Publishers:
    """The rules of both publishers of one configuration."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.consumers = Consumers(size)

    def start(self) -> Channel:
        one, _ = publish.step(Publisher(), publish.Admitted(1))
        one, _ = publish.step(one, publish.ClaimMade())
        one = _to_commit(one, 0, 1)
        return Channel((NEVER,) * len(NAMES), one)

    def alone(self, channel: Channel) -> list[Step]:
        steps = self._commits(channel, 1)
        if channel.two is None and self.size.second_publisher:
            steps += self._may_hold(channel)
            if channel.holder is None:
                steps.append(self._claims(channel, None))
            elif channel.holder.machine.given:
                steps.append(self._claims(channel, channel.holder.machine.last))
        if channel.two is not None:
            steps += self._commits(channel, 2)
        if channel.holder is not None:
            steps += self._holds_on(channel, channel.holder)
        return steps

    def _commits(self, channel: Channel, cycle: int) -> list[Step]:
        publisher = channel.one if cycle == 1 else channel.two
        assert publisher is not None
        if publisher.phase is not Phase.COMMITTING or channel.used >= self.size.versions:
            return []
        version = publisher.making
        assert version is not None
        after = channel.having(version, self.size)
        broken = ""
        line = lineage_of(*channel.claim)
        if cycle < channel.claim[0] and candidates(line, versions_of(after.present)) != candidates(
            line, versions_of(channel.present)
        ):
            broken = "I8 a fenced publisher changed what consumers may be given"
        done, _ = publish.step(publisher, publish.Committed())
        done, _ = publish.step(done, publish.Pointed())
        highest = {claim for claim, _ in channel.reign().claims if claim >= cycle}
        index = NAMES.index(version) + 1
        steps = []
        for claim in sorted(highest):
            more = index - FIRST[cycle] < self.size.per_cycle[cycle - 1]
            ready = _to_commit(done, index, claim) if more else done
            own = after._replace(one=ready) if cycle == 1 else after._replace(two=ready)
            steps.append(Step(f"publisher {cycle} commits {short(version)}", own, broken=broken))
        return steps

    # Publisher 2 before its first version

    def _may_hold(self, channel: Channel) -> list[Step]:
        if channel.holder is not None:
            return []
        steps = []
        for version in sorted(versions_of(channel.present)):
            only = consume.Looked(Lineage(((version.cycle, None),)), frozenset({version}))
            holder, broken = self.consumers.feed(consumers.Actor("newest"), only)
            if holder.todo and isinstance(holder.todo[0], consume.WriteRecord):
                steps += self._as_holder(channel, self.consumers.alone(holder)[:1])
            else:
                steps += self._as_holder(channel, [Step(f"takes {short(version)}", holder, broken=broken)])
        return steps

    def _holds_on(self, channel: Channel, holder: consumers.Actor) -> list[Step]:
        head = holder.todo[0] if holder.todo else None
        if isinstance(head, consume.WriteRecord):
            return self._as_holder(channel, [step for step in self.consumers.alone(holder) if "writes" in step.label])
        if holder.over:
            return []
        if isinstance(head, consume.Check) or holder.machine.phase is consume.Phase.UNSEEN:
            return self._as_holder(channel, self.consumers.look(holder, channel.present, channel.claims_ever()))
        if channel.two is not None and channel.two.last is not None and holder.machine.given:
            steps = [step for step in self.consumers.alone(holder) if "release" in step.label or "fail" in step.label]
            return self._as_holder(channel, steps)
        return []

    def _as_holder(self, channel: Channel, steps: list[Step]) -> list[Step]:
        return [Step(f"publisher 2 {s.label}", channel._replace(holder=s.own), broken=s.broken) for s in steps]

    def reads(self, channel: Channel) -> int:
        return self.consumers.reads(channel.holder) if channel.holder is not None else 0

    def read(self, index: int, channel: Channel, sights: tuple[Sight, ...]) -> list[Step]:
        assert channel.holder is not None
        return self._as_holder(channel, self.consumers.read(index, channel.holder, sights, channel.present))

    def read_all(self, channel: Channel, *sights: tuple[Sight, ...]) -> list[Step]:
        assert channel.holder is not None
        return self._as_holder(channel, self.consumers.read_all(channel.holder, *sights, channel.present))

    def _claims(self, channel: Channel, start: Version | None) -> Step:
        standing = claims.Standing()
        decision = claims.admit(TERMS[2], (Claim(1, TERMS[1], None),), standing, lease_s=1.0, take_over=True)
        assert isinstance(decision, claims.Admit)
        two, _ = publish.step(Publisher(starts_from=start), publish.Admitted(decision.cycle))
        two, _ = publish.step(two, publish.ClaimMade())
        two = _to_commit(two, FIRST[2], 2)
        claimed = SETTLED - self.size.stale
        return Step(f"publisher 2 claims, from {short(start)}", channel._replace(two=two, claimed=claimed))


def _to_commit(publisher: Publisher, index: int, highest: int) -> Publisher:
    """From OPEN to COMMITTING the version at `index`, or FENCED if `highest` is a higher claim."""
    name = NAMES[index]
    publisher, _ = publish.step(publisher, publish.Publish(name.step, name.nonce))
    publisher, _ = publish.step(publisher, publish.Staged())
    publisher, _ = publish.step(publisher, publish.ClaimsRead(highest))
    return publisher


def is_clean(channel: Channel) -> bool:
    """What a fresh consumer would be given is there, and nothing else."""
    needed = fresh(lineage_of(*channel.claim), versions_of(channel.present))
    return versions_of(channel.present) == ({needed} if needed is not None else set())


def uses(channel: Channel) -> int:
    """What publisher 2 holds, looked at and found right: mask."""
    return channel.holder.uses if channel.holder is not None else 0
