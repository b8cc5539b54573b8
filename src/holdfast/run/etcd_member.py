"""One member of the etcd cluster that a job carries: its process, and its place among the others.

What to start with follows from what lies in the data directory and from what the other members say:

    data, and the others list us (or nobody can say)     start as before
    data, but the others no longer list us               another took our place meanwhile: put the data aside, as below
    none, and nobody works yet                           the first start of all: a new cluster
    none, and we are listed but never were started       the first start, the others were quicker; or added just now
    none, and we are listed as one who was there         our disk is lost: that member is removed, we are added anew

A member whose disk is lost must not come back as who it was: it has forgotten what it voted for. If a majority lose
their disks at once, what was stored is lost, and members with none would begin anew: a token of the job's own keeps
them from meeting those of another job.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pathlib
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from holdfast.errors import UnavailableError, UsageError
from holdfast.rendezvous.endpoint import resolve
from holdfast.rendezvous.etcd_cluster import Cluster, Member

LOOK_S = 0.5
RESTART_S = 1.0
STOP_S = 10.0
_PR_SET_PDEATHSIG = 1
logger = logging.getLogger(__name__)


class Stop(Protocol):
    """Told to stop; a threading.Event is one."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool: ...


class Place(msgspec.Struct, frozen=True):
    """A member's name and addresses, written "name=host:peer_port:client_port"."""

    name: str
    host: str
    peer_port: int
    client_port: int

    @property
    def peer_url(self) -> str:
        return f"http://{self._host}:{self.peer_port}"

    @property
    def client_url(self) -> str:
        return f"http://{self._host}:{self.client_port}"

    @property
    def _host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def parse_place(text: str) -> Place:
    """UsageError code "bad_member"."""
    name, _, address = text.partition("=")
    host, _, ports = address.rpartition(":")
    host, _, peer = host.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (name and host and _is_port(peer) and _is_port(ports)) or "," in text or "=" in address:
        raise UsageError(f"{text!r} is no member", code="bad_member", hint="write NAME=HOST:PEER_PORT:CLIENT_PORT")
    return Place(name, host, int(peer), int(ports))


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 0 < int(text) < 65536


class EtcdMember:
    """Keeps one member running until it is told to stop.

    Args:
        binary: the etcd to run.
        places: all members; `name` is ours.
        data: our directory, which survives a restart of this process where it can.
        token: the cluster's, the same for all members and no other job.
    """

    def __init__(
        self, binary: str, places: tuple[Place, ...], name: str, data: pathlib.Path, *, token: str = "holdfast"
    ) -> None:
        own = [place for place in places if place.name == name]
        if len(own) != 1 or len({place.name for place in places}) != len(places):
            raise UsageError(
                f"{name!r} is not exactly one of the members",
                code="bad_member",
                hint=f"they are {', '.join(place.name for place in places) or 'none'}",
            )
        self._binary = binary
        self._places = places
        self._own = own[0]
        self._data = data / name
        self._token = token
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._others = Cluster(place.client_url for place in places if place.name != name)
        self._self = Cluster([self._own.client_url])
        self._served = False

    def keep(self, stop: Stop, up: Callable[[Place], None] = lambda own: None) -> int:
        """Run it until `stop`. Returns 0. `up`: called once, when it answers first and knows a leader.

        Raises:
            UsageError: code "member_runs", "no_etcd".
        """
        if self._self.answers(self._own.client_url):
            raise UsageError(
                f"a member answers at {self._own.client_url} already",
                code="member_runs",
                hint="each member runs once; stop that one, or give this one another name and ports",
            )
        while not stop.is_set():
            try:
                cluster = self._prepare()
            except UnavailableError as error:
                logger.warning("not started yet: %s", error)
                stop.wait(RESTART_S)
                continue
            process = self._start(cluster)
            try:
                self._attend(process, stop, up)
            finally:
                _end(process)
            if not stop.is_set():
                logger.warning("etcd ended with status %s; it is started again", process.returncode)
                stop.wait(RESTART_S)
        return 0

    def close(self) -> None:
        self._others.close()
        self._self.close()

    def _attend(self, process: subprocess.Popen[bytes], stop: Stop, up: Callable[[Place], None]) -> None:
        """Until it ends, or is to be stopped."""
        told = False
        while process.poll() is None and not stop.wait(LOOK_S):
            if not told and self._self.answers(self._own.client_url):
                told = True
                logger.info("member %s of the cluster is up at %s", self._own.name, self._own.client_url)
                if not self._served:
                    self._served = True
                    up(self._own)

    def _prepare(self) -> list[str]:
        """etcd's arguments that say with whom to begin. UnavailableError: the others did not let us in yet."""
        everybody = ",".join(f"{place.name}={place.peer_url}" for place in self._places)
        known = self._others.members()
        listed = None if known is None else self._listed(known)
        if (self._data / "member").is_dir():
            if known is None or (listed is not None and listed.clients):
                return ["--initial-cluster-state", "new", "--initial-cluster", everybody]
            if listed is None:
                aside = self._data.with_name(f"{self._data.name}.removed-{secrets.token_hex(4)}")
                logger.warning("the others removed this member; what it stored is put aside at %s", aside)
                self._data.rename(aside)
        if known is None or (listed is not None and listed.name and not listed.clients):
            return ["--initial-cluster-state", "new", "--initial-cluster", everybody]
        if listed is not None and listed.clients:
            logger.warning("this member's data is gone: it is replaced by a new one of the same name")
            self._others.remove(listed)
            listed = None
        if listed is None:
            self._others.add(self._own.peer_url)
        present = [member for member in known if member.name and self._own.peer_url not in member.peers]
        names = [f"{member.name}={url}" for member in present for url in member.peers]
        names.append(f"{self._own.name}={self._own.peer_url}")
        return ["--initial-cluster-state", "existing", "--initial-cluster", ",".join(names)]

    def _listed(self, known: tuple[Member, ...]) -> Member | None:
        found = [member for member in known if member.name == self._own.name or self._own.peer_url in member.peers]
        return found[0] if found else None

    def _start(self, cluster: list[str]) -> subprocess.Popen[bytes]:
        self._data.parent.mkdir(parents=True, exist_ok=True)
        self._data.mkdir(mode=0o700, exist_ok=True)
        own, address = self._own, resolve(self._own.host, self._own.peer_port)[0]
        loopback = address.startswith("127.") or address == "::1"
        everywhere = "[::]" if ":" in address else "0.0.0.0"
        listen = (f"[{address}]" if ":" in address else address) if loopback else everywhere
        command = [
            *(self._binary, "--name", own.name, "--data-dir", str(self._data)),
            *("--listen-peer-urls", f"http://{listen}:{own.peer_port}"),
            *("--listen-client-urls", f"http://{listen}:{own.client_port}"),
            *("--initial-advertise-peer-urls", own.peer_url, "--advertise-client-urls", own.client_url),
            *("--initial-cluster-token", self._token, *cluster, "--log-level", "warn"),
        ]
        parent = os.getpid()
        try:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=lambda: self._die_with(parent))  # noqa: PLW1509
        except OSError as error:
            raise UsageError(
                f"{self._binary} cannot be run: {error}", code="no_etcd", hint="give the path of etcd's binary"
            ) from error

    def _die_with(self, parent: int) -> None:
        """In the child: end when the thread that started it does, which is the main one."""
        self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has died already
            os._exit(1)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and after a while SIGKILL."""
    process.terminate()
    end_s = time.monotonic() + STOP_S
    try:
        process.wait(max(0.0, end_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
