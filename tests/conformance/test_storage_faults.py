"""Each call of the operating system failing, at each place, once and for good: a typed error, and nothing lost."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from holdfast.channel.posix import PosixStorage
from holdfast.errors import ConflictError, HoldfastError, IntegrityError, OutcomeUnknownError, UnavailableError
from holdfast.testing import FaultyOps, SimulatedDisk
from holdfast.testing.faults import OPERATIONS
from tests.conformance.conftest import DIRECTORIES
from tests.conformance.test_storage import MANIFEST, NAME, OTHER, content, read, write

FILES = {"f": b"payload", "sub/g": b"more"}
OPENING = {"open_read", "open_directory", "create"}
ERRNOS = [errno.EIO, errno.ENOSPC, errno.ESTALE, errno.EACCES]


def prepared() -> SimulatedDisk:
    """A channel with one version, one staged tree and one record of each kind."""
    disk = SimulatedDisk()
    storage = PosixStorage("/channel", disk)
    storage.make_directory("")
    for name in DIRECTORIES:
        storage.make_directory(name)
    write(storage, OTHER, "n0", FILES)
    storage.commit_tree(OTHER, "n0", MANIFEST)
    write(storage, NAME, "n1", FILES)
    storage.replace("CURRENT", b"old")
    storage.create("pins/a", b"x")
    return disk


def committed(storage: PosixStorage, name: str) -> bool:
    """Whether the version is there; if it is, it is whole."""
    if name not in storage.list_trees():
        assert storage.list(f"versions/{name}") == ()
        return False
    assert {path: content(storage, f"versions/{name}/{path}") for path in FILES} == FILES
    assert read(storage, f"versions/{name}/manifest.json") == MANIFEST
    return True


def written_again(storage: PosixStorage) -> None:
    """A publish that starts anew after each failure, as the protocol does."""
    nonce = f"w{len(storage.list_garbage())}"
    write(storage, NAME, nonce, FILES)


# The call, and what is true after it succeeded.
CALLS: dict[str, tuple[Callable[[PosixStorage], object], Callable[[PosixStorage], bool]]] = {
    "create": (
        lambda storage: storage.create("cycles/000001.json", b"claim"),
        lambda storage: read(storage, "cycles/000001.json") == b"claim",
    ),
    "replace": (lambda storage: storage.replace("CURRENT", b"new"), lambda storage: read(storage, "CURRENT") == b"new"),
    "delete": (lambda storage: storage.delete("pins/a"), lambda storage: storage.list("pins") == ()),
    "make_directory": (
        lambda storage: storage.make_directory("broadcasts/c1"),
        lambda storage: [entry.name for entry in storage.list("broadcasts")] == ["c1"],
    ),
    "write": (written_again, lambda storage: True),
    "commit": (lambda storage: storage.commit_tree(NAME, "n1", MANIFEST), lambda storage: committed(storage, NAME)),
    "retire": (lambda storage: storage.retire_tree(OTHER, "r1"), lambda storage: not committed(storage, OTHER)),
    "link": (lambda storage: storage.link("pins/l", OTHER), lambda storage: storage.link_target("pins/l") == OTHER),
    "garbage": (
        lambda storage: [storage.remove_garbage(name) for name in storage.list_garbage()],
        lambda storage: storage.list_garbage() == (),
    ),
    "read": (lambda storage: storage.read("CURRENT", limit_bytes=9), lambda storage: True),
    "open": (lambda storage: content(storage, f"versions/{OTHER}/f"), lambda storage: True),
    "list": (lambda storage: storage.list_trees(), lambda storage: True),
    "surroundings": (lambda storage: [storage.mount(), storage.free_bytes()], lambda storage: True),
}


def count_calls(name: str) -> dict[str, int]:
    """How often the call makes each operation when nothing fails."""
    ops = FaultyOps(prepared())
    call, done = CALLS[name]
    storage = PosixStorage("/channel", ops)
    call(storage)
    counted = dict(ops.calls)
    assert done(storage)
    return {operation: count for operation, count in counted.items() if operation in OPERATIONS}


@pytest.mark.parametrize("answer_lost", [False, True], ids=["refused", "answer_lost"])
@pytest.mark.parametrize("name", sorted(CALLS))
def test_any_operation_may_fail_once(name: str, answer_lost: bool) -> None:
    call, done = CALLS[name]
    for operation, count in count_calls(name).items():
        for on_call in range(1, count + 1):
            for number in ERRNOS:
                where = f"{operation} #{on_call} {errno.errorcode[number]}"
                disk = prepared()
                ops = FaultyOps(disk)
                storage = PosixStorage("/channel", ops)
                ops.fail(operation, number, on_call=on_call, answer_lost=answer_lost)
                try:
                    call(storage)
                except (UnavailableError, OutcomeUnknownError) as error:
                    check_after_failure(storage, error)
                    call(storage)
                ops.clear()
                if name == "garbage":
                    call(storage)  # what one sweep could not see, the next one does
                assert done(storage), where
                left_by_fault = operation in (OPENING if answer_lost else {"close"})
                assert disk.num_open == left_by_fault, f"{where}: a handle is left open"
                committed(storage, NAME)
                committed(storage, OTHER)


def check_after_failure(storage: PosixStorage, error: HoldfastError) -> None:
    """Nothing half-way is visible; after UnavailableError of a commit, nothing at all."""
    assert read(storage, "CURRENT") in (b"old", b"new")
    if committed(storage, NAME):
        assert isinstance(error, OutcomeUnknownError)
        assert error.code == "commit_not_durable"
    committed(storage, OTHER)
    assert all(entry.name == "000001.json" for entry in storage.list("cycles"))
    if storage.list("cycles"):
        assert read(storage, "cycles/000001.json") == b"claim"


@pytest.mark.parametrize("number", ERRNOS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", sorted(CALLS))
def test_any_operation_may_fail_for_good(name: str, number: int) -> None:
    call, done = CALLS[name]
    for operation in count_calls(name):
        ops = FaultyOps(prepared())
        storage = PosixStorage("/channel", ops)
        ops.fail(operation, number, times=None)
        try:
            call(storage)
        except (UnavailableError, OutcomeUnknownError) as error:
            ops.clear()
            check_after_failure(storage, error)
            call(storage)
        ops.clear()
        for garbage in storage.list_garbage():  # cleaning up may fail, too; the sweep finds it
            if garbage != "n1":
                storage.remove_garbage(garbage)
        assert done(storage), operation


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_a_failed_sync_of_a_payload_file_fails_it_for_good(number: int) -> None:
    ops = FaultyOps(SimulatedDisk())
    storage = PosixStorage("/channel", ops)
    for directory in ("", "versions", "staging"):
        storage.make_directory(directory)
    writer = storage.begin_tree(NAME, "n1").file("f")
    writer.write_at(0, memoryview(b"x"))
    ops.fail("fsync", number)
    for _ in range(2):
        with pytest.raises(UnavailableError) as caught:
            writer.close()
        assert caught.value.code == f"errno_{errno.errorcode[number].lower()}"
        assert caught.value.fields["path"] == "f"


def test_a_failed_write_cannot_be_closed_away() -> None:
    ops = FaultyOps(SimulatedDisk(capacity_bytes=5))
    storage = PosixStorage("/channel", ops)
    for directory in ("", "versions", "staging"):
        storage.make_directory(directory)
    tree = storage.begin_tree(NAME, "n1")
    writer = tree.file("f")
    with pytest.raises(UnavailableError) as caught:
        writer.write_at(0, memoryview(b"0123456789"))
    assert caught.value.code == "errno_enospc"
    assert caught.value.hint
    with pytest.raises(UnavailableError):
        writer.close()
    tree.abort()
    assert storage.list_garbage() == ()
    assert storage.free_bytes() == 5


def test_short_reads_and_writes_are_continued() -> None:
    storage = PosixStorage("/channel", FaultyOps(SimulatedDisk(), max_bytes_per_call=3))
    for directory in ("", "versions", "staging"):
        storage.make_directory(directory)
    storage.replace("CURRENT", b"0123456789")
    assert read(storage, "CURRENT") == b"0123456789"
    with pytest.raises(IntegrityError):
        storage.read("CURRENT", limit_bytes=9)
    write(storage, NAME, "n1", FILES)
    storage.commit_tree(NAME, "n1", MANIFEST)
    assert committed(storage, NAME)


def test_a_directory_that_cannot_be_synced_is_tolerated_and_remembered() -> None:
    for number in (errno.EINVAL, errno.ENOTSUP):
        ops = FaultyOps(SimulatedDisk())
        storage = PosixStorage("/channel", ops)
        assert storage.directory_sync is None
        ops.fail("fsync_directory", number, times=None)
        storage.make_directory("")
        storage.replace("CURRENT", b"x")
        assert storage.directory_sync is False
        assert read(storage, "CURRENT") == b"x"
    storage = PosixStorage("/channel", SimulatedDisk())
    storage.make_directory("")
    storage.make_directory("versions")
    assert storage.directory_sync is True


def test_a_commit_whose_rename_is_lost_on_both_ends_is_unknown() -> None:
    disk = prepared()
    ops = FaultyOps(disk)
    storage = PosixStorage("/channel", ops)
    ops.fail("rename", errno.EIO, path="*/staging/n1", answer_lost=True)
    ops.fail("scandir", errno.EIO, path="*/versions")
    with pytest.raises(UnavailableError):
        storage.commit_tree(NAME, "n1", MANIFEST)
    storage.commit_tree(NAME, "n1", MANIFEST)
    assert committed(storage, NAME)


def test_a_claim_that_was_answered_with_exists_is_judged_by_its_bytes() -> None:
    ops = FaultyOps(prepared())
    storage = PosixStorage("/channel", ops)
    ops.fail("link", errno.EEXIST, answer_lost=True)  # a network file system repeated the call by itself
    storage.create("cycles/000001.json", b"mine")
    assert read(storage, "cycles/000001.json") == b"mine"
    ops.fail("link", errno.EEXIST)
    with pytest.raises(OutcomeUnknownError) as unknown:
        storage.create("cycles/000002.json", b"mine")
    assert unknown.value.code == "create_unknown"
    PosixStorage("/channel", ops).create("cycles/000002.json", b"theirs")
    with pytest.raises(ConflictError):
        storage.create("cycles/000002.json", b"mine")
