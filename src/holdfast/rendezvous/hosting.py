"""Hosting: the node that carries an embedded store leaves last.

Whoever has the endpoint's address on its own machine, and finds the port free, serves the store from its own process.
Drained, signalled or done, it keeps the store until the outcome stands and everybody else has left (or has been silent
for a lease, or LINGER_S are over), never for a fixed time.
"""

from __future__ import annotations

import errno
import socket
import time

from holdfast.core import liveness
from holdfast.core.membership import Beat, Control, State, decode, decode_all, lease_s
from holdfast.rendezvous.endpoint import look_up
from holdfast.rendezvous.founding import Keys
from holdfast.rendezvous.kv import KeyValueStore

LINGER_S = 10.0
DESERTED_S = 30.0


class Keeper:
    """Tells the host of a store when it may end it."""

    def __init__(self, store: KeyValueStore, keys: Keys, member: str) -> None:
        self._store = store
        self._keys = keys
        self._member = member
        self._watch = liveness.Watch()
        self._ended_s: float | None = None
        self._alone_s: float | None = None

    def may_end(self) -> bool:
        """Whether nobody needs the store any more. May raise UnavailableError."""
        now_s = time.monotonic()
        cell = self._store.read(self._keys.control)
        if cell is None:
            return True
        control = decode(cell.value, Control, key=self._keys.control)
        beats = decode_all(self._store.list_all(self._keys.beats), Beat)
        others = {
            member: beat.count
            for member, beat in beats.items()
            if member != self._member and beat.state is not State.LEFT
        }
        lease = lease_s(control.policy)
        self._watch = liveness.look(self._watch, others, now_s, gap_s=lease, full_lease=True)
        alone = len(liveness.silent(self._watch, lease)) == len(others)
        self._alone_s = (now_s if self._alone_s is None else self._alone_s) if alone else None
        if control.outcome is None:
            return self._alone_s is not None and now_s - self._alone_s >= DESERTED_S
        self._ended_s = now_s if self._ended_s is None else self._ended_s
        return alone or now_s - self._ended_s >= LINGER_S


def is_ours(host: str, port: int) -> bool:
    """Whether `host` is this machine, and `port` free there: then it is for us to serve the store.

    Raises:
        UsageError: code "bad_endpoint": the name does not resolve.
    """
    for family, kind, protocol, _, address in look_up(host, port):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno in (errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EAFNOSUPPORT):
                    continue
                raise
            return True
    return False
