"""The guardian: a small process beside the agent, which ends whatever the agent leaves behind.

Workers are started by torchrun in sessions of their own, so a killed agent's workers would train on, and so would what
they started themselves. All of them carry HOLDFAST_AGENT=<token> in the environment that they were started with; the
kernel keeps that in /proc/<pid>/environ whatever becomes of their parents, groups and sessions. The guardian sleeps
until the agent's process is gone, for whatever reason, and then ends every process of this user with that mark:
SIGTERM, SIGKILL when the grace is over, and a new look until none is left. A process that was started without the
mark (`env -u HOLDFAST_AGENT …`) is let be; that is how to start what is meant to outlive its agent.

Run as a script by `python -I -S`, in a session of its own, with the standard library alone: it stays for as long as
the agent, on every node, so it must be small. `end_marked` is imported by the agent, too.

*Source*: pidfd_open(2), pidfd_send_signal(2), proc_pid_environ(5).
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

AGENT_MARK = "HOLDFAST_AGENT"  # what workers carry
CHECK_MARK = "HOLDFAST_CHECK"  # what the health check carries
DESK_PREFIX = "holdfast-desk-"
GRACE_S = 1.0
AGAIN_S = 0.02
AGAIN_S_MAX = 1.0
PARENT_LOOK_S = 0.5
# A process has no environment to be seen for an instant while it becomes another program: one look is not enough.
CLEAN_LOOKS = 3
READ_BYTES = 1 << 16


def marks(token: str) -> tuple[bytes, ...]:
    """What the processes of the agent with this token carry in their environment."""
    return f"{AGENT_MARK}={token}".encode(), f"{CHECK_MARK}={token}".encode()


def marked(wanted: tuple[bytes, ...], spared: frozenset[int] = frozenset()) -> list[int]:
    """The live processes of this user that carry one of the marks, but for this one and `spared`."""
    user = os.geteuid()
    own = os.getpid()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid = int(name)
        if pid != own and pid not in spared and _carries(pid, user, wanted):
            found.append(pid)
    return found


def _carries(pid: int, user: int, wanted: tuple[bytes, ...]) -> bool:
    try:
        if os.stat(f"/proc/{pid}").st_uid != user:
            return False
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            parts = [b""]
            while part := file.read(READ_BYTES):
                parts.append(part)
    except OSError:  # gone meanwhile, or not ours to read
        return False
    variables = b"\0" + b"".join(parts) + b"\0"
    return any(b"\0" + mark + b"\0" in variables for mark in wanted)


def end_marked(
    wanted: tuple[bytes, ...],
    spared: frozenset[int] = frozenset(),
    *,
    grace_s: float,
    limit_s: float | None = None,
    looks: int = CLEAN_LOOKS,
) -> int:
    """End all that carry one of the marks. How many there were.

    Args:
        grace_s: how long they may take after SIGTERM before they are killed (seconds); 0: they are killed at once.
        limit_s: when to stop waiting for those that SIGKILL has not ended yet (seconds); None: never.
        looks: after how many looks in a row that found nobody it is over.
    """
    began_s = time.monotonic()
    told: dict[int, int] = {}
    clean, rounds = 0, 0
    while True:
        found = marked(wanted, spared)
        clean = 0 if found else clean + 1
        spent_s = time.monotonic() - began_s
        if clean >= looks or (limit_s is not None and spent_s >= limit_s and rounds):
            return len(told)
        number = signal.SIGTERM if spent_s < grace_s else signal.SIGKILL
        if number == signal.SIGTERM and found:
            wait_s = grace_s - spent_s
        else:  # what the kernel does not let go of yet is looked for ever less often
            wait_s = min(AGAIN_S * 2 ** min(rounds, 10), AGAIN_S_MAX) if found else AGAIN_S
            rounds += 1
        handles = [handle for pid in found if (handle := _tell(pid, number, told, wanted)) >= 0]
        try:
            _await_ends(handles, wait_s if limit_s is None else min(wait_s, max(0.0, limit_s - spent_s)))
        finally:
            for handle in handles:
                os.close(handle)


def _tell(pid: int, number: int, told: dict[int, int], wanted: tuple[bytes, ...]) -> int:
    """Send the signal, once to each process. A pidfd of the process, or −1.

    The mark is read again once the pidfd is there: the signal then can't reach another process of the same number.
    """
    handle = -1
    try:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return -1
        except (OSError, AttributeError):  # an old kernel, or no descriptors left
            handle = -1
        if told.get(pid) == number or not _carries(pid, os.geteuid(), wanted):
            return handle
        if handle >= 0:
            signal.pidfd_send_signal(handle, number)
        else:
            os.kill(pid, number)
        told[pid] = number
    except OSError:  # it has ended by itself, or became another user's
        pass
    return handle


def _await_ends(handles: list[int], wait_s: float) -> None:
    """Wait until all these processes have ended, but no longer than `wait_s`."""
    if not handles:
        time.sleep(min(wait_s, AGAIN_S_MAX))
        return
    until_s = time.monotonic() + wait_s
    poll = select.poll()
    for handle in handles:
        poll.register(handle, select.POLLIN)
    left = len(handles)
    while left and (left_s := until_s - time.monotonic()) > 0:
        for handle, _ in poll.poll(left_s * 1000 + 1):
            poll.unregister(handle)
            left -= 1


def await_end_of_parent(agent: int) -> None:
    """Return once the process `agent`, which started this one, is gone. Waiting costs nothing."""
    try:
        handle = os.pidfd_open(agent)
    except ProcessLookupError:
        return
    except (OSError, AttributeError):  # an old kernel, or a sandbox that does not know the call
        while os.getppid() == agent:
            time.sleep(PARENT_LOOK_S)
        return
    if os.getppid() == agent:  # else the pidfd may be that of another process with the same number
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        while not poll.poll():
            pass
    os.close(handle)


def remove_desk(path: str) -> None:
    """Remove an agent's desk, if that is what lies there: a directory of this user's and of the right name."""
    if not os.path.basename(path).startswith(DESK_PREFIX):
        return
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            return
        for name in os.listdir(handle):
            os.unlink(name, dir_fd=handle)
        os.rmdir(path)
    except OSError:  # somebody put something else there: it is theirs
        return
    finally:
        os.close(handle)


def main(arguments: list[str]) -> int:
    """guardian.py AGENT_PID TOKEN GRACE_S DESK"""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)  # they are for the agent; what counts here is its end
    agent, token, grace_s, desk = int(arguments[0]), arguments[1], float(arguments[2]), arguments[3]
    await_end_of_parent(agent)
    ended = end_marked(marks(token), frozenset({agent}), grace_s=grace_s)
    remove_desk(desk)
    if ended:
        try:
            os.write(2, f"holdfast: agent {agent} is gone; ended {ended} processes that it left behind\n".encode())
        except OSError:  # nobody listens any more
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
