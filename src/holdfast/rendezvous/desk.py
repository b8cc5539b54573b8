"""The desk: a private directory by which an agent and its own workers speak to each other, without any store.

    drain                  the agent's: somebody is to leave, find a good time; gone when that is called off
    ready-<round>-<r>-<n>  a worker's, rank r of n on this node: it has saved what it has to, and may be stopped

Names, and the workers' side: `holdfast.launched`. Nothing here outlives the machine, so nothing is synced.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import tempfile
import threading
from contextlib import suppress

from holdfast.launched import DRAIN, READY, one_line
from holdfast.rendezvous.guardian import DESK_PREFIX, remove_desk

logger = logging.getLogger(__name__)


class Desk:
    """The agent's side.

    Args:
        parent: where to put the directory; default: the system's place for temporary files.
    """

    def __init__(self, parent: str | os.PathLike[str] | None = None) -> None:
        self._parent = parent
        self._path: pathlib.Path | None = None
        self._said: bytes | None = None
        self._closed = False
        self._lock = threading.Lock()  # torchrun's thread asks for the path, the agent's thread for the rest

    @property
    def path(self) -> pathlib.Path:
        """The directory, readable for this user alone; made when it is first asked for."""
        with self._lock:
            if self._path is None:
                self._path = pathlib.Path(tempfile.mkdtemp(prefix=DESK_PREFIX, dir=self._parent)).resolve()
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
        try:
            names = os.listdir(self.path)
        except OSError:
            return []
        return [name for name in names if name.startswith(f"{READY}{round_}-")]

    def close(self) -> None:
        """Remove it. Nobody is asked any more."""
        self._closed = True
        with self._lock:
            if self._path is not None:
                remove_desk(str(self._path))
