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
import stat
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from holdfast.channel.rooted import os_errors
from holdfast.channel.watch import LOCAL, file_system, open_watch
from holdfast.errors import UsageError

OK, SLOW, BROKEN, SKIPPED = "ok", "slow", "broken", "skipped"
DIRECTORY = ".holdfast-doctor-"
RACERS, RACE_ROUNDS = 4, 40
SYNCS = 10
SYNC_SLOW_S = 0.1
SPEED_SLOW = 100e6
FREE_LOW_BYTES = 2 * 10**9
FREE_NEEDED_BYTES = 64 * 2**20
CHUNK_BYTES = 32 * 2**20
PIECE_BYTES = 2**20
NOTIFY_S = 2.0
OTHER_UID = 65534
_NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP)
_BUCKETS = ("s3fs", "gcsfuse", "rclone", "goofys", "mountpoint-s3", "blobfuse", "geesefs", "juicefs-s3")
_OTHER_USER = """
cat "$1/open/file" > /dev/null || exit 11
: > "$1/all/mine" || exit 12
( : > "$1/open/mine" ) 2> /dev/null && exit 13
exit 0
"""

Progress = Callable[[str], None]


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was tried. `value` in `unit` where it was measured."""

    name: str
    verdict: str
    needed: bool
    found: str
    meaning: str = ""
    todo: str = ""
    value: float | None = None
    unit: str = ""


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


def _small_writes(place: pathlib.Path) -> Probe:
    times = []
    for i in range(SYNCS):
        began_s = time.monotonic()
        _write(place / f"small-{i}", b"x" * 1000)
        times.append(time.monotonic() - began_s)
    median_s = statistics.median(times)
    slow = median_s > SYNC_SLOW_S
    return Probe(
        name="small writes",
        verdict=SLOW if slow else OK,
        needed=True,
        found=f"{median_s * 1000:.1f} ms each, synced",
        meaning="each publish and each hold takes several of these" if slow else "",
        value=round(median_s, 6),
        unit="s",
    )


def _directory_sync(place: pathlib.Path) -> Probe:
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
        return Probe(
            name="directory sync",
            verdict=BROKEN,
            needed=False,
            found=str(error.strerror),
            meaning="a power cut may take back the newest versions; it never shows a torn one",
        )
    finally:
        os.close(handle)
    return Probe(name="directory sync", verdict=OK, needed=False, found="works")


def _rename_directory(place: pathlib.Path) -> Probe:
    (place / "staging" / "tree" / "inside").mkdir(parents=True)
    (place / "versions").mkdir()
    _write(place / "staging" / "tree" / "inside" / "file", b"whole")
    os.rename(place / "staging" / "tree", place / "versions" / "tree")
    whole = (place / "versions" / "tree" / "inside" / "file").read_bytes() == b"whole"
    return _needed("rename of a directory", whole and not (place / "staging" / "tree").exists())


def _replace(place: pathlib.Path) -> Probe:
    _write(place / "record", b"old")
    with (place / "record").open("rb") as reader:
        _write(place / "record.new", b"newer")
        os.rename(place / "record.new", place / "record")
        still = reader.read()
    return _needed("replace a file", still == b"old" and (place / "record").read_bytes() == b"newer")


def _exclusive_create(place: pathlib.Path) -> Probe:
    def attempt(racer: int, turn: int) -> None:
        os.close(os.open(place / f"exclusive-{turn}", os.O_WRONLY | os.O_CREAT | os.O_EXCL))

    return _race("exclusive create", attempt)


def _link(place: pathlib.Path) -> Probe:
    for racer in range(RACERS):
        _write(place / f"racer-{racer}", b"%d" % racer)

    def attempt(racer: int, turn: int) -> None:
        os.link(place / f"racer-{racer}", place / f"link-{turn}")

    attempt(0, RACE_ROUNDS)  # what every racer would fail at is an error of its own
    return _race("link", attempt)


def _race(name: str, attempt: Callable[[int, int], None]) -> Probe:
    """Several threads do the same at the same moment, round after round; of each round one must win."""
    wins = [0] * RACE_ROUNDS
    counting = threading.Lock()
    start = threading.Barrier(RACERS)

    def race(racer: int) -> None:
        for turn in range(RACE_ROUNDS):
            start.wait()
            try:
                attempt(racer, turn)
            except OSError:
                continue
            with counting:
                wins[turn] += 1

    threads = [threading.Thread(target=race, args=(racer,)) for racer in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bad = sum(won != 1 for won in wins)
    found = f"{bad} of {RACE_ROUNDS} races had no single winner" if bad else f"one winner in {RACE_ROUNDS} races"
    meaning = "two trainers could both believe that they publish" if bad else ""
    return Probe(name=name, verdict=BROKEN if bad else OK, needed=True, found=found, meaning=meaning)


def _symlink(place: pathlib.Path) -> Probe:
    try:
        _write(place / "target", b"target")
        os.symlink("target", place / "symlink")
        works = (place / "symlink").read_bytes() == b"target"
    except OSError:
        works = False
    return Probe(
        name="symlink",
        verdict=OK if works else BROKEN,
        needed=False,
        found="works" if works else "refused",
        meaning="" if works else "readers of the older layout (step_N) find nothing; all others do not need it",
    )


def _modes(place: pathlib.Path) -> Probe:
    for name, mode in (("open", 0o755), ("all", 0o1777)):
        (place / name).mkdir()
        (place / name).chmod(mode)
    _write(place / "open" / "file", b"for all")
    (place / "open" / "file").chmod(0o644)
    wanted = {"open": 0o755, "all": 0o1777, "open/file": 0o644}
    modes = {name: stat.S_IMODE((place / name).stat().st_mode) for name in wanted}
    wrong = [f"{oct(modes[name])} instead of {oct(mode)}" for name, mode in wanted.items() if modes[name] != mode]
    return Probe(
        name="modes",
        verdict=BROKEN if wrong else OK,
        needed=False,
        found=", ".join(wrong) or "0755, 0644 and 1777 are kept",
        meaning="servers under another uid may not be able to read versions or to hold them" if wrong else "",
        todo="run all of them under one uid, or use other mount options" if wrong else "",
    )


def _other_user(place: pathlib.Path) -> Probe:
    name = "another uid"
    closed = next((above for above in reversed(place.parents) if not above.stat().st_mode & stat.S_IXOTH), None)
    if os.geteuid() != 0:
        return Probe(
            name=name,
            verdict=SKIPPED if closed is None else BROKEN,
            needed=False,
            found="only root can try it" if closed is None else f"{closed} is closed to others",
            meaning="" if closed is None else "servers under another uid cannot reach the channel",
            todo="" if closed is None else f"chmod o+x {closed}, or run all of them under one uid",
        )
    done = subprocess.run(
        ["/bin/sh", "-c", _OTHER_USER, "sh", str(place)],
        user=OTHER_UID,
        group=OTHER_UID,
        extra_groups=(),
        cwd="/",
        capture_output=True,
        timeout=60,
        check=False,
    )
    answers = {
        11: (f"uid {OTHER_UID} cannot read" + (f": {closed} is closed to others" if closed else ""), "read versions"),
        12: (f"uid {OTHER_UID} cannot write into a directory of mode 1777", "hold versions"),
        13: (f"uid {OTHER_UID} can write where only the owner may", "be kept from changing versions"),
    }
    if done.returncode == 0:
        return Probe(name=name, verdict=OK, needed=False, found=f"uid {OTHER_UID} reads versions and writes holds")
    found, cannot = answers.get(done.returncode, (f"not tried: /bin/sh gave {done.returncode}", ""))
    return Probe(
        name=name,
        verdict=BROKEN if cannot else SKIPPED,
        needed=False,
        found=found,
        meaning=f"servers under another uid cannot {cannot}" if cannot else "",
        todo="run all of them under one uid; or open the directories above, or use other mount options"
        if cannot
        else "",
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
        _write(place / "CURRENT.new", b"version")
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


def _needed(name: str, works: bool) -> Probe:
    return Probe(
        name=name,
        verdict=OK if works else BROKEN,
        needed=True,
        found="works" if works else "the result is not what was written",
        meaning="" if works else "Holdfast cannot keep a channel here",
        todo="" if works else "use another file system, or other mount options",
    )


def _write(path: pathlib.Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


_PROBES: tuple[tuple[str, bool, Callable[[pathlib.Path], Probe]], ...] = (
    ("file system", True, _kind),
    ("small writes", True, _small_writes),
    ("directory sync", False, _directory_sync),
    ("rename of a directory", True, _rename_directory),
    ("replace a file", True, _replace),
    ("exclusive create", True, _exclusive_create),
    ("link", True, _link),
    ("symlink", False, _symlink),
    ("modes", False, _modes),
    ("another uid", False, _other_user),
    ("free space", True, _free_space),
    ("notification", False, _notification),
)
