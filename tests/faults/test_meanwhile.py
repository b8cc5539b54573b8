"""What others do in the middle of a call: claim, sweep, announce, expire, wake."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from holdfast import Channel
from holdfast.channel.announcing import Announcement
from holdfast.channel.ops import Ops
from holdfast.channel.payload import Payload
from holdfast.channel.posix import PosixStorage
from holdfast.channel.publisher import Publisher
from holdfast.channel.sources import BytesSource, Pieces
from holdfast.channel.sweeper import Sweeper
from holdfast.core.records import SweeperRecord, Term, encode
from holdfast.core.retention import Retention
from holdfast.errors import ConflictError, FencedError, OutcomeUnknownError
from holdfast.events import EventLog
from holdfast.testing import FaultyOps, SimulatedDisk
from tests.crash import acts
from tests.crash.hand import Hand
from tests.crash.recovery import SERVER
from tests.crash.world import LEASE_S, RETENTION, ROOT, TICK_S, World, clone, files_of, prepared


class Interrupted:
    """Bytes to be published; `meanwhile` happens when they are about to be written."""

    def __init__(self, data: bytes, meanwhile: Callable[[], object]) -> None:
        self._source = BytesSource([data])
        self._meanwhile = meanwhile

    @property
    def size(self) -> int:
        return self._source.size

    def open(self) -> AbstractContextManager[Pieces]:
        self._meanwhile()
        return self._source.open()


class Before:
    """`ops`; `meanwhile` happens once, ahead of the first call of `operation` that makes the name `last`."""

    def __init__(self, ops: Ops, operation: str, last: str, meanwhile: Callable[[], object]) -> None:
        self._ops = ops
        self._wanted: tuple[str, str] | None = (operation, last)
        self._meanwhile = meanwhile

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._ops, name)

        def called(*args: Any, **options: Any) -> Any:
            if self._wanted is not None and name == self._wanted[0] and args[-1] == self._wanted[1]:
                self._wanted = None
                self._meanwhile()
            return call(*args, **options)

        return called


def world_of(hand: Hand, *before: acts.Act) -> World:
    disk, told = prepared(hand, "ext4-like", *before)
    return World(hand, disk, told)


def announce(world: World, *versions: str) -> None:
    """A sweeper elsewhere says that these may go."""
    channel = world.channel()
    record = SweeperRecord(beat=1, cycle=1, tombstones=versions, party=channel.party())
    channel.claims.replace("sweepers/000001-0a0a0a0a.json", encode(record))


def test_a_claim_made_while_a_version_is_written_fences_it(hand: Hand) -> None:
    world = world_of(hand, acts.publish_four)
    start = world.told.line[-1]
    zombie = world.open_publisher(start=start)
    source = Interrupted(b"late", lambda: world.open_publisher(start=start))
    with pytest.raises(FencedError) as caught:
        zombie.publish_payload(5, Payload(files=(("w.bin", source),), kind="test"))
    assert caught.value.code == "fenced"
    store = world.storage()
    assert len(store.list_trees()) == 4, "it does not grow the channel"
    assert store.list_garbage() == ()
    world.abandon()


def test_what_a_live_publisher_writes_is_no_garbage(hand: Hand) -> None:
    world = world_of(hand, acts.publish_four)
    publisher = world.open_publisher(start=world.told.line[-1])
    writing: set[str] = set()

    def sweep() -> None:
        writing.update(world.storage().list_garbage())
        assert len(writing) == 1
        swept = Sweeper(world.channel(), RETENTION, cycle=publisher.cycle, writing=lambda: frozenset(writing)).sweep()
        assert swept.garbage == ()

    source = Interrupted(b"slowly", sweep)
    version = publisher.publish_payload(5, Payload(files=(("w.bin", source),), kind="test"))
    assert str(version) in world.storage().list_trees()
    world.abandon()


@pytest.mark.parametrize("how", ["announced", "gone", "unreadable"])
def test_equal_bytes_are_a_new_version_where_the_last_one_may_vanish(how: str, hand: Hand) -> None:
    world = world_of(hand)
    publisher = world.open_publisher()
    first = world.publish(publisher, 1, "one")
    assert world.publish(publisher, 1, "one") == first
    if how == "announced":
        announce(world, str(first))
    elif how == "gone":
        world.storage().retire_tree(str(first), "0a")
    else:
        world.storage().replace("sweepers/000001-0a0a0a0a.json", b"?")
    again = publisher.publish_payload(1, Payload(files=tuple(sources("one")), kind="test"), metadata={"label": "one"})
    assert again != first
    assert str(again) in world.storage().list_trees()
    world.abandon()


def sources(label: str) -> list[tuple[str, BytesSource]]:
    return [(path, BytesSource([data])) for path, data in files_of(label).items()]


def test_a_claim_that_cannot_be_read_back_closes_nobody_elses_reign(hand: Hand) -> None:
    """Somebody else wins the race, and storage fails while the loser looks who it was."""
    disk, told = prepared(hand, "ext4-like", acts.publish_four)
    own = clone(disk)
    world = World(hand, own, told)
    start = told.line[-1]
    ops = FaultyOps(own)
    ops.fail("open_read", errno.EIO, path="*/cycles/000002.json", times=5)
    racing = Before(ops, "link", "000002.json", lambda: world.open_publisher(start=start))
    loser = world.new_publisher(start=start, ops=racing)
    with pytest.raises(OutcomeUnknownError):
        loser.open()
    observer = world.channel(own).observer()
    assert observer.cycles() == (1, 2)
    beat = observer.beat(2).record
    assert beat is not None
    assert not beat.closed, "the winner's reign goes on"
    world.abandon()


def test_whoever_loses_the_race_for_a_claim_asks_again(hand: Hand) -> None:
    disk, told = prepared(hand, "ext4-like", acts.publish_four)
    own = clone(disk)
    world = World(hand, own, told)
    start = told.line[-1]
    winners: list[Publisher] = []
    racing = Before(own, "link", "000002.json", lambda: winners.append(world.open_publisher(start=start)))
    told.rounds += 1  # the winner is of the lower round, so the loser may follow it
    late = world.channel(racing).publisher(
        RETENTION, resume_from=start, term=Term(job="training", round=9, nonce="n"), sweep=False, wait_s=0.0
    )
    late.open()
    assert (winners[0].cycle, late.cycle) == (2, 3)
    with pytest.raises(FencedError):
        world.publish(winners[0], 5, "five")
    late.close()
    world.abandon()


def test_a_consumer_that_a_sweeper_with_a_shorter_lease_has_expired_finds_out(hand: Hand) -> None:
    world = world_of(hand, acts.publish_four)
    patient = Channel(PosixStorage(ROOT, ops=world.disk), events=False, lease_s=20 * LEASE_S)
    server = patient.consumer(SERVER)
    server.open()
    held = server.take(timeout_s=0.0)
    assert held is not None
    sweeper = Sweeper(world.channel(), Retention(), cycle=1, writing=frozenset)
    for _ in range(7):
        sweeper.sweep()
        hand.now_s += TICK_S
    assert len(world.channel().observer().consumers()) == 1, "its file is still there"
    with pytest.raises(ConflictError) as caught:
        held.acknowledge()
    assert caught.value.code == "lease_lost"
    assert held.lost
    server.close()
    world.abandon()


def test_a_consumer_that_was_silent_for_a_lease_knows_by_itself(hand: Hand) -> None:
    """Nobody has expired it, and somebody may be about to."""
    world = world_of(hand, acts.publish_four)
    server = world.open_consumer(SERVER)
    held = world.take(server)
    assert held is not None
    hand.now_s += LEASE_S + 1
    with pytest.raises(ConflictError) as caught:
        held.acknowledge()
    assert caught.value.code == "lease_lost"
    assert held.lost
    world.abandon()


def test_a_new_life_that_failed_half_way_is_begun_again(hand: Hand) -> None:
    """Its file stands and could not be taken back: it is nobody else's."""
    disk, told = prepared(hand, "ext4-like", acts.publish_four)
    ops = FaultyOps(disk)
    world = World(hand, disk, told, ops=ops)
    server = world.open_consumer(SERVER)
    assert world.take(server) is not None
    hand.now_s += LEASE_S + 1
    ops.fail("scandir", errno.EIO, path="*/sweepers", times=None)
    ops.fail("unlink", errno.EIO, path="*/consumers/server.*", times=None)
    hand.beat()
    assert world.take(server) is None
    assert "Input/output error" in server.status
    assert len([path for path in disk.tree() if "/consumers/server." in path]) == 2
    ops.clear()
    held = world.take(server)
    assert held is not None, server.status
    held.acknowledge()
    assert len([path for path in disk.tree() if "/consumers/server." in path]) == 1
    world.abandon()


