"""A channel on a simulated disk, used by the real shells, and what its users were told.

`Told` is the other half of every promise: a version whose publish returned, a claim that stands, a hold that was
given, an acknowledgement. It lives outside the disk, as users do, so that it can be held against whatever a disk
comes back with (`rest.py`) and against what the next processes make of it (`recovery.py`).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable

from holdfast import Channel
from holdfast.channel.consumer import Consumer
from holdfast.channel.held import HeldVersion
from holdfast.channel.ops import Ops
from holdfast.channel.payload import Payload
from holdfast.channel.posix import PosixStorage
from holdfast.channel.publisher import Publisher
from holdfast.channel.sources import BytesSource
from holdfast.channel.storage import Storage
from holdfast.channel.sweeper import Sweeper, Swept
from holdfast.core.manifest import Manifest
from holdfast.core.names import Version, parse_version
from holdfast.core.records import Term
from holdfast.core.retention import Retention
from holdfast.testing import PowerCut, SimulatedDisk
from tests.crash.hand import Hand

ROOT = "/channel"
LEASE_S = 60.0
TICK_S = LEASE_S / 5  # looks further apart than a quarter of a lease count no silence
KEEP_RECENT = 2
RETENTION = Retention(keep_recent=KEEP_RECENT)


def files_of(label: str) -> dict[str, bytes]:
    """The payload that goes by this label: three files, one of them below a directory, one empty."""
    return {
        "model.bin": f"weights of {label} ".encode() * 4,
        "more/part.bin": f"{label} also ".encode() * 3,
        "more/nothing": b"",
    }


@dataclasses.dataclass
class Told:
    """What users know. Begun is noted before a call, done after it returned."""

    lives: int = 0  # how often the machine was started
    rounds: int = 0  # terms used so far
    begun: set[str] = dataclasses.field(default_factory=set)  # labels
    labels: dict[Version, str] = dataclasses.field(default_factory=dict)  # publish returned
    line: list[Version] = dataclasses.field(
        default_factory=list
    )  # those of them that the present trainer descends from
    cycle: int = 0  # open returned
    held: dict[str, set[Version]] = dataclasses.field(default_factory=dict)  # given, release not begun
    acknowledging: dict[str, list[Version]] = dataclasses.field(default_factory=dict)  # begun, in order
    acknowledged: dict[str, Version] = dataclasses.field(default_factory=dict)  # the last that returned
    refusing: dict[str, set[Version]] = dataclasses.field(default_factory=dict)  # begun
    refused: dict[str, set[Version]] = dataclasses.field(default_factory=dict)  # returned
    may_go: set[Version] = dataclasses.field(default_factory=set)  # a sweep that may remove them has begun

    def must_stay(self) -> set[Version]:
        """Published, and no sweep had leave to remove it."""
        return set(self.labels) - self.may_go


class World:
    """Processes on one disk. Each of its methods is one call of a user, noted in `told`."""

    def __init__(self, hand: Hand, disk: SimulatedDisk, told: Told | None = None, ops: Ops | None = None) -> None:
        self.hand = hand
        self.disk = disk
        self._ops: Ops = disk if ops is None else ops
        self.told = told if told is not None else Told()
        self._closing: list[Callable[[], None]] = []
        self.told.lives += 1
        hand.begin(self.told.lives)

    def storage(self, ops: Ops | None = None) -> Storage:
        return PosixStorage(ROOT, ops=self._ops if ops is None else ops)

    def channel(self, ops: Ops | None = None) -> Channel:
        return Channel(self.storage(ops), events=False, lease_s=LEASE_S)

    def abandon(self) -> None:
        """Power off, and end what the dead processes had."""
        self.disk.cut_power()
        for close in self._closing:
            with contextlib.suppress(PowerCut):
                close()

    # Publishing

    def open_publisher(self, *, start: Version | None = None, ops: Ops | None = None) -> Publisher:
        """A publisher of the next round, which begins at `start`."""
        publisher = self.new_publisher(start=start, ops=ops)
        self.enter_publisher(publisher, start)
        return publisher

    def new_publisher(self, *, start: Version | None = None, ops: Ops | None = None) -> Publisher:
        """One that is not open yet."""
        told = self.told
        told.rounds += 1
        term = Term(job="training", round=told.rounds, nonce=f"nonce-{told.rounds}")
        publisher = self.channel(ops).publisher(RETENTION, resume_from=start, term=term, sweep=False, wait_s=0.0)
        self._closing.append(publisher.close)
        return publisher

    def enter_publisher(self, publisher: Publisher, start: Version | None) -> None:
        """Open it."""
        told = self.told
        publisher.open()
        assert publisher.cycle > told.cycle, "a claim that stood is not claimed again"
        told.cycle = publisher.cycle
        told.line = told.line[: told.line.index(start) + 1] if start is not None else []

    def publish(self, publisher: Publisher, step: int, label: str) -> Version:
        told = self.told
        told.begun.add(label)
        files = tuple((path, BytesSource([data])) for path, data in files_of(label).items())
        version = publisher.publish_payload(step, Payload(files=files, kind="test"), metadata={"label": label})
        assert isinstance(version, Version)
        assert told.labels.get(version, label) == label, "one name, two payloads"
        assert version.cycle == publisher.cycle
        told.labels[version] = label
        if version not in told.line:
            told.line.append(version)
        return version

    # Consuming

    def open_consumer(self, name: str, *, every: bool = False, keep: bool = False, ops: Ops | None = None) -> Consumer:
        consumer = self.new_consumer(name, every=every, keep=keep, ops=ops)
        self.enter_consumer(consumer)
        return consumer

    def new_consumer(self, name: str, *, every: bool = False, keep: bool = False, ops: Ops | None = None) -> Consumer:
        """One that is not open yet."""
        consumer = self.channel(ops).consumer(name, every=every, on_close="keep" if keep else "release")
        self._closing.append(consumer.close)
        return consumer

    def enter_consumer(self, consumer: Consumer) -> None:
        """Open it; what the life before held is held by this one."""
        consumer.open()
        held = {version.name for version in consumer.held}
        assert held >= self.told.held.get(consumer.name, set()), "what was held in the life before is held in this one"
        self.told.held[consumer.name] = held
        for version in consumer.held:
            self.check_given(version)

    def take(self, consumer: Consumer) -> HeldVersion | None:
        """What there is now."""
        held = consumer.take(timeout_s=0.0)
        if held is not None:
            self.check_given(held)
            self.told.held.setdefault(consumer.name, set()).add(held.name)
        return held

    def acknowledge(self, consumer: Consumer, held: HeldVersion) -> None:
        self.told.acknowledging.setdefault(consumer.name, []).append(held.name)
        held.acknowledge()
        self.told.acknowledged[consumer.name] = held.name

    def release(self, consumer: Consumer, held: HeldVersion) -> None:
        self.told.held[consumer.name].discard(held.name)
        held.release()

    def reject(self, consumer: Consumer, held: HeldVersion) -> None:
        self.told.held[consumer.name].discard(held.name)
        self.told.refusing.setdefault(consumer.name, set()).add(held.name)
        held.reject("tried, and worse")
        self.told.refused.setdefault(consumer.name, set()).add(held.name)

    def leave(self, consumer: Consumer) -> None:
        """Close one that releases all: nothing is left of it, its acknowledgement included."""
        self.told.held[consumer.name].clear()
        self.told.acknowledged.pop(consumer.name, None)
        self.told.refused.pop(consumer.name, None)
        consumer.close()

    def check_given(self, held: HeldVersion) -> None:
        """I1: what is given is what was published under that name, whole."""
        self.check_bytes(held.name, held.manifest)

    def check_bytes(self, version: Version, manifest: Manifest) -> None:
        label = manifest.metadata["label"]
        assert label in self.told.begun
        assert self.told.labels.get(version, label) == label
        assert (manifest.cycle, manifest.step) == (version.cycle, version.step)
        tree = self.disk.tree()
        found = {file.path: tree.get(f"{ROOT}/versions/{version}/{file.path}") for file in manifest.files}
        assert found == files_of(label)

    # Sweeping

    def sweeper(self, cycle: int | None = None, *, ops: Ops | None = None) -> Sweeper:
        """A sweeper as a publisher has one, between two publishes."""
        sweeper = Sweeper(self.channel(ops), RETENTION, cycle=cycle, writing=frozenset)
        self._closing.append(sweeper.stop)
        return sweeper

    def sweep(self, sweeper: Sweeper) -> Swept:
        """One pass; what it may remove is noted first."""
        told = self.told
        told.may_go |= {*told.labels, *self.line()} - self.needed()
        return sweeper.sweep()

    def needed(self) -> set[Version]:
        """What stays: held, among the newest of the lineage, or the newest acknowledged one in it."""
        told, line = self.told, self.line()
        held = {version for versions in told.held.values() for version in versions}
        acknowledged = [version for version in told.acknowledged.values() if version in line]
        return held | set(line[-KEEP_RECENT:]) | set(sorted(acknowledged)[-1:])

    def line(self) -> list[Version]:
        """The present lineage; at its end a version that became visible, though its publisher died before it knew."""
        known = self.told.line
        names = self.storage(self.disk).list_trees()
        visible = [version for name in names if (version := parse_version(name)) is not None]
        return known + [v for v in visible if v.cycle == self.told.cycle and v not in known and known[-1:] < [v]]

    def pass_time(self) -> None:
        """A tick passes, in which everybody who is alive beats."""
        self.hand.now_s += TICK_S
        self.hand.beat()


def clone(disk: SimulatedDisk) -> SimulatedDisk:
    """A disk that holds what is visible on `disk`, durably."""
    return next(disk.crash_states(1))


def prepared(hand: Hand, profile: str, *acts: Callable[[World], None]) -> tuple[SimulatedDisk, Told]:
    """A disk on which `acts` were done, each followed by the death of its processes; and what their users know."""
    disk, told = SimulatedDisk(profile=profile), Told()
    for act in acts:
        world = World(hand, clone(disk), told)
        act(world)
        disk = clone(world.disk)
        world.abandon()
    return disk, copy.deepcopy(told)
