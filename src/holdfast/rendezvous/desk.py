"""The desk: a private directory by which an agent and its own workers speak to each other, without any store.

    drain                  the agent's: somebody is to leave, find a good time; gone when that is called off
    ready-<round>-<r>-<n>  a worker's, rank r of n on this node: it has saved what it has to, and may be stopped

Names, and the workers' side: `holdfast.launched`. Nothing here outlives the machine, so nothing is synced. Whoever
kills agent and guardian at once leaves a desk behind: the next agent of this user on this machine removes it. An agent
that lives keeps its own desk locked.
"""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
import pathlib
import tempfile
import threading
import time
from contextlib import suppress

from holdfast.launched import DRAIN, READY, one_line
from holdfast.rendezvous.guardian import DESK_PREFIX, remove_desk

logger = logging.getLogger(__name__)

YOUNG_S = 60.0  # an agent locks its desk just after it has made it


class Desk:
    """The agent's side.

    Args:
        parent: where to put the directory; default: the system's place for temporary files.
    """

    def __init__(self, parent: str | os.PathLike[str] | None = None) -> None:
        self._parent = parent
        self._path: pathlib.Path | None = None
        self._locked = -1
        self._said: bytes | None = None
        self._closed = False
        self._lock = threading.Lock()  # torchrun's thread asks for the path, the agent's thread for the rest

    @property
    def path(self) -> pathlib.Path:
        """The directory, readable for this user alone; made when it is first asked for."""
        with self._lock:
            if self._path is None:
                self._path = pathlib.Path(tempfile.mkdtemp(prefix=DESK_PREFIX, dir=self._parent)).resolve()
                self._locked = _lock(self._path)
                _remove_left_behind(self._path.parent)
            return self._path

    def drain(self, reason: str | None, *, wait_s: float | None = None) -> bool:
        """Ask the workers for a good time to stop, or (None) call that off. Whether it stands so now.

        Args:
            reason: why, in words.
            wait_s: how long their answer is waited for (seconds); None: not said.
        """
        if reason is None or self._closed:
            return self._call_off()
        said = json.dumps({"reason": one_line(reason), "wait_s": wait_s}).encode()
        if said == self._said and (self.path / DRAIN).exists():
            return True
        try:
            self._write(said)
        except OSError as error:
            logger.warning("the workers cannot be asked for a good time to stop: %s", error)
            return False
        self._said = said
        return True

    def _write(self, said: bytes) -> None:
        with suppress(FileExistsError):  # what cleans up temporary files may have removed it
            self.path.mkdir(mode=0o700)
        draft = self.path / f".{DRAIN}"
        draft.write_bytes(said)
        draft.replace(self.path / DRAIN)

    def _call_off(self) -> bool:
        """The question first, then its answers: a worker that sees its answer gone and the question too goes on."""
        if self._said is None:
            return True
        try:
            (self.path / DRAIN).unlink(missing_ok=True)
            for name in os.listdir(self.path):
                if name.startswith(READY):
                    (self.path / name).unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.warning("the workers cannot be told that nobody is drained: %s", error)
            return False
        self._said = None
        return True

    def ready_workers(self, round_: int) -> int:
        """How many of this node's workers say, in this round, that they may be stopped now."""
        return len(self._answers(round_))

    def all_ready(self, round_: int) -> bool:
        """Whether all of this node's workers say so."""
        answers = self._answers(round_)
        wanted = max((int(name.rpartition("-")[2]) for name in answers if name[-1:].isdigit()), default=1)
        return len(answers) >= wanted

    def _answers(self, round_: int) -> list[str]:
        if self._path is None:  # no worker was ever given one
            return []
        try:
            names = os.listdir(self._path)
        except OSError:
            return []
        return [name for name in names if name.startswith(f"{READY}{round_}-")]

    def close(self) -> None:
        """Remove it. Nobody is asked any more."""
        self._closed = True
        with self._lock:
            if self._path is not None:
                remove_desk(str(self._path))
            if self._locked >= 0:
                os.close(self._locked)
                self._locked = -1


def _lock(path: pathlib.Path) -> int:
    """The desk, open and locked for as long as this process lives; -1 if another process has it, or it is not ours."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        if os.fstat(handle).st_uid == os.geteuid():
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
    except OSError:  # its agent lives, or this file system has no locks
        pass
    os.close(handle)
    return -1


@functools.cache
def _remove_left_behind(parent: pathlib.Path) -> None:
    """Remove the desks of agents that are gone, guardian and all; once a process."""
    try:
        entries = [entry for entry in os.scandir(parent) if entry.name.startswith(DESK_PREFIX)]
    except OSError:
        return
    for entry in entries:
        with suppress(OSError):
            if time.time() - entry.stat(follow_symlinks=False).st_mtime < YOUNG_S:
                continue
            handle = _lock(pathlib.Path(entry.path))
            if handle >= 0:
                remove_desk(entry.path)
                os.close(handle)
