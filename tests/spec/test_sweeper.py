"""The sweeper: what stays and why, what goes, and whose word counts."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from holdfast import Channel, HoldfastError, Retention, Term
from holdfast.channel.posix import PosixStorage
from holdfast.channel.publisher import Publisher
from holdfast.channel.sweeper import Swept
from holdfast.core.names import Version
from holdfast.testing import SimulatedDisk
from tests.support.channels import WAIT_S, Background, CutOff, Gated, Place, payload, until


def _publish(publisher: Publisher, *steps: int) -> list[Version]:
    return [publisher.publish_payload(step, payload(str(step))) for step in steps]


def _steps(place: Place) -> list[int]:
    return sorted(version.step for version in place.channel().observer().versions())


def _sweep(place: Place, **retention: Any) -> Swept:
    with place.channel().sweeper(Retention(**retention)) as sweeper:
        return sweeper.sweep()


def _reasons(swept: Swept) -> dict[int, str]:
    return {int(name[9:17]): reason for name, reason in swept.reasons.items()}


def test_the_newest_stay_and_the_rest_go_each_with_its_reason(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        versions = _publish(publisher, 1, 2, 3, 4)
        swept = _sweep(place, keep_recent=2)
        assert swept.removed == (str(versions[0]), str(versions[1]))
        assert _steps(place) == [3, 4]
        assert _reasons(swept) == {
            1: "goes: nobody holds it and newer versions are kept",
            2: "goes: nobody holds it and newer versions are kept",
            3: "kept: one of the 2 newest",
            4: "kept: a fresh consumer would be given it",
        }
        assert place.channel().observer().sweepers() == {}, "a sweeper that leaves takes its file along"
        assert place.storage().list_garbage() == ()


def test_I5_a_fresh_consumer_is_given_the_same_before_and_after(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1, 2, 3)
        _sweep(place, keep_recent=1)
        with place.channel().consumer("fresh") as consumer:
            held = consumer.take(0.0)
            assert held is not None
            assert (held.step, place.read(held)) == (3, "3")


def test_every_nth_step_stays(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        _publish(publisher, *range(1, 12))
        swept = _sweep(place, keep_recent=1, keep_every=4)
        assert _steps(place) == [4, 8, 11]
        assert _reasons(swept)[4] == "kept: every 4 steps"


def test_pinned_versions_stay_until_they_are_unpinned(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        versions = _publish(publisher, 1, 2, 3)
        place.storage().create(f"pins/{versions[0]}", b"")
        swept = _sweep(place, keep_recent=1)
        assert _reasons(swept)[1] == "kept: pinned"
        assert _steps(place) == [1, 3]
        place.storage().delete(f"pins/{versions[0]}")
        _sweep(place, keep_recent=1)
        assert _steps(place) == [3]


def test_the_newest_acknowledged_version_stays(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        for step in (1, 2):
            _publish(publisher, step)
            held = consumer.take(0.0)
            assert held is not None
            held.acknowledge()
            held.release()
        _publish(publisher, 3, 4)
        swept = _sweep(place, keep_recent=1)
        assert _steps(place) == [2, 4]
        assert _reasons(swept)[2] == "kept: the newest acknowledged version"


def test_a_version_stays_for_its_minimal_age(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1, 2)
        swept = _sweep(place, keep_recent=1, min_age_s=3600.0)
        assert swept.removed == ()
        assert _reasons(swept)[1] == "kept: younger than 3600 s"
        with place.channel().sweeper(Retention(keep_recent=1, min_age_s=0.3)) as sweeper:
            assert sweeper.sweep().removed == ()
            until(lambda: sweeper.sweep().removed)
        assert _steps(place) == [2]


def test_what_an_older_reader_says_it_has_loaded_stays(directory: Place) -> None:
    with directory.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1, 2, 3)
        (directory.path / "broadcasts" / "c000001" / "LOADED_STEP").write_text("2\n")
        (directory.path / "broadcasts" / "c000001" / "LOADED_STEP.other").write_text("not a number")
        _sweep(directory, keep_recent=1)
        assert _steps(directory) == [2, 3]
        (directory.path / "broadcasts" / "c000001" / "LOADED_STEP").write_text("3")
        _sweep(directory, keep_recent=1)
        assert _steps(directory) == [3]


def test_what_an_older_reader_loaded_in_an_earlier_cycle_counts_no_more(directory: Place) -> None:
    with directory.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1, 2)
        (directory.path / "broadcasts" / "c000001" / "LOADED_STEP").write_text("1")
    with directory.channel().publisher(sweep=False, term=_other(), resume_from=2) as publisher:
        _publish(publisher, 3)
        _sweep(directory, keep_recent=1)
        assert _steps(directory) == [3]


def _other(job: str = "other") -> Term:
    return Term(job=job, round=0, nonce="1")


def test_I5_what_a_cycle_starts_from_stays_until_it_has_published(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1, 2, 3)
    with place.channel().publisher(sweep=False, term=_other(), resume_from=1) as publisher:
        swept = _sweep(place, keep_recent=1)
        assert _steps(place) == [1]
        assert _reasons(swept)[3] == "goes: outside the lineage of cycle 2"
        _publish(publisher, 2)
        _sweep(place, keep_recent=1)
        assert _steps(place) == [2]


def test_all_candidates_of_all_times_are_looked_at_in_every_pass(place: Place) -> None:
    """A version that was spared once is not forgotten."""
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        _publish(publisher, 1)
        held = consumer.take(0.0)
        assert held is not None
        _publish(publisher, 2, 3, 4, 5)
        with place.channel().sweeper(Retention(keep_recent=1)) as sweeper:
            sweeper.sweep()
            assert _steps(place) == [1, 5]
            held.release()
            sweeper.sweep()
            assert _steps(place) == [5]


def test_I4_a_hold_that_comes_before_the_second_look_keeps_the_version(place: Place) -> None:
    gate = Gated(place.storage())
    with (
        place.channel().publisher(sweep=False) as publisher,
        place.channel().consumer("c") as consumer,
        Channel(gate).sweeper(Retention(keep_recent=1)) as sweeper,  # type: ignore[arg-type]
    ):
        (first,) = _publish(publisher, 1)
        sweeper.sweep()  # from now on it has listed the consumer
        _publish(publisher, 2)
        stop = gate.stop_at("replace", "sweepers/")  # its announcement
        sweeping = Background(sweeper.sweep)
        sweeping.start()
        assert stop.reached.wait(WAIT_S)
        held = consumer.hold(first)
        stop.go.set()
        swept = sweeping.result()
        assert swept.removed == ()
        assert _reasons(swept)[1].startswith("held by c.")
        assert place.read(held) == "1"
        (seen,) = place.channel().observer().sweepers().values()
        assert seen.record is not None
        assert seen.record.tombstones == (), "the announcement was withdrawn"


def test_I4_a_hold_that_comes_after_the_announcement_gives_way(place: Place) -> None:
    gate = Gated(place.storage())
    with (
        place.channel().publisher(sweep=False) as publisher,
        place.channel().consumer("c") as consumer,
        Channel(gate).sweeper(Retention(keep_recent=1)) as sweeper,  # type: ignore[arg-type]
    ):
        first, _ = _publish(publisher, 1, 2)
        stop = gate.stop_at("retire_tree", str(first))
        sweeping = Background(sweeper.sweep)
        sweeping.start()
        assert stop.reached.wait(WAIT_S), "it has looked twice, and may freeze here for an hour"
        with pytest.raises(HoldfastError) as caught:
            consumer.hold(first)
        assert caught.value.code == "version_gone"
        assert _steps(place) == [1, 2]
        stop.go.set()
        assert sweeping.result().removed == (str(first),)


def test_I4_an_announced_version_is_given_to_nobody(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        newest = _publish(publisher, 1, 2)[-1]
        place.storage().create("sweepers/000001-0123abcd.json", _sweeper_file(place, tombstones=[str(newest)]))
        with place.channel().consumer("c", stage=place.path.parent / "stage") as consumer:
            held = consumer.take(0.0)
            assert held is not None
            assert held.step == 1, "the newest may vanish at any moment"
            with pytest.raises(HoldfastError) as caught:
                consumer.hold(newest)
            assert caught.value.code == "version_gone"


def _sweeper_file(place: Place, **fields: Any) -> bytes:
    party = msgspec.to_builtins(place.channel().party())
    return json.dumps({"format": 1, "beat": 1, "cycle": 1, "party": party, **fields}).encode()


def _consumer_file(place: Place, **fields: Any) -> bytes:
    party = msgspec.to_builtins(place.channel().party())
    return json.dumps({"format": 1, "beat": 1, "party": party, **fields}).encode()


ELSEWHERE = {"host": "another machine", "device": "1", "bound_s": 5.0}


def test_a_consumer_that_a_sweeper_elsewhere_has_not_listed_waits_before_it_loads_in_place(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1)
        place.storage().create("sweepers/000001-0123abcd.json", _sweeper_file(place, party=ELSEWHERE, bound_s=5.0))
        with (
            place.channel().consumer("in-place") as consumer,
            place.channel().consumer("staged", stage=place.path.parent / "stage") as staged,
        ):
            assert consumer.take(0.0) is None
            assert consumer.status == "waiting: sweeper 000001-0123abcd has not listed this consumer yet"
            assert staged.take(0.0) is not None
            (own,) = (str(life) for life in place.channel().observer().consumers() if life.name == "in-place")
            seen = _sweeper_file(place, party=ELSEWHERE, bound_s=5.0, seen=[own])
            place.storage().replace("sweepers/000001-0123abcd.json", seen)
            assert consumer.take(20.0) is not None


def test_a_consumer_that_never_opens_the_files_needs_only_a_sweeper_elsewhere_that_waits_long_enough(
    place: Place,
) -> None:
    elsewhere = "sweepers/000001-0123abcd.json"
    with place.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1)
        own_s = place.channel().party().bound_s
        place.storage().create(elsewhere, _sweeper_file(place, party=ELSEWHERE, bound_s=own_s - 1.0))
        with (
            place.channel().consumer("in-place") as in_place,
            place.channel().consumer("follower", in_place=False) as follower,
        ):
            assert follower.take(0.0) is None
            place.storage().replace(elsewhere, _sweeper_file(place, party=ELSEWHERE, bound_s=own_s))
            assert follower.take(20.0) is not None
            assert in_place.take(0.0) is None


def _lives(place: Place, name: str) -> dict[str, Any]:
    """The files of a consumer's lives that are there: life -> record."""
    return {
        str(life): seen.record for life, seen in place.channel().observer().consumers().items() if life.name == name
    }


