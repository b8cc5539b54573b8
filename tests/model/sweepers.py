"""Sweepers of the model: `holdfast.core.sweep` with a record that others may read late.

A first look is one transition: whatever a look that takes its time may find, only tombstones follow from it, and the
record may be written as late as you like. So is the second look, unless it is torn (`Size.torn`): then it is claims;
versions and one consumer's files; all the rest, with any time between them. Versions are removed one at a time.

The record that ends a pass is written together with what it follows from: a tombstone that stands longer makes others
careful and nothing else (see world.File). A sweeper that stops before it is one that stops before its second look.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from holdfast.core import sweep
from holdfast.core.bounds import settle_s
from holdfast.core.lineage import candidates
from holdfast.core.names import Version
from holdfast.core.retention import Retention
from holdfast.core.sweep import Phase, Sweep
from tests.model.tables import Step
from tests.model.world import (
    CLAIMANT,
    HOLDS,
    THERE,
    File,
    Size,
    expired_in,
    lineage_of,
    mask_of,
    record_bits,
    told,
    versions_of,
)

if TYPE_CHECKING:
    from tests.model.channel import Channel


class Holder(NamedTuple):
    """A consumer's file as one sweeper may read it."""

    key: str
    readable: tuple[int, ...]


Holders = tuple[Holder, ...]
Holdings = tuple[tuple[tuple[str, int], ...], ...]  # alternatives, each: (consumer's life, its holds)


class Reign(NamedTuple):
    """The channel as one sweeper may read it."""

    claims: tuple[tuple[int, Version | None], ...]
    versions: tuple[int, ...]


class Found(NamedTuple):
    """A look that is half done: the claim it goes by, the versions, and holds by key."""

    claim: tuple[int, Version | None]
    versions: int | None = None
    holds: tuple[tuple[str, int], ...] = ()
    done: int = -1  # the consumer whose files were read first


class Actor(NamedTuple):
    """One sweeper: its machine, what its shell has still to do, its file.

    `late`: its tombstones were written after a higher claim stood. `foreign`: others' tombstones that it must have seen
    at its second look. `settling`: instants left. `listed`: it has looked.
    """

    machine: Sweep
    todo: tuple[sweep.Effect, ...] = ()
    found: Found | None = None
    settling: int = 0
    file: File = File()
    late: bool = False
    foreign: int = 0
    listed: bool = False
    dead: bool = False

    def tick(self) -> Actor:
        return self._replace(settling=max(0, self.settling - 1), file=self.file.tick())


_replace = msgspec.structs.replace


