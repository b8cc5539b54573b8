"""Signals: a node that is told to go says so at once, whether it is parked or its workers run.

torchrun installs handlers of its own when workers first start, and again at every start. So ours are installed anew in
each rendezvous, where they end the process (a parked spare would otherwise die by the signal), and around torchrun's
while workers run: the store is told first, then torchrun's own handler does what it always does. A host that has left
and only keeps the store for the others does not hear SIGTERM and SIGHUP any more.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

from holdfast.rendezvous.agent import Agent

PATIENT = (signal.SIGTERM, signal.SIGHUP)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Signals:
    """The agent process's signal handlers. Only ever touched by the main thread; elsewhere it does nothing."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._theirs: dict[int, object] = {}

    def park(self) -> None:
        """While the agent waits for a round: leave, with 0 unless it has a seat."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._leave)

    def wrap(self) -> None:
        """While workers run: say it, then let torchrun do the rest. Cheap when nothing has changed."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            standing = signal.getsignal(number)
            if standing not in (self._say, self._leave):
                self._theirs[number] = standing
                signal.signal(number, self._say)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        if self._agent.keeps and number in PATIENT:
            return
        code = 128 + number if self._agent.seated else 0
        self._agent.leave(f"told to by {signal.Signals(number).name}")
        raise SystemExit(code)

    def _say(self, number: int, frame: FrameType | None) -> None:
        if self._agent.keeps and number in PATIENT:
            return
        self._agent.leave(f"told to by {signal.Signals(number).name}")
        theirs = self._theirs.get(number)
        if callable(theirs):
            theirs(number, frame)
        else:
            raise SystemExit(128 + number)
