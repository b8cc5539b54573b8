"""The store that torchrun's agent gets with its seat: all that it does with it is its exit barrier.

A node whose workers have succeeded says so by `add`, and then waits. What it waits for is not the others' arrival in
the barrier, but the job's outcome: *succeeded* lets it out, anything else ends it with the outcome's code, at once.
Which keys torch uses does not matter.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from holdfast.rendezvous.agent import Agent
from holdfast.rendezvous.words import Left

TIMEOUT = dt.timedelta(minutes=5)


class BarrierStore:
    """Stands for a torch store in `SimpleElasticAgent._exit_barrier`; the main thread's alone."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._finished = False
        self.timeout = TIMEOUT

    def set_timeout(self, timeout: dt.timedelta) -> None:
        """Taken note of, and no more: the outcome is waited for as long as the job lasts."""
        self.timeout = timeout

    def add(self, key: str, amount: int) -> int:
        """The workers have succeeded. 0: nobody is told that it is the last to arrive."""
        if not self._finished:
            self._finished = True
            self._agent.finished()
        return 0

    def set(self, key: str, value: object) -> None:
        """What torch's last arrival would tell the others; the outcome does."""

    def wait(self, keys: Sequence[str], timeout: dt.timedelta | None = None) -> None:
        """Until the outcome stands. SystemExit with its code, unless the job has succeeded."""
        word = self._agent.wait_for_the_others()
        if isinstance(word, Left):
            raise SystemExit(word.code)