class Sweepers:
    """The rules of all sweepers of one configuration."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.policy = Retention(keep_recent=size.keep_recent)
        self._known: dict[object, tuple[Actor, str]] = {}

    def start(self, cycle: int) -> Actor:
        """A sweeper that has said that it is here, and looked; or one that is about to (`Size.entering`)."""
        if cycle not in self.size.unseen:
            return Actor(Sweep(cycle, entered=True, bound_s=self.size.bound))
        if self.size.entering:
            return Actor(Sweep(cycle))
        return Actor(Sweep(cycle, entered=True, bound_s=self.size.bound), file=File(THERE), listed=True)

    def _misses(self, actor: Actor) -> bool:
        """It may never notice a file that is new, so it matters whom it has seen."""
        return actor.machine.cycle in self.size.unseen

    def feed(self, actor: Actor, event: sweep.Event) -> Actor:
        machine, effects = sweep.step(actor.machine, event, self.policy)
        asked = machine.seen - {CLAIMANT} if self._misses(actor) else frozenset()  # by whom it matters to be listed
        machine = _replace(machine, seen=asked)
        actor = actor._replace(machine=machine, todo=(*actor.todo, *effects))
        if actor.todo and isinstance(actor.todo[0], sweep.Settle):
            actor = actor._replace(settling=math.ceil(settle_s(actor.todo[0].bound_s)))
        if actor.todo and actor.todo[0] == sweep.Remove(frozenset()):
            return self.feed(actor._replace(todo=actor.todo[1:]), sweep.Removed())
        if machine.phase is Phase.CLEARING and isinstance(actor.todo[0], sweep.WriteRecord):
            return self._write(actor, 0)
        return actor

    # Writing the own record, dying

    def alone(self, actor: Actor, claim: int) -> list[Step]:
        if actor.dead:
            return []
        steps = []
        if (
            not actor.todo
            and actor.machine.phase is Phase.IDLE
            and not _has_entered(actor)
            and claim >= actor.machine.cycle
        ):
            actor = self.feed(actor, sweep.Begin(self.size.bound))
        head = actor.todo[0] if actor.todo else None
        if isinstance(head, sweep.WriteRecord):
            label = f"writes tombstones={told(mask_of(head.tombstones))}"
            label += f", expired={sorted(head.expired)}" if head.expired else ""
            label += f", seen={sorted(head.seen)}" if self._misses(actor) else ""
            above = any(version.cycle > actor.machine.cycle for version in head.tombstones)
            broken = "I8 a sweeper announced what a higher claim's publisher published" if above else ""
            steps.append(Step(label, self._write(actor, claim), broken=broken))
        if self._misses(actor) and self.size.entering:
            steps.append(Step("is dead, and known to be", actor._replace(dead=True, todo=(), found=None, settling=0)))
        return steps

    def _write(self, actor: Actor, claim: int) -> Actor:
        head = actor.todo[0]
        assert isinstance(head, sweep.WriteRecord)
        tombstones = mask_of(head.tombstones)
        record = record_bits(tombstones, head.expired, actor.machine.seen)
        new = tombstones & ~actor.file.now
        late = claim > actor.machine.cycle and (actor.late or bool(new)) and bool(tombstones)
        file = actor.file.write(record, stale=self.size.stale)
        return self.feed(actor._replace(file=file, late=late, todo=actor.todo[1:]), sweep.Written())

    # Looking

    def first_looks(self, actor: Actor) -> bool:
        if actor.dead or actor.settling:
            return False
        if actor.machine.phase is Phase.IDLE:
            return not actor.todo and _has_entered(actor)
        return actor.machine.phase in (Phase.ENTERING, Phase.LOOKING) and isinstance(
            actor.todo[0], sweep.Settle | sweep.Look
        )

    def first_look(self, actor: Actor, holdings: Holdings, others: tuple[int, ...], reign: Reign) -> list[Step]:
        if actor.machine.phase is Phase.ENTERING:
            looking = self.feed(actor._replace(todo=actor.todo[1:]), sweep.Settled())
        elif actor.machine.phase is Phase.IDLE:
            looking = self.feed(actor, sweep.Begin(self.size.bound))
        else:
            looking = actor
        steps = self._looks_whole(looking, holdings, others, reign)
        return [step for step in steps if step.own != actor._replace(listed=self._misses(actor))]

    def looks_again(self, actor: Actor) -> bool:
        """Settled, and nothing of the second look is read yet."""
        return self._settled(actor) and actor.found is None

    def second_look(self, actor: Actor, holdings: Holdings, others: tuple[int, ...], reign: Reign) -> list[Step]:
        """All of it at once."""
        return self._looks_whole(self._begin_second(actor), holdings, others, reign)

    def second_look_claims(self, actor: Actor, reign: Reign) -> list[Step]:
        actor = self._begin_second(actor)
        return [
            Step(f"looks again: cycle {found.claim[0]} is the highest", actor._replace(found=found))
            for found in self._claims(actor, reign)
        ]

    def second_look_goes_on(self, actor: Actor) -> bool:
        """The claims are read, nothing else is."""
        return self._settled(actor) and actor.found is not None and actor.found.done < 0

    def second_look_half(self, slot: int, actor: Actor, holdings: Holdings, reign: Reign) -> list[Step]:
        """Versions, and the files of one consumer."""
        assert actor.found is not None
        steps = {}
        mine = mask_of(actor.machine.tombstones)
        for versions in reign.versions:
            for holds in holdings:
                held = tuple((key, mask & mine) for key, mask in holds if mask & mine)
                after = actor._replace(found=actor.found._replace(versions=versions, holds=held, done=slot))
                steps[after] = Step(f"looks again: versions {told(versions)}, held {_told(held)}", after)
        return list(steps.values())

    def second_look_ends(self, slot: int, actor: Actor) -> bool:
        """The claims, the versions and the files of consumer `slot` are read."""
        return self._settled(actor) and actor.found is not None and actor.found.done == slot

    def second_look_rest(self, actor: Actor, holdings: Holdings, others: tuple[int, ...]) -> list[Step]:
        """The files of the other consumers and of the other sweepers."""
        assert actor.found is not None
        steps: dict[Actor, Step] = {}
        for rest in holdings:
            found = actor.found._replace(holds=(*actor.found.holds, *rest))
            for silent in self._silent(actor, found.holds):
                for step in self._look(actor._replace(found=None), found, silent, others):
                    steps.setdefault(step.own, step)
        return list(steps.values())

    def _settled(self, actor: Actor) -> bool:
        if actor.dead or actor.settling or actor.machine.phase not in (Phase.SETTLING, Phase.RELOOKING):
            return False
        return isinstance(actor.todo[0], sweep.Settle | sweep.Look)

    def _begin_second(self, actor: Actor) -> Actor:
        if isinstance(actor.todo[0], sweep.Settle):
            return self.feed(actor._replace(todo=actor.todo[1:]), sweep.Settled())
        return actor

    def _claims(self, actor: Actor, reign: Reign) -> list[Found]:
        return [Found(claim) for claim in reign.claims if claim[0] >= actor.machine.cycle]

    def _looks_whole(self, actor: Actor, holdings: Holdings, others: tuple[int, ...], reign: Reign) -> list[Step]:
        steps: dict[Actor, Step] = {}
        for found in self._claims(actor, reign):
            for holds in holdings:
                silent = self._silent(actor, holds)
                for versions in reign.versions:
                    whole = found._replace(versions=versions, holds=holds)
                    for names in silent:
                        for step in self._look(actor, whole, names, others):
                            steps.setdefault(step.own, step)
        return list(steps.values())

    def holdings(self, *files: Holders) -> Holdings:
        """All that a look at these consumers' files may find."""
        each = [holder for group in files for holder in group]
        found = itertools.product(*[[(file.key, bits) for bits in file.readable] for file in each])
        looks = {tuple((key, bits & HOLDS) for key, bits in one if bits & THERE) for one in found}
        if not self.size.expiry and not self.size.unseen:  # nobody asks who holds what
            looks = {(("somebody", functools.reduce(operator.or_, (mask for _, mask in one), 0)),) for one in looks}
        return tuple(sorted(looks))

    def _silent(self, actor: Actor, holds: tuple[tuple[str, int], ...]) -> list[tuple[str, ...]]:
        """Who may be taken for dead in this look: anybody, whether it was silent or not."""
        if actor.machine.cycle not in self.size.expiry:
            return [()]
        silent = _subsets(tuple(sorted({key for key, _ in holds} - actor.machine.expired)))
        return [some for some in silent if len(some) + len(actor.machine.expired) <= self.size.expired_at_most]

    def _look(self, actor: Actor, found: Found, silent: tuple[str, ...], others: tuple[int, ...]) -> list[Step]:
        assert isinstance(actor.todo[0], sweep.Look)
        steps = []
        gone = actor.machine.expired.union(silent)
        live = functools.reduce(operator.or_, (mask for key, mask in found.holds if key not in gone), 0)
        holds = tuple((key, mask) for key, mask in found.holds if key in gone or self._misses(actor))
        pins = _submasks(found.versions or 0) if self.size.pins else [0]
        for blocked, pinned in itertools.product(others, pins):
            seen = (actor, found.claim, found.versions or 0, live, holds, silent, blocked, pinned)
            known = self._known.get(seen)
            if known is None:
                known = self._known[seen] = self._looked(*seen)
            after, broken = known
            if self.removes(after):
                after = after._replace(foreign=functools.reduce(operator.and_, others))
            steps.append(Step(functools.partial(_saw, found, silent, blocked), after, broken=broken))
        return steps

    def _looked(
        self,
        actor: Actor,
        claim: tuple[int, Version | None],
        versions: int,
        live: int,
        holds: tuple[tuple[str, int], ...],
        silent: tuple[str, ...],
        blocked: int,
        pinned: int,
    ) -> tuple[Actor, str]:
        """What the machine makes of a view. Whoever lives is shown as one consumer that holds what they all hold."""
        consumers = [sweep.Consumer(key, versions_of(mask)) for key, mask in holds]
        if live and not self._misses(actor):
            consumers.append(sweep.Consumer("the living", versions_of(live)))
        view = sweep.View(
            lineage=lineage_of(*claim),
            versions=versions_of(versions),
            consumers=tuple(consumers),
            silent=frozenset(silent),
            blocked=versions_of(blocked),
            pinned=versions_of(pinned),
            bound_s=self.size.bound,
        )
        after = self.feed(actor._replace(todo=actor.todo[1:], listed=self._misses(actor)), sweep.Looked(view))
        return after, _fenced(actor, after, claim[0])

    # Removing, one version at a time

    def removes(self, actor: Actor) -> bool:
        return bool(actor.todo) and isinstance(actor.todo[0], sweep.Remove)

    def doomed(self, actor: Actor) -> int:
        head = actor.todo[0] if actor.todo else None
        return mask_of(head.versions) if isinstance(head, sweep.Remove) else 0

    def remove(self, actor: Actor, *views: Any) -> list[Step]:
        """`views`: the tombstones of each other sweeper, then the channel."""
        *announced, channel = views
        others = functools.reduce(operator.or_, announced, 0)
        head = actor.todo[0]
        assert isinstance(head, sweep.Remove)
        steps = []
        for version in sorted(head.versions):
            left = head.versions - {version}
            after = actor._replace(todo=(sweep.Remove(left), *actor.todo[1:]) if left else actor.todo[1:])
            if not left:
                after = self.feed(after._replace(foreign=0), sweep.Removed())
            broken = self._wrong(actor, version, others, channel)
            steps.append(
                Step(f"removes c{version.cycle}-s{version.step}", after, channel.without(version, self.size), broken)
            )
        if self.size.removals_fail:
            after = self.feed(actor._replace(todo=actor.todo[1:], foreign=0), sweep.Removed(head.versions))
            steps.append(Step(f"fails to remove {told(mask_of(head.versions))}", after, channel))
        return steps

    def _wrong(self, actor: Actor, version: Version, others: int, channel: Channel) -> str:
        """The invariant that removing `version` breaks, or "". `others`: what other sweepers' tombstones block."""
        if version not in versions_of(channel.present):
            return ""
        highest, start = channel.claim
        lineage = lineage_of(highest, start)
        # A claimant that was taken for dead before it claimed held nothing; it may start from what is gone.
        unlucky = highest > actor.machine.cycle and CLAIMANT in expired_in(actor.file.now)
        # A zombie's pass that began before the claim does not know what another zombie's tombstones block by now.
        for blocked in (0, others & actor.foreign if highest == actor.machine.cycle else 0):
            line = candidates(lineage, versions_of(channel.present & ~blocked))
            if start is not None and start not in versions_of(channel.present):  # gone: as above, or no longer needed
                line = tuple(v for v in line if v.cycle == highest)
            if line and line[0] == version and not unlucky:
                return "I5 what a fresh consumer would be given was deleted"
        if highest > actor.machine.cycle and version in lineage and actor.late:
            return "I8 a fenced sweeper deleted what it announced after the higher claim"
        return ""


