"""Every sentence of the storage contract, over every storage."""

from __future__ import annotations

import array
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from holdfast.channel.storage import Entry, Storage
from holdfast.errors import (
    ConflictError,
    HoldfastError,
    IntegrityError,
    NotVisibleError,
    UnavailableError,
    UsageError,
)
from tests.conformance.conftest import World

LIMIT = 1 << 20
NAME = "c000001-s00000001-00aaaaaa"
OTHER = "c000001-s00000002-00bbbbbb"
MANIFEST = b'{"format": 1}'


def write(storage: Storage, name: str, nonce: str, files: dict[str, bytes]) -> None:
    tree = storage.begin_tree(name, nonce)
    for path, data in files.items():
        writer = tree.file(path)
        try:
            writer.write_at(0, memoryview(data))
            writer.close()
        except HoldfastError:
            writer.abort()
            raise


def publish(storage: Storage, name: str, nonce: str, files: dict[str, bytes], manifest: bytes = MANIFEST) -> None:
    write(storage, name, nonce, files)
    storage.commit_tree(name, nonce, manifest)


def content(storage: Storage, path: str) -> bytes:
    reader = storage.open(path)
    try:
        buffer = memoryview(bytearray(reader.size + 10))
        return bytes(buffer[: reader.read_into(0, buffer)])
    finally:
        reader.close()


def read(storage: Storage, path: str) -> bytes:
    return storage.read(path, limit_bytes=LIMIT)


class TestListing:
    def test_what_is_not_there_is_empty(self, world: World) -> None:
        assert world.storage.list("consumers") == ()
        assert world.storage.list("nowhere") == ()
        assert world.storage.list("nowhere/deeper") == ()

    def test_names_come_sorted_with_their_kinds(self, world: World) -> None:
        for name in ("b", "a", "c.json"):
            world.storage.create(f"consumers/{name}", b"x")
        expected = (Entry("a", "file"), Entry("b", "file"), Entry("c.json", "file"))
        assert world.storage.list("consumers") == expected

    def test_the_root_is_the_empty_path(self, world: World) -> None:
        world.storage.replace("CURRENT", b"x")
        world.storage.create("consumers/a", b"x")
        entries = world.storage.list("")
        assert Entry("CURRENT", "file") in entries
        assert Entry("consumers", "directory") in entries
        assert list(entries) == sorted(entries)

    def test_each_listing_is_fresh(self, world: World) -> None:
        assert world.other.list("consumers") == ()
        world.storage.create("consumers/a", b"x")
        assert world.other.list("consumers") == (Entry("a", "file"),)
        world.storage.delete("consumers/a")
        assert world.other.list("consumers") == ()

    def test_a_record_is_no_directory_to_list(self, world: World) -> None:
        world.storage.replace("CURRENT", b"x")
        assert world.storage.list("CURRENT") == ()

    def test_trees_are_the_committed_ones(self, world: World) -> None:
        publish(world.storage, OTHER, "n2", {"f": b"x"})
        publish(world.storage, NAME, "n1", {"f": b"x"})
        write(world.storage, "c000001-s00000003-00cccccc", "n3", {"f": b"x"})
        assert world.other.list_trees() == (NAME, OTHER)


