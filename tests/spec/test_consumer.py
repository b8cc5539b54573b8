"""The consumer: what it is given and in which order, what it may say of it, and what others see of that."""

from __future__ import annotations

import asyncio
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from holdfast import (
    Channel,
    ConflictError,
    HeldVersion,
    NotVisibleError,
    Retention,
    RewoundError,
    Term,
    TimedOutError,
    UsageError,
)
from holdfast.channel.checking import stable_text
from holdfast.channel.consumer import Consumer
from holdfast.channel.posix import PosixStorage
from holdfast.channel.publisher import Publisher
from holdfast.testing import SimulatedDisk
from tests.support.channels import WAIT_S, Background, CutOff, Gated, Place, payload, thread, until


def _publish(publisher: Publisher, *steps: int) -> None:
    for step in steps:
        publisher.publish_payload(step, payload(str(step)), metadata={"loss": step / 10})


def _steps(consumer: Consumer) -> list[int]:
    """The steps of what can be given now; each is released at once."""
    steps = []
    while (held := consumer.take(0.0)) is not None:
        steps.append(held.step)
        held.release()
    return steps


def _take(consumer: Consumer) -> HeldVersion:
    held = consumer.take(20.0)
    assert held is not None, consumer.status
    return held


def _next(job: str, **options: Any) -> dict[str, Any]:
    return {"sweep": False, "term": Term(job=job, round=0, nonce="1"), "take_over": True, **options}


# Order


