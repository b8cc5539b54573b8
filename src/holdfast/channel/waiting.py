"""How long to wait until the next look: local change notification where there is one, polling always."""

from __future__ import annotations

import threading

from holdfast.channel.storage import Storage, Watch

SHORTEST_S = 0.02
POLL_WATCHED_S = 2.0
POLL_S = 1.0
GROWTH = 1.5


class Waiter:
    """Waits between two looks. Short waits after something happened, then longer ones up to `poll_s` seconds."""

    def __init__(self, store: Storage, poll_s: float | None) -> None:
        self._store = store
        self._poll_s = poll_s
        self._watch: Watch | None = None
        self._woken = threading.Event()
        self._wait_s = SHORTEST_S

    def attach(self) -> None:
        """Use the storage's notification from now on; the channel exists."""
        if self._watch is None:
            self._watch = self._store.watch()

    def busy(self) -> None:
        """Something happened: look again soon."""
        self._wait_s = SHORTEST_S

    def wait(self, left_s: float | None, *, looking_again: bool = False) -> None:
        """Wait until the next look is due, `left_s` seconds at most. `looking_again`: nothing will notify."""
        if self._woken.is_set():
            self._woken.clear()
            return
        watched = self._watch is not None and not looking_again
        longest_s = self._poll_s if self._poll_s is not None else POLL_WATCHED_S if watched else POLL_S
        wait_s = longest_s if watched else min(self._wait_s, longest_s)
        if left_s is not None:
            wait_s = min(wait_s, max(0.0, left_s))
        self._wait_s = min(self._wait_s * GROWTH, longest_s)
        if self._watch is not None:
            self._watch.wait(wait_s)
        else:
            self._woken.wait(wait_s)
        self._woken.clear()

    def wake(self) -> None:
        """Make a wait in another thread, or the next one, return at once."""
        self._woken.set()
        if self._watch is not None:
            self._watch.wake()

    def close(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
