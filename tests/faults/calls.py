"""The calls of users that storage may fail under, each ready to be made, and what must be true once it was made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from holdfast.channel.consumer import Consumer
from holdfast.channel.held import HeldVersion
from holdfast.channel.publisher import Publisher
from holdfast.channel.sweeper import Sweeper
from holdfast.errors import HoldfastError
from tests.crash import acts
from tests.crash.points import Act
from tests.crash.recovery import SERVER
from tests.crash.world import World

Ready = Any


class Call(NamedTuple):
    """`ready` makes what `make` needs, on storage that works; `make` may be made again after an error; `after` checks.

    `make` returns False where it did nothing this time and says so in words, as `take` does.
    """

    before: tuple[Act, ...]
    ready: Callable[[World], Ready]
    make: Callable[[World, Ready], bool | None]
    after: Callable[[World, Ready], None]


# Publisher


class Opening(NamedTuple):
    publishers: list[Publisher]


def ready_to_open(world: World) -> Opening:
    del world
    return Opening([])


def open_publisher(world: World, opening: Opening) -> None:
    """Each try is a new publisher of the same round, as a launcher would start it again."""
    if opening.publishers:
        world.told.rounds -= 1
    publisher = world.new_publisher(start=world.told.line[-1])
    opening.publishers.append(publisher)
    world.enter_publisher(publisher, world.told.line[-1])


def is_open(world: World, opening: Opening) -> None:
    world.publish(opening.publishers[-1], 7, "seven")


def ready_to_publish(world: World) -> Publisher:
    publisher = world.open_publisher(start=world.told.line[-1])
    world.publish(publisher, 5, "five")
    return publisher


def publish(world: World, publisher: Publisher) -> None:
    world.publish(publisher, 6, "six")


def publish_other_bytes(world: World, publisher: Publisher) -> None:
    version = world.publish(publisher, 5, "five, other bytes")
    assert version.attempt >= 1


def publish_again(world: World, publisher: Publisher) -> None:
    """Equal bytes of the last step: nothing new."""
    assert world.publish(publisher, 5, "five") == world.told.line[-1]


def is_published(world: World, publisher: Publisher) -> None:
    assert publisher.last == world.told.line[-1]
    fresh = world.open_consumer("fresh")
    held = world.take(fresh)
    assert held is not None
    assert held.name == publisher.last
    world.leave(fresh)


def close_publisher(world: World, publisher: Publisher) -> None:
    del world
    publisher.close()


# Consumer


def ready_to_enter(world: World) -> Consumer:
    return world.new_consumer(SERVER)


def enter(world: World, server: Consumer) -> bool:
    """What the life before held is there at once, or it says why not yet."""
    server.open()
    if not server.held:
        assert server.status.startswith("waiting: ")
        return False
    world.enter_consumer(server)
    return True


def is_registered(world: World, server: Consumer) -> None:
    assert {held.name for held in server.held} == world.told.held[SERVER] == {world.told.line[-1]}


def ready_to_take(world: World) -> Consumer:
    server = world.open_consumer(SERVER, keep=True)
    sweeper = world.sweeper(world.told.cycle)
    world.sweep(sweeper)
    return server


def take(world: World, server: Consumer) -> bool:
    if server.held:
        return True
    held = world.take(server)
    assert held is not None or server.status, "it says why there is nothing"
    return held is not None


def is_taken(world: World, server: Consumer) -> None:
    assert [held.name for held in server.held] == world.told.line[-1:]


class Served(NamedTuple):
    server: Consumer
    held: HeldVersion


def ready_to_use(world: World) -> Served:
    server = ready_to_take(world)
    held = world.take(server)
    assert held is not None
    return Served(server, held)


def acknowledge(world: World, served: Served) -> None:
    world.acknowledge(served.server, served.held)


def is_acknowledged(world: World, served: Served) -> None:
    records = world.channel(world.disk).observer().consumers().values()
    assert [seen.record.acknowledged for seen in records if seen.record] == [str(served.held.name)]


def release(world: World, served: Served) -> None:
    try:
        world.release(served.server, served.held)
    except HoldfastError as error:
        raise AssertionError("a release always succeeds; the file follows") from error


def reject(world: World, served: Served) -> None:
    world.told.held[SERVER].discard(served.held.name)
    world.told.refusing.setdefault(SERVER, set()).add(served.held.name)
    served.held.reject("tried, and worse")


def is_released(world: World, served: Served) -> None:
    """At the latest with the next beat it stands in the file, too."""
    assert served.held.lost
    world.hand.beat()
    records = world.channel(world.disk).observer().consumers().values()
    assert [seen.record.holds for seen in records if seen.record] == [()]


def close_consumer(world: World, served: Served) -> None:
    world.leave(served.server)


def nothing(world: World, ready: Ready) -> None:
    del world, ready


# Sweeper, and beats of all


def ready_to_sweep(world: World) -> Sweeper:
    publisher = world.open_publisher(start=world.told.line[-1])
    sweeper = world.sweeper(publisher.cycle)
    world.sweep(sweeper)
    for step, label in ((5, "five"), (6, "six")):
        world.publish(publisher, step, label)
    return sweeper


def sweep(world: World, sweeper: Sweeper) -> None:
    world.sweep(sweeper)


def is_swept(world: World, sweeper: Sweeper) -> None:
    world.sweep(sweeper)  # what could not be removed goes with the next pass
    assert set(world.storage(world.disk).list_trees()) == {str(version) for version in world.needed()}


def stop_sweeper(world: World, sweeper: Sweeper) -> None:
    del world
    sweeper.stop()


def ready_to_beat(world: World) -> Served:
    world.open_publisher(start=world.told.line[-1])
    return ready_to_use(world)


def beat(world: World, served: Served) -> None:
    del served
    world.hand.beat()


def still_held(world: World, served: Served) -> None:
    assert not served.held.lost
    world.acknowledge(served.server, served.held)


FOUR = (acts.publish_four,)
SERVED = (acts.publish_four, acts.serve)

CALLS = {
    "open publisher": Call(FOUR, ready_to_open, open_publisher, is_open),
    "publish": Call(FOUR, ready_to_publish, publish, is_published),
    "publish other bytes": Call(FOUR, ready_to_publish, publish_other_bytes, is_published),
    "publish again": Call(FOUR, ready_to_publish, publish_again, is_published),
    "close publisher": Call(FOUR, ready_to_publish, close_publisher, nothing),
    "open consumer": Call(SERVED, ready_to_enter, enter, is_registered),
    "take": Call(FOUR, ready_to_take, take, is_taken),
    "acknowledge": Call(FOUR, ready_to_use, acknowledge, is_acknowledged),
    "release": Call(FOUR, ready_to_use, release, is_released),
    "reject": Call(FOUR, ready_to_use, reject, is_released),
    "close consumer": Call(FOUR, ready_to_use, close_consumer, nothing),
    "sweep": Call(SERVED, ready_to_sweep, sweep, is_swept),
    "stop sweeper": Call(SERVED, ready_to_sweep, stop_sweeper, nothing),
    "beat": Call(FOUR, ready_to_beat, beat, still_held),
}
