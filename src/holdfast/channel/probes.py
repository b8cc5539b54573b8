"""The doctor's single probes of what the storage contract asks of a file system; each is told a directory to try in."""

from __future__ import annotations

import errno
import os
import pathlib
import stat
import statistics
import subprocess
import threading
import time
from collections.abc import Callable

import msgspec

OK, SLOW, BROKEN, SKIPPED = "ok", "slow", "broken", "skipped"
RACERS, RACE_ROUNDS = 4, 40
SYNCS = 10
SYNC_SLOW_S = 0.1
OTHER_UID = 65534
_NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP)
_OTHER_USER = """
cat "$1/open/file" > /dev/null || exit 11
: > "$1/all/mine" || exit 12
( : > "$1/open/mine" ) 2> /dev/null && exit 13
exit 0
"""


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


def small_writes(place: pathlib.Path) -> Probe:
    times = []
    for i in range(SYNCS):
        began_s = time.monotonic()
        write(place / f"small-{i}", b"x" * 1000)
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


def directory_sync(place: pathlib.Path) -> Probe:
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


def rename_directory(place: pathlib.Path) -> Probe:
    (place / "staging" / "tree" / "inside").mkdir(parents=True)
    (place / "versions").mkdir()
    write(place / "staging" / "tree" / "inside" / "file", b"whole")
    os.rename(place / "staging" / "tree", place / "versions" / "tree")
    whole = (place / "versions" / "tree" / "inside" / "file").read_bytes() == b"whole"
    return _needed("rename of a directory", whole and not (place / "staging" / "tree").exists())


def replace(place: pathlib.Path) -> Probe:
    write(place / "record", b"old")
    with (place / "record").open("rb") as reader:
        write(place / "record.new", b"newer")
        os.rename(place / "record.new", place / "record")
        still = reader.read()
    return _needed("replace a file", still == b"old" and (place / "record").read_bytes() == b"newer")


def exclusive_create(place: pathlib.Path) -> Probe:
    def attempt(racer: int, turn: int) -> None:
        os.close(os.open(place / f"exclusive-{turn}", os.O_WRONLY | os.O_CREAT | os.O_EXCL))

    return _race("exclusive create", attempt)


def link(place: pathlib.Path) -> Probe:
    for racer in range(RACERS):
        write(place / f"racer-{racer}", b"%d" % racer)

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


def symlink(place: pathlib.Path) -> Probe:
    try:
        write(place / "target", b"target")
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


def modes(place: pathlib.Path) -> Probe:
    for name, mode in (("open", 0o755), ("all", 0o1777)):
        (place / name).mkdir()
        (place / name).chmod(mode)
    write(place / "open" / "file", b"for all")
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


def other_user(place: pathlib.Path) -> Probe:
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


def _needed(name: str, works: bool) -> Probe:
    return Probe(
        name=name,
        verdict=OK if works else BROKEN,
        needed=True,
        found="works" if works else "the result is not what was written",
        meaning="" if works else "Holdfast cannot keep a channel here",
        todo="" if works else "use another file system, or other mount options",
    )


def write(path: pathlib.Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