class TestReading:
    def test_a_record_is_read_whole(self, world: World) -> None:
        data = bytes(range(256)) * 1000
        world.storage.create("consumers/a", data)
        assert read(world.other, "consumers/a") == data
        world.storage.create("consumers/empty", b"")
        assert read(world.other, "consumers/empty") == b""

    def test_the_limit_is_the_largest_size_that_is_read(self, world: World) -> None:
        world.storage.create("consumers/a", b"12345")
        assert world.storage.read("consumers/a", limit_bytes=5) == b"12345"
        with pytest.raises(IntegrityError) as caught:
            world.storage.read("consumers/a", limit_bytes=4)
        assert caught.value.code == "too_large"

    @pytest.mark.parametrize("path", ["nothing", "consumers/nothing", "nowhere/nothing", "CURRENT/below"])
    def test_absent_is_not_visible(self, world: World, path: str) -> None:
        world.storage.replace("CURRENT", b"x")
        for call in (lambda: read(world.storage, path), lambda: world.storage.open(path)):
            with pytest.raises(NotVisibleError) as caught:
                call()
            assert isinstance(caught.value, UnavailableError)
            assert caught.value.fields["path"] == path

    def test_a_directory_is_no_file(self, world: World) -> None:
        world.storage.create("consumers/a", b"x")
        for call in (lambda: read(world.storage, "consumers"), lambda: world.storage.open("consumers")):
            with pytest.raises(IntegrityError) as caught:
                call()
            assert caught.value.code == "not_a_file"

    def test_positional_reads_are_short_only_at_the_end(self, world: World) -> None:
        publish(world.storage, NAME, "n1", {"f": b"0123456789"})
        reader = world.other.open(f"versions/{NAME}/f")
        assert reader.size == 10
        buffer = memoryview(bytearray(4))
        assert [(reader.read_into(offset, buffer), bytes(buffer)) for offset in (3, 6)] == [(4, b"3456"), (4, b"6789")]
        assert reader.read_into(8, buffer) == 2
        assert bytes(buffer[:2]) == b"89"
        assert reader.read_into(10, buffer) == 0
        assert reader.read_into(99, buffer) == 0
        assert reader.read_into(0, buffer[:0]) == 0
        reader.close()
        reader.close()

    def test_one_reader_serves_several_threads(self, world: World) -> None:
        data = bytes(range(256)) * 400
        publish(world.storage, NAME, "n1", {"f": data})
        reader = world.storage.open(f"versions/{NAME}/f")

        def part(offset: int) -> bytes:
            buffer = memoryview(bytearray(1024))
            assert reader.read_into(offset, buffer) == 1024
            return bytes(buffer)

        with ThreadPoolExecutor(4) as pool:
            assert b"".join(pool.map(part, range(0, len(data), 1024))) == data
        reader.close()


BAD_PATHS = ["/etc/passwd", "../outside", "a/../../b", "a//b", "a/./b", "a\\b", "a\nb", "x" * 300, "a/" * 600 + "a"]


@pytest.mark.parametrize("path", ["", *BAD_PATHS])
def test_paths_that_leave_the_root_are_refused(world: World, path: str) -> None:
    storage = world.storage
    calls: list[Callable[[], object]] = [
        lambda: read(storage, path),
        lambda: storage.open(path),
        lambda: storage.create(path, b"x"),
        lambda: storage.replace(path, b"x"),
        lambda: storage.delete(path),
        lambda: storage.begin_tree(path, "n1"),
        lambda: storage.commit_tree(path, "n1", MANIFEST),
        lambda: storage.retire_tree(path, "n1"),
        lambda: storage.begin_tree(NAME, path),
        lambda: storage.commit_tree(NAME, path, MANIFEST),
        lambda: storage.retire_tree(NAME, path),
        lambda: storage.remove_garbage(path),
    ]
    if path:
        calls += [lambda: storage.list(path), lambda: storage.make_directory(path)]
    before = storage.list("")
    for call in calls:
        with pytest.raises(UsageError):
            call()
    tree = storage.begin_tree(NAME, "n2")
    with pytest.raises(UsageError):
        tree.file(path)
    tree.abort()
    assert storage.list("") == before


@pytest.mark.parametrize("name", ["a/b", f"{NAME}/f"])
def test_a_versions_name_is_no_path(world: World, name: str) -> None:
    storage = world.storage
    calls: list[Callable[[], object]] = [
        lambda: storage.begin_tree(name, "n1"),
        lambda: storage.commit_tree(name, "n1", MANIFEST),
        lambda: storage.retire_tree(name, "n1"),
        lambda: storage.remove_garbage(name),
        lambda: storage.link("pins/a", name),
    ]
    for call in calls:
        with pytest.raises(UsageError):
            call()


