"""What a node finds out about its machine: a free port, the address by which others reach it, a name of its own."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import ipaddress
import os
import pathlib
import secrets
import socket
import stat
import tempfile
from collections.abc import Collection

from holdfast.core.membership import NAME_MAX, check_name
from holdfast.errors import UsageError
from holdfast.rendezvous.endpoint import look_up

EPHEMERAL_TRIES = 100
SLOTS_MAX = 1000
BEYOND = ("192.0.2.1", 9)  # RFC 5737: nobody's; nothing is sent, the kernel only says from where it would be

_slots: dict[str, int] = {}  # name -> descriptor, locked until this process ends


def free_port(address: str, port_range: tuple[int, int] | None, avoid: Collection[int] = ()) -> int:
    """A port on which workers of this machine can listen now.

    Looked for on all addresses, since torch's store listens on all of them. Somebody else may still be quicker: then
    the workers fail, and the next round has another port.

    Args:
        address: this node's, for the message.
        port_range: both ends included; begun at another place each time. None: any port.
        avoid: ports that will not do.

    Raises:
        UsageError: code "no_port": none is free.
    """
    if port_range is None:
        for _ in range(EPHEMERAL_TRIES):
            port = _listen(0)
            if port and port not in avoid:
                return port
        raise UsageError(f"{address} has no free port", code="no_port", hint="give --port-range")
    low, high = port_range
    size = high - low + 1
    first = secrets.randbelow(max(size, 1))
    for offset in range(size):
        port = low + (first + offset) % size
        if port not in avoid and _listen(port):
            return port
    raise UsageError(
        f"{address} has no free port from {low} to {high}",
        code="no_port",
        hint="give --port-range a larger range, or see what listens there with `ss -ltn`",
    )


def _listen(port: int) -> int:
    """Listen on `port` of all addresses for an instant (0: the kernel chooses). The port, or 0 if it is taken."""
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger don't count
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                probe.bind((address, port))
                probe.listen(1)
                return int(probe.getsockname()[1])
        except OSError as error:
            if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT):
                continue  # no IPv6 here
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return 0
            raise
    return 0


def local_address(host: str, port: int) -> str:
    """The address of this machine from which it reaches `host`: there its workers can be reached, too.

    Loopback if `host` is written as loopback. A name that only this machine resolves to loopback (as many have their
    own in /etc/hosts) stands for the machine: the address of its default route, if it has one.

    Raises:
        UsageError: code "bad_endpoint": no such host; "no_address": no way there.
    """
    for family, _, _, _, towards in look_up(host, port, socket.SOCK_DGRAM):
        source = _source(family, towards)
        if source is None:
            continue
        if _is_loopback(source) and not _says_loopback(host):
            return _source(socket.AF_INET, BEYOND) or source
        return source
    raise UsageError(f"this machine has no way to {host}", code="no_address", hint="give --address")


def _source(family: int, towards: tuple[object, ...]) -> str | None:
    """The address that the kernel would send from; connecting a UDP socket sends nothing."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(towards)
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _says_loopback(host: str) -> bool:
    try:
        return _is_loopback(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def node_name(
    given: str | None, run: str, *, host: str | None = None, directory: str | os.PathLike[str] | None = None
) -> str:
    """A name that no other node of the run has: `given`, else the host's; more agents on it are host-2, host-3, …

    A number is an agent's own until its process ends, however it ends; one that is restarted gets the free number.

    Args:
        host: the host's name as the scheduler knows it (SLURMD_NODENAME); None: its own.
        directory: where the numbers are taken; None: this user's own directory below that for temporary files.

    Raises:
        UsageError: code "bad_name"; "bad_directory": the directory is not this user's alone. Give --node.
    """
    if given is not None:
        return check_name(given)
    base = _name_of(host or socket.gethostname())
    root = pathlib.Path(directory) if directory is not None else _private_directory()
    digest = hashlib.sha256(f"{run}\0{base}".encode()).hexdigest()[:24]
    for number in range(1, SLOTS_MAX + 1):
        path = root / f"node-{digest}-{number}"
        handle = _lock(path)
        if handle is not None:
            name = base if number == 1 else f"{base}-{number}"
            _slots[str(path)] = handle
            return check_name(name)
    raise UsageError(f"{SLOTS_MAX} agents run on {base}", code="bad_name", hint="give --node")


def _name_of(host: str) -> str:
    """The host's name, as far as it can stand in a key; room is left for a number."""
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c in "-_.:") else "-" for c in host)
    return cleaned[: NAME_MAX - len(f"-{SLOTS_MAX}")] or "node"


def _private_directory() -> pathlib.Path:
    path = pathlib.Path(tempfile.gettempdir()) / f"holdfast-{os.geteuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", code="bad_directory", hint="give --node, or TMPDIR") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise UsageError(f"{path} is not this user's alone", code="bad_directory", hint="remove it, or give --node")
    return path


def _lock(path: pathlib.Path) -> int | None:
    """A descriptor that holds the lock on `path`; None: somebody else does. Programs that are started don't get it."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", code="bad_directory", hint="give --node, or TMPDIR") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_ino == os.stat(path).st_ino:
            return handle
    except (BlockingIOError, FileNotFoundError):  # held, or cleaned away in this very moment
        pass
    os.close(handle)
    return None
