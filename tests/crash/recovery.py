"""The next processes: a trainer that resumes, the server that comes back, a sweeper; until nothing is left to do."""

from __future__ import annotations

from holdfast.channel.consumer import Consumer
from holdfast.channel.held import HeldVersion
from holdfast.channel.sweeper import Sweeper
from holdfast.core.manifest import MANIFEST, STABLE
from tests.crash.rest import check_nothing_unexplained
from tests.crash.world import ROOT, World, files_of

SERVER = "server"
TICKS = 16  # the dead are silent for two leases after ten, and buried by the next passes


def recover(world: World) -> None:
    """Resume, publish, serve, sweep. Fails where anything doesn't work, or a dead publisher's garbage stays."""
    _go_on(world)


def recover_and_wait(world: World) -> None:
    """As `recover`; then two leases pass, and of all that died nothing is left: each file that remains is needed."""
    sweeper, server = _go_on(world)
    fresh = world.open_consumer("fresh")
    for _ in range(TICKS):
        world.sweep(sweeper)
        world.pass_time()
    world.sweep(sweeper)
    given = world.take(fresh)
    assert given is not None, fresh.status
    assert given.name == world.told.line[-1], "a fresh consumer is given the newest"
    check_tidy(world)
    world.acknowledge(server, server.held[-1])


def _go_on(world: World) -> tuple[Sweeper, Consumer]:
    told = world.told
    earlier = {*told.labels, *world.channel().observer().versions()} if told.cycle else set(told.labels)
    start = told.line[-1] if told.line else None
    publisher = world.open_publisher(start=start)
    server = world.open_consumer(SERVER)
    sweeper = world.sweeper(publisher.cycle)
    world.sweep(sweeper)
    newest = world.publish(publisher, start.step + 1 if start is not None else 1, f"after {told.rounds}")
    assert newest not in earlier, "a name is never used twice"
    held = _serve(world, server, sweeper)
    assert held.name == newest
    for older in server.held:
        if older.name != newest:
            world.release(server, older)
    world.sweep(sweeper)
    left = [name for name in world.storage().list_garbage() if name.startswith("c0")]
    assert left == [], "staging places of the dead go at once; what is nobody's after a lease"
    assert world.needed() <= world.channel().observer().versions()
    return sweeper, server


def _serve(world: World, server: Consumer, sweeper: Sweeper) -> HeldVersion:
    """The server is given what is newest: at the latest when dead sweepers have been silent for a lease."""
    for _ in range(TICKS):
        world.sweep(sweeper)
        held = world.take(server)
        if held is not None:
            world.acknowledge(server, held)
            return held
        world.pass_time()
    raise AssertionError(f"nothing was given: {server.status}")


def check_tidy(world: World) -> None:
    """Every path on the disk is one that the channel needs now."""
    check_nothing_unexplained(world.disk)
    assert world.storage().list_garbage() == ()
    told, tree = world.told, world.disk.tree()
    assert {str(version) for version in world.needed()} == set(world.storage().list_trees())
    below = f"{ROOT}/"
    found = {path.removeprefix(below) for path in tree if path.startswith(below)}
    expected = {"channel.json", "CURRENT", "cycles", "versions", "staging", "pins", "consumers", "sweepers", "events"}
    expected |= {"broadcasts"}
    for version in world.needed():
        inside = (*files_of(told.labels[version]), "more", MANIFEST, STABLE)
        expected |= {f"versions/{version}", *(f"versions/{version}/{path}" for path in inside)}
    assert expected <= found
    for path in sorted(found - expected):
        directory, _, name = path.partition("/")
        if directory == "consumers":
            assert name.partition(".")[0] in (SERVER, "fresh"), f"{path} is of nobody alive"
        elif "/step_" in path:
            version_path = str(tree[below + path]).removeprefix("../../")
            assert below + version_path in tree, f"{path} leads nowhere"
        else:
            assert directory in ("cycles", "sweepers", "broadcasts"), path
    assert sum(path.startswith("sweepers/") and path.endswith(".json") for path in found) == 1
    assert sum(path.startswith("sweepers/") for path in found) == 2, "its record and its reserve"
    assert tree[f"{ROOT}/CURRENT"] == f"{told.line[-1]}\n".encode()
