"""A sync that fails fails the call; a file system that cannot sync a directory is told from one that won't."""

from __future__ import annotations

import errno

import pytest

from holdfast import HoldfastError
from holdfast.channel.posix import PosixStorage
from holdfast.testing import FaultyOps
from tests.crash import acts
from tests.crash.hand import Hand
from tests.crash.world import ROOT, World, prepared


def world_of(hand: Hand) -> tuple[World, FaultyOps]:
    disk, told = prepared(hand, "ext4-like", acts.publish_four)
    ops = FaultyOps(disk)
    return World(hand, disk, told, ops=ops), ops


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("place", ["*/staging/*", "*/versions", "*/staging"])
def test_a_publish_whose_directory_cannot_be_synced_fails(place: str, number: int, hand: Hand) -> None:
    world, ops = world_of(hand)
    publisher = world.open_publisher(start=world.told.line[-1])
    ops.fail("fsync_directory", number, path=place, times=None)
    with pytest.raises(HoldfastError):
        world.publish(publisher, 5, "five")
    ops.clear()
    world.publish(publisher, 5, "five")
    world.abandon()


@pytest.mark.parametrize("operation", ["fsync", "fsync_directory"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_claim_that_cannot_be_synced_is_none(number: int, operation: str, hand: Hand) -> None:
    world, ops = world_of(hand)
    ops.fail(operation, number, path="*/cycles*", times=None)
    with pytest.raises(HoldfastError):
        world.open_publisher(start=world.told.line[-1])
    world.abandon()


@pytest.mark.parametrize("operation", ["fsync", "fsync_directory", "link", "create"])
def test_a_claim_is_tried_again_where_storage_failed_once(operation: str, hand: Hand) -> None:
    world, ops = world_of(hand)
    ops.fail(operation, errno.EIO, path="*/cycles*")
    publisher = world.open_publisher(start=world.told.line[-1])
    assert publisher.cycle == 2
    world.abandon()


@pytest.mark.parametrize("operation", ["fsync", "fsync_directory"])
def test_a_hold_that_cannot_be_synced_gives_nothing(operation: str, hand: Hand) -> None:
    world, ops = world_of(hand)
    server = world.open_consumer("server")
    ops.fail(operation, errno.EIO, path="*/consumers*", times=None)
    assert world.take(server) is None
    assert "Input/output error" in server.status
    ops.clear()
    assert world.take(server) is not None
    world.abandon()


@pytest.mark.parametrize("operation", ["fsync", "fsync_directory"])
def test_a_tombstone_that_cannot_be_synced_removes_nothing(operation: str, hand: Hand) -> None:
    world, ops = world_of(hand)
    sweeper = world.sweeper(1)
    ops.fail(operation, errno.EIO, path="*/sweepers*", times=None)
    with pytest.raises(HoldfastError):
        world.sweep(sweeper)
    assert len(world.storage().list_trees()) == 4
    ops.clear()
    assert len(world.sweep(sweeper).removed) == 2
    world.abandon()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_directories_is_used_and_remembered(number: int, hand: Hand) -> None:
    world, ops = world_of(hand)
    ops.fail("fsync_directory", number, times=None)
    publisher = world.open_publisher(start=world.told.line[-1])
    world.publish(publisher, 5, "five")
    storage = PosixStorage(ROOT, ops=ops)
    storage.replace("CURRENT", b"x")
    assert storage.directory_sync is False
    world.abandon()


def test_what_could_not_be_announced_is_announced_by_the_next_pass(hand: Hand) -> None:
    """Else a new consumer would wait for ever to be listed, and the dead would never be found silent."""
    world, ops = world_of(hand)
    sweeper = world.sweeper(1)
    world.sweep(sweeper)
    server = world.open_consumer("server")
    ops.fail("rename", errno.EIO, path="*/sweepers/*")
    with pytest.raises(HoldfastError):
        world.sweep(sweeper)
    world.sweep(sweeper)
    (seen,) = world.channel().observer().sweepers().values()
    assert seen.record is not None
    assert [name.partition(".")[0] for name in seen.record.seen] == [server.name]
    world.abandon()
