"""Files of others that cannot be read, storage that refuses writes, and a sweeper that cannot announce."""

from __future__ import annotations

import errno
import pathlib

import pytest

from holdfast.errors import UnavailableError, UsageError
from holdfast.testing import FaultyOps, SimulatedDisk
from tests.crash import acts
from tests.crash.hand import Hand
from tests.crash.points import MUTATING
from tests.crash.world import LEASE_S, ROOT, TICK_S, World, files_of, prepared

STRANGER = f"{ROOT}/consumers/stranger.000001-00000000.json"
LOOKS_PER_LEASE = int(LEASE_S / TICK_S)


def world_of(hand: Hand, *before: acts.Act) -> tuple[World, FaultyOps]:
    disk, told = prepared(hand, "ext4-like", *before)
    ops = FaultyOps(disk)
    return World(hand, disk, told, ops=ops), ops


def put(disk: SimulatedDisk, path: str, data: bytes) -> None:
    if path in disk.tree():
        disk.unlink(None, path)
    handle = disk.create(None, path, 0o644)
    disk.pwrite(handle, memoryview(data), 0)
    disk.close(handle)


def test_an_unreadable_consumers_file_holds_everything_until_it_stands_still_for_a_lease(hand: Hand) -> None:
    world, _ = world_of(hand, acts.publish_four)
    publisher = world.open_publisher(start=world.told.line[-1])
    sweeper = world.sweeper(publisher.cycle)
    everything = world.storage().list_trees()
    assert len(everything) == 4
    for beat in range(3 * LOOKS_PER_LEASE):  # somebody newer than us lives, and beats in words that we don't know
        put(world.disk, STRANGER, b"beat %d" % beat)
        swept = world.sweep(sweeper)
        assert swept.removed == ()
        assert all("stranger" in reason or reason.startswith("held") for reason in swept.reasons.values())
        world.pass_time()
    for _ in range(LOOKS_PER_LEASE - 1):
        assert world.sweep(sweeper).removed == ()
        world.pass_time()
    removed = [world.sweep(sweeper).removed for _ in range(2)]
    assert len(removed[0] + removed[1]) == 2
    assert world.storage().list_trees() == tuple(str(version) for version in world.told.line[-2:])


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_consumers_file_that_cannot_even_be_opened_stops_the_sweep(number: int, hand: Hand) -> None:
    world, ops = world_of(hand, acts.publish_four)
    put(world.disk, STRANGER, b"{}")
    publisher = world.open_publisher(start=world.told.line[-1])
    sweeper = world.sweeper(publisher.cycle)
    ops.fail("open_read", number, path="*/consumers/stranger.*", times=None)
    for _ in range(2 * LOOKS_PER_LEASE):
        with pytest.raises(UnavailableError) as caught:
            world.sweep(sweeper)
        assert caught.value.code == f"errno_{errno.errorcode[number].lower()}"
        assert "stranger" in str(caught.value)
        world.pass_time()
    assert len(world.storage().list_trees()) == 4


def test_an_unreadable_sweepers_file_may_announce_anything_until_it_stands_still(hand: Hand) -> None:
    world, _ = world_of(hand, acts.publish_four)
    world.open_publisher(start=world.told.line[-1])
    server = world.open_consumer("server")
    path = f"{ROOT}/sweepers/000009-0123abcd.json"
    for beat in range(2 * LOOKS_PER_LEASE):
        put(world.disk, path, b"beat %d" % beat)
        assert world.take(server) is None
        assert "sweeper 000009-0123abcd cannot be read" in server.status
        world.pass_time()
    for _ in range(LOOKS_PER_LEASE - 1):
        assert world.take(server) is None
        world.pass_time()
    held = world.take(server)
    assert held is not None, server.status


def test_a_sweeper_expires_nobody_while_its_own_writes_fail(hand: Hand) -> None:
    """A lease must pass in which it could have told, from the first write that works again."""
    world, ops = world_of(hand, acts.publish_four, acts.serve)
    held = set(world.told.held["server"])
    publisher = world.open_publisher(start=world.told.line[-1])
    sweeper = world.sweeper(publisher.cycle)
    world.sweep(sweeper)
    for step in (5, 6, 7):
        world.publish(publisher, step, f"step {step}")
    before = world.storage().list_trees()
    assert len(before) == 5
    ops.fail("rename", errno.EIO, path="*/sweepers/*", times=None)
    for _ in range(4 * LOOKS_PER_LEASE):
        with pytest.raises(UnavailableError):
            world.sweep(sweeper)
        world.hand.now_s += TICK_S
    assert world.storage().list_trees() == before, "nothing is announced, so nothing goes"
    ops.clear()
    for _ in range(LOOKS_PER_LEASE):
        world.sweep(sweeper)
        assert held <= world.channel().observer().versions(), "the silent one has its lease again"
        world.hand.now_s += TICK_S
    world.told.held["server"].clear()
    for _ in range(2):
        world.sweep(sweeper)
    assert world.channel().observer().versions() == world.needed(), "and now it is expired"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_consumer_that_may_not_write_must_stage(number: int, hand: Hand, tmp_path: pathlib.Path) -> None:
    world, ops = world_of(hand, acts.publish_four)
    for operation in MUTATING:
        ops.fail(operation, number, times=None)
    with pytest.raises(UsageError) as caught:
        world.new_consumer("server").open()
    assert caught.value.code == "cannot_hold"
    assert "stage=" in caught.value.hint
    before = world.disk.tree()
    with world.channel().consumer("server", stage=tmp_path) as server:
        held = server.take(timeout_s=0.0)
        assert held is not None, server.status
        assert held.name == world.told.line[-1]
        label = world.told.labels[held.name]
        assert {path: (held.path / path).read_bytes() for path in files_of(label)} == files_of(label)
        held.acknowledge()
        held.release()
        assert not held.path.exists()
    assert world.disk.tree() == before, "not a byte was written"
