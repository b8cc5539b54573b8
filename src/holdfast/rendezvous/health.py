"""The health check: the user's command, which must succeed before this node joins a round. Nobody waits for it."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from contextlib import suppress

import msgspec

from holdfast.launched import one_line
from holdfast.rendezvous.guardian import AGENT_MARK, CHECK_MARK, end_marked

READ_BYTES = 1 << 16
READS_MAX = 64  # at one look, so that a command that never stops talking can't hold the agent
TAIL_BYTES = 4096
LINE_MAX = 200
KILLED_S = 0.5


class Verdict(msgspec.Struct, frozen=True):
    """What the check came to: `reason` is its exit status, and the last line of what it said."""

    ok: bool
    reason: str


class HealthCheck:
    """One command, run again and again, once at a time. Used by one thread; no call blocks.

    Args:
        command: a line for /bin/sh; None: every check succeeds.
        timeout_s: how long it may take (seconds); after that it has failed, and is ended.
        token: the agent's, so that its guardian ends a check that is under way when the agent dies.
    """

    def __init__(self, command: str | None, timeout_s: float = 60.0, *, token: str | None = None) -> None:
        self._command = command
        self._timeout_s = timeout_s
        self._mark = f"{CHECK_MARK}={token or secrets.token_hex(16)}"
        self._process: subprocess.Popen[bytes] | None = None
        self._began_s = 0.0
        self._tail = b""
        self._verdict: Verdict | None = None

    def start(self) -> None:
        """Begin a check. One that is under way goes on; a verdict that was not asked for yet is forgotten."""
        if self._process is not None:
            return
        self._verdict, self._tail, self._began_s = None, b"", time.monotonic()
        if self._command is None:
            self._verdict = Verdict(True, "there is no health check")
            return
        name, _, token = self._mark.partition("=")
        environment = {**os.environ, name: token}
        environment.pop(AGENT_MARK, None)  # a check is no worker
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", self._command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:  # ValueError: a command with a NUL
            self._verdict = Verdict(False, one_line(f"the health check cannot be started: {error}"))
            return
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def poll(self) -> Verdict | None:
        """The verdict, once, when the check is over."""
        if self._process is not None:
            self._look(self._process)
        verdict, self._verdict = self._verdict, None
        return verdict

    def cancel(self) -> None:
        """End the check, whatever it has started included. There will be no verdict."""
        if self._process is not None:
            self._end(self._process)
        self._verdict = None

    def _look(self, process: subprocess.Popen[bytes]) -> None:
        status = process.poll()
        self._read(process)
        if status is not None:
            self._end(process)
            self._verdict = Verdict(status == 0, self._said(f"the health check {_how(status)}"))
        elif time.monotonic() - self._began_s >= self._timeout_s:
            self._end(process)
            self._verdict = Verdict(False, self._said(f"the health check took longer than {self._timeout_s:g} s"))

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """Keep the end of what it said; the pipe must not fill up, or it would never end."""
        assert process.stdout is not None
        for _ in range(READS_MAX):
            try:
                part = os.read(process.stdout.fileno(), READ_BYTES)
            except BlockingIOError:
                return
            if not part:
                return
            self._tail = (self._tail + part)[-TAIL_BYTES:]

    def _said(self, what: str) -> str:
        lines = [cleaned for line in self._tail.decode("utf-8", "replace").splitlines() if (cleaned := one_line(line))]
        return f"{what}: {one_line(lines[-1], limit=LINE_MAX)}" if lines else what

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End it, its group, and what it put into sessions of their own."""
        if process.returncode is None:  # else the number may be another group's by now
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        end_marked((self._mark.encode(),), grace_s=0.0, limit_s=KILLED_S, looks=1)
        process.poll()  # what has not ended yet is reaped by the subprocess module, later
        assert process.stdout is not None
        process.stdout.close()
        self._process = None


def _how(status: int) -> str:
    if status == 0:
        return "passed"
    if status > 0:
        return f"failed with exit status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
