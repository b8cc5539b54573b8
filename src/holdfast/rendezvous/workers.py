"""The agent's side of the guardian, and the same means for the agent itself. For one thread."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time

from holdfast.rendezvous import guardian
from holdfast.rendezvous.desk import Desk
from holdfast.rendezvous.guardian import GRACE_S, end_marked, marked, marks

logger = logging.getLogger(__name__)

AGAIN_S = 1.0  # a guardian that ends at once, again and again, is not started more often
KILLED_S = 0.5  # how long the end of killed workers is waited for: the agent's thread has a lease to keep


def end_workers(token: str, *, grace_s: float) -> int:
    """End every process that this agent's workers are or have started. How many there were.

    Blocks for `grace_s` and half a second at most; what SIGKILL has not ended by then ends when the kernel lets it.
    """
    return end_marked(marks(token)[:1], grace_s=grace_s, limit_s=grace_s + KILLED_S, looks=1)


class Guardian:
    """The guardian of this process; see `holdfast.rendezvous.guardian`.

    Args:
        token: what the agent's workers carry as HOLDFAST_AGENT. New for each agent (secrets.token_hex): whoever
            carries it is ended.
        desk: removed when the agent is gone.
        grace_s: how long workers may take to end before they are killed (seconds).
    """

    def __init__(self, token: str, desk: Desk, *, grace_s: float = GRACE_S) -> None:
        self._token = token
        self._desk = desk
        self._grace_s = grace_s
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s: float | None = None

    @property
    def pid(self) -> int | None:
        """The guardian's process, if there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it. If that can't be done now, say so; `check` tries again."""
        assert self._process is None
        self._started_s = time.monotonic()
        command = [sys.executable, "-I", "-S", guardian.__file__]
        command += [str(os.getpid()), self._token, str(self._grace_s), str(self._desk.path)]
        # Without any mark: neither this agent's nor that of an outer one, whose guardian would end this guardian.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            logger.warning("the guardian cannot be started, workers would outlive this agent: %s", error)

    def check(self) -> None:
        """Start a new one if it is gone. Cheap: to be called often, from `start` on until `close`."""
        if self._started_s is None or (self._process is not None and self._process.poll() is None):
            return
        if time.monotonic() - self._started_s < AGAIN_S:
            return
        if self._process is not None:
            logger.warning("the guardian was ended (status %s); starting another", self._process.returncode)
            self._process = None
        self.start()

    def close(self) -> None:
        """No more workers will be started. End the guardian, unless there are some left that it has to look after.

        It then stays until this process ends, ends them, and goes.
        """
        self._started_s = None
        if self._process is None or marked(marks(self._token)):
            return
        self._process.kill()
        self._process.wait()
        self._process = None