class TestCreate:
    def test_a_record_appears_whole(self, world: World) -> None:
        world.storage.create("cycles/000001.json", b"mine")
        assert read(world.other, "cycles/000001.json") == b"mine"

    def test_other_bytes_lose_and_change_nothing(self, world: World) -> None:
        world.storage.create("cycles/000001.json", b"first")
        for data in (b"second", b"", b"first and more", b"firsT"):
            with pytest.raises(ConflictError) as caught:
                world.other.create("cycles/000001.json", data)
            assert caught.value.code == "exists"
        assert read(world.storage, "cycles/000001.json") == b"first"

    def test_the_very_same_bytes_are_success(self, world: World) -> None:
        world.storage.create("cycles/000001.json", b"nonce 1")
        world.storage.create("cycles/000001.json", b"nonce 1")
        assert read(world.storage, "cycles/000001.json") == b"nonce 1"

    def test_of_many_at_once_exactly_one_wins(self, world: World) -> None:
        start = threading.Barrier(6)

        def attempt(number: int) -> int | None:
            storage = world.open()
            start.wait()
            try:
                storage.create("cycles/000001.json", b"%d" % number)
            except ConflictError:
                return None
            return number

        with ThreadPoolExecutor(6) as pool:
            winners = [number for number in pool.map(attempt, range(6)) if number is not None]
        assert [read(world.storage, "cycles/000001.json")] == [b"%d" % number for number in winners]

    def test_nothing_else_is_left(self, world: World) -> None:
        world.storage.create("consumers/a", b"x")
        with pytest.raises(ConflictError):
            world.storage.create("consumers/a", b"y")
        world.storage.replace("consumers/a", b"z")
        assert world.storage.list("consumers") == (Entry("a", "file"),)
        assert world.storage.list_garbage() == ()


class TestReplace:
    def test_makes_or_replaces(self, world: World) -> None:
        world.storage.replace("CURRENT", b"one")
        assert read(world.other, "CURRENT") == b"one"
        world.storage.replace("CURRENT", b"two and longer")
        assert read(world.other, "CURRENT") == b"two and longer"
        world.storage.replace("CURRENT", b"3")
        assert read(world.other, "CURRENT") == b"3"

    def test_a_reader_sees_old_or_new_and_no_mix(self, world: World) -> None:
        values = [b"a" * 5000, b"b" * 9000]
        world.storage.replace("CURRENT", values[0])
        stop = threading.Event()

        def keep_reading() -> set[bytes]:
            seen = set()
            while not stop.is_set():
                seen.add(read(world.other, "CURRENT"))
            return seen

        with ThreadPoolExecutor(1) as pool:
            seen = pool.submit(keep_reading)
            for i in range(60):
                world.storage.replace("CURRENT", values[i % 2])
            stop.set()
            assert seen.result() <= set(values)


class TestDelete:
    def test_removes_a_record(self, world: World) -> None:
        world.storage.create("pins/a", b"x")
        world.storage.delete("pins/a")
        with pytest.raises(NotVisibleError):
            read(world.other, "pins/a")
        assert world.other.list("pins") == ()
        world.storage.create("pins/a", b"y")
        assert read(world.other, "pins/a") == b"y"

    def test_absent_is_success(self, world: World) -> None:
        world.storage.delete("pins/nothing")
        world.storage.delete("nowhere/nothing")


class TestMakeDirectory:
    def test_records_can_be_created_in_it(self, world: World) -> None:
        world.storage.make_directory("broadcasts/c000001")
        world.storage.create("broadcasts/c000001/a", b"x")
        assert read(world.other, "broadcasts/c000001/a") == b"x"

    def test_one_that_is_there_stays_as_it_is(self, world: World) -> None:
        world.storage.create("consumers/a", b"x")
        world.other.make_directory("consumers")
        world.other.make_directory("")
        assert read(world.storage, "consumers/a") == b"x"


