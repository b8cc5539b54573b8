"""Event files: where they lie, and their lines as a stream, whatever stands in them.

Anybody may write into an events directory (mode 1777), and a writer may die in the middle of a line. So nothing here
follows a link, waits for a pipe, or believes a length; a line that is no event is counted and passed over.
"""

from __future__ import annotations

import os
import pathlib
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from holdfast.errors import UsageError
from holdfast.events import Event

CHUNK_BYTES = 2**20
LINE_BYTES_MAX = 4 * 2**20  # the roster of 10 000 nodes in one line is 0.5 MiB
FILES_MAX = 200_000
SUFFIX, OLD_SUFFIX = ".jsonl", ".old.jsonl"

_decoder = msgspec.json.Decoder(Event)


@dataclass
class Damage:
    """What was passed over in one or more files.

    Attributes:
        num_lines: lines that are no event of the schema, or no UTF-8.
        num_long: lines over LINE_BYTES_MAX; counted here only.
        num_torn: files that end in the middle of a line: still being written, or cut off by a crash.
        num_unreadable: files that could not be opened or read to their end.
    """

    num_lines: int = 0
    num_long: int = 0
    num_torn: int = 0
    num_unreadable: int = 0


def find_event_files(places: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """The event files of `places`: channels (their `events/`), directories of event files, single files.

    Sorted by directory and writer, a writer's older file (`….old.jsonl`) before its present one; none twice. A channel
    or directory without event files adds none. In directories only regular files count.

    Raises:
        UsageError: code "no_such_place", "unreadable_place", "too_many_files".
    """
    found: dict[pathlib.Path, None] = {}
    for place in places:
        try:
            mode = place.stat().st_mode
            if stat.S_ISDIR(mode):
                found |= dict.fromkeys(_of_directory(place))
            else:
                found[place.resolve()] = None
        except FileNotFoundError as error:
            raise UsageError(
                f"{place}: nothing is there",
                code="no_such_place",
                hint="give a channel, a directory of event files, or an event file",
                place=str(place),
            ) from error
        except OSError as error:
            raise UsageError(
                f"{place}: {error.strerror}",
                code="unreadable_place",
                hint="look at its owner and mode",
                place=str(place),
            ) from error
    return sorted(found, key=_order)


def iter_events(path: pathlib.Path, damage: Damage | None = None) -> Iterator[Event]:
    """The events of one file, in order, one at a time; at most LINE_BYTES_MAX + CHUNK_BYTES of it are in memory.

    Never raises for what stands in the file, nor for a file that is gone or may not be read: `damage` counts what was
    passed over. A last line without its end is left out. The texts in an event are as long as they were written, and
    untrusted.
    """
    damage = Damage() if damage is None else damage
    for line in _lines(path, damage):
        try:
            yield _decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            damage.num_lines += 1


def tail_events(path: pathlib.Path, limit_bytes: int) -> list[Event]:
    """The events in the last `limit_bytes` of a file, in order; what is cut, or is no event, is left out.

    Never raises for what stands in the file, nor for a file that is gone or may not be read.
    """
    try:
        with _open(path) as descriptor:
            begin = max(0, os.fstat(descriptor).st_size - limit_bytes)
            data = os.pread(descriptor, limit_bytes, begin)
    except OSError:
        return []
    lines = data.split(b"\n")
    events = []
    for line in lines[1 if begin else 0 : -1]:
        try:
            events.append(_decoder.decode(line))
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            continue
    return events


def _of_directory(place: pathlib.Path) -> Iterator[pathlib.Path]:
    events = place / "events"
    directory = (events if events.is_dir() else place).resolve()
    with os.scandir(directory) as entries:
        names = [e.name for e in entries if e.name.endswith(SUFFIX) and e.is_file(follow_symlinks=False)]
    if len(names) > FILES_MAX:
        raise UsageError(
            f"{directory}: {len(names)} event files, more than {FILES_MAX}",
            code="too_many_files",
            hint="give some of the files by name",
            place=str(directory),
        )
    return (directory / name for name in names)


def _order(path: pathlib.Path) -> tuple[str, str, bool]:
    old = path.name.endswith(OLD_SUFFIX)
    return str(path.parent), path.name.removesuffix(OLD_SUFFIX if old else SUFFIX), not old


def _lines(path: pathlib.Path, damage: Damage) -> Iterator[bytes]:
    """The whole lines of `path` that are not too long."""
    rest, too_long = b"", False
    try:
        for chunk in _chunks(path):
            *whole, rest = (rest + chunk).split(b"\n") if not too_long else chunk.split(b"\n")
            if too_long and whole:  # the end of a line whose beginning is thrown away
                too_long = False
                del whole[0]
            elif too_long:
                rest = b""
            yield from filter(None, whole)
            if len(rest) > LINE_BYTES_MAX:
                damage.num_long += 1
                rest, too_long = b"", True
    except OSError:
        damage.num_unreadable += 1
        return
    if rest or too_long:
        damage.num_torn += 1


def _chunks(path: pathlib.Path) -> Iterator[bytes]:
    with _open(path) as descriptor:
        while chunk := os.read(descriptor, CHUNK_BYTES):
            yield chunk


@contextmanager
def _open(path: pathlib.Path) -> Iterator[int]:
    """A regular file, open for reading while the block runs. OSError for whatever else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no regular file")
        yield descriptor
    finally:
        os.close(descriptor)
