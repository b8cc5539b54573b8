"""Each storage call cut short at every instruction, in every state that the disk may come back with.

Then the same with one sync taken away: the tests above must notice, or they prove nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from holdfast.channel.posix import PosixStorage
from holdfast.errors import NotVisibleError
from holdfast.testing import FaultyOps, PowerCut, SimulatedDisk
from holdfast.testing.durability import PROFILES

NAME = "c000001-s00000001-00aaaaaa"
MANIFEST = b'{"format": 1, "files": "f and sub/g"}'
FILES = {"f": b"payload of f", "sub/g": b"payload of g", "STABLE": b""}
LIMIT = 400
Prepare = Callable[[PosixStorage], None]


def nothing(storage: PosixStorage) -> None:
    """The channel's directories alone."""


def write_tree(storage: PosixStorage) -> None:
    tree = storage.begin_tree(NAME, "n1")
    for path, data in FILES.items():
        writer = tree.file(path)
        writer.write_at(0, memoryview(data))
        writer.close()


def publish(storage: PosixStorage) -> None:
    write_tree(storage)
    storage.commit_tree(NAME, "n1", MANIFEST)


def read(storage: PosixStorage, path: str) -> bytes | None:
    try:
        return storage.read(path, limit_bytes=1000)
    except NotVisibleError:
        return None


def version(storage: PosixStorage) -> str:
    """ "absent" or "whole"; anything between is a failure."""
    if NAME not in storage.list_trees():
        return "absent"
    found = {path: read(storage, f"versions/{NAME}/{path}") for path in (*FILES, "manifest.json")}
    assert found == {**FILES, "manifest.json": MANIFEST}, "half a version is visible"
    return "whole"


@dataclass(frozen=True)
class Call:
    """A call of the contract. `state` looks at what it changes: `before` or `after`, never anything else."""

    prepare: Prepare
    call: Prepare
    state: Callable[[PosixStorage], object]
    before: object
    after: object
    durable: bool = True  # once it returned


def _has(directory: str, name: str) -> Callable[[PosixStorage], bool]:
    return lambda storage: name in [entry.name for entry in storage.list(directory)]


CALLS = {
    "create": Call(
        nothing,
        lambda storage: storage.create("cycles/000001.json", b"claim"),
        lambda storage: read(storage, "cycles/000001.json"),
        None,
        b"claim",
    ),
    "replace": Call(
        lambda storage: storage.replace("CURRENT", b"old"),
        lambda storage: storage.replace("CURRENT", b"new and longer"),
        lambda storage: read(storage, "CURRENT"),
        b"old",
        b"new and longer",
    ),
    "delete": Call(
        lambda storage: storage.create("pins/a", b"x"),
        lambda storage: storage.delete("pins/a"),
        lambda storage: read(storage, "pins/a"),
        b"x",
        None,
    ),
    "make_directory": Call(
        nothing,
        lambda storage: storage.make_directory("shared", 0o1777),
        lambda storage: _has("", "shared")(storage) and storage.local_path("shared").name,
        False,
        "shared",
    ),
    "link": Call(
        publish,
        lambda storage: storage.link("pins/step_1", NAME),
        lambda storage: storage.link_target("pins/step_1"),
        None,
        NAME,
        durable=False,
    ),
    "publish": Call(nothing, publish, version, "absent", "whole"),
    "retire": Call(publish, lambda storage: storage.retire_tree(NAME, "r1"), version, "whole", "absent"),
}


def prepared(profile: str, prepare: Prepare) -> SimulatedDisk:
    """A channel with `prepare` done, all of it durable."""
    disk = SimulatedDisk(profile=profile, umask=0o077)
    storage = PosixStorage("/channel", disk)
    for name in ("", "cycles", "versions", "staging", "pins"):
        storage.make_directory(name)
    prepare(storage)
    for name in [path for path, content in disk.tree().items() if content is None]:
        handle = disk.open_directory(None, name)
        disk.fsync_directory(handle)
        disk.close(handle)
    assert len(list(disk.crash_states())) == 1
    return disk


def crashes(call: Call, profile: str, skip: tuple[str, str] | None = None) -> Iterator[tuple[bool, SimulatedDisk]]:
    """Whether the call had returned, and a disk: for each crash point and each state after it.

    `skip`: an operation and a path's pattern; such calls say yes and do nothing.
    """
    stop = 0
    returned = False
    while not returned:
        disk = prepared(profile, call.prepare)
        ops = FaultyOps(disk)
        if skip is not None:
            ops.skip(skip[0], path=skip[1])
        disk.stop_after(stop)
        try:
            call.call(PosixStorage("/channel", ops))
            returned = True
        except PowerCut:
            stop += 1
        for after in disk.crash_states(LIMIT):
            yield returned, after
    assert stop > 0, "the call changed nothing"