class TestPublishing:
    def test_a_tree_is_invisible_until_it_is_committed(self, world: World) -> None:
        write(world.storage, NAME, "n1", {"f": b"x"})
        assert world.other.list_trees() == ()
        with pytest.raises(NotVisibleError):
            read(world.other, f"versions/{NAME}/manifest.json")
        world.storage.commit_tree(NAME, "n1", MANIFEST)
        assert world.other.list_trees() == (NAME,)

    def test_it_is_whole_from_then_on(self, world: World) -> None:
        files = {"a": b"1", "sub/b": b"22", "sub/deep/c": b"", "STABLE": b""}
        publish(world.storage, NAME, "n1", files)
        assert {path: content(world.other, f"versions/{NAME}/{path}") for path in files} == files
        assert read(world.other, f"versions/{NAME}/manifest.json") == MANIFEST
        names = [entry.name for entry in world.other.list(f"versions/{NAME}")]
        assert names == ["STABLE", "a", "manifest.json", "sub"]
        assert world.storage.list_garbage() == ()

    def test_positional_writes_from_several_threads(self, world: World) -> None:
        data = bytes(range(256)) * 400
        writer = world.storage.begin_tree(NAME, "n1").file("f")
        with ThreadPoolExecutor(4) as pool:
            parts = [(offset, memoryview(data)[offset : offset + 1000]) for offset in range(0, len(data), 1000)]
            list(pool.map(lambda part: writer.write_at(*part), reversed(parts)))
        writer.close()
        world.storage.commit_tree(NAME, "n1", MANIFEST)
        assert content(world.other, f"versions/{NAME}/f") == data

    def test_gaps_read_as_zeros_and_buffers_of_any_type_are_bytes(self, world: World) -> None:
        numbers = array.array("i", [1, 2, 3])
        writer = world.storage.begin_tree(NAME, "n1").file("f")
        writer.write_at(4, memoryview(numbers))
        writer.close()
        world.storage.commit_tree(NAME, "n1", MANIFEST)
        assert content(world.other, f"versions/{NAME}/f") == bytes(4) + numbers.tobytes()

    def test_files_are_made_from_several_threads(self, world: World) -> None:
        tree = world.storage.begin_tree(NAME, "n1")

        def make(number: int) -> None:
            writer = tree.file(f"d{number % 3}/e/f{number}")
            writer.write_at(0, memoryview(b"%d" % number))
            writer.close()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(make, range(24)))
        world.storage.commit_tree(NAME, "n1", MANIFEST)
        for i in range(24):
            assert content(world.other, f"versions/{NAME}/d{i % 3}/e/f{i}") == b"%d" % i

    def test_a_file_is_written_once(self, world: World) -> None:
        tree = world.storage.begin_tree(NAME, "n1")
        tree.file("f").close()
        with pytest.raises(ConflictError) as caught:
            tree.file("f")
        assert caught.value.code == "exists"

    def test_a_writer_that_was_given_up_does_not_close(self, world: World) -> None:
        writer = world.storage.begin_tree(NAME, "n1").file("f")
        writer.abort()
        writer.abort()
        with pytest.raises(UsageError):
            writer.close()

    def test_close_twice_is_close(self, world: World) -> None:
        writer = world.storage.begin_tree(NAME, "n1").file("f")
        writer.write_at(0, memoryview(b"x"))
        writer.close()
        writer.close()
        with pytest.raises(HoldfastError):
            writer.write_at(0, memoryview(b"late"))

    def test_a_nonce_is_used_by_one(self, world: World) -> None:
        world.storage.begin_tree(NAME, "n1")
        with pytest.raises(ConflictError) as caught:
            world.other.begin_tree(OTHER, "n1")
        assert caught.value.code == "exists"

    def test_abort_throws_the_tree_away(self, world: World) -> None:
        tree = world.storage.begin_tree(NAME, "n1")
        writer = tree.file("sub/f")
        writer.write_at(0, memoryview(b"x"))
        writer.close()
        tree.abort()
        tree.abort()
        assert world.storage.list_garbage() == ()
        assert world.storage.list_trees() == ()
        with pytest.raises(NotVisibleError):
            world.storage.commit_tree(NAME, "n1", MANIFEST)
        with pytest.raises(NotVisibleError):
            tree.file("g")

    def test_commit_again_is_success(self, world: World) -> None:
        publish(world.storage, NAME, "n1", {"f": b"x"})
        world.storage.commit_tree(NAME, "n1", MANIFEST)
        assert content(world.storage, f"versions/{NAME}/f") == b"x"

    def test_a_name_that_stands_for_something_else_is_a_conflict(self, world: World) -> None:
        write(world.other, NAME, "n2", {"mine": b"y"})
        publish(world.storage, NAME, "n1", {"f": b"x"})
        with pytest.raises(ConflictError) as caught:
            world.other.commit_tree(NAME, "n2", b'{"format": 1, "other": true}')
        assert caught.value.code == "exists"
        assert read(world.storage, f"versions/{NAME}/manifest.json") == MANIFEST
        assert content(world.storage, f"versions/{NAME}/f") == b"x"

    def test_nothing_to_commit_is_not_visible(self, world: World) -> None:
        with pytest.raises(NotVisibleError):
            world.storage.commit_tree(NAME, "n1", MANIFEST)
        assert world.storage.list_trees() == ()