def test_I4_a_taken_over_hold_stands_in_the_older_file_until_every_sweeper_has_listed_the_new_life(
    place: Place,
) -> None:
    elsewhere = "sweepers/000001-0123abcd.json"
    with place.channel(lease_s=24.0).publisher(sweep=False) as publisher:
        (version,) = _publish(publisher, 1)
        with place.channel(lease_s=24.0).consumer("c", on_close="keep") as first:
            assert first.take(20.0) is not None
        (older,) = _lives(place, "c")
        place.storage().create(elsewhere, _sweeper_file(place, party=ELSEWHERE, bound_s=5.0, seen=[older]))
        with place.channel(lease_s=24.0).consumer("c") as second:
            assert [held.name for held in second.held] == [version]
            lives = _lives(place, "c")
            (younger,) = lives.keys() - {older}
            assert lives[older].holds == (str(version),)
            beat = lives[older].beat
            until(lambda: _lives(place, "c")[older].beat > beat)
            listed = _sweeper_file(place, beat=2, party=ELSEWHERE, bound_s=5.0, seen=[older, younger])
            place.storage().replace(elsewhere, listed)
            until(lambda: older not in _lives(place, "c"))
            assert _lives(place, "c")[younger].holds == (str(version),)
            assert [held.lost for held in second.held] == [False]


