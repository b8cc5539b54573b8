"""A TCPStore of the job's own: to serve it, and to find it.

Agents start in any order, so a client asks again while nobody listens. What listens and does not prove to be the job's
store within a few seconds (a web server, a TCPStore of something else, a port that accepts and keeps silent) is said
to be none: waiting longer would only hide a wrong port.
"""

from __future__ import annotations

import contextlib
import ipaddress
import resource
import secrets
import socket
import time
from datetime import timedelta
from typing import Any

from holdfast.errors import UnavailableError, UsageError
from holdfast.rendezvous.endpoint import resolve
from holdfast.rendezvous.kv import KEY_BYTES_MAX
from holdfast.rendezvous.tcp_store import MAGIC_KEY, Patience, TcpStore
from holdfast.rendezvous.tcp_wire import Wire, WireError

BACKLOG = 4096
ATTEMPT_S = 2.0
AGAIN_S = 0.2
SERVE_S = 5.0
PATIENCE = Patience()


def serve_tcp(host: str, port: int) -> tuple[Any, int]:
    """Become the store's server, in this process, until the returned object is let go of.

    Args:
        host: as the other nodes call this machine. All its addresses are listened on; only loopback, if this is one.
        port: 0 for any that is free.

    Returns:
        torch's TCPStore, only to be kept alive, and the port.

    Raises:
        UsageError: code "port_in_use", "port_forbidden", "bad_endpoint", "no_torch"; code "torch_version": this torch
            speaks another protocol than the clients do.
    """
    try:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]
    except ImportError as error:
        raise UsageError(
            "the embedded store needs torch", code="no_torch", hint="pip install 'holdfast[torch]', or use etcd"
        ) from error
    listener, own = _listen(host, port)
    _allow_many_files()
    port = listener.getsockname()[1]
    try:
        server = TCPStore(
            own,
            port,
            None,
            is_master=True,
            timeout=timedelta(seconds=SERVE_S),
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
            use_libuv=True,
        )
    except RuntimeError as error:
        raise UsageError(f"torch cannot serve a store: {error}", code="torch_version", hint="or use etcd") from error
    magic = secrets.token_hex(16)
    server.set(MAGIC_KEY.decode().removeprefix("/"), magic)  # torch puts a slash before every key
    try:
        wire = Wire((own, port), time.monotonic() + SERVE_S)
        with contextlib.closing(wire):
            understood = wire.get(MAGIC_KEY, b"holdfast/nothing") == [magic.encode(), b""]
    except WireError:
        understood = False
    if not understood:
        raise UsageError(
            "this version of torch has a TCPStore that Holdfast does not know",
            code="torch_version",
            hint="update holdfast, or use etcd",
        )
    return server, port


def connect_tcp(host: str, port: int, prefix: str, timeout_s: float, *, patience: Patience = PATIENCE) -> TcpStore:
    """A client of the store that `serve_tcp` made at `host`; its keys lie below `prefix`.

    Args:
        timeout_s: how long to ask again while nobody listens there (seconds).

    Raises:
        UsageError: code "bad_endpoint": no such host; code "not_a_store": something else listens there.
        UnavailableError: code "store_unavailable": nobody was there in time.
    """
    if "\n" in prefix or len(prefix.encode()) > KEY_BYTES_MAX:
        raise UsageError(f"{prefix[:80]!r} is no prefix", code="bad_key", hint="one line, not too long")
    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    addresses = resolve(host, port)
    end_s = time.monotonic() + timeout_s
    stranger_since_s = None
    while True:
        began_s = time.monotonic()
        wire = None
        address = (addresses[0], port)
        try:
            wire = Wire(address, began_s + ATTEMPT_S)
            magic = wire.get(MAGIC_KEY)[0]
            if magic:
                return TcpStore(address, prefix, magic, wire, name=name, patience=patience)
            why = "it is another program's TCPStore"
        except WireError as error:
            why = str(error)
        if wire is None:
            stranger_since_s = None
            addresses = addresses[1:] + addresses[:1]
        else:
            wire.close()
            stranger_since_s = began_s if stranger_since_s is None else stranger_since_s
        now_s = time.monotonic()
        if stranger_since_s is not None and (now_s - stranger_since_s > patience.stranger_s or now_s >= end_s):
            raise UsageError(
                f"what listens at {name} is no store of Holdfast: {why}",
                code="not_a_store",
                hint="give all nodes the same --rdzv-endpoint, with a port that nothing else uses",
            )
        if now_s >= end_s:
            raise UnavailableError(
                f"no store at {name} after {timeout_s:g} s: {why}",
                code="store_unavailable",
                hint="is the node that serves it up, and is the port open?",
            )
        time.sleep(min(AGAIN_S, max(0.0, end_s - now_s)))


def _listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A listening socket, and the address by which this process itself reaches it."""
    own = resolve(host, port)[0]
    if host == "localhost" or _is_loopback(host):  # a name may lead to loopback on this machine alone
        family, reach, bind = (socket.AF_INET6 if ":" in own else socket.AF_INET), own, own
    elif socket.has_dualstack_ipv6():
        family, reach, bind = socket.AF_INET6, "127.0.0.1", "::"
    else:
        family, reach, bind = socket.AF_INET, "127.0.0.1", "0.0.0.0"
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bind == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((bind, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if isinstance(error, PermissionError):
            raise UsageError(
                f"port {port} may not be used", code="port_forbidden", hint="take one above 1023"
            ) from error
        raise UsageError(
            f"port {port} is in use on this machine: {error.strerror or error}",
            code="port_in_use",
            hint=f"see who has it with `ss -ltnp 'sport = :{port}'`, or give another port to all nodes",
        ) from error
    return listener, reach


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _allow_many_files() -> None:
    """Every client is an open file of the server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # some systems forbid even this
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