class TestRetiring:
    def test_a_version_goes_whole(self, world: World) -> None:
        publish(world.storage, NAME, "n1", {"f": b"x", "sub/g": b"y"})
        publish(world.storage, OTHER, "n2", {"f": b"z"})
        world.other.retire_tree(NAME, "r1")
        assert world.storage.list_trees() == (OTHER,)
        assert world.storage.list(f"versions/{NAME}") == ()
        assert world.storage.list_garbage() == ()
        assert content(world.storage, f"versions/{OTHER}/f") == b"z"

    def test_absent_is_success(self, world: World) -> None:
        world.storage.retire_tree(NAME, "r1")
        publish(world.storage, NAME, "n1", {"f": b"x"})
        world.storage.retire_tree(NAME, "r1")
        world.storage.retire_tree(NAME, "r1")
        assert world.storage.list_trees() == ()
        assert world.storage.list_garbage() == ()

    def test_what_is_open_can_be_read_to_its_end(self, world: World) -> None:
        publish(world.storage, NAME, "n1", {"f": b"x" * 1000})
        reader = world.storage.open(f"versions/{NAME}/f")
        world.storage.retire_tree(NAME, "r1")
        buffer = memoryview(bytearray(1000))
        assert reader.read_into(0, buffer) == 1000
        reader.close()


class TestGarbage:
    def test_what_a_crash_leaves_is_listed_and_removed_whole(self, world: World) -> None:
        write(world.storage, NAME, "n1", {"f": b"x", "sub/g": b"y"})
        world.storage.begin_tree(OTHER, "n2")
        assert world.other.list_garbage() == ("n1", "n2")
        world.other.remove_garbage("n1")
        assert world.other.list_garbage() == ("n2",)
        world.other.remove_garbage("n1")
        world.other.remove_garbage("n2")
        assert world.other.list_garbage() == ()
        assert world.other.list("versions") == ()

    def test_a_writer_that_lives_all_the_same_makes_nothing_visible(self, world: World) -> None:
        tree = world.storage.begin_tree(NAME, "n1")
        writer = tree.file("f")
        writer.write_at(0, memoryview(b"x"))
        world.other.remove_garbage("n1")
        writer.close()
        with pytest.raises(NotVisibleError):
            tree.file("g")
        with pytest.raises(NotVisibleError):
            world.storage.commit_tree(NAME, "n1", MANIFEST)
        assert world.storage.list_trees() == ()
        for nonce in world.storage.list_garbage():
            world.storage.remove_garbage(nonce)
        assert world.storage.list("versions") == ()

    def test_a_committed_version_is_never_touched(self, world: World) -> None:
        publish(world.storage, NAME, "n1", {"f": b"x"})
        world.other.remove_garbage("n1")
        assert world.storage.list_trees() == (NAME,)
        assert content(world.storage, f"versions/{NAME}/f") == b"x"


