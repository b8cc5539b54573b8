"""What a file system can do, found out by trying: each thing that the weight channel asks of it, and how fast.

Everything happens in a directory of its own below PATH, which is removed again. A probe that finds something broken
says what that means for Holdfast and what to do; `needed` marks those without which a channel cannot work there.
How late changes become visible to *other* machines cannot be found out here: see `holdfast.channel.visibility`.
"""

from __future__ import annotations

import errno
import os
import pathlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from holdfast.channel.probes import (
    BROKEN,
    OK,
    SLOW,
    Probe,
    directory_sync,
    exclusive_create,
    link,
    modes,
    other_user,
    rename_directory,
    replace,
    small_writes,
    symlink,
    write,
)
from holdfast.channel.rooted import os_errors
from holdfast.channel.watch import LOCAL, file_system, open_watch
from holdfast.errors import UsageError

DIRECTORY = ".holdfast-doctor-"
SPEED_SLOW = 100e6
FREE_LOW_BYTES = 2 * 10**9
FREE_NEEDED_BYTES = 64 * 2**20
CHUNK_BYTES = 32 * 2**20
PIECE_BYTES = 2**20
NOTIFY_S = 2.0
_BUCKETS = ("s3fs", "gcsfuse", "rclone", "goofys", "mountpoint-s3", "blobfuse", "geesefs", "juicefs-s3")
Progress = Callable[[str], None]


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What `examine` found. `healthy`: nothing that is needed is broken."""

    path: str
    file_system: str
    healthy: bool
    probes: list[Probe]


def examine(
    path: str | os.PathLike[str],
    *,
    num_bytes: int = 256 * 10**6,
    seconds: float = 5.0,
    progress: Progress = lambda name: None,
) -> Diagnosis:
    """Try everything in a temporary directory below `path`.

    Args:
        num_bytes: the most to write and read for measuring the speed.
        seconds: the longest time for each of the two measurements.
        progress: told the name of the probe that begins.

    Raises:
        UsageError: `path` is no directory.
        UnavailableError: this user cannot make a directory there, so nothing can be tried.
    """
    root = pathlib.Path(os.path.abspath(os.fspath(path)))
    if not root.is_dir():
        raise UsageError(f"{root} is no directory", code="no_directory", hint="make it, or mount it, first")
    probes: list[Probe] = []
    with _workplace(root) as place:
        for name, needed, probe in _PROBES:
            progress(name)
            probes.append(_tried(name, needed, probe, place))
        progress("speed")
        probes += _speed(place, num_bytes, seconds)
    healthy = not any(probe.needed and probe.verdict == BROKEN for probe in probes)
    return Diagnosis(path=str(root), file_system=file_system(str(root)), healthy=healthy, probes=probes)


@contextmanager
def _workplace(root: pathlib.Path) -> Iterator[pathlib.Path]:
    place = root / f"{DIRECTORY}{secrets.token_hex(4)}"
    with os_errors(str(root)):
        place.mkdir()
        place.chmod(0o755)
    try:
        yield place
    finally:
        with os_errors(str(place)):
            shutil.rmtree(place)


def _tried(name: str, needed: bool, probe: Callable[[pathlib.Path], Probe], place: pathlib.Path) -> Probe:
    """The probe's answer; an error of the system is one, too."""
    try:
        return probe(place)
    except OSError as error:
        return Probe(
            name=name,
            verdict=BROKEN,
            needed=needed,
            found=f"{errno.errorcode.get(error.errno or 0, '?')}: {error.strerror}",
            meaning="Holdfast cannot keep a channel here" if needed else "nothing that a channel cannot do without",
            todo="use another file system, or other mount options" if needed else "",
        )


def _kind(place: pathlib.Path) -> Probe:
    kind = file_system(str(place))
    if kind.removeprefix("fuse.") in _BUCKETS:
        return Probe(
            name="file system",
            verdict=BROKEN,
            needed=True,
            found=kind,
            meaning="a bucket behind a mount: a rename is a copy there, and a version would appear in pieces",
            todo="use a file system that renames in one step",
        )
    if kind in LOCAL:
        return Probe(name="file system", verdict=OK, needed=False, found=f"{kind}, local")
    return Probe(
        name="file system",
        verdict=OK,
        needed=False,
        found=f"{kind or 'unknown'}, shared",
        meaning="others may see changes late; 90 s are allowed for until it is measured",
        todo="run doctor --write here and doctor --read on another machine",
    )


