"""Every point at which the power can fail, and every disk that can come back from it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from holdfast.testing import PowerCut, SimulatedDisk
from tests.crash.hand import Hand
from tests.crash.world import Told, World, clone

Act = Callable[[World], None]

MUTATING = frozenset(
    {"create", "pwrite", "fsync", "fsync_directory", "chmod", "mkdir", "rmdir", "unlink", "rename", "link", "symlink"}
)


class Comeback(NamedTuple):
    """A disk as it came back from a power cut at `point`, and what users had been told by then."""

    point: int
    disk: SimulatedDisk
    told: Told


class Recorder:
    """Ops of a simulated disk; `before` is called ahead of each call that changes it. Fails no call."""

    def __init__(self, disk: SimulatedDisk, before: Callable[[], None]) -> None:
        self._disk = disk
        self._before = before

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._disk, name)
        if name not in MUTATING:
            return call

        def recorded(*args: Any, **options: Any) -> Any:
            self._before()
            return call(*args, **options)

        return recorded


class Mortal:
    """Ops of one process on a disk that goes on without it: after `num_left` changing calls it is dead.

    Attributes:
        num_made: changing calls so far.
    """

    def __init__(self, disk: SimulatedDisk, num_left: int | None) -> None:
        self.num_made = 0
        self._disk = disk
        self._num_left = num_left

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._disk, name)

        def mortal(*args: Any, **options: Any) -> Any:
            if self._num_left is not None and self.num_made > self._num_left:
                raise PowerCut
            if name in MUTATING:
                self.num_made += 1
                if self._num_left is not None and self.num_made > self._num_left:
                    raise PowerCut
            return call(*args, **options)

        return mortal


def num_points(hand: Hand, disk: SimulatedDisk, told: Told, act: Act) -> int:
    """At how many moments of `act` the power can fail: before each of its changing calls, and after the last."""
    return _run(hand, disk, told, act, lambda point, world: None)


def comebacks(
    hand: Hand,
    disk: SimulatedDisk,
    told: Told,
    act: Act,
    *,
    points: Collection[int] | None = None,
    limit: int = 64,
) -> list[Comeback]:
    """What can come back from a power cut at each point of `act`, no two alike.

    Args:
        points: at these only.
        limit: at most so many disks for one point; see `SimulatedDisk.crash_states`.
    """
    found: list[Comeback] = []
    seen: set[object] = set()

    def note(point: int, world: World) -> None:
        if points is not None and point not in points:
            return
        facts = repr(world.told)
        for after in world.disk.crash_states(limit):
            key = (facts, tuple(after.tree().items()))
            if key not in seen:
                seen.add(key)
                found.append(Comeback(point, after, copy.deepcopy(world.told)))

    _run(hand, disk, told, act, note)
    return found


def _run(hand: Hand, disk: SimulatedDisk, told: Told, act: Act, note: Callable[[int, World], None]) -> int:
    point = 0

    def before() -> None:
        nonlocal point
        note(point, world)
        point += 1

    own = clone(disk)
    world = World(hand, own, copy.deepcopy(told), ops=Recorder(own, before))
    try:
        act(world)
        before()
    finally:
        world.abandon()
    return point