def test_the_file_of_an_expired_consumer_stays_for_another_lease(hand: Hand) -> None:
    world = world_of(hand, acts.publish_four, acts.serve)
    world.told.held[SERVER].clear()
    sweeper = world.sweeper(1)
    expired_at = gone_at = 0.0
    began = hand.now_s
    for _ in range(14):
        world.sweep(sweeper)
        observer = world.channel().observer()
        names = {name for seen in observer.sweepers().values() if seen.record for name in seen.record.expired}
        if names and not expired_at:
            expired_at = hand.now_s - began
        if not observer.consumers() and not gone_at:
            gone_at = hand.now_s - began
        world.pass_time()
    assert expired_at == pytest.approx(LEASE_S)
    assert 2 * LEASE_S <= gone_at <= 2 * LEASE_S + TICK_S
    world.abandon()


def test_a_temporary_file_stays_for_a_lease(hand: Hand) -> None:
    """Its writer may be alive; whoever it is beats more often than that."""
    world = world_of(hand, acts.publish_four)
    handle = world.disk.create(None, f"{ROOT}/consumers/.tmp-0a0b", 0o644)
    world.disk.close(handle)
    sweeper = world.sweeper(1)
    swept = []
    for _ in range(7):
        swept.append(world.sweep(sweeper).garbage)
        world.pass_time()
    gone = [i for i, garbage in enumerate(swept) if garbage == ("consumers/.tmp-0a0b",)]
    assert gone == [int(LEASE_S / TICK_S)]
    world.abandon()


