"""The bytes of a version: written with their digests, checked against the manifest, copied while they are checked.

Each byte passes through once, in pieces of 1 MiB: a piece that was just read or written is still in the processor's
cache when it is digested, which makes the digest cheap (about a tenth of the time of the write). Blocks of one file
(64 MiB each, see the manifest) are worked on in parallel; small payloads are worked on in the calling thread.

A file has one writer. Of the files of a payload one is open at a time, and it is synced before the next one begins.
"""

from __future__ import annotations

import os
import pathlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from fnmatch import fnmatch
from typing import Any, Protocol, TypeVar

import msgspec
import xxhash

from holdfast.channel.header import read_safetensors_header
from holdfast.channel.sources import FileSource, LocalFile, Pieces, Source, local_error
from holdfast.channel.storage import Reader, TreeWriter, Writer
from holdfast.core.manifest import BLOCK_BYTES, FILES_MAX, MANIFEST, STABLE, File, Manifest
from holdfast.core.names import check_path
from holdfast.errors import IntegrityError, UsageError

PIECE_BYTES = 2**20
INLINE_BYTES = 64 * 2**20  # below this, starting threads costs more than they save
WORKERS_MAX = 4

T = TypeVar("T")
R = TypeVar("R")
OpenPath = Callable[[str], Reader]  # a path within the version -> its reader


class Progress(Protocol):
    """Told how many bytes are done so far; called from working threads, one call at a time."""

    def __call__(self, done_bytes: int, /) -> None: ...


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be published: files in order, and what the manifest says of them beside their digests."""

    files: tuple[tuple[str, Source], ...]
    kind: str
    requires: dict[str, Any] = {}

    @property
    def num_bytes(self) -> int:
        return sum(source.size for _, source in self.files)


def directory_payload(path: str | os.PathLike[str], *, exclude: Collection[str] = ()) -> Payload:
    """All regular files below `path`, sorted; the files are read when the payload is written, not now.

    The sentinel STABLE is left out (a version has its own), and what matches a pattern in `exclude` ("*.bin").

    Raises:
        UsageError: code "missing_file", "not_a_file" (symlinks, devices), "reserved_name", "bad_path",
            "empty_payload", "too_many_files". Fix the directory.
    """
    root = pathlib.Path(path)
    files: list[tuple[str, Source]] = []
    for found in _walk(root):
        name = found.relative_to(root).as_posix()
        if name != STABLE and not any(fnmatch(name, pattern) for pattern in exclude):
            files.append((name, FileSource.at(found)))
    return check_payload(Payload(files=tuple(files), kind="directory"))


def write_payload(
    tree: TreeWriter,
    payload: Payload,
    *,
    block_bytes: int = BLOCK_BYTES,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[File, ...]:
    """Write every file of `payload` into `tree`, and return what the manifest has to say of them.

    Peak memory beyond the payload itself: 1 MiB per worker.

    Durability: every file's bytes survive a power cut once this returned; their names do not yet.

    Raises:
        UsageError: the payload's names, or a source that changed meanwhile. The caller aborts the tree.
        IntegrityError: code "bad_safetensors": a local file that no reader could open.
        Others, as the storage contract has them. The caller aborts the tree.
    """
    check_payload(payload)
    with _Work(payload.num_bytes, num_workers, progress) as work:
        return tuple(_write_file(work, tree, path, source, block_bytes) for path, source in payload.files)


def verify(
    manifest: Manifest,
    open_file: OpenPath,
    *,
    done: set[str] | None = None,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Check the size and every digest of every file that `manifest` promises; other files are ignored.

    `done` holds the paths that were found right; they are not read again. Pass the same set when looking again.

    Raises:
        NotVisibleError: a file is missing, or not visible here yet. Look again through a fresh listing.
        IntegrityError: code "short_file" or "wrong_digest" (may be not visible *yet*: look again, then refuse),
            "long_file" or "bad_safetensors" (it was published so: refuse); fields path, block, expected, found.
    """
    done = set() if done is None else done
    files = [file for file in manifest.files if file.path not in done]
    with _Work(sum(file.size for file in files), num_workers, progress) as work:

        def check(file: File, each: Callable[[Callable[[int], None], Iterable[int]], object]) -> None:
            with closing(open_file(file.path)) as reader:
                _check_size(reader, file)
                checked = _Checked(reader, file, manifest.block_bytes)
                each(lambda block: work.check(checked, block, None), range(len(file.blocks)))
                _check_header(reader, file)
            done.add(file.path)

        # Files of one block go in parallel with each other, larger ones one by one, their blocks in parallel.
        work.map(lambda file: check(file, _in_turn), [file for file in files if len(file.blocks) <= 1])
        for file in files:
            if len(file.blocks) > 1:
                check(file, work.map)


