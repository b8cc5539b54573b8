"""Consumers of the model: `holdfast.core.consume` with a file that others may read late.

Every transition below touches what others can see once: it reads one file, or writes the own one, or looks at the
channel; what happens inside the process until the next such access belongs to it. (Without `Size.torn` a look at all
sweepers' files is one access.) Beyond that, three pairs are merged:

* A poll, and the write of the hold that follows from it. The poll is given more than it could see: any version that is
  there (as when the newer ones were not visible yet, or the consumer froze between poll and write) and any claim that
  ever was the highest. Versions that are gone are left out: a hold on a name that never comes back concerns nobody,
  and the check that follows fails.
* The look at the sweepers and the check of a version that is used in place. Between them nobody but the consumer can
  tell which of the two it has behind it, and a sweeper that could remove the version there could do so after the check.
* A decision to let go and the write that says so: a hold that stands longer makes others careful and nothing else
  (see world.File).

A poll that gives nothing is no transition: that a higher claim was seen only narrows what the consumer may do later.

Fields that no decision reads (`serving`, `acknowledged`, the reasons of refusals, the progress of a check) are cleared,
and so are refusals, since what is refused here is gone: states that differ in them alone are one.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import msgspec

from holdfast.core import consume
from holdfast.core.consume import Consume, Mode, Phase
from holdfast.core.lineage import Lineage
from holdfast.core.names import Version
from tests.model.tables import Step
from tests.model.world import HOLDS, THERE, File, Size, lineage_of, mask_of, short, told, versions_of

MODES = {
    "newest": Mode(),
    "every": Mode(every=True),
    "staged": Mode(staged=True, in_place=False),
}
_replace = msgspec.structs.replace


class Sight(NamedTuple):
    """A sweeper's record as one consumer reads it: its tombstones, and which of that consumer's lives it names.

    `seen` None: that sweeper need not have seen it.
    """

    tombstones: int
    expired: frozenset[int] = frozenset()
    seen: frozenset[int] | None = None


class Reading(NamedTuple):
    """A look at the sweepers' files, half done: which were read, and what they said."""

    read: int = 0
    tombstones: int = 0
    expired: bool = False
    unseen: bool = False
    ghost: bool = False  # for I6: what is to be acknowledged was not there when the look began


class Actor(NamedTuple):
    """One consumer: its machine, what its shell has still to do for it, its file, and the file of the life before.

    `gave`: (claim, version) of the last Give; `acking`: the version whose acknowledgement waits for the lease.
    `hidden`: the sweepers that do not notice the file of this life.
    """

    mode: str
    life: int = 1
    lives: int = 1
    machine: Consume = Consume()
    todo: tuple[object, ...] = ()
    reading: Reading | None = None
    acking: Version | None = None
    file: File = File()
    before: File | None = None
    gave: tuple[int, Version] | None = None
    hidden: int = 0
    over: bool = False

    @property
    def uses(self) -> int:
        """What it works with in place, or copies, after hold and look: mask."""
        machine = self.machine
        if self.over or "adopt" in self.todo or "look" in self.todo:
            return 0
        used = machine.given if self.mode != "staged" else frozenset()
        if machine.phase is Phase.CHECKING and machine.taking is not None:
            used |= {machine.taking}
        return mask_of(used)


class Enter(NamedTuple):
    """Begin a life: write an own file with what the life before held."""