def test_a_beat_never_brings_back_what_was_announced_before(hand: Hand) -> None:
    """A beat that waits for a write under way says what is true when it is its turn."""
    del hand
    disk = SimulatedDisk()
    channel = Channel(PosixStorage(ROOT, ops=disk), events=False, lease_s=LEASE_S)
    channel.open(create=True)
    reached, go, asked = threading.Event(), threading.Event(), threading.Event()
    tombstones: list[str] = []

    def hold_up() -> None:
        reached.set()
        assert go.wait(10)

    def record() -> SweeperRecord:
        if reached.is_set():
            asked.set()
        return SweeperRecord(beat=0, cycle=1, tombstones=tuple(tombstones), party=channel.party())

    own = Announcement(channel, EventLog(None, "test"))
    own.enter(1, record)
    slow = Channel(
        PosixStorage(ROOT, ops=Before(disk, "rename", f"{own.key}.json", hold_up)), events=False, lease_s=LEASE_S
    )
    channel.claims = slow.claims
    writing = threading.Thread(target=own.write, args=(record,))
    writing.start()
    assert reached.wait(10)
    beating = threading.Thread(target=own.write, args=(record,))
    beating.start()
    asked.wait(0.2)  # as it must not be, while the other one writes
    tombstones.append("c000001-s00000001-00000000")
    go.set()
    for thread in (writing, beating):
        thread.join(10)
        assert not thread.is_alive()
    (seen,) = channel.observer().sweepers().values()
    assert seen.record is not None
    assert seen.record.tombstones == tuple(tombstones)