class TestSurroundings:
    def test_links_are_left_once_and_never_repointed(self, world: World) -> None:
        storage = world.storage
        storage.make_directory("broadcasts/c000001")
        path = "broadcasts/c000001/step_1"
        if not storage.capabilities.links:
            with pytest.raises(UsageError):
                storage.link(path, NAME)
            assert storage.link_target(path) is None
            return
        publish(storage, NAME, "n1", {"f": b"x"})
        assert storage.link_target(path) is None
        storage.link(path, NAME)
        storage.link(path, NAME)
        with pytest.raises(ConflictError) as caught:
            world.other.link(path, OTHER)
        assert caught.value.code == "exists"
        assert world.other.link_target(path) == NAME
        assert storage.list("broadcasts/c000001") == (Entry("step_1", "link"),)
        storage.delete(path)
        assert storage.list("broadcasts/c000001") == ()
        assert content(storage, f"versions/{NAME}/f") == b"x"
        storage.create(path, b"a record")
        with pytest.raises(ConflictError):
            storage.link(path, NAME)
        assert storage.link_target(path) is None
        assert storage.link_target("nowhere/step_1") is None

    def test_local_paths_only_where_the_storage_has_them(self, world: World) -> None:
        if world.storage.capabilities.local_paths:
            path = world.storage.local_path(f"versions/{NAME}")
            assert path.is_absolute()
            assert path.parts[-3:] == ("channel", "versions", NAME)
            with pytest.raises(UsageError):
                world.storage.local_path("../outside")
        else:
            with pytest.raises(UsageError):
                world.storage.local_path(f"versions/{NAME}")

    def test_two_processes_of_one_machine_see_one_mount(self, world: World) -> None:
        assert world.storage.mount() == world.other.mount()
        assert world.storage.mount().host

    def test_free_space_is_a_number_of_bytes_or_unknown(self, world: World) -> None:
        free = world.storage.free_bytes()
        assert free is None or free > 0

    def test_capabilities_are_data(self, world: World) -> None:
        capabilities = world.storage.capabilities
        assert capabilities == world.other.capabilities
        assert capabilities.rename_tree == (world.kind != "memory")


class TestWatch:
    def test_wakes_for_a_new_version_or_claim(self, world: World) -> None:
        watch = world.other.watch()
        assert (watch is not None) == world.storage.capabilities.notifies
        if watch is None:
            return
        assert not watch.wait(0)
        world.storage.replace("CURRENT", b"x")
        assert watch.wait(60)
        assert not watch.wait(0)
        world.storage.create("cycles/000001.json", b"x")
        assert watch.wait(60)
        assert not watch.wait(0)
        watch.close()
        watch.close()

    def test_sleeps_through_everything_else(self, world: World) -> None:
        watch = world.other.watch()
        if watch is None:
            assert not world.storage.capabilities.notifies
            return
        world.storage.replace("cycles/000001.beat", b"x")
        world.storage.replace("consumers/a", b"x")
        write(world.storage, NAME, "n1", {"f": b"x"})
        assert not watch.wait(0)
        watch.close()

    def test_is_woken_from_another_thread(self, world: World) -> None:
        watch = world.other.watch()
        if watch is None:
            assert not world.storage.capabilities.notifies
            return
        with ThreadPoolExecutor(1) as pool:
            woken = pool.submit(watch.wait, 60)
            watch.wake()
            assert woken.result()
        assert not watch.wait(0)
        watch.close()
        watch.wake()
