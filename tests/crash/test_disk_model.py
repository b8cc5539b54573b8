"""The simulated disk's own rules, and its agreement with the operating system on what programs see."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import tempfile

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from holdfast.channel.ops import Ops, RealOps
from holdfast.testing import PowerCut, SimulatedDisk
from holdfast.testing.durability import PROFILES

both_profiles = pytest.mark.parametrize("profile", PROFILES)


def put(ops: Ops, name: str, data: bytes, *, sync: bool = False) -> None:
    handle = ops.create(None, name, 0o644)
    ops.pwrite(handle, memoryview(data), 0)
    if sync:
        ops.fsync(handle)
    ops.close(handle)


def sync_directory(ops: Ops, name: str) -> None:
    handle = ops.open_directory(None, name)
    ops.fsync_directory(handle)
    ops.close(handle)


def states(disk: SimulatedDisk, limit: int = 1000) -> list[dict[str, bytes | str | None]]:
    return [after.tree() for after in disk.crash_states(limit)]


@both_profiles
def test_without_fsync_a_file_may_be_whole_torn_empty_or_missing(profile: str) -> None:
    disk = SimulatedDisk(profile=profile)
    put(disk, "/a", b"12345678")
    found = states(disk)
    for expected in ({}, {"/a": b""}, {"/a": b"1234"}, {"/a": b"12345678"}):
        assert expected in found
    assert ({"/a": bytes(8)} in found) == (profile == "weak-posix")


@both_profiles
def test_fsync_makes_bytes_durable_but_no_name(profile: str) -> None:
    disk = SimulatedDisk(profile=profile)
    put(disk, "/a", b"12345678", sync=True)
    found = states(disk)
    assert len(found) == 2
    assert {} in found
    assert {"/a": b"12345678"} in found
    sync_directory(disk, "/")
    assert states(disk) == [{"/a": b"12345678"}]


@both_profiles
def test_a_directorys_fsync_makes_names_durable_but_no_bytes(profile: str) -> None:
    disk = SimulatedDisk(profile=profile)
    put(disk, "/a", b"1234")
    sync_directory(disk, "/")
    found = states(disk)
    assert {"/a": b""} in found
    assert all("/a" in tree for tree in found)


@both_profiles
def test_rename_over_a_file_without_fsync_may_leave_it_empty(profile: str) -> None:
    disk = SimulatedDisk(profile=profile)
    put(disk, "/a", b"old", sync=True)
    sync_directory(disk, "/")
    put(disk, "/new", b"new!")
    disk.rename(None, "/new", None, "/a")
    assert {"/a": b""} in states(disk)


@both_profiles
def test_rename_over_a_file_after_fsync_leaves_the_old_or_the_new(profile: str) -> None:
    disk = SimulatedDisk(profile=profile)
    put(disk, "/a", b"old", sync=True)
    sync_directory(disk, "/")
    put(disk, "/new", b"new!", sync=True)
    disk.rename(None, "/new", None, "/a")
    assert {tree["/a"] for tree in states(disk)} == {b"old", b"new!"}
    sync_directory(disk, "/")
    assert states(disk) == [{"/a": b"new!"}]


@both_profiles
def test_a_torn_overwrite_keeps_what_was_synced_before_it(profile: str) -> None:
    disk = SimulatedDisk(profile=profile)
    handle = disk.create(None, "/a", 0o644)
    disk.pwrite(handle, memoryview(b"aaaa"), 0)
    disk.fsync(handle)
    sync_directory(disk, "/")
    disk.pwrite(handle, memoryview(b"bbbb"), 0)
    contents = {tree["/a"] for tree in states(disk)}
    assert {b"aaaa", b"bbaa", b"bbbb"} <= contents


def test_ext4_like_keeps_the_order_of_directory_operations_across_directories() -> None:
    disk = SimulatedDisk(profile="ext4-like")
    disk.mkdir(None, "/a", 0o755)
    disk.mkdir(None, "/b", 0o755)
    sync_directory(disk, "/")
    disk.mkdir(None, "/a/first", 0o755)
    disk.mkdir(None, "/b/second", 0o755)
    assert [sorted(tree) for tree in states(disk)] == [
        ["/a", "/a/first", "/b", "/b/second"],
        ["/a", "/a/first", "/b"],
        ["/a", "/b"],
    ]
    sync_directory(disk, "/b")
    assert [sorted(tree) for tree in states(disk)] == [["/a", "/a/first", "/b", "/b/second"]]


def test_weak_posix_keeps_any_subset_of_directory_operations() -> None:
    disk = SimulatedDisk(profile="weak-posix")
    disk.mkdir(None, "/a", 0o755)
    disk.mkdir(None, "/b", 0o755)
    sync_directory(disk, "/")
    disk.mkdir(None, "/a/first", 0o755)
    disk.mkdir(None, "/b/second", 0o755)
    kept = {frozenset(set(tree) - {"/a", "/b"}) for tree in states(disk)}
    assert kept == {
        frozenset(),
        frozenset({"/a/first"}),
        frozenset({"/b/second"}),
        frozenset({"/a/first", "/b/second"}),
    }
    sync_directory(disk, "/b")
    assert all("/b/second" in tree for tree in states(disk))
    assert any("/a/first" not in tree for tree in states(disk))


@pytest.fixture
def moved() -> SimulatedDisk:
    """A directory that was just renamed from /from to /to."""
    disk = SimulatedDisk(profile="weak-posix")
    for name in ("/from", "/to", "/from/tree"):
        disk.mkdir(None, name, 0o755)
    for name in ("/", "/from"):
        sync_directory(disk, name)
    disk.rename(None, "/from/tree", None, "/to/tree")
    return disk


def places(disk: SimulatedDisk) -> set[frozenset[str]]:
    return {frozenset(set(tree) - {"/from", "/to"}) for tree in states(disk)}


def test_weak_posix_rename_between_directories_may_be_done_undone_or_lost(moved: SimulatedDisk) -> None:
    assert places(moved) == {frozenset({"/from/tree"}), frozenset({"/to/tree"}), frozenset()}


def test_weak_posix_rename_is_durable_after_both_directories_are_synced(moved: SimulatedDisk) -> None:
    sync_directory(moved, "/to")
    assert places(moved) == {frozenset({"/from/tree"}), frozenset({"/to/tree"})}  # a repair keeps one of two names
    sync_directory(moved, "/from")
    assert places(moved) == {frozenset({"/to/tree"})}


def test_ext4_like_rename_between_directories_is_all_or_nothing() -> None:
    disk = SimulatedDisk(profile="ext4-like")
    for name in ("/from", "/to", "/from/tree"):
        disk.mkdir(None, name, 0o755)
    sync_directory(disk, "/from")
    disk.rename(None, "/from/tree", None, "/to/tree")
    assert places(disk) == {frozenset({"/from/tree"}), frozenset({"/to/tree"})}


@both_profiles
def test_what_is_in_a_lost_directory_is_lost(profile: str) -> None:
    disk = SimulatedDisk(profile=profile)
    disk.mkdir(None, "/a", 0o755)
    put(disk, "/a/b", b"x", sync=True)
    sync_directory(disk, "/a")
    kept = {frozenset(tree) for tree in states(disk)}
    weak = {frozenset(), frozenset({"/a", "/a/b"})}
    assert kept == (weak if profile == "weak-posix" else {frozenset({"/a", "/a/b"})})


@both_profiles
def test_a_mode_is_durable_with_its_own_inodes_sync(profile: str) -> None:
    disk = SimulatedDisk(profile=profile)
    disk.mkdir(None, "/a", 0o700)
    sync_directory(disk, "/")
    handle = disk.open_directory(None, "/a")
    disk.chmod(handle, 0o755)
    assert {after.lstat(None, "/a").mode for after in disk.crash_states()} == {0o700, 0o755}
    disk.fsync_directory(handle)
    assert {after.lstat(None, "/a").mode for after in disk.crash_states()} == {0o755}


@both_profiles
def test_power_fails_at_exactly_the_operation_that_was_named(profile: str) -> None:
    disk = SimulatedDisk(profile=profile)
    disk.stop_after(2)
    handle = disk.create(None, "/a", 0o644)
    disk.pwrite(handle, memoryview(b"x"), 0)
    with pytest.raises(PowerCut):
        disk.fsync(handle)
    assert disk.is_off
    assert [operation.name for operation in disk.history] == ["create", "pwrite"]
    with pytest.raises(PowerCut):
        disk.scandir(None, "/")
    assert {"/a": b""} in states(disk)


@both_profiles
def test_a_state_is_a_disk_of_its_own(profile: str) -> None:
    disk = SimulatedDisk(profile=profile)
    put(disk, "/a", b"x", sync=True)
    disk.link(None, "/a", None, "/b")
    disk.cut_power()
    whole = next(after for after in disk.crash_states() if len(after.tree()) == 2)
    assert whole.lstat(None, "/a").links == 2
    assert states(whole) == [{"/a": b"x", "/b": b"x"}]
    whole.unlink(None, "/a")
    assert whole.tree() == {"/b": b"x"}
    assert whole.lstat(None, "/b").links == 1
    assert {"/a": b"x", "/b": b"x"} in states(whole)


@both_profiles
def test_many_states_are_a_bounded_choice_and_the_same_each_time(profile: str) -> None:
    disk = SimulatedDisk(profile=profile)
    for i in range(12):
        put(disk, f"/{i}", b"12345678")
    first, second = states(disk, limit=150), states(disk, limit=150)
    assert first == second
    assert 100 < len(first) <= 150
    whole = {f"/{i}": b"12345678" for i in range(12)}
    assert whole in first
    assert {} in first
    empty = dict.fromkeys(whole, b"")
    assert empty in first, "all names, no bytes"
    assert {**whole, "/3": b""} in first, "one file's bytes lost, all else kept"
    if profile == "weak-posix":
        assert {name: data for name, data in whole.items() if name != "/3"} in first
        assert {"/3": b"12345678"} in first


def test_a_full_disk_takes_what_fits_and_then_refuses() -> None:
    disk = SimulatedDisk(capacity_bytes=10)
    handle = disk.create(None, "/a", 0o644)
    assert disk.pwrite(handle, memoryview(b"12345678"), 0) == 8
    assert disk.pwrite(handle, memoryview(b"12345678"), 8) == 2
    with pytest.raises(OSError, match="No space") as caught:
        disk.pwrite(handle, memoryview(b"x"), 10)
    assert caught.value.errno == errno.ENOSPC
    assert disk.pwrite(handle, memoryview(b"over"), 0) == 4, "overwriting needs no space"
    disk.unlink(None, "/a")
    assert disk.free_bytes(handle) == 0, "still open"
    disk.close(handle)
    root = disk.open_directory(None, "/")
    assert disk.free_bytes(root) == 10


# Agreement with the operating system

NAMES = ["a", "b", "c"]
PATHS = [*NAMES, *(f"{outer}/{inner}" for outer in NAMES for inner in NAMES), "a/a/a", "x" * 256]
names = st.sampled_from(PATHS)


class Agreement(RuleBasedStateMachine):
    """The same calls on both; equal answers, equal errnos, equal trees."""

    def __init__(self) -> None:
        super().__init__()
        self.real_root = tempfile.mkdtemp(prefix="holdfast-")
        self.real, self.disk = RealOps(), SimulatedDisk()
        self.disk.mkdir(None, "/root", 0o755)
        self.roots = {id(self.real): self.real_root, id(self.disk): "/root"}
        self.handles: list[tuple[int, int]] = []
        self.old_umask = os.umask(0o022)

    def teardown(self) -> None:
        os.umask(self.old_umask)
        for handle, _ in self.handles:
            self.real.close(handle)
        shutil.rmtree(self.real_root)

    def agree(self, call: object, handle: tuple[int, int] | None = None) -> tuple[object, object]:
        assert callable(call)
        answers: list[object] = []
        for i, ops in enumerate((self.real, self.disk)):
            try:
                answers.append(call(ops, None if handle is None else handle[i], self.roots[id(ops)]))
            except OSError as error:
                answers.append(errno.errorcode[error.errno or 0])
        assert type(answers[0]) is type(answers[1]), answers
        return answers[0], answers[1]

    def same(self, call: object, handle: tuple[int, int] | None = None) -> None:
        real, simulated = self.agree(call, handle)
        assert real == simulated

    def opened(self, call: object) -> None:
        real, simulated = self.agree(call)
        if isinstance(real, int) and isinstance(simulated, int):
            self.handles.append((real, simulated))
        else:
            assert real == simulated

    @rule(name=names)
    def create(self, name: str) -> None:
        self.opened(lambda ops, _, root: ops.create(None, f"{root}/{name}", 0o666))

    @rule(name=names)
    def open_read(self, name: str) -> None:
        self.opened(lambda ops, _, root: ops.open_read(None, f"{root}/{name}"))

    @rule(name=names, follow=st.booleans())
    def open_directory(self, name: str, follow: bool) -> None:
        self.opened(lambda ops, _, root: ops.open_directory(None, f"{root}/{name}", follow=follow))

    @rule(data=st.data(), part=st.binary(min_size=1, max_size=5), offset=st.integers(0, 6))
    def use_handle(self, data: st.DataObject, part: bytes, offset: int) -> None:
        if not self.handles:
            return
        chosen = data.draw(st.integers(0, len(self.handles) - 1))
        handle = self.handles[chosen]
        name = data.draw(st.sampled_from(NAMES))
        other = data.draw(st.sampled_from(NAMES))
        calls = {
            "write": lambda ops, h, _: ops.pwrite(h, memoryview(part), offset),
            "read": lambda ops, h, _: _read(ops, h, offset),
            "status": lambda ops, h, _: _status(ops.status(h)),
            "chmod": lambda ops, h, _: ops.chmod(h, 0o640),
            "fsync": lambda ops, h, _: ops.fsync(h),
            "fsync_directory": lambda ops, h, _: ops.fsync_directory(h),
            "mkdir": lambda ops, h, _: ops.mkdir(h, name, 0o777),
            "unlink": lambda ops, h, _: ops.unlink(h, name),
            "rename": lambda ops, h, _: ops.rename(h, name, h, other),
            "link": lambda ops, h, _: ops.link(h, name, h, other),
            "scandir": lambda ops, h, _: sorted(ops.scandir(h, name)),
        }
        if data.draw(st.integers(0, 3)) == 0:
            self.same(lambda ops, h, _: ops.close(h), handle)
            del self.handles[chosen]
        else:
            self.same(calls[data.draw(st.sampled_from(sorted(calls)))], handle)

    @rule(name=names)
    def mkdir(self, name: str) -> None:
        self.same(lambda ops, _, root: ops.mkdir(None, f"{root}/{name}", 0o777))

    @rule(name=names)
    def rmdir(self, name: str) -> None:
        self.same(lambda ops, _, root: ops.rmdir(None, f"{root}/{name}"))

    @rule(name=names)
    def unlink(self, name: str) -> None:
        self.same(lambda ops, _, root: ops.unlink(None, f"{root}/{name}"))

    @rule(name=names, to=names)
    def rename(self, name: str, to: str) -> None:
        self.same(lambda ops, _, root: ops.rename(None, f"{root}/{name}", None, f"{root}/{to}"))

    @rule(name=names, to=names)
    def link(self, name: str, to: str) -> None:
        self.same(lambda ops, _, root: ops.link(None, f"{root}/{name}", None, f"{root}/{to}"))

    @rule(leads_to=st.sampled_from(PATHS[:-1]), name=names)
    def symlink(self, leads_to: str, name: str) -> None:
        self.same(lambda ops, _, root: ops.symlink(leads_to, None, f"{root}/{name}"))

    @rule(name=names)
    def readlink(self, name: str) -> None:
        self.same(lambda ops, _, root: ops.readlink(None, f"{root}/{name}"))

    @rule(name=names)
    def lstat(self, name: str) -> None:
        self.same(lambda ops, _, root: _status(ops.lstat(None, f"{root}/{name}")))

    @rule(name=names, follow=st.booleans())
    def scandir(self, name: str, follow: bool) -> None:
        self.same(lambda ops, _, root: sorted(ops.scandir(None, f"{root}/{name}", follow=follow)))

    @invariant()
    def trees_are_equal(self) -> None:
        assert _tree(pathlib.Path(self.real_root)) == {
            name.removeprefix("/root/"): content for name, content in self.disk.tree().items() if name != "/root"
        }


def _read(ops: Ops, handle: int, offset: int) -> bytes:
    buffer = memoryview(bytearray(16))
    return bytes(buffer[: ops.pread(handle, buffer, offset)])


def _status(status: object) -> tuple[object, ...]:
    kind, size, mode, _, links = status  # type: ignore[misc,attr-defined]
    return (kind, mode, 0 if kind == "directory" else size, 0 if kind == "directory" else links)


def _tree(root: pathlib.Path) -> dict[str, bytes | str | None]:
    found: dict[str, bytes | str | None] = {}
    for path in root.rglob("*"):
        if path.is_symlink():
            content: bytes | str | None = str(path.readlink())
        else:
            content = None if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(root))] = content
    return found


Agreement.TestCase.settings = settings(stateful_step_count=40)
TestAgreement = Agreement.TestCase