def check(call: Call, returned: bool, disk: SimulatedDisk) -> None:
    """What a crash may leave, and that the next start goes on without help."""
    storage = PosixStorage("/channel", disk)
    state = call.state(storage)
    assert state in ((call.after,) if returned and call.durable else (call.before, call.after))
    for name in storage.list_garbage():
        storage.remove_garbage(name)
    assert storage.list_garbage() == ()
    assert call.state(storage) == state, "cleaning up changed what was visible"
    for directory in ("cycles", "versions", "staging", "pins", "shared"):
        for entry in storage.list(directory):
            path = f"/channel/{directory}/{entry.name}"
            expected = {"file": 0o644, "directory": 0o755}.get(entry.kind)
            assert expected in (None, disk.lstat(None, path).mode), path
    if _has("", "shared")(storage):
        assert disk.lstat(None, "/channel/shared").mode == 0o1777
    if state == call.before:
        call.call(storage)
    assert call.state(storage) == call.after


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_crash_leaves_all_or_nothing_and_a_return_means_durable(name: str, profile: str) -> None:
    call = CALLS[name]
    num_before = num_states = 0
    for returned, disk in crashes(call, profile):
        num_before += call.state(PosixStorage("/channel", disk)) == call.before
        num_states += 1
        check(call, returned, disk)
    assert 0 < num_before < num_states, "both outcomes were seen"


@pytest.mark.parametrize("profile", PROFILES)
def test_a_hint_may_be_lost_or_torn_and_takes_nothing_else_with_it(profile: str) -> None:
    call = Call(
        publish,
        lambda storage: storage.replace("CURRENT", b"new and longer", durable=False),
        lambda storage: read(storage, "CURRENT"),
        None,
        b"new and longer",
    )
    found = set()
    for _, disk in crashes(call, profile):
        storage = PosixStorage("/channel", disk)
        found.add(read(storage, "CURRENT"))
        assert version(storage) == "whole"
        call.call(storage)
        assert read(storage, "CURRENT") == call.after
    assert {None, b"", b"new and longer"} <= found


@pytest.mark.parametrize("profile", PROFILES)
def test_a_crash_while_cleaning_up_after_a_crash(profile: str) -> None:
    call = CALLS["retire"]
    for _, disk in crashes(call, profile):
        storage = PosixStorage("/channel", disk)
        state = call.state(storage)
        garbage = storage.list_garbage()
        if not garbage:
            continue
        disk.stop_after(2)
        try:
            for name in garbage:
                storage.remove_garbage(name)
        except PowerCut:
            for again in disk.crash_states(20):
                assert call.state(PosixStorage("/channel", again)) == state
                check(call, False, again)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("synced", [True, False])
def test_a_writer_that_outlives_the_removal_of_its_tree_commits_all_of_it_or_nothing(
    profile: str, synced: bool
) -> None:
    """The storage loses power while a sweep removes an abandoned tree; its writer, on another machine, wakes."""

    def removal_cut_short() -> Iterator[SimulatedDisk]:
        stop, is_done = 0, False
        while not is_done:
            disk = prepared(profile, write_tree)
            ops = FaultyOps(disk)
            if not synced:
                ops.skip("fsync_directory", path="*/staging")
            disk.stop_after(stop)
            try:
                PosixStorage("/channel", ops).remove_garbage("n1")
                is_done = True
            except PowerCut:
                stop += 1
            yield from disk.crash_states(LIMIT)

    def wake(disk: SimulatedDisk) -> str:
        storage = PosixStorage("/channel", disk)
        with contextlib.suppress(NotVisibleError):
            storage.commit_tree(NAME, "n1", MANIFEST)
        return version(storage)

    if synced or profile == "ext4-like":
        assert {wake(disk) for disk in removal_cut_short()} == {"whole", "absent"}
    else:
        with pytest.raises(AssertionError, match="half a version"):
            [wake(disk) for disk in removal_cut_short()]


MUTANTS = {
    "create: the temporary is not synced": ("create", "fsync", "*/.tmp-*"),
    "create: the directory is not synced": ("create", "fsync_directory", "*/cycles"),
    "create: the mode is not set": ("create", "chmod", "*/.tmp-*"),
    "replace: the temporary is not synced": ("replace", "fsync", "*/.tmp-*"),
    "replace: the directory is not synced": ("replace", "fsync_directory", "/channel"),
    "delete: the directory is not synced": ("delete", "fsync_directory", "*/pins"),
    "make_directory: the parent is not synced": ("make_directory", "fsync_directory", "/channel"),
    "make_directory: the mode is not set": ("make_directory", "chmod", "*"),
    "publish: a payload file is not synced": ("publish", "fsync", "*/f"),
    "publish: a payload file below a directory is not synced": ("publish", "fsync", "*/sub/g"),
    "publish: the manifest is not synced": ("publish", "fsync", "*/manifest.json"),
    "publish: the tree's directory is not synced": ("publish", "fsync_directory", "*/staging/n1"),
    "publish: a directory of the tree is not synced": ("publish", "fsync_directory", "*/staging/n1/sub"),
    "publish: versions/ is not synced": ("publish", "fsync_directory", "*/versions"),
    "publish: staging/ is not synced": ("publish", "fsync_directory", "*/staging"),
    "publish: the tree is not renamed": ("publish", "rename", "*/staging/n1"),
    "retire: versions/ is not synced": ("retire", "fsync_directory", "*/versions"),
}


@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_each_sync_is_needed(mutant: str) -> None:
    name, operation, path = MUTANTS[mutant]
    caught = []
    for profile in PROFILES:
        try:
            for returned, disk in crashes(CALLS[name], profile, skip=(operation, path)):
                check(CALLS[name], returned, disk)
        except AssertionError:
            caught.append(profile)
    assert caught, "no crash shows the difference"
