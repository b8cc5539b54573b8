"""What drives a deterministic run: a clock, a source of names, and beats that happen when they are told to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from holdfast.testing import PowerCut


class Hand:
    """See `conftest.hand`. `now_s` is what every process's clock says."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._life = 0
        self._drawn = 0
        self._functions: dict[object, Callable[[], None]] = {}
        self._live: dict[object, Callable[[], None]] = {}

    def begin(self, life: int) -> None:
        """The machine starts for the `life`-th time: the clock begins anew, names are drawn as in no life before."""
        self.now_s = 1000.0
        self._life = life
        self._drawn = 0
        self._functions.clear()
        self._live.clear()

    def draw(self, num_bytes: int = 8) -> str:
        """A name that was not drawn before; the same draw of the same life gives the same one."""
        self._drawn += 1
        return hashlib.sha256(b"%d %d" % (self._life, self._drawn)).hexdigest()[: 2 * num_bytes]

    def wait(self, left_s: float | None) -> None:
        """Somebody waits until the next look: a second passes, or what is left."""
        self.now_s += 1.0 if left_s is None else min(1.0, max(0.0, left_s))

    # Beats. The first parameter is the Beater.

    def remember(self, beater: object, arguments: tuple[Any, ...]) -> None:
        """A Beater was made with these arguments; one of them is what it calls."""
        (self._functions[beater],) = (given for given in arguments if callable(given))

    def start(self, beater: object) -> None:
        self._live[beater] = self._functions[beater]

    def stop(self, beater: object) -> None:
        self._live.pop(beater, None)

    def beat(self) -> None:
        """Everybody who is alive beats once; who turns out to be dead never again."""
        for beater, beat in tuple(self._live.items()):
            try:
                beat()
            except PowerCut:
                del self._live[beater]