def copy_verified(
    manifest: Manifest,
    open_file: OpenPath,
    tree: TreeWriter,
    *,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Copy every file that `manifest` promises into `tree`, checking as `verify` does; each byte is read once.

    All files are opened and their sizes looked at before the first one is copied: what isn't visible yet
    usually shows there, before much was copied for nothing.

    Durability: as `write_payload`. Nothing in `tree` may be used unless this returned.

    Raises: as `verify`, and what writing into `tree` raises. The caller aborts the tree.
    """
    for file in manifest.files:
        with closing(open_file(file.path)) as reader:
            _check_size(reader, file)
    with _Work(manifest.num_bytes, num_workers, progress) as work:
        for file in manifest.files:
            with closing(open_file(file.path)) as reader:
                _copy_file(work, _Checked(reader, file, manifest.block_bytes), tree)


def check_payload(payload: Payload) -> Payload:
    """`payload` if a manifest can list its files.

    Raises:
        UsageError: code "empty_payload", "too_many_files", "bad_path", "reserved_name" or "duplicate_path".
    """
    if not payload.files:
        raise UsageError("there is no file to publish", code="empty_payload")
    if len(payload.files) > FILES_MAX:
        raise UsageError(f"{len(payload.files)} files, the limit is {FILES_MAX}", code="too_many_files")
    seen: set[str] = set()
    for path, _ in payload.files:
        check_path(path)
        if path in (MANIFEST, STABLE):
            raise UsageError(
                f"{path} is a name that Holdfast itself writes into a version",
                code="reserved_name",
                hint="rename the file, or leave it out with exclude=[…]",
                path=path,
            )
        if path in seen:
            raise UsageError(f"{path} is listed twice", code="duplicate_path", path=path)
        seen.add(path)
    directories = {str(parent) for path in seen for parent in pathlib.PurePosixPath(path).parents}
    for path in sorted(seen & directories):
        raise UsageError(f"{path} is listed as a file and as a directory", code="duplicate_path", path=path)
    return payload


def _write_file(work: _Work, tree: TreeWriter, path: str, source: Source, block_bytes: int) -> File:
    spans = [(start, min(start + block_bytes, source.size)) for start in range(0, source.size, block_bytes)]
    with source.open() as opened:
        if path.endswith(".safetensors") and isinstance(opened, LocalFile):
            read_safetensors_header(opened, path)
        with _writing(tree, path) as writer:
            digests = work.map(lambda span: work.digest(opened, span, writer), spans)
    return File(path, source.size, tuple(digests))


def _copy_file(work: _Work, checked: _Checked, tree: TreeWriter) -> None:
    _check_size(checked.reader, checked.file)
    with _writing(tree, checked.file.path) as writer:
        work.map(lambda block: work.check(checked, block, writer), range(len(checked.file.blocks)))
        _check_header(checked.reader, checked.file)


class _Checked(msgspec.Struct, frozen=True):
    """A reader beside what the manifest promises of its file."""

    reader: Reader
    file: File
    block_bytes: int

    def pieces(self, start: int, stop: int, scratch: memoryview) -> Iterator[memoryview]:
        for at in range(start, stop, len(scratch)):
            piece = scratch[: min(len(scratch), stop - at)]
            count = self.reader.read_into(at, piece)
            if count < len(piece):
                raise _wrong(self.file, "short_file", self.file.size, at + count, at // self.block_bytes)
            yield piece


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.piece = memoryview(bytearray(PIECE_BYTES))


class _Work:
    """Some threads (or none, for little work), a scratch buffer for each, and the count of bytes that are done."""

    def __init__(self, num_bytes: int, num_workers: int | None, progress: Progress | None) -> None:
        count = min(WORKERS_MAX, os.cpu_count() or 1) if num_workers is None else num_workers
        parallel = count > 1 and num_bytes >= INLINE_BYTES
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="holdfast-payload") if parallel else None
        self._scratch = _Scratch()
        self._progress = progress
        self._done = 0
        self._lock = threading.Lock()

    def __enter__(self) -> _Work:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """The results in order. An error is raised only once nothing of it runs any more: then files may be closed."""
        if self._pool is None:
            return [work(item) for item in items]
        futures = [self._pool.submit(work, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            for future in futures:
                future.cancel()
            wait(futures)
        # Some are cancelled only if another failed: that one's error is the one to raise.
        return [future.result() for future in sorted(futures, key=Future.cancelled)]

    def digest(self, source: Pieces, span: tuple[int, int], writer: Writer | None) -> str:
        """The digest of one block, written on the way if there is a writer."""
        digest = xxhash.xxh3_128()
        at = span[0]
        for piece in source.pieces(*span, self._scratch.piece):
            if writer is not None:
                writer.write_at(at, piece)
            digest.update(piece)
            at += len(piece)
            self._count(len(piece))
        assert at == span[1], "a source gave fewer or more bytes than its size"
        return digest.hexdigest()

    def check(self, checked: _Checked, block: int, writer: Writer | None) -> None:
        """Compare one block with the manifest."""
        start = block * checked.block_bytes
        span = (start, min(start + checked.block_bytes, checked.file.size))
        found = self.digest(checked, span, writer)
        if found != checked.file.blocks[block]:
            raise _wrong(checked.file, "wrong_digest", checked.file.blocks[block], found, block)

    def _count(self, num_bytes: int) -> None:
        if self._progress is not None:
            with self._lock:
                self._done += num_bytes
                self._progress(self._done)


@contextmanager
def _writing(tree: TreeWriter, path: str) -> Iterator[Writer]:
    """A new file of `tree`; synced at the end, given up on any error."""
    writer = tree.file(path)
    try:
        yield writer
    except BaseException:
        writer.abort()
        raise
    writer.close()


def _in_turn(work: Callable[[int], None], items: Iterable[int]) -> None:
    for item in items:
        work(item)


def _check_size(reader: Reader, file: File) -> None:
    if reader.size != file.size:
        raise _wrong(file, "short_file" if reader.size < file.size else "long_file", file.size, reader.size, None)


def _check_header(reader: Reader, file: File) -> None:
    # After the digests: a flipped byte in the header is a wrong digest, not a bad file.
    if file.path.endswith(".safetensors"):
        read_safetensors_header(reader, file.path)


def _wrong(file: File, code: str, expected: object, found: object, block: int | None) -> IntegrityError:
    if code == "wrong_digest":
        what = f"block {block} has the digest {found}, the manifest says {expected}"
    else:
        what = f"it has {found} bytes, the manifest says {expected}"
    return IntegrityError(
        f"{file.path}: {what}", code=code, path=file.path, block=block, expected=expected, found=found
    )


def _walk(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Every name below `root` that is not a directory, sorted; symlinks are not followed."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root / entry.name)
            else:
                yield root / entry.name
    except OSError as error:
        raise local_error(root, error) from error