def _free_space(place: pathlib.Path) -> Probe:
    figures = os.statvfs(place)
    free = figures.f_bavail * figures.f_frsize
    verdict = BROKEN if free < FREE_NEEDED_BYTES else SLOW if free < FREE_LOW_BYTES else OK
    return Probe(
        name="free space",
        verdict=verdict,
        needed=True,
        found=f"{free / 1e9:.1f} GB",
        meaning="" if verdict == OK else "publishing fails when it is used up",
        todo="" if verdict == OK else "free some, or set Retention(max_bytes=…)",
        value=float(free),
        unit="bytes",
    )


def _notification(place: pathlib.Path) -> Probe:
    (place / "cycles").mkdir()
    watch = open_watch(str(place))
    if watch is None:
        return Probe(
            name="notification",
            verdict=SLOW,
            needed=False,
            found="not on this file system",
            meaning="consumers poll: they see a new version up to 1 s later",
        )
    try:
        write(place / "CURRENT.new", b"version")
        os.rename(place / "CURRENT.new", place / "CURRENT")
        woken = watch.wait(NOTIFY_S)
    finally:
        watch.close()
    return Probe(
        name="notification",
        verdict=OK if woken else SLOW,
        needed=False,
        found="wakes on local changes" if woken else f"no wake-up within {NOTIFY_S:g} s",
        meaning="" if woken else "consumers poll: they see a new version up to 2 s later",
    )


def _speed(place: pathlib.Path, num_bytes: int, seconds: float) -> list[Probe]:
    """Bytes per second written and synced, then read back after the kernel was asked to forget them."""
    piece = memoryview(secrets.token_bytes(PIECE_BYTES))
    written, began_s = 0, time.monotonic()
    try:
        with (place / "large").open("wb", buffering=0) as file:
            while written < num_bytes and time.monotonic() - began_s < seconds:
                written += file.write(piece[: num_bytes - written])
                if written % CHUNK_BYTES == 0:
                    os.fdatasync(file.fileno())  # else the time would only count what the cache has taken
            os.fsync(file.fileno())
    except OSError as error:
        return [
            Probe(
                name="write speed",
                verdict=BROKEN,
                needed=True,
                found=f"{errno.errorcode.get(error.errno or 0, '?')} after {written} bytes: {error.strerror}",
                meaning="publishing would fail the same way",
                todo="free some space, or ask for fewer --bytes",
            )
        ]
    write_s = max(time.monotonic() - began_s, 1e-6)
    buffer = memoryview(bytearray(PIECE_BYTES))
    read, began_s = 0, time.monotonic()
    with (place / "large").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while (count := file.readinto(buffer) or 0) and time.monotonic() - began_s < seconds:
            read += count
    read_s = max(time.monotonic() - began_s, 1e-6)
    return [_measured("write speed", written, write_s, "synced"), _measured("read speed", read, read_s, "read back")]


def _measured(name: str, num_bytes: int, seconds: float, how: str) -> Probe:
    speed = num_bytes / seconds
    slow = speed < SPEED_SLOW
    return Probe(
        name=name,
        verdict=SLOW if slow else OK,
        needed=False,
        found=f"{speed / 1e6:.0f} MB/s ({num_bytes / 1e6:.0f} MB, {how})",
        meaning=f"10 GB of weights take {10e9 / max(speed, 1.0):.0f} s" if slow else "",
        value=round(speed),
        unit="bytes/s",
    )


_PROBES: tuple[tuple[str, bool, Callable[[pathlib.Path], Probe]], ...] = (
    ("file system", True, _kind),
    ("small writes", True, small_writes),
    ("directory sync", False, directory_sync),
    ("rename of a directory", True, rename_directory),
    ("replace a file", True, replace),
    ("exclusive create", True, exclusive_create),
    ("link", True, link),
    ("symlink", False, symlink),
    ("modes", False, modes),
    ("another uid", False, other_user),
    ("free space", True, _free_space),
    ("notification", False, _notification),
)
