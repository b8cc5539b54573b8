"""What dead and frozen processes leave behind: who it belongs to, when it goes, and what the next life makes of it."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from holdfast import Channel, ConflictError, NotVisibleError, Retention, Term
from holdfast.channel.beats import clock_s
from holdfast.channel.posix import PosixStorage
from holdfast.events import EventLog, read_events
from tests.support.channels import Background, CutOff, Gated, Place, payload, until

LEASE_S = 0.6


def _channel(place: Place, **options: Any) -> Channel:
    return place.channel(lease_s=LEASE_S, **options)


def _cut_off(place: Place) -> tuple[CutOff, Channel]:
    link = CutOff(place.storage())
    return link, Channel(link, lease_s=LEASE_S)  # type: ignore[arg-type]


def _left(place: Place) -> list[str]:
    storage = place.storage()
    found = [f"{part}/{entry.name}" for part in ("consumers", "sweepers") for entry in storage.list(part)]
    return [*found, *storage.list_garbage()]


def test_one_thorough_sweep_leaves_nothing_of_the_dead(place: Place) -> None:
    link, channel = _cut_off(place)
    publisher = channel.publisher(Retention(keep_recent=1), sweep=False, term=Term(job="a", round=1, nonce="a"))
    publisher.open()
    first = publisher.publish_payload(1, payload("1"))
    consumer = channel.consumer("dead")
    consumer.open()
    held = consumer.take(0.0)
    assert held is not None
    held.acknowledge()
    newest = publisher.publish_payload(2, payload("2"))
    sweeper = channel.sweeper(Retention(keep_recent=1))
    sweeper.sweep()
    place.storage().begin_tree("c000001-s00000003-00abcdef", "c000001-0123abcd").file("w.bin").close()
    link.cut()
    consumer.close()
    publisher.close()
    sweeper.stop()
    assert _left(place) != []
    with _channel(place).sweeper(Retention(keep_recent=1)) as alive:
        assert alive.sweep().standing_by, "one pass cannot tell that the other is dead"
        swept = alive.sweep(thorough=True)
        assert swept.removed == (str(first),), "held and acknowledged by the dead alone"
        assert swept.standing_by == ""
    assert _left(place) == []
    assert place.channel().observer().versions() == {newest}


def test_a_thorough_sweep_of_the_living_takes_a_few_passes_and_no_lease(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        publisher.publish_payload(1, payload("1"))
    with place.channel().sweeper() as sweeper:
        swept = sweeper.sweep(thorough=True)
    assert list(swept.reasons) == [str(publisher.last)]


def test_a_thorough_sweep_gives_way_to_a_living_sweeper(place: Place) -> None:
    with _channel(place).publisher(sweep=True) as publisher:
        publisher.publish_payload(1, payload("1"))
        until(lambda: place.channel().observer().sweepers())
        with _channel(place).sweeper() as other:
            assert "is at work" in other.sweep(thorough=True).standing_by


def test_temporaries_stay_for_a_lease_since_a_slow_disk_is_no_death(directory: Place) -> None:
    with _channel(directory).publisher(sweep=False) as publisher:
        publisher.publish_payload(1, payload("1"))
        temporary = directory.path / "consumers" / ".tmp-0123456789abcdef"
        temporary.touch()
        with directory.channel(lease_s=1000.0).sweeper() as patient:
            for _ in range(3):
                assert patient.sweep().garbage == ()
        with _channel(directory).sweeper() as sweeper:
            until(lambda: sweeper.sweep().garbage == ("consumers/.tmp-0123456789abcdef",))
        assert not temporary.exists()


def test_a_sweeper_on_its_own_follows_the_highest_claim(place: Place) -> None:
    with _channel(place).sweeper(Retention(keep_recent=1)) as sweeper:
        for number in (1, 2):
            term = Term(job="train", round=number, nonce=str(number))
            with _channel(place).publisher(sweep=False, term=term) as publisher:
                old = publisher.publish_payload(1, payload("1"))
                publisher.publish_payload(2, payload("2"))
                gone = until(lambda: sweeper.sweep().removed)
                assert str(old) in gone


def test_a_consumer_of_every_version_goes_on_after_what_the_life_before_acknowledged(place: Place) -> None:
    with _channel(place).publisher(sweep=False) as publisher:
        versions = [publisher.publish_payload(step, payload(str(step))) for step in (1, 2, 3)]
        link, channel = _cut_off(place)
        dead = channel.consumer("evaluator", every=True)
        dead.open()
        done, begun = dead.take(0.0), dead.take(0.0)
        assert done is not None
        assert begun is not None
        done.acknowledge()
        done.release()
        link.cut()
        dead.close()
        with _channel(place).consumer("evaluator", every=True) as next_life:
            given = [next_life.take(0.0) for _ in (2, 3)]
            assert [one.name for one in given if one is not None] == versions[1:], "what was begun is given again"


def test_whoever_sleeps_until_its_file_is_buried_does_not_win_its_name_back(place: Place) -> None:
    with _channel(place).publisher(sweep=False) as publisher:
        publisher.publish_payload(1, payload("1"))
        link, channel = _cut_off(place)
        frozen = channel.consumer("server")
        frozen.open()
        held = frozen.take(0.0)
        assert held is not None
        link.cut()
        with _channel(place).sweeper() as sweeper:
            sweeper.sweep(thorough=True)
        assert place.channel().observer().consumers() == {}
        with _channel(place).consumer("server") as younger:
            link.mend()
            with pytest.raises(ConflictError) as told:
                until(lambda: held.acknowledge())
            assert told.value.code == "superseded_consumer"
            frozen.close()
            assert younger.take(0.0) is not None
            assert not [one for one in younger.held if one.lost]


def test_a_guest_of_the_same_name_leaves_the_copies_of_a_frozen_process_alone(
    directory: Place, room: pathlib.Path
) -> None:
    """The guest came and went while this one was frozen, so that nobody is left to tell of it."""
    stage = room / "stage"
    with _channel(directory).publisher(sweep=False) as publisher:
        publisher.publish_payload(1, payload("1"))
        link, channel = _cut_off(directory)
        frozen = channel.consumer("server", stage=stage)
        frozen.open()
        held = frozen.take(0.0)
        assert held is not None
        link.cut()
        with _channel(directory).consumer("server", stage=stage) as guest:
            other = guest.take(5.0)
            assert other is not None
            assert other.path != held.path
        assert (held.path / "w.bin").read_text() == "1"
        link.mend()
        held.acknowledge()
        assert (held.path / "w.bin").read_text() == "1"
        frozen.close()


def test_a_consumer_that_is_frozen_while_it_opens_begins_anew(directory: Place) -> None:
    """It was about to let go of a hold of the life before, whose bytes are damaged by now."""
    with _channel(directory).publisher(sweep=False) as publisher:
        version = publisher.publish_payload(1, payload("1"))
        link, channel = _cut_off(directory)
        dead = channel.consumer("server")
        dead.open()
        assert dead.take(0.0) is not None
        link.cut()
        dead.close()
        (directory.path / "versions" / str(version) / "w.bin").write_text("2")
        gate = Gated(directory.storage())
        consumer = Channel(gate, lease_s=LEASE_S).consumer("server", patience_s=0.0)  # type: ignore[arg-type]
        stop = gate.stop_at("open", "versions/")
        opening = Background(consumer.open)
        opening.start()
        assert stop.reached.wait(20)
        began_s = clock_s()
        until(lambda: clock_s() - began_s > 1.5 * LEASE_S)
        stop.go.set()
        opening.join(20)
        opening.result()
        with consumer:
            assert consumer.held == ()
            good = publisher.publish_payload(2, payload("2"))
            held = consumer.take(20.0)
            assert held is not None
            assert held.name == good


class Replaced(PosixStorage):
    """Answers as an NFS client does for a file that somebody replaces again and again while it is read."""

    def __init__(self, root: pathlib.Path, times: int) -> None:
        super().__init__(root)
        self._times = times

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        if path.startswith("consumers/") and self._times:
            self._times -= 1
            raise NotVisibleError(f"{path}: Stale file handle", code="errno_estale", path=path)
        return super().read(path, limit_bytes=limit_bytes)


@pytest.mark.parametrize("times", [1, 3, 1000])
def test_I4_a_file_that_is_replaced_while_it_is_read_holds(directory: Place, times: int) -> None:
    with directory.channel().publisher(sweep=False) as publisher, directory.channel().consumer("c") as consumer:
        publisher.publish_payload(1, payload("1"))
        held = consumer.take(0.0)
        assert held is not None
        publisher.publish_payload(2, payload("2"))
        seen = Channel(Replaced(directory.path, times)).observer().consumers()
        assert len(seen) == 1
        assert times > 3 or all(one.record is not None for one in seen.values())
        with Channel(Replaced(directory.path, times)).sweeper(Retention(keep_recent=1)) as sweeper:
            assert sweeper.sweep().removed == ()
        assert directory.read(held) == "1"


def test_events_touch_nothing_before_the_channel_is_there(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "channel" / "events" / "consumer.jsonl"
    there = False
    log = EventLog(path, "consumer", ready=lambda: there)
    path.parent.mkdir(parents=True)
    log.emit("waiting", "no channel yet")
    assert not path.exists()
    there = True
    log.emit("registered")
    assert [event.event for event in read_events(path)] == ["waiting", "registered"]
    log.close()
