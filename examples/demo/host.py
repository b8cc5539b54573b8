"""An inference host as main sees it: a model server, the `sync` that feeds it, and a client that asks it."""

from __future__ import annotations

import pathlib
import re
import signal
from collections.abc import Mapping

from examples.demo.asking import PROMPTS, Refused, Server
from examples.demo.cast import Cast, Process
from examples.demo.process import Said

RESIDENTS = 64  # as many versions as can be published while a name lingers
_URL = re.compile(r"(?:serving .* at|listening on) (http://\S+)$", re.MULTILINE)


class Host:
    """`name` is its client's and, in the channel, its sync's. `stage`: where sync keeps copies; "off": in place."""

    def __init__(self, cast: Cast, name: str, stage: str | pathlib.Path) -> None:
        self.name = name
        self._stage = stage
        self._cast = cast
        self.server = cast.start(f"serve-{name[-1]}", "command", "serve", cast.places.base, "--port", 0)

    def start_sync(self) -> None:
        where = ["--url", _url(self.server), "--listen", "127.0.0.1:0", "--stage", self._stage, "--adapter", "demo"]
        patience = ["--linger", self._cast.places.read_plan().linger_s, "--residents", RESIDENTS]
        words = ["sync", self._cast.places.channel, "--name", self.name, *where, *patience]
        self.sync = self._cast.start(f"sync-{self.name[-1]}", "command", *words)

    def start_client(self) -> None:
        self.client = self._cast.start(self.name, "inference", self.name, _url(self.sync))

    @property
    def processes(self) -> tuple[Process, Process, Process]:
        return self.sync, self.server, self.client

    def used(self, cycle: int, step: int) -> list[Said]:
        """The versions of this cycle, at this step or later, that its client has measured."""
        return [said for said in self.client.said("used") if said.cycle == cycle and said.step >= step]

    def freeze(self) -> None:
        for process in self.processes:
            process.signal(signal.SIGSTOP)
        self._cast.wait_for(
            f"the host of {self.name} to be frozen", lambda: all(p.is_stopped() for p in self.processes)
        )

    def wake(self) -> None:
        """Server and client first: what the client finds is what was there when they were frozen, before sync acts."""
        for process in (self.server, self.client):
            process.signal(signal.SIGCONT)
        self._cast.wait_for(f"{self.name} to look at what it had", lambda: self.client.said("woke"))
        self.sync.signal(signal.SIGCONT)

    def serves_as_before(self) -> str:
        """The version that its client measured last, if the server's answer is still the one that the client got."""
        last = self.client.said("used")[-1]
        try:
            answers = tuple(Server(last.url).complete(last.model, prompt) for prompt in PROMPTS)
        except (Refused, OSError):
            return ""
        return last.version if answers == last.completions else ""


def start_hosts(cast: Cast, stages: Mapping[str, str | pathlib.Path]) -> list[Host]:
    """Hosts of these names, each with its stage, all ready to follow the channel."""
    hosts = [Host(cast, name, stage) for name, stage in stages.items()]
    cast.wait_for("the model servers to be up", lambda: all(_url(host.server) for host in hosts))
    for host in hosts:
        host.start_sync()
    cast.wait_for("sync to be up", lambda: all(_url(host.sync) for host in hosts))
    for host in hosts:
        host.start_client()
    cast.wait_for("the clients to be up", lambda: all(host.client.said("ready") for host in hosts))
    return hosts


def _url(process: Process) -> str:
    """Where the process listens, as it says itself; "" before."""
    found = _URL.search(process.log.read_text(errors="replace"))
    return found[1] if found else ""