def _has_entered(actor: Actor) -> bool:
    """It has said that it is here, or does without (as a core might that has lost the rule)."""
    machine, _ = sweep.step(actor.machine, sweep.Begin(), Retention())
    return machine.phase is not Phase.ENTERING


def _fenced(actor: Actor, after: Actor, claim: int) -> str:
    """Once a look has shown the higher claim, nothing more is announced or removed."""
    if claim <= actor.machine.cycle:
        return ""
    stopped = after.machine.phase is Phase.STOPPED and not after.todo and not after.file.now & HOLDS
    return "" if stopped else "I8 a fenced sweeper went on, or left its tombstones standing"


def _saw(found: Found, silent: tuple[str, ...], blocked: int) -> str:
    text = f"looks: cycle {found.claim[0]}, versions {told(found.versions or 0)}, held {_told(found.holds)}"
    text += f", silent: {', '.join(silent)}" if silent else ""
    return text + (f", others' tombstones {told(blocked)}" if blocked else "")


def _told(holds: tuple[tuple[str, int], ...]) -> str:
    return "{" + ", ".join(f"{key}: {told(mask)}" for key, mask in holds) + "}"


@cache
def _submasks(mask: int) -> list[int]:
    return [some for some in range(mask + 1) if some & ~mask == 0]


@cache
def _subsets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [some for size in range(len(names) + 1) for some in itertools.combinations(names, size)]