class Consumers:
    """The rules of all consumers of one configuration."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.both = (1 << len(size.sweepers)) - 1

    # The machine and what it asks for

    def feed(self, actor: Actor, event: consume.Event) -> tuple[Actor, str]:
        """One event; effects that nobody else sees are done, the others are queued. And what it breaks."""
        machine, effects = consume.step(actor.machine, event, MODES[actor.mode])
        broken = ""
        todo = list(actor.todo)
        for effect in effects:
            match effect:
                case consume.Give(version):
                    broken = broken or self._given(actor, machine, version)
                    if not isinstance(event, consume.Checked):
                        broken = f"I1 {short(version)} was given unchecked"
                    actor = actor._replace(gave=(machine.claim, version))
                case consume.Drop():
                    return self._reborn(actor, machine), broken
                case consume.Acknowledged():
                    if not isinstance(event, consume.LeaseRead) or event.expired:
                        broken = "I6 acknowledged without a look at the own lease, or in spite of it"
                case consume.Idle():
                    pass
                case _:
                    todo.append(effect)
        actor = actor._replace(machine=_tidy(machine), todo=tuple(todo))
        if todo and isinstance(todo[0], consume.WriteRecord) and self._adds_nothing(actor):
            step = self._write(actor)
            return step.own, broken or step.broken
        return actor, broken

    def _adds_nothing(self, actor: Actor) -> bool:
        """Writing late that a hold is gone only makes others careful (see world.File): it is written at once."""
        return mask_of(actor.machine.holds) & ~actor.file.now == 0 and actor.file.now != 0

    def _given(self, actor: Actor, machine: Consume, version: Version) -> str:
        if actor.gave is not None:
            claim, last = actor.gave
            if machine.claim < claim or (machine.claim == claim and version < last):
                return f"I3 position fell from claim {claim}, {short(last)} to claim {machine.claim}, {short(version)}"
        if actor.mode != "staged" and version not in versions_of(actor.file.now & HOLDS):
            return f"I1 {short(version)} was given without a hold"
        return ""

    def _reborn(self, actor: Actor, machine: Consume) -> Actor:
        if actor.life >= actor.lives:
            return Actor(
                actor.mode, actor.life, actor.lives, over=True
            )  # what its file still says holds too much, at worst
        return Actor(
            mode=actor.mode,
            life=actor.life + 1,
            lives=actor.lives,
            machine=_tidy(machine),
            todo=(Enter(),),
            before=actor.file,
            gave=actor.gave if machine != Consume() else None,
        )

    # Alone: the user's acts, writing the own file, crashing

    def alone(self, actor: Actor, listed: int = 0) -> list[Step]:
        """`listed`: the sweepers that have looked before, and so may miss a file that is new."""
        steps: list[Step] = []
        head = actor.todo[0] if actor.todo else None
        match head:
            case consume.WriteRecord():
                steps.append(self._write(actor))
            case Enter():
                steps += _maybe_hidden(actor, self._enter(actor), listed)
            case "delete":
                assert actor.before is not None
                steps.append(Step("removes its old file", actor._replace(todo=actor.todo[1:], before=None)))
        if actor.life < actor.lives and actor.file.now & HOLDS:
            steps.append(Step("crashes and comes back", self._reborn(actor, Consume())))
        if "adopt" not in actor.todo and "look" not in actor.todo:
            steps += self._user(actor)
        if actor.hidden:
            steps.append(Step("its file becomes visible to all", actor._replace(hidden=0)))
        return steps

    def _write(self, actor: Actor) -> Step:
        holds = mask_of(actor.machine.holds)
        written = actor._replace(file=actor.file.write(holds | THERE, stale=self.size.stale), todo=actor.todo[1:])
        after, broken = self.feed(written, consume.Written())
        return Step(f"writes holds={told(holds)}", after, broken=broken)

    def _enter(self, actor: Actor) -> list[Step]:
        steps = []
        assert actor.before is not None
        for found in actor.before.readable:
            holds = versions_of(found & HOLDS)
            machine = _replace(actor.machine, holds=holds, given=actor.machine.given | holds)
            after = actor._replace(
                machine=machine,
                file=File().write(mask_of(holds) | THERE, stale=self.size.stale),
                todo=("look",),
                reading=Reading(),
            )
            steps.append(Step(f"life {actor.life}: writes a new file with holds={told(mask_of(holds))}", after))
        return steps

    def _user(self, actor: Actor) -> list[Step]:
        steps = []
        machine = actor.machine
        for version in sorted(machine.given):
            acts: list[consume.Event] = [consume.Release(version)]
            if self.size.fails and version == machine.last:
                acts = [consume.Fail(version)]  # as Release, and may be given again: it allows all that Release allows
            for act in acts:
                after, broken = self.feed(actor._replace(todo=()), act)
                if after.acking == version:
                    continue
                if after.todo:
                    holds = mask_of(after.machine.holds)
                    after = after._replace(file=after.file.write(holds | THERE, stale=self.size.stale))
                steps.append(
                    Step(
                        f"{type(act).__name__.lower()}s {short(version)}",
                        after._replace(todo=actor.todo),
                        broken=broken,
                    )
                )
            if self.size.acknowledges and not actor.todo and machine.phase is Phase.IDLE:
                asked, broken = self.feed(actor, consume.Acknowledge(version))
                steps.append(Step(f"would acknowledge {short(version)}", asked._replace(acking=version), broken=broken))
        return steps

    # Looking at the sweepers' files, one after the other

    def reads(self, actor: Actor) -> int:
        """Which sweepers' files it may read next: mask."""
        head = actor.todo[0] if actor.todo else None
        if not (isinstance(head, consume.ReadSweepers | consume.CheckLease) or head == "look"):
            return 0
        done = actor.reading.read if actor.reading is not None else 0
        left = self.both & ~done
        if len(set(self.size.sweepers)) == 1:
            return left
        return left & -left  # by name, that is by cycle

    def read(self, index: int, actor: Actor, sights: tuple[Sight, ...], present: int) -> list[Step]:
        """Read the file of sweeper `index`; the last one read decides."""
        steps = []
        before = actor.reading or Reading(ghost=self._is_ghost(actor, present))
        for sight in sights:
            lives = range(1, actor.life + 1) if actor.todo[0] == "look" else (actor.life,)
            reading = Reading(
                before.read | 1 << index,
                before.tombstones | sight.tombstones & self._asked(actor),
                before.expired or any(life in sight.expired for life in lives),
                before.unseen or (sight.seen is not None and actor.life not in sight.seen),
                before.ghost,
            )
            label = f"reads sweeper {index + 1}: tombstones={told(sight.tombstones)}"
            label += ", it is expired" if reading.expired else ""
            label += ", it is not seen" if reading.unseen else ""
            if reading.read != self.both:
                steps.append(Step(label, actor._replace(reading=reading)))
                continue
            after, broken = self._has_read(actor._replace(reading=None), reading)
            if not broken and actor.mode != "staged" and after.todo and isinstance(after.todo[0], consume.Check):
                found = self._check(after, after.todo[0].version, present, ())
                label, after, broken = f"{label}; {found[0].label}", found[0].own, found[0].broken
            steps.append(Step(label, after, broken=broken))
        return steps

    def read_all(self, actor: Actor, *views: object) -> list[Step]:
        """Read the files of all sweepers at once."""
        *sights, present = views
        steps = [Step("", actor)]
        for index, one in enumerate(sights):
            last = steps
            steps = [
                Step(f"{step.label}{'; ' * bool(step.label)}{more.label}", more.own, broken=more.broken)
                for step in last
                for more in self.read(index, step.own, one, present)
            ]
        return list({step.own: step for step in steps}.values())

    def _asked(self, actor: Actor) -> int:
        """The tombstones that the answer depends on: of what is being taken, or taken over."""
        if actor.todo[0] == "look":
            return mask_of(actor.machine.holds)
        return mask_of(frozenset({actor.machine.taking})) if actor.machine.taking is not None else 0

    def _is_ghost(self, actor: Actor, present: int) -> bool:
        head = actor.todo[0]
        if not isinstance(head, consume.CheckLease) or actor.mode == "staged":
            return False
        return head.version not in versions_of(present & actor.file.now)

    def _has_read(self, actor: Actor, reading: Reading) -> tuple[Actor, str]:
        head, actor = actor.todo[0], actor._replace(todo=actor.todo[1:])
        if isinstance(head, consume.CheckLease):
            after, broken = self.feed(actor._replace(acking=None), consume.LeaseRead(head.version, reading.expired))
            if reading.ghost and not reading.expired:
                broken = f"I6 {short(head.version)} was acknowledged when it was gone"
            return after, broken
        if isinstance(head, consume.ReadSweepers):
            unseen = ("sweeper",) if reading.unseen else ()
            event = consume.SweepersRead(versions_of(reading.tombstones), reading.expired, unseen)
            return self.feed(actor, event)
        if reading.unseen and actor.mode != "staged":
            return actor._replace(todo=("look",)), ""
        machine = actor.machine
        lost = machine.holds if reading.expired else machine.holds & versions_of(reading.tombstones)
        kept = _replace(machine, holds=machine.holds - lost, given=machine.given - lost)
        write = (consume.WriteRecord(),) if lost else ()
        adopt = ("adopt",) if kept.given else ()
        return actor._replace(machine=kept, todo=("delete", *write, *adopt)), ""

    # Looking at the channel

    def looks(self, actor: Actor) -> bool:
        if actor.over:
            return False
        head = actor.todo[0] if actor.todo else None
        if head is None:
            idle = actor.machine.phase is Phase.IDLE and len(actor.machine.given) < self.size.at_once
            return idle or actor.machine.phase in (Phase.UNSEEN, Phase.CHECKING)
        return isinstance(head, consume.Check) or head == "adopt"

    def look(
        self, actor: Actor, present: int, claims: tuple[tuple[int, Version | None], ...], listed: int = 0
    ) -> list[Step]:
        head = actor.todo[0] if actor.todo else None
        if head == "adopt":
            return [self._adopt(actor, present)]
        if isinstance(head, consume.Check):
            return self._check(actor, head.version, present, claims)
        steps = {}
        for lineage in (lineage_of(*claim) for claim in claims):
            for looked in self._polls(actor, lineage, present):
                after, broken = self.feed(actor, looked)
                if not after.todo and not broken and after.machine.phase is Phase.IDLE:
                    continue  # nothing to take; that a higher claim was seen only narrows what may follow
                label = f"polls (cycle {lineage.cycle})"
                if after.todo and isinstance(after.todo[0], consume.WriteRecord):
                    written = self._write(after)
                    label, after, broken = f"{label}, {written.label}", written.own, broken or written.broken
                steps[after] = Step(label, after, broken=broken)
        return _maybe_hidden(actor, list(steps.values()), listed)

    def _polls(self, actor: Actor, lineage: Lineage, present: int) -> list[consume.Looked]:
        """All that a poll may find: every set of what is there, but one per newest where only the newest counts."""
        masks = [mask for mask in range(present + 1) if mask & ~present == 0]
        if actor.mode != "every":
            masks = [mask for mask in masks if (present & ((1 << mask.bit_length()) - 1)) == mask]
        return [consume.Looked(lineage, versions_of(mask)) for mask in masks]

    def _check(
        self, actor: Actor, version: Version, present: int, claims: tuple[tuple[int, Version | None], ...]
    ) -> list[Step]:
        checking = actor._replace(todo=actor.todo[1:])
        if version in versions_of(present):
            after, broken = self.feed(checking, consume.Checked())
            return [Step(f"finds {short(version)} right, is given it", after, broken=broken)]
        if not claims:
            return [Step(f"does not find {short(version)}", actor)]
        patient = MODES[actor.mode].patience_s
        steps = []
        waiting, _ = self.feed(checking, consume.NotVisible("gone", 0, 0.0))
        refused, broken = self.feed(waiting, consume.NotVisible("gone", 0, patient))
        steps.append(Step(f"does not find {short(version)}, refuses it", refused, broken=broken))
        for claim in claims:
            after, broken = self.feed(waiting, consume.Looked(lineage_of(*claim), versions_of(present)))
            if not (after.todo and isinstance(after.todo[0], consume.Check)):
                steps.append(
                    Step(f"does not find {short(version)}, and cycle {claim[0]} does not want it", after, broken=broken)
                )
        return steps

    def _adopt(self, actor: Actor, present: int) -> Step:
        machine = actor.machine
        there = versions_of(present)
        kept = frozenset(version for version in machine.given if version in there)
        adopted = _replace(machine, given=kept, holds=machine.holds & kept)
        file = actor.file.write(mask_of(adopted.holds) | THERE, stale=self.size.stale)
        return Step(
            f"takes over {told(mask_of(kept))}", actor._replace(machine=adopted, file=file, todo=actor.todo[1:])
        )


def _maybe_hidden(before: Actor, steps: list[Step], listed: int) -> list[Step]:
    """Each step as it is, and, where it makes a file, with that file unnoticed by some sweepers that looked earlier."""
    found = list(steps)
    for step in steps:
        if not before.file.now and step.own.file.now:
            unnoticed = [step.own._replace(hidden=some) for some in range(1, listed + 1) if some & ~listed == 0]
            found += [Step(f"{step.label}, unnoticed by some", own, broken=step.broken) for own in unnoticed]
    return found


@cache
def _tidy(machine: Consume) -> Consume:
    return _replace(
        machine,
        serving=frozenset(),
        acknowledged=None,
        acknowledged_cycle=0,
        refused=frozenset(),
        progress=0,
        progress_s=-1.0 if machine.taking is not None else 0.0,
    )
