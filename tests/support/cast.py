"""The cast of a scenario: real processes that do what they are told and answer in words."""

from __future__ import annotations

import os
import pathlib
import select
import signal
import subprocess
import sys
from contextlib import suppress
from types import TracebackType

from tests.support.channels import WAIT_S

ACTOR = pathlib.Path(__file__).with_name("actor.py")


class Role:
    """One process. Calling it with a line tells it what to do and gives its answer."""

    def __init__(self, place: pathlib.Path, **options: object) -> None:
        words = [f"place={place}", *(f"{name}={value}" for name, value in options.items())]
        self._process = subprocess.Popen(
            [sys.executable, str(ACTOR), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __call__(self, line: str) -> str:
        self.tell(line)
        return self.answer()

    def tell(self, line: str) -> None:
        """Tell it what to do, without waiting for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """What came of the last line."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], WAIT_S)
        assert ready, "it gives no answer"
        answer = self._process.stdout.readline()
        assert answer, f"it ended with {self._process.wait(WAIT_S)}"
        return answer.strip()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9"""
        self._process.kill()
        self._process.wait(WAIT_S)

    def end(self) -> None:
        """Let it leave in order; whatever does not is killed. Frozen ones are killed, too."""
        if self._process.poll() is None:
            try:
                assert self._process.stdin is not None
                self._process.stdin.close()
                self._process.wait(5.0)
            except (subprocess.TimeoutExpired, OSError):
                self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what it was told last, and never read
                    pipe.close()


class Cast:
    """Everybody in one scenario; all of them end with it.

    Attributes:
        place: the channel's directory.
    """

    def __init__(self, place: pathlib.Path) -> None:
        self.place = place
        self._roles: list[Role] = []

    def role(self, **options: object) -> Role:
        """One more process; its options are those of the actor."""
        role = Role(self.place, **options)
        self._roles.append(role)
        return role

    def steps(self) -> list[int]:
        """The steps of the versions that are in the channel now."""
        names = sorted(os.listdir(self.place / "versions")) if self.place.exists() else []
        return [int(name[9:17]) for name in names]

    def __enter__(self) -> Cast:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for role in self._roles:
            role.end()
