"""Waking early on changes made on this machine, by inotify; polling stays the truth.

Notification never crosses machines, so it is offered for local file systems only: on a network mount a watch
would wake for one's own changes and miss all others. `open_watch` gives None wherever it can't work, which is
no error.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.channel.storage import Watch

LOCAL = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "jfs", "tmpfs", "ramfs", "overlay"}
)
_CURRENT = "CURRENT"
_CYCLES = "cycles"


def open_watch(root: str) -> Watch | None:
    """A watch on CURRENT and on new claims below `root`, or None: no inotify, no such directory, not a local mount."""
    if file_system(root) not in LOCAL:
        return None
    try:
        import inotify_simple
    except ImportError:
        return None
    try:
        return InotifyWatch(root, inotify_simple)
    except OSError:  # the user's inotify instances or watches are used up, or the directory has gone
        return None


def file_system(path: str) -> str:
    """The type of the file system at `path` as the kernel names it ("ext4", "nfs4"), or "" where it can't be told."""
    try:
        device = os.stat(path).st_dev
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mounts = [_mount(line) for line in file]
    except OSError:
        return ""
    number = f"{os.major(device)}:{os.minor(device)}"
    for mounted, _, kind in reversed(mounts):
        if mounted == number:
            return kind
    real = os.path.realpath(path) + "/"  # btrfs: a file's device number is in no mount's line
    above = [(len(point), kind) for _, point, kind in mounts if real.startswith(point.rstrip("/") + "/")]
    return max(above)[1] if above else ""


def _mount(line: str) -> tuple[str, str, str]:
    """Device number, mount point and type from `36 35 98:0 /root /mnt rw,noatime shared:1 - ext3 /dev/x rw`."""
    fields = line.split()
    return fields[2], fields[4].replace("\\040", " "), fields[fields.index("-", 6) + 1]


class InotifyWatch:
    """One inotify instance on the root and on cycles/. Waiting costs nothing; `wake` works from any thread.

    Raises:
        OSError: on opening, when the kernel gives no instance or watch.
    """

    def __init__(self, root: str, inotify_simple: Any) -> None:
        flags = inotify_simple.flags
        self._cycles = os.path.join(root, _CYCLES)
        self._root_mask = flags.MOVED_TO | flags.CREATE | flags.ONLYDIR
        self._cycles_mask = flags.MOVED_TO | flags.CREATE | flags.ONLYDIR
        self._lock = threading.Lock()
        self._inotify = inotify_simple.INotify()
        try:
            self._root_watch = self._inotify.add_watch(root, self._root_mask)
            self._watch_cycles()
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            self._inotify.close()
            raise
        self._closed = False

    def _watch_cycles(self) -> None:
        try:
            self._inotify.add_watch(self._cycles, self._cycles_mask)
        except FileNotFoundError:
            pass  # added when it is made

    def wait(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._inotify.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            left_s = deadline - time.monotonic()
            ready = [fd for fd, _ in poll.poll(max(0.0, left_s) * 1000)]
            if self._wake in ready:
                os.eventfd_read(self._wake)
                return True
            if ready and self._matters():
                return True
            if left_s <= 0:
                return False

    def _matters(self) -> bool:
        """Whether an event that is waiting is one to look for: CURRENT, a claim, or that events were lost."""
        changed = False
        for event in self._inotify.read(timeout=0):
            if event.wd == self._root_watch and event.name == _CYCLES:
                self._watch_cycles()
                changed = True
            elif event.wd == self._root_watch:
                changed |= event.name == _CURRENT
            else:
                changed |= event.wd < 0 or event.name.endswith(".json")
        return changed

    def wake(self) -> None:
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Idempotent. A wait() in another thread must have returned: wake it first."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._inotify.close()
                os.close(self._wake)
