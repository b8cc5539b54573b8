"""What the processes do while the power fails: one act for each protocol, by the real shells."""

from __future__ import annotations

import pytest

from holdfast.channel.consumer import Consumer
from holdfast.channel.held import HeldVersion
from holdfast.errors import FencedError
from tests.crash.recovery import SERVER
from tests.crash.world import TICK_S, World

FOUR = ("one", "two", "three", "four")


def begin(world: World) -> None:
    """A channel is made, claimed, and has its first version."""
    publisher = world.open_publisher()
    world.publish(publisher, 1, "one")


def publish_four(world: World) -> None:
    publisher = world.open_publisher()
    for step, label in enumerate(FOUR, 1):
        world.publish(publisher, step, label)


def publish_more(world: World) -> None:
    """The next round resumes, publishes, the same step with the same and with other bytes, and leaves in order."""
    publisher = world.open_publisher(start=world.told.line[-1])
    world.publish(publisher, 2, "two")
    assert world.publish(publisher, 2, "two") == publisher.last, "equal bytes are the same version"
    again = world.publish(publisher, 2, "two, other bytes")
    assert (again.step, again.attempt) == (2, 1)
    world.hand.beat()
    publisher.close()


def rewind(world: World) -> None:
    """A trainer is replaced by one that starts from an older version, and goes on unaware."""
    zombie = world.open_publisher(start=world.told.line[-1])
    world.publish(zombie, 5, "five")
    publisher = world.open_publisher(start=world.told.line[1])
    with pytest.raises(FencedError):
        world.publish(zombie, 6, "six of a zombie")
    world.publish(publisher, 3, "three anew")
    zombie.close()


def take(world: World) -> None:
    """A server takes what there is, could not use it, is given it again, lets it go, and leaves what it holds."""
    server, held = _served(world, keep=True)
    world.told.held[SERVER].discard(held.name)
    held.fail()
    held = _take(world, server)
    world.acknowledge(server, held)
    publisher = world.open_publisher(start=world.told.line[-1])
    world.publish(publisher, 5, "five")
    newer = _take(world, server)
    world.acknowledge(server, newer)
    world.release(server, held)
    world.hand.beat()
    server.close()


def reject(world: World) -> None:
    server, held = _served(world, keep=False)
    world.reject(server, held)
    assert world.take(server) is None or world.told.held[SERVER] != {held.name}
    world.leave(server)


def every(world: World) -> None:
    """One that takes version after version, holding them ahead."""
    server = world.open_consumer(SERVER, every=True)
    world.sweep(world.sweeper(world.told.cycle))
    while (held := world.take(server)) is not None:
        world.acknowledge(server, held)
    assert world.told.held[SERVER] >= set(world.told.line[-2:])
    for held in server.held[:-1]:
        world.release(server, held)


def serve(world: World) -> None:
    """A server holds the newest version, and dies."""
    _, held = _served(world, keep=True)
    assert held.name == world.told.line[-1]


def come_back(world: World) -> None:
    """The server comes back under its name, and takes over what it held."""
    server = world.open_consumer(SERVER, keep=True)
    (held,) = server.held
    world.acknowledge(server, held)
    server.close()
    server = world.open_consumer(SERVER)
    (held,) = server.held
    world.release(server, held)
    world.leave(server)


def sweep(world: World) -> None:
    """Versions go, one that is held stays; then it goes, too."""
    publisher = world.open_publisher(start=world.told.line[-1])
    sweeper = world.sweeper(publisher.cycle)
    server = world.open_consumer(SERVER)
    world.sweep(sweeper)
    assert {str(version) for version in server.held and world.told.held[SERVER]} <= set(world.storage().list_trees())
    for step, label in ((5, "five"), (6, "six")):
        world.publish(publisher, step, label)
    world.sweep(sweeper)
    world.hand.beat()
    for held in server.held:
        world.release(server, held)
    world.sweep(sweeper)
    assert set(world.storage().list_trees()) == {str(version) for version in world.needed()}
    sweeper.stop()


def expire(world: World) -> None:
    """The server of the life before is silent for a lease: it is expired, what it held goes, and its file."""
    world.told.held[SERVER].clear()
    sweeper = world.sweeper(world.told.cycle)
    publisher = world.open_publisher(start=world.told.line[-1])
    sweeper = world.sweeper(publisher.cycle)
    for step, label in ((5, "five"), (6, "six")):
        world.publish(publisher, step, label)
    for _ in range(12):
        world.sweep(sweeper)
        world.hand.now_s += TICK_S
        world.hand.beat()
    assert set(world.storage().list_trees()) == {str(version) for version in world.needed()}
    assert world.channel().observer().consumers() == {}


def _served(world: World, *, keep: bool) -> tuple[Consumer, HeldVersion]:
    server = world.open_consumer(SERVER, keep=keep)
    world.sweep(world.sweeper(world.told.cycle))
    return server, _take(world, server)


def _take(world: World, server: Consumer) -> HeldVersion:
    held = world.take(server)
    assert held is not None, server.status
    return held