def test_I4_whoever_was_taken_for_dead_after_it_was_taken_over_has_lost_its_holds(place: Place) -> None:
    elsewhere = "sweepers/000001-0123abcd.json"
    with place.channel(lease_s=24.0).publisher(sweep=False) as publisher:
        _publish(publisher, 1)
        with place.channel(lease_s=24.0).consumer("c", on_close="keep") as first:
            assert first.take(20.0) is not None
        (older,) = _lives(place, "c")
        place.storage().create(elsewhere, _sweeper_file(place, party=ELSEWHERE, bound_s=5.0, seen=[older]))
        with place.channel(lease_s=24.0).consumer("c") as second:
            (held,) = second.held
            dead = _sweeper_file(place, beat=2, party=ELSEWHERE, bound_s=5.0, seen=[older], expired=[older])
            place.storage().replace(elsewhere, dead)
            until(lambda: held.lost)


def test_I4_a_sweeper_that_knows_only_its_own_machine_waits_all_the_same_where_others_may_see_the_channel() -> None:
    """Before its first look, and between tombstone and removal."""
    storage = Gated(PosixStorage("/channel", SimulatedDisk(kind="nfs4")))
    channel = Channel(storage, visibility_bound_s=0.2, lease_s=60.0)  # type: ignore[arg-type]
    with channel.publisher(sweep=False) as publisher, channel.sweeper(Retention(keep_recent=1)) as sweeper:
        first, _ = _publish(publisher, 1, 2)
        arriving = storage.stop_at("replace", "sweepers/")
        sweeping = Background(sweeper.sweep)
        sweeping.start()
        assert arriving.reached.wait(WAIT_S)
        announced = storage.stop_at("replace", "sweepers/")  # the reserve: its record is written by now
        arriving.go.set()
        assert announced.reached.wait(WAIT_S)
        removing = storage.stop_at("retire_tree", str(first))
        for stop in (announced, removing):
            assert stop.reached.wait(WAIT_S)
            (seen,) = channel.observer().sweepers().values()
            assert seen.record is not None
            assert seen.record.bound_s == 0.2
            stop.go.set()
        assert sweeping.result().removed == (str(first),)


