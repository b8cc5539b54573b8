"""Payload bytes: sources hand out what was put in, digests find every kind of damage, errors say which."""

from __future__ import annotations

import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from holdfast.channel import payload as payloads
from holdfast.channel.header import build_header, read_safetensors_header
from holdfast.channel.payload import Payload, copy_verified, directory_payload, verify, write_payload
from holdfast.channel.posix import PosixStorage
from holdfast.channel.sources import BytesSource, FileSource
from holdfast.channel.storage import Reader, TreeWriter
from holdfast.core.manifest import File, Manifest
from holdfast.errors import IntegrityError, NotVisibleError, UnavailableError, UsageError

VERSION = "c000001-s00000001-00a1b2c3"
BLOCK = 16


def _manifest(files: tuple[File, ...], block_bytes: int = BLOCK) -> Manifest:
    return Manifest(version=VERSION, cycle=1, step=1, parent=None, kind="test", files=files, block_bytes=block_bytes)


class Staged:
    """One tree of a POSIX storage that is being written; its files can be damaged before they are verified."""

    def __init__(self, root: pathlib.Path, nonce: str = "n0") -> None:
        self.storage = PosixStorage(root)
        self.storage.make_directory("")
        self.storage.make_directory("staging")
        self.nonce = nonce
        self.tree: TreeWriter = self.storage.begin_tree(VERSION, nonce)
        self.path = root / "staging" / nonce

    def open(self, path: str) -> Reader:
        return self.storage.open(f"staging/{self.nonce}/{path}")


@pytest.fixture
def staged(tmp_path: pathlib.Path) -> Staged:
    return Staged(tmp_path / "channel")


def _payload(**files: bytes) -> Payload:
    return Payload(files=tuple((name, BytesSource([data])) for name, data in files.items()), kind="test")


def _written(staged: Staged, **files: bytes) -> Manifest:
    return _manifest(write_payload(staged.tree, _payload(**files), block_bytes=BLOCK))


def _digest(data: bytes) -> str:
    return xxhash.xxh3_128(data).hexdigest()


class Doubling:
    """Bytes that have to be put together: each byte twice."""

    def __init__(self, data: bytes) -> None:
        self._bytes = bytes(value for value in data for _ in range(2))
        self.nbytes = len(self._bytes)

    def fill(self, start: int, out: memoryview) -> None:
        out[:] = self._bytes[start : start + len(out)]


# Sources


@given(
    st.lists(st.tuples(st.binary(max_size=40), st.sampled_from(["bytes", "view", "gathered"])), max_size=12),
    st.integers(1, 17),
    st.data(),
)
def test_a_bytes_source_is_its_segments_joined(
    parts: list[tuple[bytes, str]], scratch_bytes: int, data: st.DataObject
) -> None:
    joined = b"".join(bytes(v for v in part for _ in range(2)) if kind == "gathered" else part for part, kind in parts)
    make = {"bytes": bytes, "view": memoryview, "gathered": Doubling}
    source = BytesSource([make[kind](part) for part, kind in parts])
    assert source.size == len(joined)
    start = data.draw(st.integers(0, len(joined)))
    stop = data.draw(st.integers(start, len(joined)))
    with source.open() as opened:
        scratch = memoryview(bytearray(scratch_bytes))
        pieces = [bytes(piece) for piece in opened.pieces(start, stop, scratch)]
    assert b"".join(pieces) == joined[start:stop]
    assert all(len(piece) == scratch_bytes for piece in pieces[:-1])


def test_large_buffers_are_handed_out_without_a_copy() -> None:
    memory = bytearray(64)
    source = BytesSource([memoryview(memory)])
    (piece, _) = source.pieces(0, 64, memoryview(bytearray(32)))
    memory[0] = 7
    assert piece[0] == 7
    assert piece.readonly


