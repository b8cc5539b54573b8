"""The process behind `holdfast control`: a job's store outside its nodes' agents.

Either it serves the embedded store by itself, on a machine that the job does not lose; or it runs one member of an
etcd cluster that the job carries, on three or five of its nodes. It ends when it is told to (SIGTERM, SIGINT), with 0.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import select
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import msgspec

from holdfast.errors import UsageError
from holdfast.rendezvous.endpoint import host_and_port
from holdfast.rendezvous.tcp import serve_tcp
from holdfast.run.etcd_member import EtcdMember, Place, Stop, parse_place

logger = logging.getLogger(__name__)


class ControlSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to run: either the embedded store at `endpoint`, or a member of an etcd cluster.

    Attributes:
        endpoint: "HOST:PORT" of the embedded store, as the agents are given it.
        etcd_binary: path of etcd's binary.
        members: all members of the cluster, each "NAME=HOST:PEER_PORT:CLIENT_PORT".
        name: which of them this is.
        data: directory for the member's data.
        token: the cluster's; the same for all its members, and for no other job. The run's name is good.
    """

    endpoint: str | None = None
    etcd_binary: str | None = None
    members: tuple[str, ...] = ()
    name: str = ""
    data: str = ""
    token: str = "holdfast"


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """What is served.

    Attributes:
        endpoint: as agents are given it; of an etcd, all members.
        address: where this process listens, "HOST:PORT".
        name: which member it is; "" of the embedded store.
    """

    endpoint: str
    address: str
    name: str = ""


def run_control(settings: ControlSettings, serves: Callable[[Where], None] = lambda where: None) -> int:
    """Run it until SIGTERM or SIGINT; the exit code. To be called in the main thread.

    Args:
        serves: called once it serves; a member of an etcd does once it knows a leader, so a majority is up.

    Raises:
        UsageError: codes of `serve_tcp`; "bad_member", "member_runs", "no_etcd", "bad_control".
    """
    if (settings.endpoint is None) == (settings.etcd_binary is None):
        raise UsageError(
            "control serves either the embedded store or a member of etcd",
            code="bad_control",
            hint="give --listen HOST:PORT, or --etcd-binary with the members",
        )
    with _stopped_by_signals() as stop:
        if settings.endpoint is not None:
            return _serve(settings.endpoint, stop, serves)
        return _member(settings, stop, serves)


def _serve(endpoint: str, stop: Stop, serves: Callable[[Where], None]) -> int:
    host, port = host_and_port(endpoint.removeprefix("tcp://"))
    server, port = serve_tcp(host, port)
    address = _address(host, port)
    logger.info("the store is served at %s", address)
    serves(Where(endpoint=address, address=address))
    stop.wait()
    del server
    return 0


def _member(settings: ControlSettings, stop: Stop, serves: Callable[[Where], None]) -> int:
    if not settings.data or not settings.etcd_binary:
        raise UsageError("a member needs a directory for its data", code="bad_control", hint="give --data")
    places = tuple(parse_place(text) for text in settings.members)
    data = pathlib.Path(settings.data)
    member = EtcdMember(settings.etcd_binary, places, settings.name, data, token=settings.token)
    with contextlib.closing(member):
        return member.keep(stop, lambda own: serves(_where(own, places)))


def _where(own: Place, places: tuple[Place, ...]) -> Where:
    everybody = ",".join(_address(place.host, place.client_port) for place in places)
    return Where(endpoint=f"etcd://{everybody}", address=_address(own.host, own.client_port), name=own.name)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[Stop]:
    stop = _Told()

    def told(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, told) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.close()


class _Told:
    """An event that a signal handler may set while this very thread waits for it, which threading.Event forbids: both
    would want its lock."""

    def __init__(self) -> None:
        self._set = False
        self._read, self._write = os.pipe()

    def set(self) -> None:
        if not self._set:
            self._set = True
            os.write(self._write, b".")

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        select.select([self._read], [], [], timeout)
        return self._set

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)
