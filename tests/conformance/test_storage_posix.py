"""What the POSIX storage owes beyond the contract: modes, planted things, temporaries, few calls."""

from __future__ import annotations

import errno
import os
import pathlib
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from holdfast.channel.ops import Ops, RealOps
from holdfast.channel.posix import PosixStorage
from holdfast.channel.storage import Entry
from holdfast.channel.watch import file_system, open_watch
from holdfast.errors import ConflictError, HoldfastError, IntegrityError, NotVisibleError, UnavailableError
from holdfast.testing import FaultyOps
from tests.conformance.conftest import DIRECTORIES
from tests.conformance.test_storage import MANIFEST, NAME, content, publish, read, write


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "channel"


@pytest.fixture
def storage(root: pathlib.Path) -> PosixStorage:
    storage = PosixStorage(root)
    storage.make_directory("")
    for name in DIRECTORIES:
        storage.make_directory(name)
    return storage


@pytest.fixture
def outside(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory of somebody else with one file, for planted links to lead to."""
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "secret").write_bytes(b"theirs")
    return directory


def mode(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


class TestModes:
    @pytest.fixture(params=[0o077, 0o000, 0o022])
    def _umask(self, request: pytest.FixtureRequest) -> Iterator[None]:
        old = os.umask(request.param)
        yield
        os.umask(old)

    @pytest.mark.usefixtures("_umask")
    def test_everything_is_readable_by_all_whatever_the_umask(self, tmp_path: pathlib.Path) -> None:
        root = tmp_path / "above" / "channel"
        storage = PosixStorage(root)
        storage.make_directory("")
        for name in DIRECTORIES:
            storage.make_directory(name)
        storage.make_directory("shared", 0o1777)
        storage.make_directory("broadcasts/c000001")
        storage.create("cycles/000001.json", b"x")
        storage.replace("CURRENT", b"x")
        publish(storage, NAME, "n1", {"f": b"x", "sub/deep/g": b"y"})
        modes = {str(path.relative_to(root.parent)): mode(path) for path in root.parent.rglob("*")}
        assert modes.pop("channel/shared") == 0o1777
        assert {path: value for path, value in modes.items() if value != 0o755 and (root.parent / path).is_dir()} == {}
        assert {path: value for path, value in modes.items() if value != 0o644 and (root.parent / path).is_file()} == {}
        assert len(modes) > 15

    def test_a_directory_that_is_there_keeps_its_mode(self, storage: PosixStorage, root: pathlib.Path) -> None:
        (root / "consumers").chmod(0o750)
        storage.make_directory("consumers", 0o1777)
        assert mode(root / "consumers") == 0o750


class TestPlanted:
    """Nothing found in the channel leads out of it."""

    def calls(self, storage: PosixStorage, below: str) -> list[Callable[[], object]]:
        return [
            lambda: storage.list(below),
            lambda: read(storage, f"{below}/secret"),
            lambda: storage.open(f"{below}/secret"),
            lambda: storage.create(f"{below}/new", b"x"),
            lambda: storage.replace(f"{below}/secret", b"x"),
            lambda: storage.delete(f"{below}/secret"),
            lambda: storage.make_directory(f"{below}/new"),
            lambda: storage.link(f"{below}/new", NAME),
        ]

    @pytest.mark.parametrize("place", ["consumers", f"versions/{NAME}", f"versions/{NAME}/sub"])
    def test_a_linked_directory_is_refused(
        self, storage: PosixStorage, root: pathlib.Path, outside: pathlib.Path, place: str
    ) -> None:
        (root / place).parent.mkdir(exist_ok=True)
        if (root / place).exists():
            (root / place).rmdir()
        (root / place).symlink_to(outside)
        for call in [*self.calls(storage, place), *self.calls(storage, f"{place}/deeper")[1:]]:
            with pytest.raises(IntegrityError) as caught:
                call()
            assert caught.value.code == "not_a_directory"
        assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"secret": b"theirs"}

    @pytest.mark.parametrize("directory", ["versions", "staging"])
    def test_a_linked_home_of_trees_is_refused(
        self, storage: PosixStorage, root: pathlib.Path, outside: pathlib.Path, directory: str
    ) -> None:
        write(storage, NAME, "n1", {"f": b"x"})
        (root / directory).rename(root / "away")
        (root / directory).symlink_to(outside)
        calls: list[Callable[[], object]] = [
            lambda: storage.commit_tree(NAME, "n1", MANIFEST),
            lambda: storage.retire_tree(NAME, "r1"),
        ]
        if directory == "staging":
            calls += [lambda: storage.begin_tree(NAME, "n2"), lambda: storage.remove_garbage("secret")]
        for call in calls:
            with pytest.raises(IntegrityError):
                call()
        assert storage.list_garbage() == (("n1",) if directory == "versions" else ())
        assert [path.name for path in outside.iterdir()] == ["secret"]

    def test_a_linked_file_is_refused(self, storage: PosixStorage, root: pathlib.Path, outside: pathlib.Path) -> None:
        (root / "consumers" / "a").symlink_to(outside / "secret")
        for call in (lambda: read(storage, "consumers/a"), lambda: storage.open("consumers/a")):
            with pytest.raises(IntegrityError) as caught:
                call()
            assert caught.value.code == "not_a_file"
        with pytest.raises(ConflictError):
            storage.create("consumers/a", b"theirs")
        storage.replace("consumers/a", b"mine")
        assert (outside / "secret").read_bytes() == b"theirs"
        assert read(storage, "consumers/a") == b"mine"

    def test_a_link_is_deleted_and_not_what_it_leads_to(
        self, storage: PosixStorage, root: pathlib.Path, outside: pathlib.Path
    ) -> None:
        (root / "consumers" / "a").symlink_to(outside / "secret")
        storage.delete("consumers/a")
        assert storage.list("consumers") == ()
        assert (outside / "secret").read_bytes() == b"theirs"

    def test_pipes_sockets_and_devices_are_refused_at_once(self, storage: PosixStorage, root: pathlib.Path) -> None:
        os.mkfifo(root / "consumers" / "pipe")
        names = ["pipe"]
        if os.geteuid() == 0:
            os.mknod(root / "consumers" / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            names.append("null")
        for name in names:
            assert Entry(name, "other") in storage.list("consumers")
            for call in (lambda n=name: read(storage, f"consumers/{n}"), lambda n=name: storage.open(f"consumers/{n}")):
                with pytest.raises(IntegrityError) as caught:
                    call()
                assert caught.value.code == "not_a_file"

    def test_a_version_that_is_a_link_is_none_and_is_retired_alone(
        self, storage: PosixStorage, root: pathlib.Path, outside: pathlib.Path
    ) -> None:
        (root / "versions" / NAME).symlink_to(outside)
        assert storage.list_trees() == ()
        storage.retire_tree(NAME, "r1")
        assert storage.list("versions") == ()
        assert storage.list_garbage() == ()
        assert (outside / "secret").read_bytes() == b"theirs"

    def test_links_inside_a_retired_version_are_not_followed(
        self, storage: PosixStorage, root: pathlib.Path, outside: pathlib.Path
    ) -> None:
        publish(storage, NAME, "n1", {"sub/f": b"x"})
        (root / "versions" / NAME / "out").symlink_to(outside)
        (root / "versions" / NAME / "sub" / "out").symlink_to(outside / "secret")
        storage.retire_tree(NAME, "r1")
        assert storage.list_garbage() == ()
        assert (outside / "secret").read_bytes() == b"theirs"

    def test_a_commit_never_lands_on_something_else(
        self, storage: PosixStorage, root: pathlib.Path, outside: pathlib.Path
    ) -> None:
        write(storage, NAME, "n1", {"f": b"x"})
        (root / "versions" / NAME).symlink_to(outside)
        with pytest.raises(ConflictError):
            storage.commit_tree(NAME, "n1", MANIFEST)
        (root / "versions" / NAME).unlink()
        (root / "versions" / NAME).write_bytes(b"a file")
        with pytest.raises(ConflictError):
            storage.commit_tree(NAME, "n1", MANIFEST)
        (root / "versions" / NAME).unlink()
        (root / "versions" / NAME / "sub").mkdir(parents=True)
        with pytest.raises(ConflictError):
            storage.commit_tree(NAME, "n1", MANIFEST)
        (root / "versions" / NAME / "sub").rmdir()
        storage.commit_tree(NAME, "n1", MANIFEST)
        assert content(storage, f"versions/{NAME}/f") == b"x"
        assert [path.name for path in outside.iterdir()] == ["secret"]

    def test_the_roots_own_path_may_be_a_link(self, storage: PosixStorage, root: pathlib.Path) -> None:
        alias = root.parent / "alias"
        alias.symlink_to(root)
        storage.replace("CURRENT", b"x")
        other = PosixStorage(alias)
        assert read(other, "CURRENT") == b"x"
        assert other.list("") == storage.list("")
        other.create("consumers/a", b"y")
        other.make_directory("")
        assert other.mount() == storage.mount()
        assert read(storage, "consumers/a") == b"y"


class TestGarbage:
    def test_temporaries_are_in_no_listing_and_are_found_as_garbage(
        self, storage: PosixStorage, root: pathlib.Path
    ) -> None:
        (root / ".tmp-00").write_bytes(b"x")
        (root / "consumers" / ".tmp-01").write_bytes(b"x")
        (root / "staging" / ".tmp-02").mkdir()
        (root / "cycles" / ".tmp-03").mkdir()
        publish(storage, NAME, "n1", {".tmp-kept": b"x"})
        assert [entry.name for entry in storage.list("")] == sorted(DIRECTORIES)
        assert storage.list("consumers") == ()
        found = storage.list_garbage()
        assert found == (".tmp-00", "consumers/.tmp-01", "cycles/.tmp-03", "staging/.tmp-02")
        for name in found:
            storage.remove_garbage(name)
            storage.remove_garbage(name)
        assert storage.list_garbage() == ()
        assert content(storage, f"versions/{NAME}/.tmp-kept") == b"x"

    def test_a_record_that_is_no_temporary_is_not_removed_as_garbage(self, storage: PosixStorage) -> None:
        storage.create("consumers/a", b"x")
        with pytest.raises(HoldfastError):
            storage.remove_garbage("consumers/a")
        storage.remove_garbage("CURRENT")
        assert read(storage, "consumers/a") == b"x"

    def test_a_writer_whose_temporary_was_swept_is_told_and_tries_again(
        self, root: pathlib.Path, storage: PosixStorage
    ) -> None:
        class Swept(RealOps):
            def link(self, at: int | None, name: str, to: int | None, to_name: str) -> None:
                for garbage in storage.list_garbage():
                    storage.remove_garbage(garbage)
                super().link(at, name, to, to_name)

            def rename(self, at: int | None, name: str, to: int | None, to_name: str) -> None:
                for garbage in storage.list_garbage():
                    storage.remove_garbage(garbage)
                super().rename(at, name, to, to_name)

        slow: Ops = Swept()
        for call in (
            lambda: PosixStorage(root, slow).create("consumers/a", b"x"),
            lambda: PosixStorage(root, slow).replace("consumers/a", b"x"),
        ):
            with pytest.raises(NotVisibleError):
                call()
            assert storage.list("consumers") == ()
        storage.create("consumers/a", b"x")
        assert read(storage, "consumers/a") == b"x"

    def test_deep_and_wide_trees_are_removed_whole(self, storage: PosixStorage, root: pathlib.Path) -> None:
        top = root / "staging" / "old"
        top.mkdir()
        at = os.open(top, os.O_RDONLY)
        for _ in range(1500):  # deeper than a path, the stack and the handles allow
            os.mkdir("d", dir_fd=at)
            below = os.open("d", os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        os.close(at)
        for i in range(40):
            (top / f"w{i}" / "x").mkdir(parents=True)
            (top / f"w{i}" / "x" / "f").write_bytes(b"x")
        storage.remove_garbage("old")
        assert storage.list_garbage() == ()
        assert not top.exists()

    def test_two_sweepers_may_remove_the_same(self, storage: PosixStorage, root: pathlib.Path) -> None:
        for i in range(60):
            (root / "staging" / "old" / f"d{i}" / "sub").mkdir(parents=True)
            (root / "staging" / "old" / f"d{i}" / "f").write_bytes(b"x")
        start = threading.Barrier(4)

        def remove(_: int) -> None:
            start.wait()
            storage.remove_garbage("old")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(remove, range(4)))
        storage.remove_garbage("old")
        assert storage.list_garbage() == ()

    def test_what_the_system_does_not_let_go_stays_for_the_next_time(
        self, storage: PosixStorage, root: pathlib.Path
    ) -> None:
        ops = FaultyOps(RealOps())
        publish(storage, NAME, "n1", {"f": b"x", "sub/.nfs01": b"y"})
        ops.fail("unlink", errno.EBUSY, path="*/.nfs01")
        PosixStorage(root, ops).retire_tree(NAME, "r1")
        assert storage.list_trees() == ()
        assert storage.list_garbage() == ("retired-r1",)
        storage.remove_garbage("retired-r1")
        assert storage.list_garbage() == ()

    @pytest.mark.parametrize("operation", ["unlink", "rmdir"])
    def test_a_writer_that_wakes_cannot_commit_what_a_sweep_has_left_of_its_tree(
        self, storage: PosixStorage, root: pathlib.Path, operation: str
    ) -> None:
        ops = FaultyOps(RealOps())
        sweeper = PosixStorage(root, ops)
        write(storage, NAME, "n1", {"f": b"x", "sub/g": b"y"})
        ops.fail(operation, errno.EIO, on_call=2)
        with pytest.raises(UnavailableError):
            sweeper.remove_garbage("n1")
        with pytest.raises(NotVisibleError):
            storage.commit_tree(NAME, "n1", MANIFEST)
        assert storage.list_trees() == ()
        assert len(storage.list_garbage()) == 1
        sweeper.remove_garbage(storage.list_garbage()[0])
        assert storage.list_garbage() == ()


class TestListing:
    def test_many_entries_come_whole(self, storage: PosixStorage, root: pathlib.Path) -> None:
        names = [f"{i:04d}-{'n' * 100}" for i in range(3000)]  # several of the kernel's buffers
        for name in names:
            (root / "consumers" / name).touch()
        assert [entry.name for entry in storage.list("consumers")] == names
        assert storage.list("consumers") == tuple(sorted(RealOps().scandir(None, str(root / "consumers"))))

    def test_names_that_are_no_text_harm_nothing(self, storage: PosixStorage, root: pathlib.Path) -> None:
        (root / os.fsdecode(b"\xff\xfe")).touch()
        (root / "staging" / os.fsdecode(b"\xff")).mkdir()
        (root / "staging" / "with\nnewline").mkdir()
        assert len(storage.list("")) == len(DIRECTORIES) + 1
        assert storage.list_garbage() == ()

    def test_an_idle_look_costs_two_listings_and_one_read(self, root: pathlib.Path, storage: PosixStorage) -> None:
        storage.replace("CURRENT", b"x")
        ops = FaultyOps(RealOps())
        reader = PosixStorage(root, ops)
        reader.list("")  # the first time it looks at the way to the root, too
        ops.calls.clear()
        reader.list("")
        reader.read("CURRENT", limit_bytes=1000)
        reader.list("cycles")
        assert dict(ops.calls) == {"scandir": 2, "open_read": 1, "status": 1, "pread": 1, "close": 1}

    def test_too_large_is_known_before_its_bytes_are_read(self, root: pathlib.Path, storage: PosixStorage) -> None:
        storage.replace("CURRENT", b"12345")
        ops = FaultyOps(RealOps())
        with pytest.raises(IntegrityError):
            PosixStorage(root, ops).read("CURRENT", limit_bytes=4)
        assert ops.calls["pread"] == 0


class TestWatch:
    @pytest.fixture(autouse=True)
    def _local(self, tmp_path: pathlib.Path) -> None:
        if file_system(str(tmp_path)).startswith(("nfs", "fuse")):
            pytest.skip("the temporary directory is on a network")

    def test_finds_cycles_when_it_is_made_later(self, root: pathlib.Path, storage: PosixStorage) -> None:
        (root / "cycles").rmdir()
        watch = open_watch(str(root))
        assert watch is not None
        storage.make_directory("cycles")
        assert watch.wait(60)
        storage.create("cycles/000001.json", b"x")
        assert watch.wait(60)
        watch.close()

    def test_there_is_none_where_there_is_no_directory_or_no_local_one(self, tmp_path: pathlib.Path) -> None:
        assert open_watch(str(tmp_path / "nothing")) is None
        assert file_system("/proc") == "proc"
        assert open_watch("/proc") is None

    def test_no_handle_is_left(self, storage: PosixStorage) -> None:
        before = len(list(pathlib.Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            watch = storage.watch()
            assert watch is not None
            watch.close()
        assert len(list(pathlib.Path("/proc/self/fd").iterdir())) == before