def test_I1_what_is_given_is_what_was_published(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        version = publisher.publish_payload(7, payload("seven", "more"), metadata={"loss": 0.5})
        held = _take(consumer)
        assert (held.name, held.step, held.cycle, str(held)) == (version, 7, 1, str(version))
        assert (place.read(held), place.read(held, "w1.bin")) == ("seven", "more")
        assert held.metadata == {"loss": 0.5}
        assert [file.path for file in held.manifest.files] == ["w.bin", "w1.bin"]
        assert (held.rewound_from, held.lost) == (None, False)
        assert consumer.held[0].name == version


def test_the_newest_is_given_and_older_ones_are_passed_over(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        _publish(publisher, 1, 2, 3)
        assert _steps(consumer) == [3]
        _publish(publisher, 4, 5)
        assert _steps(consumer) == [5]
        assert "up to date" in consumer.status


def test_every_version_is_given_in_order(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c", every=True) as consumer:
        _publish(publisher, 1, 2, 3)
        assert _steps(consumer) == [1, 2, 3]
        _publish(publisher, 4, 5)
        assert _steps(consumer) == [4, 5]


def test_I4_versions_that_are_still_to_be_given_stay_for_a_consumer_of_every_version(place: Place) -> None:
    channel = place.channel()
    with channel.publisher(sweep=False) as publisher, place.channel().consumer("c", every=True) as consumer:
        _publish(publisher, 1, 2, 3, 4)
        first = _take(consumer)
        with place.channel().sweeper(Retention(keep_recent=1)) as sweeper:
            assert sweeper.sweep().removed == ()
            first.release()
            assert _steps(consumer) == [2, 3, 4]


def test_I3_what_is_given_never_goes_back_within_a_claim(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        _publish(publisher, 1, 2)
        newest = _take(consumer)
        place.storage().retire_tree(str(newest.name), "0123456789abcdef")
        assert consumer.take(0.0) is None, "step 1 is the newest again, and lies behind"
        _publish(publisher, 3)
        assert _take(consumer).step == 3


def test_a_consumer_that_comes_first_waits_for_the_channel(place: Place) -> None:
    with place.channel().consumer("c") as consumer:
        assert consumer.take(0.0) is None
        assert "no channel" in consumer.status
        taking = Background(lambda: _take(consumer))
        taking.start()
        with place.channel().publisher(sweep=False) as publisher:
            until(lambda: consumer.status != "" or not taking.is_alive())
            _publish(publisher, 1)
            held = taking.result()
            assert held.step == 1
            held.acknowledge()


def test_a_consumer_says_in_words_what_it_waits_for(place: Place) -> None:
    place.channel().open(create=True)
    with place.channel().consumer("c") as consumer:
        assert consumer.take(0.0) is None
        assert consumer.status == "waiting: nobody has claimed the channel yet"
        with place.channel().publisher(sweep=False):
            assert consumer.take(0.0) is None
            assert consumer.status == "waiting: cycle 1 has nothing to give yet"


def test_iterating_ends_when_another_thread_closes(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        consumer = place.channel().consumer("c")
        seen: list[int] = []

        def loop() -> None:
            for held in consumer:
                with held:
                    seen.append(held.step)

        with thread(loop):
            _publish(publisher, 1)
            until(lambda: seen == [1])
            _publish(publisher, 2)
            until(lambda: seen == [1, 2])
            consumer.close()
        assert consumer.take(0.0) is None


# latest and wait_for


def test_latest_never_waits_and_gives_the_same_again(place: Place) -> None:
    with place.channel().consumer("c") as consumer:
        assert consumer.latest() is None
        with place.channel().publisher(sweep=False) as publisher:
            assert consumer.latest() is None
            _publish(publisher, 1)
            first = consumer.latest()
            again = consumer.latest()
            assert first is not None
            assert again is not None
            assert first.name == again.name
            _publish(publisher, 2)
            second = consumer.latest()
            assert second is not None
            assert second.step == 2
            second.release()
            once_more = consumer.latest()
            assert once_more is not None
            assert (once_more.step, once_more.lost) == (2, False)
            assert second.name == once_more.name


def test_wait_for_waits_until_the_step_is_reached(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        _publish(publisher, 1)
        assert consumer.wait_for(1, timeout_s=20.0).step == 1
        waiting = Background(lambda: consumer.wait_for(5, timeout_s=20.0))
        waiting.start()
        _publish(publisher, 4)
        _publish(publisher, 6)
        assert waiting.result().step == 6
        assert consumer.wait_for(3, timeout_s=0.0).step == 6, "the one that is held serves as well"
        assert {held.step for held in consumer.held} == {1, 6}, "nothing below the step was held meanwhile"


def test_wait_for_says_what_is_missing_when_the_time_is_over(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        _publish(publisher, 1)
        with pytest.raises(TimedOutError) as caught:
            consumer.wait_for(2, timeout_s=0.05)
        assert caught.value.code == "wait_timed_out"
        assert caught.value.fields["min_step"] == 2
        assert consumer.held == ()
        with pytest.raises(TimedOutError):
            consumer.wait_for(2, timeout_s=0.0)


def test_wait_for_says_when_the_lineage_fell_below_the_step(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        _publish(publisher, 4, 8)
        assert consumer.wait_for(8, timeout_s=20.0).step == 8
        with place.channel().publisher(**_next("b", resume_from=4)) as second:
            with pytest.raises(RewoundError) as caught:
                consumer.wait_for(12, timeout_s=20.0)
            assert caught.value.code == "rewound"
            _publish(second, 5, 12)
            assert consumer.wait_for(12, timeout_s=20.0).step == 12


def test_wait_for_says_so_where_the_lineage_falls_while_it_waits(place: Place) -> None:
    gate = Gated(place.storage())
    with place.channel().publisher(sweep=False) as publisher, _channel(gate).consumer("c") as consumer:
        _publish(publisher, 4, 8)
        first = gate.stop_at("read", "CURRENT")
        waiting = Background(lambda: consumer.wait_for(9, timeout_s=20.0))
        waiting.start()
        assert first.reached.wait(WAIT_S)
        second = gate.stop_at("read", "CURRENT")  # once it is there, the first look is over
        first.go.set()
        assert second.reached.wait(WAIT_S)
        with place.channel().publisher(**_next("b", resume_from=4)):
            second.go.set()
            with pytest.raises(RewoundError) as caught:
                waiting.result()
            assert caught.value.code == "rewound"


@pytest.mark.parametrize("every", [False, True])
def test_wait_for_never_gives_less_than_was_asked_for(directory: Place, every: bool) -> None:
    with (
        directory.channel().publisher(sweep=False) as publisher,
        directory.channel().consumer("c", every=every) as consumer,
    ):
        _publish(publisher, 1, 2, 3)
        newest = directory.path / "versions" / str(publisher.last)
        (newest / "manifest.json").write_bytes(b"{}")
        (newest / "STABLE").write_bytes(stable_text(b"{}"))
        with pytest.raises(TimedOutError):
            consumer.wait_for(3, timeout_s=0.1)
        assert consumer.held == ()
        assert consumer.wait_for(2, timeout_s=20.0).step == 2
        _publish(publisher, 4, 5)
        assert consumer.wait_for(4, timeout_s=20.0).step == 5


def test_what_cannot_be_given_is_passed_over_at_once(directory: Place) -> None:
    with (
        directory.channel().publisher(sweep=False) as publisher,
        directory.channel().consumer("c", poll_s=3600.0) as consumer,
    ):
        _publish(publisher, 1, 2)
        newest = directory.path / "versions" / str(publisher.last)
        (newest / "manifest.json").write_bytes(b"{}")
        (newest / "STABLE").write_bytes(stable_text(b"{}"))
        held = consumer.take(20.0)
        assert held is not None
        assert held.step == 1


def test_a_closed_consumer_says_so(place: Place) -> None:
    place.channel().open(create=True)
    consumer = place.channel().consumer("c")
    consumer.open()
    consumer.open()
    consumer.close()
    consumer.close()
    with pytest.raises(UsageError) as caught:
        consumer.open()
    assert caught.value.code == "closed"
    for call in (lambda: consumer.wait_for(1, timeout_s=1.0), lambda: consumer.hold("c000001-s00000001-00aaaaaa")):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.code == "closed"
    assert consumer.take(1.0) is None
    assert list(consumer) == []


def test_a_consumer_that_was_never_opened_closes_without_a_trace(place: Place) -> None:
    place.channel().consumer("c").close()
    assert place.storage().list("") == ()


@pytest.mark.parametrize("name", ["", "../c", "a/b", "/etc/passwd", ".hidden", "a b", "c\n", "x" * 101, "ü", 7, None])
def test_a_consumer_name_that_is_none_is_refused(place: Place, name: Any) -> None:
    with pytest.raises(UsageError) as caught:
        place.channel().consumer(name)
    assert caught.value.code == "bad_consumer_name"
    assert place.storage().list("") == ()


@pytest.mark.parametrize(
    "options",
    [{"on_close": "drop"}, {"patience_s": -1.0}, {"patience_s": "9"}, {"poll_s": 0}, {"poll_s": float("nan")}],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(place: Place, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        place.channel().consumer("c", **options)


# Holds


def _holds(place: Place) -> set[int]:
    records = [seen.record for seen in place.channel().observer().consumers().values()]
    return {int(name[9:17]) for record in records if record is not None for name in record.holds}


def test_I4_held_versions_stay_and_released_ones_go(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        held = []
        for step in (1, 2, 3):
            _publish(publisher, step)
            held.append(_take(consumer))
        _publish(publisher, 4)
        assert [one.step for one in consumer.held] == [1, 2, 3]
        assert _holds(place) == {1, 2, 3}
        with place.channel().sweeper(Retention(keep_recent=1)) as sweeper:
            assert sweeper.sweep().removed == ()
            held[1].release()
            held[1].release()
            assert _holds(place) == {1, 3}
            assert sweeper.sweep().removed == (str(held[1].name),)
            assert [place.read(one) for one in (held[0], held[2])] == ["1", "3"]
            assert (held[0].lost, held[1].lost) == (False, True)
            held[0].release()
            held[2].release()
            assert sweeper.sweep().removed == (str(held[0].name), str(held[2].name))


def test_a_block_releases_at_its_end(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        _publish(publisher, 1)
        with _take(consumer) as held:
            held.acknowledge()
            assert _holds(place) == {1}
        assert held.lost
        assert _holds(place) == set()
        assert consumer.take(0.0) is None


def test_a_version_whose_block_fails_is_given_again(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        _publish(publisher, 1)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError), _take(consumer) as held:
                raise ZeroDivisionError
            assert held.lost
        with _take(consumer) as held:
            assert held.step == 1
        assert consumer.take(0.0) is None


def test_a_failed_version_gives_way_to_a_newer_one(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        _publish(publisher, 1)
        _take(consumer).fail()
        _publish(publisher, 2)
        assert _steps(consumer) == [2]


def test_a_failed_version_comes_again_before_the_next_of_every_version(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c", every=True) as consumer:
        _publish(publisher, 1, 2)
        _take(consumer).fail()
        assert _steps(consumer) == [1, 2]


def test_leaving_a_loop_in_a_block_releases(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        _publish(publisher, 1)

        def first() -> Any:
            for held in consumer:
                with held:
                    yield held.step

        generator = first()
        assert next(generator) == 1
        generator.close()
        assert _holds(place) == set()
        assert consumer.take(0.0) is None


def test_a_rejected_version_is_never_given_again_not_even_after_a_restart(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1, 2)
        with place.channel().consumer("c", on_close="keep") as consumer:
            rejected = _take(consumer)
            rejected.reject("its loss is not a number")
            assert rejected.lost
            assert consumer.latest() is None, "nothing that lies behind is given"
            record = next(iter(place.channel().observer().consumers().values())).record
            assert record is not None
            assert record.refused == {str(rejected.name): "its loss is not a number"}
        with place.channel().consumer("c", on_close="keep") as again:
            assert _take(again).step == 1, "a new life begins with the newest that it does not refuse"
            _publish(publisher, 3)
            assert _take(again).step == 3


def test_I6_an_acknowledgement_stands_in_the_own_file_until_the_release(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        _publish(publisher, 1)
        held = _take(consumer)
        held.acknowledge()
        held.acknowledge()
        (seen,) = place.channel().observer().consumers().values()
        assert seen.record is not None
        assert (seen.record.acknowledged, seen.record.acknowledged_cycle) == (str(held.name), 1)
        assert seen.record.serving == (str(held.name),)
        held.release()
        (seen,) = place.channel().observer().consumers().values()
        assert seen.record is not None
        assert (seen.record.acknowledged, seen.record.serving) == (str(held.name), ())


def test_I6_what_is_not_held_cannot_be_acknowledged(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        _publish(publisher, 1)
        held = _take(consumer)
        held.release()
        with pytest.raises(ConflictError) as caught:
            held.acknowledge()
        assert caught.value.code == "lease_lost"
        (seen,) = place.channel().observer().consumers().values()
        assert seen.record is not None
        assert seen.record.acknowledged is None


def test_a_version_is_held_by_name_whatever_the_lineage(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        versions = [publisher.publish_payload(step, payload(str(step))) for step in (1, 2, 3)]
        assert place.read(consumer.hold(versions[0])) == "1"
        assert place.read(consumer.hold(str(versions[1]))) == "2"
        assert {held.step for held in consumer.held} == {1, 2}
        assert _take(consumer).step == 3
        with pytest.raises(NotVisibleError) as caught:
            consumer.hold("c000001-s00000009-00aaaaaa")
        assert caught.value.code == "version_gone"
        for name in ("..", "../../etc", "", 7):
            with pytest.raises(UsageError):
                consumer.hold(name)  # type: ignore[arg-type]


# Restarts and names


def test_closing_releases_or_keeps_as_told(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1)
        with place.channel().consumer("c") as consumer:
            _take(consumer)
        assert place.channel().observer().consumers() == {}
        with place.channel().consumer("c", on_close="keep") as consumer:
            kept = _take(consumer)
        assert _holds(place) == {1}
        _publish(publisher, 2)
        with place.channel().sweeper(Retention(keep_recent=1)) as sweeper:
            assert sweeper.sweep().removed == ()
            with place.channel().consumer("c") as consumer:
                assert [held.step for held in consumer.held] == [1]
                assert place.read(consumer.held[0]) == "1"
                assert len(place.channel().observer().consumers()) == 1, "the file of the life before is gone"
                assert sweeper.sweep().removed == ()
                consumer.held[0].release()
                assert sweeper.sweep().removed == (str(kept.name),)


def test_the_younger_of_two_lives_goes_on_and_the_older_is_told(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1)
        with place.channel(lease_s=1.2).consumer("c") as older, place.channel(lease_s=1.2).consumer("d") as bystander:
            held = _take(older)
            held.acknowledge()
            with place.channel(lease_s=1.2).consumer("c") as younger:
                assert [one.name for one in younger.held] == [held.name], "its hold was taken over"
                with pytest.raises(ConflictError) as caught:
                    older.take(20.0)
                assert caught.value.code == "superseded_consumer"
                assert held.lost, "who must not use the path any more is told so"
                for say in (held.acknowledge, lambda: older.take(0.0), lambda: older.wait_for(1, timeout_s=1.0)):
                    with pytest.raises(ConflictError) as caught:
                        say()
                    assert caught.value.code == "superseded_consumer"
                held.release()
                held.fail()
                held.reject("too late")
                older.close()
                lives = [str(life) for life in place.channel().observer().consumers() if life.name == "c"]
                assert len(lives) == 1, "whatever the older one does, it writes no file any more"
                assert _holds(place) == {1}
                _publish(publisher, 2)
                assert _take(younger).step == 2
                assert _take(bystander).step == 2


def test_a_consumer_that_was_cut_off_for_a_lease_drops_its_holds_and_starts_again(place: Place) -> None:
    link = CutOff(place.storage())
    channel = _channel(link, lease_s=1.0)
    with place.channel(lease_s=1.0).publisher(Retention(keep_recent=1), sweep=False) as publisher:
        _publish(publisher, 1)
        with (
            channel.consumer("c") as consumer,
            place.channel(lease_s=1.0).sweeper(Retention(keep_recent=1)) as sweeper,
        ):
            sweeper.start()
            held = _take(consumer)
            link.cut()
            _publish(publisher, 2)
            until(lambda: {version.step for version in place.channel().observer().versions()} == {2})
            link.mend()
            with pytest.raises(ConflictError) as caught:
                held.acknowledge()
            assert caught.value.code == "lease_lost"
            assert held.lost
            assert _take(consumer).step == 2
            lives = [life for life in place.channel().observer().consumers() if life.name == "c"]
            assert max(life.number for life in lives) > 1


def _channel(storage: Any, **options: Any) -> Channel:
    return Channel(storage, **options)


# Staging


def test_a_staged_version_is_the_consumers_own_and_the_hold_ends_with_the_copy(
    place: Place, room: pathlib.Path
) -> None:
    stage = room / "stage"
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c", stage=stage) as consumer:
        _publish(publisher, 1)
        held = _take(consumer)
        assert _holds(place) == set()
        assert (held.path / "w.bin").read_text() == "1"
        assert stage in held.path.parents
        held.acknowledge()
        _publish(publisher, 2)
        with place.channel().sweeper(Retention(keep_recent=1)) as sweeper:
            newer = _take(consumer)
            newer.acknowledge()
            assert sweeper.sweep().removed == (str(held.name),)
        assert (held.path / "w.bin").read_text() == "1", "the copy lives until it is released"
        held.release()
        assert not held.path.exists()
        assert newer.path.exists()
    assert not newer.path.exists(), "closing releases"
    assert [path.name for path in stage.rglob("*") if path.is_file()] == ["lock"]


def test_a_copy_is_given_even_where_the_end_of_its_hold_cannot_be_written(place: Place, room: pathlib.Path) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1)
        for calls in range(60):
            link = CutOff(place.storage())
            with _channel(link).consumer("c", stage=room / "stage") as consumer:
                link.cut(after_calls=calls)
                held = consumer.take(0.0)
                was_cut = link.is_cut
                link.mend()
                held = held if held is not None else _take(consumer)
                assert (held.path / "w.bin").read_text() == "1"
                held.release()
            if not was_cut:
                return
        pytest.fail("taking one version needs more than 60 calls")


def test_staged_copies_are_taken_over_after_a_restart(place: Place, room: pathlib.Path) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1)
        with place.channel().consumer("c", stage=room / "stage", on_close="keep") as consumer:
            held = _take(consumer)
            held.acknowledge()
        assert held.path.exists()
        _publish(publisher, 2)
        with place.channel().sweeper(Retention(keep_recent=1)) as sweeper:
            place.storage().retire_tree(str(held.name), "0123456789abcdef")
            sweeper.sweep()
        with place.channel().consumer("c", stage=room / "stage") as again:
            (kept,) = again.held
            assert (kept.path / "w.bin").read_text() == "1"
            assert _take(again).step == 2
            kept.release()
            assert not kept.path.exists()


def test_a_copy_that_was_damaged_meanwhile_is_made_anew(place: Place, room: pathlib.Path) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1)
        with place.channel().consumer("c", stage=room / "stage", on_close="keep") as consumer:
            held = _take(consumer)
        (held.path / "w.bin").chmod(0o644)
        (held.path / "w.bin").write_text("x")
        with place.channel().consumer("c", stage=room / "stage") as again:
            assert (_take(again).path / "w.bin").read_text() == "1"


def test_where_nothing_becomes_visible_late_damage_is_not_waited_out(directory: Place) -> None:
    with directory.channel().publisher(sweep=False) as publisher, directory.channel().consumer("c") as consumer:
        _publish(publisher, 1)
        damaged = publisher.publish_payload(2, payload("2"))
        (directory.path / "versions" / str(damaged) / "w.bin").write_bytes(b"x")
        assert _take(consumer).step == 1
        (record,) = [seen.record for seen in directory.channel().observer().consumers().values()]
        assert record is not None
        assert list(record.refused) == [str(damaged)]


@pytest.mark.parametrize(
    ("kind", "bound_s", "patience_s"),
    [("ext4", None, "1"), ("nfs4", 0.5, "16"), ("nfs4", 5.0, "90"), ("nfs4", None, "90")],
)
def test_damage_is_waited_out_for_as_long_as_things_may_be_late(
    kind: str, bound_s: float | None, patience_s: str
) -> None:
    disk = SimulatedDisk(kind=kind)
    channel = Channel(PosixStorage("/channel", disk), visibility_bound_s=bound_s)
    with channel.publisher(sweep=False) as publisher, channel.consumer("c", in_place=False) as consumer:
        damaged = publisher.publish_payload(1, payload("1"))
        disk.unlink(None, f"/channel/versions/{damaged}/w.bin")
        assert consumer.take(0.0) is None
        assert f" of {patience_s} s" in consumer.status


def test_two_live_processes_of_one_name_never_touch_each_others_copies(place: Place, room: pathlib.Path) -> None:
    stage = room / "stage"
    with place.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1)
        with place.channel().consumer("c", stage=stage, on_close="keep") as older:
            first = _take(older)
            first.acknowledge()
            with place.channel().consumer("c", stage=stage, on_close="keep") as younger:
                second = _take(younger)
                second.acknowledge()
                assert (first.name, first.path != second.path) == (second.name, True)
                second.fail()
                assert (first.path / "w.bin").read_text() == "1"
                again = _take(younger)
                first.release()
                assert (again.path / "w.bin").read_text() == "1"
                again.acknowledge()
        with place.channel().consumer("c", stage=stage) as last:
            assert [held.path for held in last.held] == [again.path], "what was used last is taken over"
            assert not first.path.exists(), "the rest is removed"


def test_two_consumers_stage_below_one_directory(place: Place, room: pathlib.Path) -> None:
    stage = room / "stage"
    with (
        place.channel().publisher(sweep=False) as publisher,
        place.channel().consumer("a", stage=stage) as a,
        place.channel().consumer("b", stage=stage) as b,
    ):
        _publish(publisher, 1)
        first, second = _take(a), _take(b)
        first.release()
        assert (second.path / "w.bin").read_text() == "1"


def test_without_local_paths_a_version_in_place_has_none(room: pathlib.Path) -> None:
    place = Place("memory", room)
    with place.channel().publisher(sweep=False) as publisher, place.channel().consumer("c") as consumer:
        _publish(publisher, 1)
        with pytest.raises(UsageError) as caught:
            _ = _take(consumer).path
        assert caught.value.code in ("no_local_path", "unsupported")


# Several threads


@pytest.mark.parametrize("say", ["release", "fail", "reject", "acknowledge"])
@pytest.mark.parametrize("at", ["replace", "list", "open"])
def test_what_is_said_of_one_version_while_another_is_taken_loses_neither(place: Place, at: str, say: str) -> None:
    gate = Gated(place.storage())
    with place.channel().publisher(sweep=False) as publisher, _channel(gate).consumer("c") as consumer:
        _publish(publisher, 1)
        first = _take(consumer)
        _publish(publisher, 2)
        stop = gate.stop_at(at, {"replace": "consumers/", "list": "sweepers", "open": "versions/"}[at])
        taking = Background(lambda: _take(consumer))
        taking.start()
        assert stop.reached.wait(WAIT_S)
        saying = Background({"reject": lambda: first.reject("no")}.get(say, getattr(first, say)))
        saying.start()
        saying.join(0.1)  # it may wait for the file that is being written
        stop.go.set()
        saying.result()
        second = taking.result()
        assert (second.step, place.read(second)) == (2, "2")
        assert not second.lost
        assert _holds(place) == ({2} if say != "acknowledge" else {1, 2})
        assert first.lost == (say != "acknowledge")
        assert consumer.take(0.0) is None


@pytest.mark.parametrize("staged", [False, True])
def test_a_version_that_is_swept_before_the_hold_stands_is_given_up_at_once(
    place: Place, tmp_path: pathlib.Path, staged: bool
) -> None:
    gate = Gated(place.storage())
    stage = tmp_path / "stage" if staged else None
    with place.channel().publisher(sweep=False) as publisher, _channel(gate).consumer("c", stage=stage) as consumer:
        _publish(publisher, 1)
        stop = gate.stop_at("replace", "consumers/")
        taking = Background(lambda: _take(consumer))
        taking.start()
        assert stop.reached.wait(WAIT_S)
        _publish(publisher, 2)
        with place.channel().sweeper(Retention(keep_recent=1)) as sweeper:
            assert len(sweeper.sweep().removed) == 1
        stop.go.set()
        assert taking.result().step == 2
        (seen,) = place.channel().observer().consumers().values()
        assert seen.record is not None
        assert seen.record.refused == {}


def test_an_expiry_that_is_found_while_a_version_is_taken_loses_nothing_but_the_holds(place: Place) -> None:
    gate = Gated(place.storage())
    with place.channel().publisher(sweep=False) as publisher, _channel(gate).consumer("c") as consumer:
        _publish(publisher, 1)
        first = _take(consumer)
        _publish(publisher, 2)
        stop = gate.stop_at("open", "versions/")
        taking = Background(lambda: _take(consumer))
        taking.start()
        assert stop.reached.wait(WAIT_S)
        for entry in place.storage().list("consumers"):
            place.storage().delete(f"consumers/{entry.name}")  # as the sweeper does with whom it took for dead
        with pytest.raises(ConflictError) as caught:
            first.acknowledge()
        assert caught.value.code == "lease_lost"
        stop.go.set()
        second = taking.result()
        assert (second.step, second.lost) == (2, False)
        assert _holds(place) == {2}, "what is given is held by the new life"


def test_closing_ends_whatever_another_thread_waits_for(directory: Place) -> None:
    with directory.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1)
        version = publisher.last
        assert version is not None
        (directory.path / "versions" / str(version) / "w.bin").write_text("?")
        for wait in (lambda c: c.take(), lambda c: c.wait_for(7), lambda c: c.hold(version)):
            consumer = directory.channel().consumer("c", patience_s=3600.0)
            waiting = Background(lambda wait=wait, consumer=consumer: wait(consumer))  # type: ignore[misc]
            waiting.start()
            until(lambda: directory.channel().observer().consumers())
            consumer.close()
            waiting.join(20.0)
            assert not waiting.is_alive()


# Asynchronous use


def test_the_event_loop_goes_on_while_a_consumer_waits_and_verifies(place: Place) -> None:
    gate = Gated(place.storage())
    stop = gate.stop_at("open", "versions/")

    async def main() -> tuple[int, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.ensure_future(tick())
        async with _channel(gate).consumer("c") as consumer:
            taking = asyncio.ensure_future(consumer.atake())
            await _true(lambda: ticks > 100)
            assert not taking.done(), "it waits for the channel"
            with place.channel().publisher(sweep=False) as publisher:
                _publish(publisher, 1)
                await _true(stop.reached.is_set)
                before = ticks
                await _true(lambda: ticks > before + 100)
                assert not taking.done(), "its bytes are being checked"
                stop.go.set()
                held = await asyncio.wait_for(taking, 20)
        ticking.cancel()
        assert held is not None
        return held.step, ticks

    assert asyncio.run(main())[0] == 1


async def _true(condition: Callable[[], bool]) -> None:
    """Let the others run until `condition` is true."""
    while not condition():  # noqa: ASYNC110 - what is waited for comes from threads too
        await asyncio.sleep(0)


def test_cancelling_leaves_nothing_held(place: Place) -> None:
    async def main() -> None:
        gate = Gated(place.storage())
        with place.channel().publisher(sweep=False) as publisher:
            async with _channel(gate).consumer("c") as consumer:
                idle = asyncio.ensure_future(consumer.atake())
                await asyncio.to_thread(until, lambda: consumer.status)
                idle.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await idle
                stop = gate.stop_at("open", "versions/")
                _publish(publisher, 1)
                busy = asyncio.ensure_future(consumer.atake())
                assert await asyncio.to_thread(stop.reached.wait, 20)
                busy.cancel()
                stop.go.set()
                with pytest.raises(asyncio.CancelledError):
                    await busy
                assert _holds(place) == set()
                assert consumer.held == ()
                held = await consumer.atake(20.0)
                assert held is not None
                assert held.step == 1

    asyncio.run(main())


def test_async_for_gives_what_for_gives(place: Place) -> None:
    async def main() -> list[int]:
        seen = []
        async with place.channel().consumer("c", every=True) as consumer:
            async for held in consumer:
                with held:
                    seen.append(held.step)
                if held.step == 3:
                    break
        return seen

    with place.channel().publisher(sweep=False) as publisher:
        _publish(publisher, 1, 2, 3)
        assert asyncio.run(main()) == [1, 2, 3]


def test_many_consumers_wait_in_one_event_loop(place: Place) -> None:
    async def one(name: str, ready: list[str]) -> int:
        async with place.channel().consumer(name) as consumer:
            taking = asyncio.ensure_future(consumer.atake(20.0))
            ready.append(name)
            held = await taking
            assert held is not None, consumer.status
            return held.step

    async def main() -> list[int]:
        ready: list[str] = []
        tasks = [asyncio.ensure_future(one(f"c{i}", ready)) for i in range(40)]
        await _true(lambda: len(ready) == len(tasks))
        with place.channel().publisher(sweep=False) as publisher:
            await asyncio.to_thread(_publish, publisher, 1)
            return list(await asyncio.gather(*tasks))

    assert asyncio.run(main()) == [1] * 40


def test_releases_come_from_any_thread(place: Place) -> None:
    """One thread takes, others acknowledge and release, all at once."""
    count = 30
    with (
        place.channel().publisher(sweep=False) as publisher,
        place.channel().consumer("c", every=True) as consumer,
    ):
        _publish(publisher, *range(count))
        errors: list[BaseException] = []
        seen: list[int] = []

        def use(held: HeldVersion) -> None:
            try:
                held.acknowledge()
                held.release()
            except BaseException as error:
                errors.append(error)
                raise

        users = []
        for held in consumer:
            seen.append(held.step)
            users.append(threading.Thread(target=use, args=(held,)))
            users[-1].start()
            if held.step == count - 1:
                break
        for user in users:
            user.join(20)
        assert errors == []
        assert seen == list(range(count))
        assert consumer.held == ()
        assert _holds(place) == set()
