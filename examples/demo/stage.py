"""Who takes part, with which command: the same commands that users give, on one machine."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import random
import shutil
import socket
import sys
from contextlib import suppress

import holdfast
from examples.demo.processes import ROOT, Cast, DemoFailed
from examples.rl.config import ADAPTER, Run

NODES = ("node-0", "node-1", "node-2")
HOSTS = ("a", "b")
MEMBERS = ("m0", "m1", "m2")
RESIDENTS = 16
MEASURE_S = 5.0
LINGER_S = 5.0  # a slow client may ask for a version's name this long after a newer one was served
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
VLLM_OPTIONS = (
    *("--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--max-model-len", "32", "--max-num-seqs", "64"),
    *("--enable-lora", "--max-lora-rank", "8", "--max-loras", "4", "--max-cpu-loras", str(RESIDENTS)),
)
VLLM_ENVIRONMENT = (
    *("VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1", "VLLM_HOST_IP=127.0.0.1", "VLLM_LOOPBACK_IP=127.0.0.1"),
    *("GLOO_SOCKET_IFNAME=lo", "VLLM_CPU_KVCACHE_SPACE=1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the demo was told.

    Attributes:
        engine: "serve" or "vllm".
        store: "tcp" or "etcd": where the trainer's nodes keep their job.
        lease_s: after which silence a trainer's node counts as lost (seconds); None: as `holdfast run` has it.
        node_options: further words for `holdfast run`.
        trainer_channel, server_channel: where trainers and servers see the channel, if they mount it separately.
    """

    engine: str = "serve"
    store: str = "tcp"
    node_options: tuple[str, ...] = ()
    lease_s: float | None = None
    trainer_channel: pathlib.Path | None = None
    server_channel: pathlib.Path | None = None


class Stage:
    """The processes of one run by their names: control, node-N, serve-X, sync-X, orchestrator."""

    def __init__(self, run: Run, cast: Cast, options: Options) -> None:
        self.run = run
        self.cast = cast
        self.options = options
        self.trainer_channel = options.trainer_channel or run.channel
        self.server_channel = options.server_channel or run.channel
        members = [f"{member}.{use}" for member in MEMBERS for use in ("peers", "clients")]
        names = [*HOSTS, *(f"sync-{host}" for host in HOSTS), "control", *members]
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.control = f"127.0.0.1:{self._ports['control']}"
        if options.store == "etcd":
            self.control = "etcd://" + ",".join(f"127.0.0.1:{self._ports[f'{member}.clients']}" for member in MEMBERS)

    def make_base(self) -> None:
        made = self.cast.start("base", sys.executable, "-m", "examples.rl.base", self.run.root)
        self.cast.wait_for("the base model", lambda: made.code == 0)

    def measure(self) -> None:
        """How late either mount sees what the other one does: without it, everybody goes by 90 s."""
        self.cast.start("doctor-write", *_holdfast("doctor", self.trainer_channel, "--write"))
        self.cast.start("doctor-read", *_holdfast("doctor", self.server_channel, "--read", "--seconds", MEASURE_S))
        self.cast.wait_for_ends("doctor-write", "doctor-read")

    def start_store(self) -> None:
        if self.options.store == "tcp":
            self.cast.start("control", *_holdfast("control", "--listen", self.control))
            # The first agent on the store's host would carry it if nobody else did.
            self.cast.wait_for("the store", lambda: _listens(self._ports["control"]))
        for member in MEMBERS if self.options.store == "etcd" else ():
            self.start_member(member)

    def start_member(self, name: str) -> None:
        binary = shutil.which("etcd")
        if binary is None:
            raise DemoFailed("there is no etcd: install it (Debian: etcd-server), or take STORE=tcp")
        members = [f"--member={m}=127.0.0.1:{self._ports[f'{m}.peers']}:{self._ports[f'{m}.clients']}" for m in MEMBERS]
        data = self.run.root / "etcd" / name
        words = ("control", "--etcd-binary", binary, "--name", name, *members, "--data", data, "--token", "demo")
        self.cast.start(f"control-{name}", *_holdfast(*words))

    @property
    def controls(self) -> list[str]:
        return ["control"] if self.options.store == "tcp" else [f"control-{member}" for member in MEMBERS]

    def start_node(self, name: str) -> None:
        job = ("--nnodes", 2, "--spares", 1, "--control", self.control, "--node", name)
        job += () if self.options.lease_s is None else ("--lease", self.options.lease_s)
        events = ("--events", f"{self.trainer_channel}/events/")
        script = ("-m", "examples.rl.trainer", self.run.root, "--channel", self.trainer_channel)
        self.cast.start(name, *_holdfast("run", *job, *events, *self.options.node_options, *script))

    def start_server(self, host: str) -> None:
        base, port = self.run.base, self._ports[host]
        if self.options.engine == "serve":
            serve = _holdfast("serve", base, "--port", port, "--served-model-name", "base")
        else:
            python = os.environ.get("HOLDFAST_VLLM_PYTHON") or VLLM_PYTHON
            module = (python, "-m", "vllm.entrypoints.openai.api_server")
            model = ("--model", base, "--served-model-name", "base", "--port", port)
            serve = ("env", *VLLM_ENVIRONMENT, *module, *model, *VLLM_OPTIONS)
        self.cast.start(f"serve-{host}", *serve)

    def start_sync(self, host: str) -> None:
        where = (
            "--url",
            f"http://127.0.0.1:{self._ports[host]}",
            "--listen",
            f"127.0.0.1:{self._ports[f'sync-{host}']}",
        )
        which = ("--name", f"sync-{host}", "--adapter", ADAPTER, "--stage", self.run.root / f"stage-{host}")
        policy = ("--linger", LINGER_S, "--residents", RESIDENTS)
        self.cast.start(f"sync-{host}", *_holdfast("sync", self.server_channel, *where, *which, *policy))

    def start_orchestrator(self) -> None:
        urls = [word for url in self.sync_urls for word in ("--sync", url)]
        words = (self.run.root, *urls, "--channel", self.server_channel)
        self.cast.start("orchestrator", sys.executable, "-m", "examples.rl.orchestrator", *words)

    @property
    def sync_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{self._ports[f'sync-{host}']}" for host in HOSTS]

    def set_up(self) -> None:
        """Everybody, in an order that a job manager would not care about."""
        holdfast.Channel(self.trainer_channel).open(create=True)
        if self.server_channel != self.trainer_channel:
            self.measure()
        self.start_store()
        for name in NODES:
            self.start_node(name)
        for host in HOSTS:
            self.start_server(host)
            self.start_sync(host)
        self.start_orchestrator()


def _holdfast(*words: object) -> tuple[object, ...]:
    return (sys.executable, "-m", "holdfast.cli.main", *words)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now; below those that the kernel gives to connections."""
    ports: list[int] = []
    while len(ports) < number:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports += [port] if port not in ports else []
    return ports
