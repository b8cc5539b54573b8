"""This machine's side of a node: a free port, the health check, the desk that its workers look at, their guardian.

Workers that outlive their round are ended here: by the guardian when the agent dies, and by the agent itself when they
take longer to stop than `stop_grace_s`, since torchrun would wait for 30 s.
"""

from __future__ import annotations

import logging
import time

from holdfast.core.membership import Beat, Control, Node, State
from holdfast.rendezvous.desk import Desk
from holdfast.rendezvous.health import HealthCheck, Verdict
from holdfast.rendezvous.ports import free_port
from holdfast.rendezvous.settings import Settings
from holdfast.rendezvous.workers import Guardian, end_workers

logger = logging.getLogger(__name__)


class Local:
    """Called by the agent's thread alone, but for `start` and `token`."""

    def __init__(self, settings: Settings, node: Node, token: str) -> None:
        self.token = token
        self.desk = Desk()
        self._settings = settings
        self._node = node
        self._guardian = Guardian(token, self.desk)
        self._check = HealthCheck(settings.health_check, token=token) if settings.health_check else None
        self._ports: dict[str, int] = {}
        self._stopping_s: float | None = None

    @property
    def checks(self) -> bool:
        return self._check is not None

    def start(self) -> None:
        self._guardian.start()

    def start_check(self) -> None:
        if self._check is not None:
            self._check.start()

    def port(self, plan: str) -> int:
        """A port for the workers' store in this plan: another one in each, so that nobody meets an older round's."""
        if plan not in self._ports:
            avoid = set(self._ports.values())
            port = free_port(self._node.address, self._settings.port_range, avoid)
            self._ports = {**dict(list(self._ports.items())[-1:]), plan: port}
        return self._ports[plan]

    def now(self, beat: Beat) -> None:
        """What the member is doing has changed."""
        self._stopping_s = time.monotonic() if beat.state is State.STOPPING else None

    def tell(self, control: Control) -> None:
        """Let the workers know whether somebody is to be drained: they all agree on a step boundary."""
        seated = bool(control.draining) and control.outcome is None
        self.desk.drain(", ".join(control.draining) if seated else None)

    def drain_ready(self, number: int) -> bool:
        return self.desk.all_ready(number)

    def look_around(self) -> Verdict | None:
        """Look after the workers; the health check's verdict once it is over."""
        self._guardian.check()
        if self._stopping_s is not None and time.monotonic() - self._stopping_s >= self._settings.stop_grace_s:
            self._stopping_s = None
            ended = end_workers(self.token, grace_s=0.0)
            logger.warning("%d workers took longer than %g s to end", ended, self._settings.stop_grace_s)
        return self._check.poll() if self._check is not None else None

    def close(self) -> None:
        if self._check is not None:
            self._check.cancel()
        self._guardian.close()
        self.desk.close()
