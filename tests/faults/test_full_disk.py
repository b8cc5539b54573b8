"""A disk that is full in the middle of anything: nothing is lost, tombstones are still written, room comes back."""

from __future__ import annotations

import pytest

from holdfast import Channel
from holdfast.channel.payload import Payload
from holdfast.channel.posix import PosixStorage
from holdfast.channel.sources import BytesSource
from holdfast.channel.sweeper import Sweeper
from holdfast.core.names import Version
from holdfast.core.records import Term
from holdfast.core.retention import Retention
from holdfast.errors import UnavailableError
from holdfast.testing import SimulatedDisk
from tests.crash.hand import Hand

CAPACITY_BYTES = 600_000
VERSION_BYTES = 100_000
KEEP_ONE = Retention(keep_recent=1)


@pytest.fixture
def disk(hand: Hand) -> SimulatedDisk:
    hand.begin(1)
    return SimulatedDisk(capacity_bytes=CAPACITY_BYTES)


def open_channel(disk: SimulatedDisk) -> Channel:
    return Channel(PosixStorage("/channel", ops=disk), events=False, lease_s=60.0)


def payload(step: int) -> Payload:
    source = BytesSource([step.to_bytes(4, "big") * (VERSION_BYTES // 4)])
    return Payload(files=(("model.bin", source),), kind="test")


def fill(disk: SimulatedDisk, num_free: int) -> str:
    """Another program takes all room but `num_free` bytes."""
    root = disk.open_directory(None, "/")
    name = f"/other-{len(disk.tree())}"
    handle = disk.create(None, name, 0o644)
    disk.pwrite(handle, memoryview(bytes(disk.free_bytes(root) - num_free)), 0)
    disk.close(handle)
    disk.close(root)
    return name


def test_a_publish_that_does_not_fit_shows_nothing_and_works_once_there_is_room(disk: SimulatedDisk) -> None:
    publisher = open_channel(disk).publisher(KEEP_ONE, term=Term(job="j", round=1, nonce="n"), sweep=False)
    publisher.open()
    sweeper = Sweeper(open_channel(disk), KEEP_ONE, cycle=publisher.cycle, writing=frozenset)
    published: list[Version] = []
    with pytest.raises(UnavailableError) as caught:
        published.extend(publisher.publish_payload(step, payload(step)) for step in range(10))
    assert caught.value.code == "errno_enospc"
    assert caught.value.hint
    store = open_channel(disk).store
    assert store.list_trees() == tuple(str(version) for version in published), "what was there is there, no more"
    assert store.list_garbage() == (), "what was half written is gone at once"
    assert len(sweeper.sweep().removed) == len(published) - 1
    again = publisher.publish_payload(len(published), payload(len(published)))
    assert store.list_trees() == (str(published[-1]), str(again))
    sweeper.stop()
    publisher.close()


@pytest.mark.parametrize("num_free", [0, 1, 100, 2000])
def test_the_reserve_is_spent_on_tombstones(disk: SimulatedDisk, num_free: int) -> None:
    publisher = open_channel(disk).publisher(KEEP_ONE, term=Term(job="j", round=1, nonce="n"), sweep=False)
    publisher.open()
    sweeper = Sweeper(open_channel(disk), KEEP_ONE, cycle=publisher.cycle, writing=frozenset)
    sweeper.sweep()
    published = [publisher.publish_payload(step, payload(step)) for step in range(3)]
    reserves = [path for path in disk.tree() if path.endswith(".reserve")]
    assert len(reserves) == 1
    fill(disk, num_free)
    swept = sweeper.sweep()
    assert swept.removed == (str(published[0]), str(published[1]))
    assert [path for path in disk.tree() if path.endswith(".reserve")] == reserves, (
        "set aside anew, now that there is room"
    )
    sweeper.stop()
    publisher.close()


@pytest.mark.parametrize("num_free", [0, 300])
def test_a_consumer_on_a_full_disk_waits_and_goes_on(disk: SimulatedDisk, num_free: int) -> None:
    """It cannot write its hold, so it is given nothing; what it holds already stays protected."""
    publisher = open_channel(disk).publisher(KEEP_ONE, term=Term(job="j", round=1, nonce="n"), sweep=False)
    publisher.open()
    consumer = open_channel(disk).consumer("server")
    consumer.open()
    first = publisher.publish_payload(1, payload(1))
    held = consumer.take(timeout_s=0.0)
    assert held is not None
    second = publisher.publish_payload(2, payload(2))
    other = fill(disk, num_free)
    assert consumer.take(timeout_s=0.0) is None
    assert "No space" in consumer.status
    with pytest.raises(UnavailableError) as caught:
        held.acknowledge()
    assert caught.value.code == "errno_enospc"
    assert not held.lost
    disk.unlink(None, other)
    held.acknowledge()
    newer = consumer.take(timeout_s=0.0)
    assert newer is not None
    assert [one.name for one in consumer.held] == [first, second]
    consumer.close()
    publisher.close()


def test_a_sweeper_that_starts_on_a_full_disk_says_so_and_removes_nothing(disk: SimulatedDisk) -> None:
    """It has no reserve yet; whoever makes a little room helps it over the first step."""
    publisher = open_channel(disk).publisher(KEEP_ONE, term=Term(job="j", round=1, nonce="n"), sweep=False)
    publisher.open()
    published = [publisher.publish_payload(step, payload(step)) for step in range(3)]
    other = fill(disk, 0)
    sweeper = Sweeper(open_channel(disk), KEEP_ONE, cycle=publisher.cycle, writing=frozenset)
    with pytest.raises(UnavailableError) as caught:
        sweeper.sweep()
    assert caught.value.code == "errno_enospc"
    assert len(open_channel(disk).store.list_trees()) == 3
    disk.unlink(None, other)
    fill(disk, 2000)
    assert sweeper.sweep().removed == (str(published[0]), str(published[1]))
    sweeper.stop()
    publisher.close()
