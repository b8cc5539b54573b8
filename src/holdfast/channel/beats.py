"""A thread that beats: calls one function again and again until it is stopped."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from holdfast.errors import HoldfastError

logger = logging.getLogger(__name__)


def clock_s() -> float:
    """The own clock (seconds): never set back, and it runs on while the machine is suspended where it can tell."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Beater:
    """Calls `beat` again and again in a thread of its own, so that long work elsewhere doesn't look dead.

    An error of the storage is logged and the next beat tried as usual: whether the silence counts is for others to say.
    """

    def __init__(self, name: str, beat: Callable[[], None]) -> None:
        self._beat = beat
        self._interval_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self, interval_s: float) -> None:
        """Begin; `interval_s` seconds between two beats."""
        self._interval_s = interval_s
        self._thread.start()

    def stop(self) -> None:
        """Stop and wait for a beat under way; idempotent."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self._beat()
            except HoldfastError as error:
                logger.warning("beat failed: %s", error, extra={"code": error.code})
