"""Where one consumer keeps its verified copies: a directory on this host, one process's at a time.

`<stage>/<name>/` is taken by an operating-system lock, which ends with its process, however that ended. A second live
process of one name finds it locked and works in `<stage>/<name>+<nonce>/`, so that neither ever removes what an engine
reads from the other's. The next process takes the one that was used last, with the copies in it, and removes the rest.
"""

from __future__ import annotations

import fcntl
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

from holdfast.channel.posix import PosixStorage
from holdfast.channel.rooted import os_errors
from holdfast.errors import UnavailableError

_LOCK = "lock"
_MARK = "+"  # no consumer's name has it


class Copies:
    """The copies of consumer `name` below `stage`, at most `bytes_max` bytes of them.

    Attributes:
        storage: the directory, as a storage; valid between `open` and `close`.
    """

    def __init__(self, stage: str | os.PathLike[str], name: str, bytes_max: int | None = None) -> None:
        self._bytes_max = bytes_max
        self._stage = pathlib.Path(os.path.abspath(stage))
        self._name = name
        self._lock: IO[bytes] | None = None
        self.storage = PosixStorage(self._stage / name)

    def open(self) -> None:
        """Take a directory; idempotent.

        Raises:
            UnavailableError: it can't be made, or its file system has no locks. Give a local directory as stage.
        """
        if self._lock is not None:
            return
        with os_errors(str(self._stage)):
            self._stage.mkdir(parents=True, exist_ok=True)
            free = [(place, lock) for place in self._places() if (lock := _try_lock(place)) is not None]
            if not free:
                free = [self._new()]
            (place, self._lock), *rest = free
            os.utime(place / _LOCK)
            self.storage = PosixStorage(place)
            for old, lock in rest:
                with suppress(FileNotFoundError), lock:
                    shutil.rmtree(old)

    def close(self) -> None:
        """Leave the directory, with what is in it, to the next process of this name; idempotent."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def check_room(self, num_bytes: int) -> None:
        """UnavailableError code "stage_full": with `num_bytes` more there would be too much."""
        if self._bytes_max is None:
            return
        place = self.storage.local_path("versions")
        names = sorted(self.storage.list_trees())
        used = sum(path.lstat().st_size for name in names for path in (place / name).rglob("*"))
        if used + num_bytes > self._bytes_max:
            raise UnavailableError(
                f"{place}: {num_bytes:,} bytes more than the {used:,} of {', '.join(names) or 'nothing'} are too much "
                f"for the limit of {self._bytes_max:,}",
                code="stage_full",
                hint="what is served stays; raise the limit, or keep fewer versions on the servers",
            )

    def _places(self) -> list[pathlib.Path]:
        """The directories of this name, the one used last first."""
        return sorted(self._mine(), key=_used_at, reverse=True)

    def _mine(self) -> Iterator[pathlib.Path]:
        for place in self._stage.iterdir():
            if place.name.partition(_MARK)[0] == self._name and not place.is_symlink() and place.is_dir():
                yield place

    def _new(self) -> tuple[pathlib.Path, IO[bytes]]:
        while True:
            place = self._stage / self._name
            if place.exists():
                place = self._stage / f"{self._name}{_MARK}{secrets.token_hex(4)}"
            with suppress(FileExistsError):
                place.mkdir()
            lock = _try_lock(place)
            if lock is not None:
                return place, lock


def _used_at(place: pathlib.Path) -> float:
    try:
        return (place / _LOCK).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _try_lock(place: pathlib.Path) -> IO[bytes] | None:
    """The lock of `place`, or None: a live process has it, or the directory is gone."""
    try:
        lock = open(place / _LOCK, "ab")  # noqa: SIM115 - it is held as long as the directory is used
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock.fileno()), os.stat(place / _LOCK)):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        lock.close()
        raise
    lock.close()
    return None