def test_a_sweeper_on_a_local_disk_waits_for_nobody() -> None:
    channel = Channel(PosixStorage("/channel", SimulatedDisk(kind="ext4")), visibility_bound_s=30.0, lease_s=120.0)
    with channel.publisher(sweep=False) as publisher, channel.sweeper(Retention(keep_recent=1)) as sweeper:
        first, _ = _publish(publisher, 1, 2)
        assert sweeper.sweep().removed == (str(first),)


def test_a_consumer_beside_the_sweeper_need_not_be_listed(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1)
        place.storage().create("sweepers/000001-0123abcd.json", _sweeper_file(place))
        with place.channel().consumer("in-place") as consumer:
            assert consumer.take(0.0) is not None


def test_an_unreadable_sweeper_holds_consumers_up_for_a_lease(place: Place) -> None:
    """It may announce anything. Whoever waits for it leaves one file, however often it tries."""
    with place.channel(lease_s=1.2).publisher(sweep=False) as publisher:
        _publish(publisher, 1)
        place.storage().create("sweepers/000001-0123abcd.json", b"{not json")
        with place.channel(lease_s=1.2).consumer("c") as consumer:
            assert consumer.take(0.3) is None
            assert consumer.status.startswith("waiting: the file of sweeper 000001-0123abcd cannot be read")
            assert len(place.channel().observer().consumers()) <= 1
            held = consumer.take(20.0)
            assert held is not None
            assert place.read(held) == "1"


def test_I4_an_unreadable_consumer_file_holds_everything_for_a_lease(place: Place) -> None:
    with place.channel(lease_s=1.2).publisher(sweep=False) as publisher:
        versions = _publish(publisher, 1, 2)
        place.storage().create("consumers/broken.000001-0123abcd.json", b"{not json")
        with place.channel(lease_s=1.2).sweeper(Retention(keep_recent=1)) as sweeper:
            swept = sweeper.sweep()
            assert swept.removed == ()
            assert _reasons(swept)[1] == "kept: the file of broken.000001-0123abcd cannot be read"
            gone = until(lambda: sweeper.sweep().removed)
            assert gone == (str(versions[0]),), "its bytes have not changed for a lease"


def test_I4_a_silent_consumer_holds_for_a_lease_and_no_longer(place: Place) -> None:
    with place.channel(lease_s=1.2).publisher(sweep=False) as publisher:
        versions = _publish(publisher, 1, 2)
        place.storage().create("consumers/dead.000001-0123abcd.json", _consumer_file(place, holds=[str(versions[0])]))
        with place.channel(lease_s=1.2).sweeper(Retention(keep_recent=1)) as sweeper:
            swept = sweeper.sweep()
            assert _reasons(swept)[1] == "held by dead.000001-0123abcd"
            until(lambda: sweeper.sweep().removed)
            assert _steps(place) == [2]
            until(lambda: sweeper.sweep() and not place.channel().observer().consumers())


