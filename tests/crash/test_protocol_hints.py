"""What is only a hint may say anything; what lies about its syncs may lose the newest, and never shows half of it."""

from __future__ import annotations

import copy

import pytest

from holdfast.core.names import Version
from holdfast.testing import FaultyOps
from holdfast.testing.durability import PROFILES
from tests.crash import acts
from tests.crash.hand import Hand
from tests.crash.recovery import recover
from tests.crash.world import ROOT, World, clone, prepared

CURRENT = f"{ROOT}/CURRENT"


def put(world: World, data: bytes) -> None:
    handle = world.disk.create(None, CURRENT, 0o644)
    world.disk.pwrite(handle, memoryview(data), 0)
    world.disk.close(handle)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"c000001-s0000",
        b"\xff\x00\xfe",
        b"{}" * 1000,
        f"{Version(1, 1, 0, '000000')}\n".encode(),  # names nothing
        f"{Version(9, 9, 0, '000000')}\n".encode(),
        None,  # the older version
        "missing",
        "link",
        "directory",
    ],
)
def test_whatever_CURRENT_says_the_newest_version_is_given(content: bytes | str | None, hand: Hand) -> None:
    disk, told = prepared(hand, "ext4-like", acts.publish_four)
    world = World(hand, disk, told)
    disk.unlink(None, CURRENT)
    if content is None:
        put(world, f"{told.line[0]}\n".encode())
    elif isinstance(content, bytes):
        put(world, content)
    elif content == "link":
        disk.symlink("channel.json", None, CURRENT)
    elif content == "directory":
        disk.mkdir(None, CURRENT, 0o755)
    held = world.take(world.open_consumer("server"))
    assert held is not None
    assert held.name == told.line[-1]
    if content != "directory":
        recover(world)
    world.abandon()


@pytest.mark.parametrize("profile", PROFILES)
def test_storage_that_lies_about_syncs_never_shows_a_torn_version(profile: str, hand: Hand) -> None:
    before, told = prepared(hand, profile, acts.begin)
    liar = clone(before)
    ops = FaultyOps(liar)
    ops.skip("fsync")
    ops.skip("fsync_directory")
    world = World(hand, liar, told, ops=ops)
    publisher = world.open_publisher(start=told.line[-1])
    for step, label in ((2, "two"), (3, "three")):
        world.publish(publisher, step, label)
    world.abandon()
    given = set()
    for disk in liar.crash_states(400):
        world = World(hand, disk, copy.deepcopy(told))
        given.add(_patiently(world))
        world.abandon()
    steps = {version.step for version in given if version is not None}
    assert {1, 3} <= steps, "what was whole was given; what was torn was passed over"


def _patiently(world: World) -> Version | None:
    """What a fresh consumer is given when it has looked for long; its bytes were checked."""
    fresh = world.open_consumer("fresh")
    for _ in range(20):
        held = world.take(fresh)
        if held is not None:
            return held.name
        world.pass_time()
    return None
