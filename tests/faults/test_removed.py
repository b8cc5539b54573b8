"""The directory goes away under running processes: typed errors, no hang, and they go on where it comes back."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable

import pytest

from holdfast import Channel, HeldVersion
from holdfast.channel.payload import Payload
from holdfast.channel.sources import BytesSource
from holdfast.channel.sweeper import Sweeper
from holdfast.core.records import Term
from holdfast.core.retention import Retention
from holdfast.errors import ConflictError, HoldfastError, NotVisibleError, UnavailableError
from tests.crash.hand import Hand

PARTS = ("", "versions", "cycles", "consumers", "sweepers", "staging", "channel.json", "CURRENT")


def payload(text: str) -> Payload:
    return Payload(files=(("w.bin", BytesSource([text.encode()])),), kind="test")


def term(number: int) -> Term:
    return Term(job="job", round=number, nonce=f"nonce-{number}")


class Running:
    """A publisher, a sweeper and a consumer that uses version 1."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        self.publisher = Channel(root, lease_s=60.0).publisher(term=term(1), sweep=False)
        self.publisher.open()
        self.sweeper = Sweeper(Channel(root, lease_s=60.0), Retention(), cycle=1, writing=frozenset)
        self.consumer = Channel(root, lease_s=60.0).consumer("server")
        self.consumer.open()
        self.publisher.publish_payload(1, payload("one"))
        self.sweeper.sweep()
        held = self.consumer.take(timeout_s=0.0)
        assert held is not None
        held.acknowledge()
        self.held = held

    def use(self, hand: Hand) -> list[HoldfastError]:
        """Everybody does something; what it was told."""
        calls: tuple[Callable[[], object], ...] = (
            lambda: self.publisher.publish_payload(2, payload("two")),
            self.sweeper.sweep,
            lambda: self.consumer.take(timeout_s=0.0),
            self.held.acknowledge,
            hand.beat,
        )
        told = []
        for call in calls:
            try:
                call()
            except HoldfastError as error:
                told.append(error)
        return told

    def take(self) -> HeldVersion:
        """The newest, after at most two passes of the sweeper."""
        for _ in range(4):
            self.sweeper.sweep()
            held = self.consumer.take(timeout_s=0.0)
            if held is not None:
                return held
        raise AssertionError(self.consumer.status)

    def close(self) -> None:
        self.sweeper.stop()
        self.consumer.close()
        self.publisher.close()


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_goes_away_and_comes_back_is_told_by_type_and_harms_nothing(
    part: str, hand: Hand, tmp_path: pathlib.Path
) -> None:
    """As when a mount is lost for a while."""
    hand.begin(1)
    running = Running(tmp_path / "channel")
    path = running.root / part
    path.rename(tmp_path / "away")
    told = running.use(hand)
    assert told or part in ("channel.json", "CURRENT"), "whoever needs it is told"
    if part == "":
        assert not running.root.exists(), "nobody makes a channel by the way"
    if path.exists():
        path.unlink()  # CURRENT, written anew by the publish
    (tmp_path / "away").rename(path)
    newest = running.publisher.publish_payload(3, payload("three"))
    held = running.take()
    while held.name != newest:  # the publish meanwhile may have worked
        held = running.take()
    assert (held.path / "w.bin").read_text() == "three"
    held.acknowledge()
    names = {entry.name for entry in (running.root / "versions").iterdir()}
    running.close()
    assert str(newest) in names


