"""One of three processes dies at any of its operations; the other two live on, and never lose anything."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from holdfast.channel.consumer import Consumer
from holdfast.channel.publisher import Publisher
from holdfast.channel.sweeper import Sweeper
from holdfast.errors import NotVisibleError
from holdfast.testing import PowerCut, SimulatedDisk
from tests.crash.hand import Hand
from tests.crash.points import Mortal
from tests.crash.recovery import SERVER, TICKS, check_tidy
from tests.crash.rest import check_at_rest
from tests.crash.world import Told, World

PARTIES = ("publisher", "sweeper", "server")


class Concert:
    """A trainer, a sweeper and a server at work, turn by turn; `dying` dies at its operation number `at`."""

    def __init__(self, hand: Hand, dying: str, at: int | None) -> None:
        self.world = World(hand, SimulatedDisk(), Told())
        self.dead: set[str] = set()
        self.ops = {party: Mortal(self.world.disk, at if party == dying else None) for party in PARTIES}
        self.publisher: Publisher | None = None
        self.server: Consumer | None = None
        self.sweeper: Sweeper | None = None

    def turn(self, party: str, act: Callable[[], object]) -> None:
        """`party` does something unless it is dead; whatever it did or left half done, nothing was lost."""
        if party in self.dead:
            return
        try:
            act()
        except PowerCut:
            self.dead.add(party)
        except NotVisibleError:  # the publisher died while it made the channel
            assert "publisher" in self.dead
        check_at_rest(self.world)

    def open_publisher(self) -> None:
        line = self.world.told.line
        self.publisher = self.world.open_publisher(start=line[-1] if line else None, ops=self.ops["publisher"])

    def publish(self, step: int) -> None:
        assert self.publisher is not None
        self.world.publish(self.publisher, step, f"step {step}")

    def open_server(self) -> None:
        self.server = self.world.open_consumer(SERVER, ops=self.ops["server"])

    def serve(self) -> None:
        """Take the newest, acknowledge it, let the older ones go."""
        assert self.server is not None
        held = self.world.take(self.server)
        if held is not None:
            self.world.acknowledge(self.server, held)
            for older in self.server.held[:-1]:
                self.world.release(self.server, older)

    def sweep(self) -> None:
        if self.sweeper is None:
            self.sweeper = self.world.sweeper(1, ops=self.ops["sweeper"])
        self.world.sweep(self.sweeper)

    def play(self) -> None:
        self.turn("publisher", self.open_publisher)
        self.turn("publisher", lambda: self.publish(1))
        self.turn("server", self.open_server)
        self.turn("sweeper", self.sweep)
        self.turn("server", self.serve)
        for step in (2, 3, 4):
            self.turn("publisher", functools.partial(self.publish, step))
            self.turn("sweeper", self.sweep)
        self.world.pass_time()
        self.turn("server", self.serve)
        self.turn("sweeper", self.sweep)
        self.turn("publisher", lambda: self.publish(5))

    def replace_the_dead(self) -> None:
        """New processes come; those that lived are used as they are."""
        told = self.world.told
        for party in self.dead:
            self.ops[party] = Mortal(self.world.disk, None)
        if "server" in self.dead:
            told.held.pop(SERVER, None)  # nobody restarts it under its name
            told.acknowledged.pop(SERVER, None)
        if "publisher" in self.dead:
            self.open_publisher()
        if self.dead & {"publisher", "sweeper"}:
            assert self.publisher is not None
            self.sweeper = self.world.sweeper(self.publisher.cycle, ops=self.ops["sweeper"])
        self.publish(told.line[-1].step + 1 if told.line else 1)

    def settle(self) -> None:
        """Two leases and a little: of the dead nothing is left."""
        for _ in range(TICKS):
            self.sweep()
            if "server" not in self.dead:
                self.serve()
            self.world.pass_time()
        self.sweep()


@pytest.mark.parametrize("dying", PARTIES)
def test_a_death_at_any_operation_harms_nobody_else(dying: str, hand: Hand, effort: int) -> None:
    whole = Concert(hand, dying, None)
    whole.play()
    total = whole.ops[dying].num_made
    whole.world.abandon()
    assert total > 30
    for at in range(0, total, 1 if effort > 1 else 4):
        concert = Concert(hand, dying, at)
        concert.play()
        assert concert.dead == {dying}
        concert.replace_the_dead()
        concert.settle()
        if dying == "server":
            assert concert.world.channel().observer().consumers() == {}
        else:
            assert concert.server is not None
            assert concert.server.held[-1].name == concert.world.told.line[-1], "the living server is served"
        check_tidy(concert.world)
        concert.world.abandon()
