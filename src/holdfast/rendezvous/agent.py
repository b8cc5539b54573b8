"""The agent: a node's part in a job, as torchrun's main thread sees it. It asks, and waits; a clerk does the work.

The clerk's thread is no daemon, because the host of an embedded store has to outlive its own main thread: it ends once
the member has left, the host's once everybody has.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from holdfast.core.member import Entered, Finished, Rang, Signalled
from holdfast.launched import worker_environment
from holdfast.rendezvous.clerk import AGAIN_S, Clerk
from holdfast.rendezvous.local import Local
from holdfast.rendezvous.words import Left, Released, Round

if TYPE_CHECKING:
    from holdfast.rendezvous.metrics import AgentMetrics


class Agent:
    """One life of one node. The store is called by the clerk's thread alone, never by the caller's.

    Args:
        run: the job's run.
        clerk: not yet begun.
        local: this machine's side: ports, health check, workers.
        metrics: the page of its metrics, closed at the end; None: there is none.
    """

    def __init__(self, run: str, clerk: Clerk, local: Local, metrics: AgentMetrics | None = None) -> None:
        self.run = run
        self.metrics = metrics
        self._clerk = clerk
        self._local = local
        self._thread = threading.Thread(target=self._work, name="holdfast-agent", daemon=False)

    def next_round(self, *, failed: bool) -> Round | Left:
        """Wait for a seat in a committed round; without workers. `failed`: they failed, nobody rang."""
        if not self._thread.is_alive() and not self._clerk.lost:
            self._local.start()
            self._thread.start()
        self._clerk.tell(Entered(failed))
        word = self._clerk.word()
        assert isinstance(word, Round | Left)
        return word

    def rings(self) -> bool:
        """Whether the workers have to be ended, for whatever reason; then `heard` is to be called."""
        return self._clerk.rings

    def heard(self) -> None:
        self._clerk.tell(Rang())

    def finished(self) -> None:
        """The workers have succeeded."""
        self._clerk.tell(Finished())

    def wait_for_the_others(self) -> Left | Released:
        """After `finished`: wait until all have."""
        word = self._clerk.word()
        assert isinstance(word, Left | Released)
        return word

    def leave(self, reason: str, *, failed: bool = False) -> None:
        """Say good-bye; returns at once. May be called by a signal handler, and more than once."""
        self._clerk.tell(Signalled(reason, failed))

    def worker_environment(self, begun: Round) -> dict[str, str]:
        """What workers of this round find in their environment; see docs/run.md."""
        return worker_environment(
            token=self._local.token,
            desk=self._local.desk.path,
            run=self.run,
            attempt=self._clerk.keys.attempt,
            job=begun.control.job,
            term_round=begun.control.first + begun.control.round,
            round=begun.control.round,
            node=self._clerk.node.node,
            spares=begun.seat.head.spares,
            restarts=begun.seat.head.restarts,
            reason=begun.seat.head.reason,
        )

    @property
    def keeps(self) -> bool:
        """Whether it has left, and still keeps the store for the others."""
        return self._clerk.keeps

    @property
    def seated(self) -> bool:
        """Whether it has a seat in the committed round."""
        return self._clerk.seated

    def _work(self) -> None:
        clerk = self._clerk
        try:
            clerk.open()
            while not clerk.over:
                clerk.turn()
                clerk.listen(min(max(clerk.due_s - time.monotonic(), 0.001), AGAIN_S))
        finally:
            clerk.close()
            if self.metrics is not None:
                self.metrics.close()