def test_a_channel_that_was_deleted_is_made_anew_by_the_next_publisher_alone(
    hand: Hand, tmp_path: pathlib.Path
) -> None:
    hand.begin(1)
    running = Running(tmp_path / "channel")
    shutil.rmtree(running.root)
    assert len(running.use(hand)) >= 3
    running.held.release()
    assert not running.root.exists()
    successor = Channel(running.root, lease_s=60.0).publisher(term=term(2), sweep=False)
    successor.open()
    newest = successor.publish_payload(3, payload("three"))
    with Sweeper(Channel(running.root, lease_s=60.0), Retention(), cycle=successor.cycle, writing=frozenset) as sweeper:
        sweeper.sweep()
        given = [one for _ in range(4) if (one := running.consumer.take(timeout_s=0.0)) is not None]
        sweeper.sweep()
        given += [one for _ in range(4) if (one := running.consumer.take(timeout_s=0.0)) is not None]
    assert [one.name for one in given] == [newest], running.consumer.status
    running.close()
    successor.close()


def test_a_publisher_whose_channel_is_gone_says_so(tmp_path: pathlib.Path, hand: Hand) -> None:
    hand.begin(1)
    root = tmp_path / "channel"
    publisher = Channel(root, lease_s=60.0).publisher(term=term(1), sweep=False)
    publisher.open()
    shutil.rmtree(root)
    with pytest.raises(UnavailableError) as caught:
        publisher.publish_payload(1, payload("one"))
    assert isinstance(caught.value, NotVisibleError)
    publisher.close()
    assert not root.exists()


def test_a_consumer_whose_file_was_removed_has_lost_what_it_held(tmp_path: pathlib.Path, hand: Hand) -> None:
    hand.begin(1)
    root = tmp_path / "channel"
    publisher = Channel(root, lease_s=60.0).publisher(term=term(1), sweep=False)
    publisher.open()
    newest = publisher.publish_payload(1, payload("one"))
    consumer = Channel(root, lease_s=60.0).consumer("server")
    consumer.open()
    held = consumer.take(timeout_s=0.0)
    assert held is not None
    for path in (root / "consumers").iterdir():
        path.unlink()
    hand.beat()
    assert held.lost
    with pytest.raises(ConflictError) as caught:
        held.acknowledge()
    assert caught.value.code == "lease_lost"
    again = consumer.take(timeout_s=0.0)
    assert again is not None, consumer.status
    assert again.name == newest
    again.acknowledge()
    consumer.close()
    publisher.close()


@pytest.mark.parametrize("part", ["consumers", "sweepers", "cycles", "pins"])
def test_nothing_goes_while_it_cannot_be_seen_who_needs_it(part: str, hand: Hand, tmp_path: pathlib.Path) -> None:
    hand.begin(1)
    running = Running(tmp_path / "channel")
    for step in (2, 3, 4):
        running.publisher.publish_payload(step, payload(f"step {step}"))
    there = sorted(entry.name for entry in (running.root / "versions").iterdir())
    path = running.root / part
    alone = Sweeper(Channel(running.root, lease_s=60.0), Retention())
    for sweeper in (running.sweeper, alone):
        path.rename(tmp_path / "away")
        with pytest.raises(NotVisibleError) as caught:
            sweeper.sweep()
        assert caught.value.hint
        (tmp_path / "away").rename(path)
        assert sorted(entry.name for entry in (running.root / "versions").iterdir()) == there
        running.sweeper.stop()
    passes = [alone.sweep(), alone.sweep()]  # one to find its cycle again, where it had seen none
    alone.stop()
    assert [reason for name, reason in passes[-1].reasons.items() if name == str(running.held.name)] == [
        f"held by {entry.stem}" for entry in (running.root / "consumers").iterdir()
    ]
    assert passes[0].removed + passes[1].removed == (there[1],)
    running.close()


def test_nothing_is_given_while_it_cannot_be_seen_what_is_announced(hand: Hand, tmp_path: pathlib.Path) -> None:
    hand.begin(1)
    running = Running(tmp_path / "channel")
    running.publisher.publish_payload(2, payload("two"))
    (running.root / "sweepers").rename(tmp_path / "away")
    assert running.consumer.take(timeout_s=0.0) is None
    assert "sweepers/ is not there" in running.consumer.status
    (tmp_path / "away").rename(running.root / "sweepers")
    held = running.consumer.take(timeout_s=0.0)
    assert held is not None
    running.close()
