"""Every storage operation under every call of a user fails: once, for good, or after it has happened."""

from __future__ import annotations

import copy
import errno
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from holdfast.errors import HoldfastError, OutcomeUnknownError
from holdfast.testing import FaultyOps, SimulatedDisk
from tests.crash.hand import Hand
from tests.crash.points import MUTATING
from tests.crash.rest import check_at_rest
from tests.crash.world import Told, World, clone, prepared
from tests.faults.calls import CALLS, Call

REFUSALS = (errno.EIO, errno.ENOSPC, errno.ESTALE, errno.EACCES, errno.EROFS)
TRIES = 4  # with storage that works again


class Fault(NamedTuple):
    """The `on_call`-th `operation` fails; `times` None: and all after it. `lost`: it happens all the same."""

    operation: str
    on_call: int
    number: int
    times: int | None
    lost: bool


def operations(hand: Hand, disk: SimulatedDisk, told: Told, call: Call) -> dict[str, int]:
    """What the call asks of the storage when nothing fails: operation -> how often."""
    world, ops = _world(hand, disk, told)
    ready = call.ready(world)
    before = ops.calls.copy()
    call.make(world, ready)
    counts = ops.calls - before
    world.abandon()
    return dict(sorted(counts.items()))


def faults(counts: dict[str, int], effort: int) -> Iterator[Fault]:
    """Each occurrence once, for good, and with its answer lost; the errnos in turn (all of them with more effort)."""
    turn = 0
    for operation, count in counts.items():
        for on_call in range(1, count + 1):
            for times in (1,) if operation == "close" else (1, None):
                for _ in range(min(effort, len(REFUSALS))):
                    yield Fault(operation, on_call, REFUSALS[turn % len(REFUSALS)], times, lost=False)
                    turn += 1
            if operation in MUTATING:
                yield Fault(operation, on_call, errno.EIO, 1, lost=True)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_over_failing_storage_succeeds_or_says_so_and_can_be_made_again(
    name: str, hand: Hand, effort: int
) -> None:
    call = CALLS[name]
    disk, told = prepared(hand, "ext4-like", *call.before)
    counts = operations(hand, disk, told, call)
    assert sum(counts.values()) >= 3
    codes: set[str] = set()
    for fault in faults(counts, effort):
        world, ops = _world(hand, disk, told)
        ready = call.ready(world)
        visible = set(world.storage(world.disk).list_trees())
        ops.fail(fault.operation, fault.number, on_call=fault.on_call, times=fault.times, answer_lost=fault.lost)
        try:
            done = call.make(world, ready) is not False
        except HoldfastError as error:
            done = False
            codes.add(error.code)
            if name.startswith("publish") and not isinstance(error, OutcomeUnknownError):
                assert set(world.storage(world.disk).list_trees()) == visible, "a publish that failed shows nothing"
        check_at_rest(world)
        ops.clear()
        for _ in range(TRIES):
            if done:
                break
            done = call.make(world, ready) is not False
        assert done, fault
        call.after(world, ready)
        check_at_rest(world)
        world.abandon()
    assert all(codes), "each error says what it is"


def _world(hand: Hand, disk: SimulatedDisk, told: Told) -> tuple[World, FaultyOps]:
    own = clone(disk)
    ops = FaultyOps(own)
    return World(hand, own, copy.deepcopy(told), ops=ops), ops
