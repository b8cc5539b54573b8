"""The channel as a place: whose directory it is, what stands in it, and where consumers may write."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import shutil
import stat
from contextlib import suppress
from typing import Any

import pytest

from holdfast import Channel, HoldfastError, NotVisibleError, Retention, UsageError
from holdfast.channel.memory import MemoryStorage
from holdfast.channel.ops import RealOps
from holdfast.channel.posix import PosixStorage
from holdfast.testing.faults import FaultyOps
from tests.support.channels import CutOff, Place, payload, until


def test_making_and_naming_a_channel_does_no_io(room: pathlib.Path) -> None:
    channel = Channel(room / "channel")
    channel.publisher()
    channel.consumer("c", stage=room / "stage")
    channel.sweeper()
    channel.observer()
    assert list(room.iterdir()) == []


def test_there_is_no_channel_until_somebody_makes_it(place: Place) -> None:
    with pytest.raises(NotVisibleError) as caught:
        place.channel().open()
    assert caught.value.code == "no_channel"
    made = place.channel(run="run42").open(create=True)
    assert (made.format, made.run) == (1, "run42")
    assert place.channel(run="another").open(create=True) == made, "the first one's word counts"


def test_directories_have_the_modes_that_other_uids_need(directory: Place) -> None:
    before = os.umask(0o077)
    try:
        directory.channel().open(create=True)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.path.iterdir()}
    assert modes == {
        **dict.fromkeys(("cycles", "versions", "staging", "pins", "broadcasts"), 0o755),
        **dict.fromkeys(("consumers", "sweepers", "events"), 0o1777),
        "channel.json": 0o644,
    }


def test_another_programs_directory_is_left_alone(directory: Place) -> None:
    directory.path.mkdir()
    (directory.path / "precious.txt").write_text("x")
    for use in (
        lambda: directory.channel().open(create=True),
        lambda: directory.channel().publisher().open(),
        lambda: directory.channel().consumer("c").open(),
    ):
        with pytest.raises(UsageError) as caught:
            use()
        assert caught.value.code == "not_a_channel"
        assert "precious.txt" in str(caught.value)
    assert [path.name for path in directory.path.iterdir()] == ["precious.txt"]


def test_a_file_is_no_channel(directory: Place) -> None:
    directory.path.write_text("x")
    with pytest.raises(HoldfastError):
        directory.channel().open()
    with pytest.raises(HoldfastError):
        directory.channel().publisher().open()
    assert directory.path.read_text() == "x"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b'{"format":2,"run":"r","something":"new"}', "newer_format"),
        (b'{"format":0,"run":"r"}', "newer_format"),
        (b"", "not_a_channel"),
        (b"hello", "not_a_channel"),
        (b"[]", "not_a_channel"),
        (b'{"format":1}', "not_a_channel"),
        (b'{"format":1,"run":7}', "not_a_channel"),
        (b'{"format":1,"run":"r","legacy":"../out"}', "not_a_channel"),
        (b'{"format":1,"run":"r","legacy":".."}', "not_a_channel"),
        (b'{"format":1,"run":"r","legacy":"versions"}', "not_a_channel"),
        (b'{"format":1,"run":"r","legacy":"/etc"}', "not_a_channel"),
        (b'{"format":1,"run":"r","legacy":"a\\u0000b"}', "not_a_channel"),
        (b'{"format":1,"run":"r","visibility_bound_s":-1}', "not_a_channel"),
        (b'{"format":1,"run":"r","visibility_bound_s":1e300}', "not_a_channel"),
        (b"[" * 100_000, "not_a_channel"),
        (b" " * (5 * 2**20), "not_a_channel"),
    ],
    ids=lambda value: str(value[:50]),
)
def test_a_channel_file_that_is_not_ours_is_refused(place: Place, data: bytes, code: str) -> None:
    place.channel().open(create=True)
    place.storage().replace("channel.json", data)
    for use in (
        lambda: place.channel().open(),
        lambda: place.channel().publisher().open(),
        lambda: place.channel().consumer("c").open(),
        lambda: place.channel().sweeper().sweep(),
    ):
        with pytest.raises(UsageError) as caught:
            use()
        assert caught.value.code == code
    assert place.storage().read("channel.json", limit_bytes=2**23) == data


def test_fields_of_a_later_version_are_kept(place: Place) -> None:
    place.channel().open(create=True)
    raw = json.loads(place.storage().read("channel.json", limit_bytes=2**20))
    place.storage().replace("channel.json", json.dumps({**raw, "colour": "blue"}).encode())
    channel = place.channel()
    channel.open()
    channel.store_bound(0.5, {"rename": True})
    raw = json.loads(place.storage().read("channel.json", limit_bytes=2**20))
    assert (raw["colour"], raw["visibility_bound_s"], raw["probed"]["rename"]) == ("blue", 0.5, True)
    assert place.channel().party().bound_s == 0.5


@pytest.mark.parametrize("legacy", ["a/b", "..", "/etc", "versions", "CURRENT", "channel.json", ".", "a\\b"])
def test_a_legacy_directory_that_is_none_is_refused(directory: Place, legacy: str) -> None:
    with pytest.raises(UsageError):
        directory.channel(legacy=legacy)


def test_the_legacy_directory_has_the_name_that_was_given_or_none(room: pathlib.Path) -> None:
    with Channel(room / "a", legacy="old").publisher(sweep=False) as publisher:
        version = publisher.publish_payload(3, payload("three"))
        link = room / "a" / "old" / "c000001" / "step_3"
        assert link.resolve().name == str(version)
        assert (link / "w.bin").read_text() == "three"
        assert (link / "STABLE").exists()
    with Channel(room / "b", legacy="").publisher(sweep=False) as publisher:
        publisher.publish_payload(3, payload("three"))
    assert not (room / "b" / "broadcasts").exists()


def test_a_second_version_of_a_step_gets_no_link_and_the_first_one_keeps_its_own(directory: Place) -> None:
    with directory.channel().publisher(sweep=False) as publisher:
        first = publisher.publish_payload(3, payload("three"))
        publisher.publish_payload(3, payload("other"))
        assert (directory.path / "broadcasts" / "c000001" / "step_3").resolve().name == str(first)


def test_I7_a_directory_that_vanishes_under_everybody_breaks_nobody(directory: Place) -> None:
    """A typed error or a wait with its reason; and all goes on in a new channel at the same place."""
    publisher = directory.channel().publisher(Retention(keep_recent=1))
    publisher.open()
    consumer = directory.channel(lease_s=1.0).consumer("c")
    with consumer:
        publisher.publish_payload(1, payload("one"))
        held = until(lambda: consumer.take(0.2))
        shutil.rmtree(directory.path)
        assert consumer.take(0.1) is None
        assert consumer.status
        with pytest.raises(HoldfastError):
            held.acknowledge()
        with pytest.raises(HoldfastError):
            publisher.publish_payload(2, payload("two"))
        held.release()
        publisher.close()
        assert not directory.path.exists(), "nobody makes half a channel"
        with directory.channel().publisher(sweep=False) as second:
            second.publish_payload(3, payload("three"))
            again = until(lambda: consumer.take(0.2), "it finds the new channel by itself")
            assert (again.step, directory.read(again)) == (3, "three")


def test_holds_lie_on_another_mount_where_consumers_may_not_write_here(room: pathlib.Path) -> None:
    ops = FaultyOps(RealOps())
    trainer = Channel(room / "channel", claims=room / "claims")
    server = Channel(PosixStorage(room / "channel", ops=ops), claims=room / "claims")
    with trainer.publisher(sweep=False) as publisher:
        first = publisher.publish_payload(1, payload("one"))
        for operation in ("create", "mkdir", "rename", "link", "unlink", "symlink"):
            ops.fail(operation, errno.EROFS, times=None)
        with server.consumer("c") as consumer:
            held = consumer.take(0.0)
            assert held is not None
            held.acknowledge()
            assert len(list((room / "claims" / "consumers").iterdir())) == 1
            assert not (room / "channel" / "consumers").exists()
            publisher.publish_payload(2, payload("two"))
            with trainer.sweeper(Retention(keep_recent=1)) as sweeper:
                assert sweeper.sweep().removed == ()
                held.release()
                publisher.publish_payload(3, payload("three"))
                newer = until(lambda: consumer.take(0.2))
                newer.acknowledge()
                sweeper.sweep()
                assert str(first) not in {str(version) for version in trainer.observer().versions()}


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_without_a_right_to_write_only_copies_are_given(room: pathlib.Path, code: int) -> None:
    ops = FaultyOps(RealOps())
    for operation in ("create", "mkdir", "rename", "link", "unlink", "symlink"):
        ops.fail(operation, code, path=f"{room}/channel/*", times=None)
    reader = Channel(PosixStorage(room / "channel", ops=ops))
    with Channel(room / "channel").publisher(sweep=False) as publisher:
        publisher.publish_payload(1, payload("one"))
        with pytest.raises(UsageError) as caught:
            reader.consumer("c").open()
        assert caught.value.code == "cannot_hold"
        assert "stage=" in caught.value.hint
        with reader.consumer("c", stage=room / "stage") as consumer:
            held = consumer.take(0.0)
            assert held is not None
            assert (held.path / "w.bin").read_text() == "one"
            held.acknowledge()
            assert not held.lost
            assert list((room / "channel" / "consumers").iterdir()) == []
            held.release()
            assert not held.path.exists()
            publisher.publish_payload(2, payload("two"))
            newer = consumer.take(0.0)
            assert newer is not None
            assert newer.step == 2


def test_storage_that_is_away_is_waited_for(place: Place) -> None:
    link = CutOff(place.storage())
    with place.channel().publisher(sweep=False) as publisher:
        publisher.publish_payload(1, payload("one"))
        link.cut()
        with Channel(link).consumer("c") as consumer:  # type: ignore[arg-type]
            assert consumer.take(0.0) is None
            assert "cut off" in consumer.status
            link.mend()
            held = consumer.take(20.0)
            assert held is not None
            link.cut()
            publisher.publish_payload(2, payload("two"))
            assert consumer.take(0.05) is None
            held.release()
            link.mend()
            newer = consumer.take(20.0)
            assert newer is not None
            assert newer.step == 2


def test_a_taking_that_is_cut_off_anywhere_is_made_good_later(place: Place) -> None:
    with place.channel().publisher(sweep=False) as publisher:
        publisher.publish_payload(1, payload("one"))
        for calls in range(60):
            link = CutOff(place.storage())
            with Channel(link, lease_s=60.0).consumer("c") as consumer:  # type: ignore[arg-type]
                link.cut(after_calls=calls)
                first = consumer.take(0.0)
                was_cut = link.is_cut
                link.mend()
                held = first if first is not None else consumer.take(20.0)
                assert held is not None
                assert (held.step, place.read(held), held.lost) == (1, "one", False)
            assert place.channel().observer().consumers() == {}
            if not was_cut:
                return
        pytest.fail("taking one version needs more than 60 calls")


def test_I7_a_publish_that_is_cut_off_anywhere_shows_all_or_nothing(place: Place) -> None:
    step = 0
    for calls in range(100):
        link = CutOff(place.storage())
        publisher = Channel(link).publisher(sweep=False)  # type: ignore[arg-type]
        publisher.open()
        step += 1
        link.cut(after_calls=calls)
        with suppress(HoldfastError):
            publisher.publish_payload(step, payload(f"{step}", "more"))
        was_cut = link.is_cut
        link.mend()
        publisher.publish_payload(step, payload(f"{step}", "more"))
        publisher.close()
        with place.channel().consumer("c") as consumer:
            held = consumer.take(0.0)
            assert held is not None
            assert (held.step, place.read(held), place.read(held, "w1.bin")) == (step, f"{step}", "more")
        if not was_cut:
            break
    else:
        pytest.fail("a publish needs more than 100 calls")
    with place.channel().sweeper(Retention(keep_recent=1)) as sweeper:
        sweeper.sweep()
        assert place.storage().list_garbage() == ()
        assert {version.step for version in place.channel().observer().versions()} == {step}


def test_the_memory_store_is_one_channel_for_all_who_share_it() -> None:
    storage = MemoryStorage()
    with Channel(storage).publisher(sweep=False) as publisher, Channel(storage).consumer("c") as consumer:
        publisher.publish_payload(1, payload("one"))
        assert consumer.take(0.0) is not None
        other: Any = Channel(MemoryStorage())
        with pytest.raises(NotVisibleError):
            other.open()