# Writing


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 5])
def test_each_block_has_its_own_digest(staged: Staged, size: int) -> None:
    data = os.urandom(size)
    (file,) = write_payload(staged.tree, _payload(x=data), block_bytes=BLOCK)
    assert file.size == size
    assert file.blocks == tuple(_digest(data[i : i + BLOCK]) for i in range(0, size, BLOCK))
    assert (staged.path / "x").read_bytes() == data
    verify(_manifest((file,)), staged.open)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small payloads are worked on by several threads too, in pieces of a few bytes."""
    monkeypatch.setattr(payloads, "INLINE_BYTES", 0)
    monkeypatch.setattr(payloads, "PIECE_BYTES", 5)
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("holdfast-payload")] == []


@pytest.mark.usefixtures("threads")
def test_many_threads_write_and_verify_the_same_as_one(staged: Staged, tmp_path: pathlib.Path) -> None:
    files = {"a": os.urandom(1000), "b/c": os.urandom(BLOCK), "d": b"", "e": os.urandom(7)}
    seen: list[int] = []
    written = write_payload(staged.tree, _payload(**files), block_bytes=BLOCK, num_workers=4, progress=seen.append)
    assert [file.path for file in written] == list(files)
    for file in written:
        data = files[file.path]
        assert (staged.path / file.path).read_bytes() == data
        assert file.blocks == tuple(_digest(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK))
    assert seen == sorted(seen)
    assert seen[-1] == sum(map(len, files.values()))
    verify(_manifest(written), staged.open, num_workers=4)
    copy = Staged(tmp_path / "copy")
    copy_verified(_manifest(written), staged.open, copy.tree, num_workers=4)
    assert {name: (copy.path / name).read_bytes() for name in files} == files


class FailingWriter:
    """Fails at one offset; notes whether anything was written after it was given up."""

    def __init__(self) -> None:
        self.aborted = False
        self.closed = False
        self.late = 0
        self._lock = threading.Lock()

    def write_at(self, offset: int, data: memoryview) -> None:
        with self._lock:
            self.late += self.aborted or self.closed
        if offset == 3 * BLOCK:
            raise UnavailableError("no space", code="errno_enospc")

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class FailingTree:
    def __init__(self) -> None:
        self.writer = FailingWriter()

    def file(self, path: str) -> FailingWriter:
        return self.writer

    def abort(self) -> None: ...


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("num_workers", [1, 4])
def test_a_failed_write_ends_all_work_before_the_writer_is_given_up(num_workers: int) -> None:
    tree = FailingTree()
    with pytest.raises(UnavailableError) as caught:
        write_payload(tree, _payload(x=os.urandom(1000)), block_bytes=BLOCK, num_workers=num_workers)
    assert caught.value.code == "errno_enospc"
    assert tree.writer.aborted
    assert not tree.writer.closed
    assert tree.writer.late == 0


@pytest.mark.parametrize(
    ("paths", "code"),
    [
        ([], "empty_payload"),
        (["../x"], "bad_path"),
        (["/etc/passwd"], "bad_path"),
        (["a", "a"], "duplicate_path"),
        (["a", "a/b"], "duplicate_path"),
        (["manifest.json"], "reserved_name"),
        (["STABLE"], "reserved_name"),
        ([f"f{i}" for i in range(20_001)], "too_many_files"),
    ],
)
def test_a_payload_that_no_manifest_can_list_is_refused_before_a_byte_is_written(
    staged: Staged, paths: list[str], code: str
) -> None:
    payload = Payload(files=tuple((path, BytesSource([b"x"])) for path in paths), kind="test")
    with pytest.raises(UsageError) as caught:
        write_payload(staged.tree, payload)
    assert caught.value.code == code
    assert list(staged.path.iterdir()) == []


# Verifying


def _flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[2 * BLOCK + 3] ^= 1
    path.write_bytes(data)


def _truncate(path: pathlib.Path) -> None:
    os.truncate(path, 2 * BLOCK + 3)


def _extend(path: pathlib.Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


DAMAGES: list[tuple[Callable[[pathlib.Path], None], str, int | None]] = [
    (_flip, "wrong_digest", 2),
    (_truncate, "short_file", None),
    (_extend, "long_file", None),
]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("num_workers", [1, 4])
@pytest.mark.parametrize(("damage", "code", "block"), DAMAGES)
def test_damage_is_found_and_named(
    staged: Staged,
    tmp_path: pathlib.Path,
    damage: Callable[[pathlib.Path], None],
    code: str,
    block: int | None,
    num_workers: int,
) -> None:
    manifest = _written(staged, a=b"fine", x=os.urandom(4 * BLOCK))
    damage(staged.path / "x")
    done: set[str] = set()
    copy = Staged(tmp_path / "copy")
    with pytest.raises(IntegrityError) as caught:
        verify(manifest, staged.open, done=done, num_workers=num_workers)
    with pytest.raises(IntegrityError) as of_copy:
        copy_verified(manifest, staged.open, copy.tree, num_workers=num_workers)
    assert done == {"a"}
    for error in (caught.value, of_copy.value):
        assert error.code == code
        assert error.fields["path"] == "x"
        assert error.fields["block"] == block
        assert error.fields["expected"] != error.fields["found"]
        assert "x: " in str(error)


def test_a_flipped_bit_anywhere_is_found(staged: Staged) -> None:
    data = os.urandom(2 * BLOCK + 3)
    manifest = _written(staged, x=data)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        (staged.path / "x").write_bytes(damaged)
        with pytest.raises(IntegrityError) as caught:
            verify(manifest, staged.open)
        assert (caught.value.code, caught.value.fields["block"]) == ("wrong_digest", position // BLOCK)


def test_a_missing_file_is_not_visible_yet(staged: Staged, tmp_path: pathlib.Path) -> None:
    manifest = _written(staged, a=b"1", b=b"2")
    (staged.path / "b").unlink()
    copy = Staged(tmp_path / "copy")
    with pytest.raises(NotVisibleError):
        verify(manifest, staged.open)
    with pytest.raises(NotVisibleError):
        copy_verified(manifest, staged.open, copy.tree)
    assert list(copy.path.iterdir()) == []


@pytest.mark.parametrize("put", [lambda path: path.symlink_to("a"), os.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused(staged: Staged, put: Callable[[pathlib.Path], None]) -> None:
    manifest = _written(staged, a=b"1", b=b"1")
    (staged.path / "b").unlink()
    put(staged.path / "b")
    with pytest.raises(IntegrityError) as caught:
        verify(manifest, staged.open)
    assert caught.value.code == "not_a_file"


class ShrunkReader:
    """Says the promised size, then ends early: a file that is cut while it is read."""

    size = 3 * BLOCK

    def read_into(self, offset: int, buffer: memoryview) -> int:
        count = max(0, min(len(buffer), BLOCK + 2 - offset))
        buffer[:count] = bytes(count)
        return count

    def close(self) -> None: ...


def test_a_file_that_ends_while_it_is_read_is_short() -> None:
    manifest = _manifest((File("x", 3 * BLOCK, (_digest(bytes(BLOCK)),) * 3),))
    with pytest.raises(IntegrityError) as caught:
        verify(manifest, lambda _: ShrunkReader())
    assert caught.value.code == "short_file"
    assert caught.value.fields["block"] == 1
    assert caught.value.fields["found"] == BLOCK + 2


def test_files_that_were_found_right_are_not_read_again(staged: Staged) -> None:
    manifest = _written(staged, a=b"1", b=b"2")
    opened: list[str] = []

    def open_noting(path: str) -> Reader:
        opened.append(path)
        return staged.open(path)

    (staged.path / "b").rename(staged.path / "hidden")
    done: set[str] = set()
    with pytest.raises(NotVisibleError):
        verify(manifest, open_noting, done=done)
    (staged.path / "hidden").rename(staged.path / "b")
    verify(manifest, open_noting, done=done)
    assert opened == ["a", "b", "b"]


def test_a_copy_reads_each_byte_once(staged: Staged, tmp_path: pathlib.Path) -> None:
    data = os.urandom(4 * BLOCK + 1)
    manifest = _written(staged, x=data)
    read: list[int] = []

    class Counting:
        def __init__(self, path: str) -> None:
            self._reader = staged.open(path)
            self.size = self._reader.size

        def read_into(self, offset: int, buffer: memoryview) -> int:
            read.append(len(buffer))
            return self._reader.read_into(offset, buffer)

        def close(self) -> None:
            self._reader.close()

    copy = Staged(tmp_path / "copy")
    copy_verified(manifest, Counting, copy.tree)
    assert (copy.path / "x").read_bytes() == data
    assert sum(read) == len(data)


# Local files


def test_a_directory_is_published_file_by_file(staged: Staged, tmp_path: pathlib.Path) -> None:
    source = tmp_path / "model"
    (source / "sub").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "sub" / "weights.bin").write_bytes(os.urandom(100))
    (source / "old.ckpt").write_bytes(b"x")
    (source / "STABLE").touch()
    payload = directory_payload(source, exclude=["*.ckpt"])
    assert [path for path, _ in payload.files] == ["config.json", "sub/weights.bin"]
    assert payload.num_bytes == 102
    files = write_payload(staged.tree, payload, block_bytes=BLOCK)
    verify(_manifest(files), staged.open)
    assert (staged.path / "sub/weights.bin").read_bytes() == (source / "sub/weights.bin").read_bytes()


@pytest.mark.parametrize(
    ("put", "code"),
    [
        (lambda path: path.symlink_to("/etc/passwd"), "not_a_file"),
        (os.mkfifo, "not_a_file"),
        (lambda path: (path.parent / "manifest.json").touch(), "reserved_name"),
    ],
)
def test_a_directory_with_something_odd_is_refused(
    tmp_path: pathlib.Path, put: Callable[[pathlib.Path], None], code: str
) -> None:
    (tmp_path / "a").write_bytes(b"1")
    put(tmp_path / "odd")
    with pytest.raises(UsageError) as caught:
        directory_payload(tmp_path)
    assert caught.value.code == code


def test_a_directory_that_is_not_there_or_empty_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError) as caught:
        directory_payload(tmp_path / "missing")
    assert caught.value.code == "missing_file"
    with pytest.raises(UsageError) as caught:
        directory_payload(tmp_path)
    assert caught.value.code == "empty_payload"


def _grow(path: pathlib.Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _rewrite(path: pathlib.Path) -> None:
    with path.open("r+b") as file:
        file.write(b"X")
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize("change", [_grow, lambda path: os.truncate(path, 1), _rewrite])
def test_a_file_that_changes_while_it_is_copied_fails_the_publish(
    tmp_path: pathlib.Path, change: Callable[[pathlib.Path], None]
) -> None:
    path = tmp_path / "x"
    path.write_bytes(os.urandom(64))
    source = FileSource.at(path)
    with pytest.raises(UsageError) as caught, source.open() as opened:  # noqa: PT012
        scratch = memoryview(bytearray(16))
        pieces = opened.pieces(0, 64, scratch)
        next(pieces)
        change(path)
        list(pieces)
    assert caught.value.code == "source_changed"


def test_a_file_that_changed_since_the_payload_was_put_together_fails_the_publish(
    staged: Staged, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "x"
    path.write_bytes(b"one")
    payload = directory_payload(path.parent)
    _grow(path)
    with pytest.raises(UsageError) as caught:
        write_payload(staged.tree, payload)
    assert caught.value.code == "source_changed"
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(UsageError) as caught:
        write_payload(staged.tree, payload)
    assert caught.value.code == "not_a_file"


# Headers of safetensors files


class Memory:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        part = self._data[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None: ...


def _file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def _tensor(begin: int, end: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}


BAD_FILES = {
    "empty": b"",
    "too short for a length": b"1234567",
    "header longer than the file": _file({}, length=3),
    "header over the limit": _file({}, length=100_000_001),
    "header of 2**64-1 bytes": _file({}, length=2**64 - 1),
    "not JSON": _file(b"{nonsense"),
    "not an object": _file([]),
    "deep": _file(b"[" * 100_000),
    "not UTF-8": _file(b'{"\xff": 1}'),
    "metadata that is no text": _file({"__metadata__": {"a": 1}}),
    "no offsets": _file({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "offsets beyond the file": _file({"a": _tensor(0, 8)}, bytes(7)),
    "bytes that no tensor covers": _file({"a": _tensor(0, 8)}, bytes(9)),
    "a gap": _file({"a": _tensor(0, 8), "b": _tensor(12, 20)}, bytes(20)),
    "an overlap": _file({"a": _tensor(0, 8), "b": _tensor(4, 12)}, bytes(12)),
    "backwards": _file({"a": _tensor(8, 0)}, bytes(8)),
    "a shape that doesn't fit": _file({"a": _tensor(0, 8, (3,))}, bytes(8)),
    "a negative shape": _file({"a": _tensor(0, 8, (-1, -2))}, bytes(8)),
}


@pytest.mark.parametrize("data", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_safetensors_header_is_refused(staged: Staged, tmp_path: pathlib.Path, data: bytes) -> None:
    with pytest.raises(IntegrityError) as caught:
        read_safetensors_header(Memory(data), "model.safetensors")
    assert caught.value.code == "bad_safetensors"
    # A file whose digests fit, and a local file that is to be published: refused as well.
    manifest = _manifest(
        write_payload(
            staged.tree, Payload(files=(("m.safetensors", BytesSource([data])),), kind="test"), block_bytes=BLOCK
        )
    )
    with pytest.raises(IntegrityError) as caught:
        verify(manifest, staged.open)
    assert caught.value.code == "bad_safetensors"
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "m.safetensors").write_bytes(data)
    other = Staged(tmp_path / "other")
    with pytest.raises(IntegrityError) as caught:
        write_payload(other.tree, directory_payload(tmp_path / "local"))
    assert caught.value.code == "bad_safetensors"


def test_a_dtype_that_is_not_known_here_is_no_fault() -> None:
    found = read_safetensors_header(Memory(_file({"a": _tensor(0, 8, dtype="F2_NEW")}, bytes(8))), "x")
    assert found["a"].data_offsets == (0, 8)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_header_reader_fail_otherwise(data: bytes) -> None:
    for candidate in (data, _file(data), _file(data, bytes(8))):
        with suppress(IntegrityError):
            read_safetensors_header(Memory(candidate), "x")


def test_a_header_that_no_reader_would_take_is_not_built() -> None:
    with pytest.raises(UsageError) as caught:
        build_header([("x" * 100_000_000, "F32", (1,), 4)])
    assert caught.value.code == "header_too_large"