def test_I4_a_beating_consumer_holds_for_ever(place: Place) -> None:
    """Silence is told by the beat alone, as the observer watches it."""
    with (
        place.channel(lease_s=1.0).publisher(sweep=False) as publisher,
        place.channel(lease_s=1.0).consumer("c") as consumer,
    ):
        _publish(publisher, 1)
        held = consumer.take(0.0)
        assert held is not None
        _publish(publisher, 2)
        place.storage().create("consumers/dead.000001-0123abcd.json", _consumer_file(place, holds=[str(held.name)]))
        with place.channel(lease_s=1.0).sweeper(Retention(keep_recent=1)) as sweeper:
            sweeper.start()
            until(lambda: len(place.channel().observer().consumers()) == 1, "the dead one is buried after two leases")
            assert _steps(place) == [1, 2]
            assert not held.lost


def test_one_sweeper_works_and_the_other_stands_by(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1, 2)
        with (
            place.channel().sweeper(Retention(keep_recent=1)) as first,
            place.channel().sweeper(Retention(keep_recent=1)) as second,
        ):
            first.sweep()
            _publish(publisher, 3)
            assert second.sweep().standing_by
            assert _steps(place) == [2, 3]
            assert first.sweep().removed
        with place.channel().sweeper(Retention(keep_recent=1)) as third:
            assert third.sweep().standing_by == ""


def test_I8_a_fenced_publishers_sweeper_withdraws_and_stops(place: Place) -> None:
    link = CutOff(place.storage())
    old = Channel(link).publisher(Retention(keep_recent=1), term=_other("old"))  # type: ignore[arg-type]
    old.open()
    try:
        first = _publish(old, 1)[0]
        until(lambda: place.channel().observer().sweepers())
        with place.channel().publisher(sweep=False, term=_other("new"), take_over=True, resume_from=first) as new:
            _publish(new, 2, 3)
            until(lambda: not place.channel().observer().sweepers(), "it leaves once it has seen the higher claim")
            assert _steps(place) == [1, 2, 3], "it swept nothing of the new cycle"
    finally:
        old.close()


def test_a_plan_tells_and_changes_nothing(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        versions = _publish(publisher, 1, 2, 3)
        before = place.storage().list("")
        with place.channel().sweeper(Retention(keep_recent=1)) as sweeper:
            plan = sweeper.plan()
            assert [plan[str(version)].stays for version in versions] == [False, False, True]
            assert place.channel().observer().sweepers() == {}
        assert _steps(place) == [1, 2, 3]
        assert place.storage().list("") == before


def test_a_publishers_own_sweeper_keeps_the_channel_small(place: Place) -> None:
    with place.channel(lease_s=2.0).publisher(Retention(keep_recent=2)) as publisher:
        _publish(publisher, *range(8))
        until(lambda: _steps(place) == [6, 7])
    assert place.channel().observer().sweepers() == {}


def test_leftovers_of_a_dead_publisher_go_once_it_is_replaced(place: Place) -> None:
    link = CutOff(place.storage())
    dead = Channel(link).publisher(sweep=False, term=_other("dead"))  # type: ignore[arg-type]
    dead.open()
    _publish(dead, 1)
    place.storage().begin_tree("c000001-s00000002-00abcdef", "c000001-0123abcd").file("w.bin").close()
    link.cut()
    dead.close()
    assert place.storage().list_garbage() != ()
    with place.channel().sweeper() as sweeper:
        assert sweeper.sweep().garbage == (), "its publisher may still live"
    with place.channel().publisher(sweep=False, term=_other("next"), take_over=True, resume_from=1) as publisher:
        swept = _sweep(place)
        assert swept.garbage == ("c000001-0123abcd",)
        assert place.storage().list_garbage() == ()
        _publish(publisher, 2)
        assert _steps(place) == [1, 2]


def test_links_of_swept_versions_go_and_the_others_stay(directory: Place) -> None:
    with directory.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1, 2, 3)
        links = directory.path / "broadcasts" / "c000001"
        assert sorted(link.name for link in links.iterdir()) == ["step_1", "step_2", "step_3"]
        with directory.channel().sweeper(Retention(keep_recent=2)) as sweeper:
            sweeper.sweep()
            until(lambda: sweeper.sweep() and not (links / "step_1").is_symlink())
        assert sorted(link.name for link in links.iterdir()) == ["step_2", "step_3"]
        assert (links / "step_2" / "w.bin").read_text() == "2"
