"""The part of `make bench` about membership: three agents that lose a worker or a node, and crowds on one TCPStore.

Beside `torchrun --rdzv-backend=c10d` (its store unshared, as that recovers), and beside NVRx where HOLDFAST_FT_LAUNCHER
names its `ft_launcher`.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import pathlib
import resource
import secrets
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from holdfast.core.member import Entered, Rang
from holdfast.core.membership import Node, Policy
from holdfast.events import EventLog
from holdfast.rendezvous.agent import Agent
from holdfast.rendezvous.clerk import Clerk
from holdfast.rendezvous.kv import KeyValueStore
from holdfast.rendezvous.local import Local
from holdfast.rendezvous.settings import Settings
from holdfast.rendezvous.tcp import connect_tcp, serve_tcp
from holdfast.rendezvous.words import Round

Row = tuple[str, str, str, str]
LIMIT_S = 90.0
RUN = "bench"
# A worker that says when it began, and then reduces, so that it notices a lost peer, until it is told to end.
WORKER = """
import json, os, pathlib, sys, time
began = time.time()
place = pathlib.Path(sys.argv[1])
(place / f"began-{os.getpid()}").write_text(json.dumps({"began": began, "agent": os.getppid()}))
import torch
torch.distributed.init_process_group("gloo")
(place / f"trains-{os.getpid()}").touch()
flag = torch.zeros(1)
while not flag.item():
    flag.fill_((place / "done").exists())
    torch.distributed.all_reduce(flag)
    time.sleep(0.01)
(place / f"ended-{os.getpid()}").write_text(str(time.time()))
os._exit(0)
"""


def measures(pairs: int) -> dict[str, Callable[[], list[Row]]]:
    runs = max(5, pairs)
    return {
        "membership: failover": lambda: failovers(runs),
        "membership: crowds": lambda: [*crowd(1024, 2), *crowd(10_000, 4)],
        "membership: a parked spare": parked,
    }


class _Trio:
    """Three agents on one machine: two seats and a spare."""

    def __init__(self, kind: str, place: pathlib.Path) -> None:
        self.place = place
        (place / "worker.py").write_text(WORKER)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = ["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", RUN, "--nnodes", "2", "--nproc-per-node", "1"]
        script = [str(place / "worker.py"), str(place)]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--max-restarts", "1000"]
        commands = {
            "holdfast": [*torchrun, "--rdzv-backend", "holdfast", *common, *script],
            "c10d": [*torchrun, "--rdzv-backend", "c10d", *common, *script],
            "nvrx": [
                *shlex.split(os.environ.get("HOLDFAST_FT_LAUNCHER", "ft_launcher")),
                *("--rdzv-backend", "c10d", "--max-restarts", "1000"),
                *common,
                *script,
            ],
        }
        environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        self.agents = []
        for _ in range(3):
            self.agents.append(
                subprocess.Popen(
                    commands[kind],
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
            if len(self.agents) == 1:  # the first is the host of the store, and not the one to be killed
                time.sleep(2.0)

    def workers(self) -> dict[int, dict[str, Any]]:
        found = {}
        for path in self.place.glob("began-*"):
            with suppress(ValueError):
                found[int(path.name.partition("-")[2])] = json.loads(path.read_text())
        return found

    def wait(self, seen: set[int], count: int) -> list[float]:
        """When `count` workers that are not in `seen` began."""
        end_s = time.monotonic() + LIMIT_S
        while time.monotonic() < end_s:
            new = {pid: worker["began"] for pid, worker in self.workers().items() if pid not in seen}
            if len(new) >= count:
                return sorted(new.values())
            time.sleep(0.005)
        return [float("nan")]

    def end(self) -> None:
        for agent in self.agents:
            with suppress(ProcessLookupError):
                agent.kill()
            agent.wait()
        for pid in self.workers():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def _trio(kind: str) -> Iterator[_Trio]:
    with tempfile.TemporaryDirectory() as place:
        trio = _Trio(kind, pathlib.Path(place))
        try:
            yield trio
        finally:
            trio.end()


def _until(found: Callable[[], bool]) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not found() and time.monotonic() < end_s:
        time.sleep(0.01)


def _lose(kind: str, *, node: bool) -> float:
    """Seconds from the kill of a worker, or of a node that is not the store's host, to the first new worker."""
    with _trio(kind) as trio:
        trio.wait(set(), 2)
        _until(lambda: len(list(trio.place.glob("trains-*"))) >= 2)
        before = trio.workers()
        others = [pid for pid, worker in before.items() if worker["agent"] != trio.agents[0].pid]
        if not others:  # it did not start
            return float("nan")
        victim = others[0]
        killed = time.time()
        if node:
            os.kill(before[victim]["agent"], signal.SIGKILL)
        os.kill(victim, signal.SIGKILL)
        return trio.wait(set(before), 1)[0] - killed


def _succeed(kind: str) -> float:
    """Seconds from the end of the last worker to the exit of the last agent."""
    with _trio(kind) as trio:
        trio.wait(set(), 2)
        _until(lambda: len(list(trio.place.glob("trains-*"))) >= 2)
        (trio.place / "done").touch()
        for agent in trio.agents:
            agent.wait(LIMIT_S)
        exited = time.time()
        return exited - max(float(path.read_text()) for path in trio.place.glob("ended-*"))


def failovers(runs: int) -> list[Row]:
    rivals = ["c10d"] + (["nvrx"] if "HOLDFAST_FT_LAUNCHER" in os.environ else [])
    cases: list[tuple[str, Callable[[str], float], str]] = [
        ("worker killed → first new worker", lambda kind: _lose(kind, node=False), "≤ 1.0 s"),
        ("agent and worker killed → first new worker", lambda kind: _lose(kind, node=True), "≤ 1.5 s"),
        ("workers' success → last exit", _succeed, "≤ 1 s"),
    ]
    rows = []
    for what, measure, target in cases:
        times = sorted(measure("holdfast") for _ in range(runs))
        beside = {kind: statistics.median(measure(kind) for _ in range(3)) for kind in rivals}
        mine = statistics.median(times)
        others = ", ".join(f"{kind} {value:.1f} s ({mine / value:.2f}×)" for kind, value in beside.items())
        rows.append((what, f"{mine:.2f} s", f"{times[0]:.2f} … {times[-1]:.2f} s; {others}", target))
    return rows


# Crowds: agents by the hundred in each process, driven by one thread and sharing one connection


class _Counting:
    """A store that counts the calls of a round, and, apart from them, those that are made at rest, too: looks that find
    nothing new, beats that say nothing new, looks at the coordinator's beat."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self._said: dict[str, bytes] = {}
        self.reset()

    def reset(self) -> None:
        self.calls = 0
        self.rest = 0
        self.kinds: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if not callable(value) or name in ("watch", "close", "tidy"):
            return value

        def counted(*args: Any) -> Any:
            result = value(*args)
            self.kinds[name] = self.kinds.get(name, 0) + 1
            if (
                (name == "newer" and result is None)
                or (name == "get_listed" and len(args[1]) == 1)
                or (name == "put_listed" and not self._is_news(args[1], args[2]))
            ):
                self.rest += 1
            else:
                self.calls += 1
            return result

        return counted

    def _is_news(self, name: str, beat: bytes) -> bool:
        said = beat.partition(b",")[2]  # all but the count
        news = said != self._said.get(name)
        self._said[name] = said
        return news


def _crowd_part(port: int, part: int, size: int, policy: Policy, pipe: Any) -> None:
    """`size` agents. Says when all are seated, restarts them when told, and counts what they asked of the store."""
    store = _Counting(connect_tcp("127.0.0.1", port, RUN, 30.0))
    agents = [_clerk(store, f"n{part:02d}-{index:05d}", policy)[0] for index in range(size)]
    for agent in agents:
        agent.tell(Entered())
    waiting = set(range(size))
    arrived_s = None
    while True:
        now_s = time.monotonic()
        for index, agent in enumerate(agents):
            if agent.due_s > now_s:
                continue
            agent.turn()
            if index in waiting:
                if isinstance(agent.word(wait=False), Round):
                    waiting.discard(index)
                    if not waiting:
                        pipe.send(("seated", time.time(), arrived_s, store.calls, store.rest, store.kinds))
            elif agent.rings:
                agent.tell(Rang())
                agent.tell(Entered())
                agent.turn()
                if not waiting:
                    store.reset()
                waiting.add(index)
                if len(waiting) == size:
                    arrived_s = time.time()
        if pipe.poll():
            if pipe.recv() == "stop":
                return
            store.reset()
            agents[0].tell(Entered(failed=True))  # the workers of one node have failed
            agents[0].turn()
            waiting.add(0)
        time.sleep(0.001)


def crowd(size: int, processes: int) -> list[Row]:
    """All of a crowd restart at once: from the last arrival until all are seated."""
    server, port = serve_tcp("127.0.0.1", 0)
    policy = Policy(min_nodes=size, max_nodes=size, last_call_s=60.0, stop_s=120.0)
    context = mp.get_context("spawn")
    parts = []
    for part in range(processes):
        ours, theirs = context.Pipe()
        share = size // processes + (1 if part < size % processes else 0)
        process = context.Process(target=_crowd_part, args=(port, part, share, policy, theirs))
        process.start()
        parts.append((process, ours))
    try:
        for _, pipe in parts:
            pipe.recv()
        took, whole, calls, rest = [], [], [], []
        for _ in range(3):
            began_s = time.time()
            parts[0][1].send("restart")
            said = [pipe.recv() for _, pipe in parts]
            took.append(max(word[1] for word in said) - max(word[2] for word in said))
            whole.append(max(word[1] for word in said) - began_s)
            calls.append(sum(word[3] for word in said) / size)
            rest.append(sum(word[4] for word in said) / size)
        for _, pipe in parts:
            pipe.send("stop")
    finally:
        for process, _ in parts:
            process.join(20)
            process.kill()
    bare_s = statistics.median(_bare(port, context, [word[5] for word in said]) for _ in range(3))
    took_s = statistics.median(took)
    whole_s = statistics.median(whole)
    del server
    return [
        (
            f"{size} restart at once: last arrival → all seated",
            f"{took_s:.2f} s",
            f"{min(took):.2f} … {max(took):.2f} s",
            "≤ 1.5 s" if size < 5000 else "",
        ),
        (
            f"{size}: first failure → all seated, beside bare clients with the same store calls",
            f"{whole_s / bare_s:.2f}×",
            f"{whole_s:.2f} s, {bare_s:.2f} s",
            "≤ 1.5×",
        ),
        (
            f"store calls per node and round, {size} nodes",
            f"{statistics.median(calls):.1f}",
            f"and {statistics.median(rest):.1f} at rest",
            "≤ 8",
        ),
    ]


def _bare(port: int, context: Any, kinds: list[dict[str, int]]) -> float:
    """The same store calls, as often and by as many processes, by clients that do nothing else (seconds)."""
    parts = []
    for part, counts in enumerate(kinds):
        ours, theirs = context.Pipe()
        process = context.Process(target=_bare_part, args=(port, part, counts, theirs))
        process.start()
        parts.append((process, ours))
    for _, pipe in parts:
        pipe.recv()
    began_s = time.monotonic()
    for _, pipe in parts:
        pipe.send("go")
    for _, pipe in parts:
        pipe.recv()
    took_s = time.monotonic() - began_s
    for process, _ in parts:
        process.join(10)
    return took_s


def _bare_part(port: int, part: int, counts: dict[str, int], pipe: Any) -> None:
    store = connect_tcp("127.0.0.1", port, f"bare-{secrets.token_hex(4)}", 10.0)
    cell = store.compare_and_set("control", 0, b"x" * 600)
    beat = b"y" * 150
    names = [f"n{part}-{index}" for index in range(2000)]
    for name in names:
        store.put_listed("beats", name, beat)
    store.put({"head": b"z" * 200})
    calls: dict[str, Callable[[int], object]] = {
        "put_listed": lambda index: store.put_listed("beats", names[index % 2000], beat),
        "get_listed": lambda index: store.get_listed("beats", [names[index % 2000]]),
        "newer": lambda index: store.newer("control", cell.revision),
        "get": lambda index: store.get(["head", f"seats/{index}"]),
    }
    pipe.send("ready")
    pipe.recv()
    for name, call in calls.items():
        for index in range(counts.get(name, 0)):
            call(index)
    pipe.send("done")


def _clerk(store: Any, name: str, policy: Policy) -> tuple[Clerk, Local]:
    node = Node(node=name, incarnation="0", address="127.0.0.1")
    local = Local(Settings(), node, secrets.token_hex(4))
    events = EventLog(None, "bench")
    return Clerk(store, node, local, run=RUN, attempt=None, policy=policy, server=None, events=events), local


def parked(seconds: float = 20.0) -> list[Row]:
    """A parked spare: share of a core."""
    server, port = serve_tcp("127.0.0.1", 0)
    policy = Policy(min_nodes=1, max_nodes=1)
    context = mp.get_context("spawn")
    ends = []
    for name in ("active", "spare"):
        ours, theirs = context.Pipe()
        process = context.Process(target=_one, args=(port, name, policy, seconds, theirs))
        process.start()
        ends.append((process, ours))
        if name == "active":
            ours.recv()  # it has its seat
    share = ends[1][1].recv()
    for process, _ in ends:
        process.kill()
        process.join()
    del server
    return [("a parked spare, share of a core", f"{100 * share:.2f} %", f"over {seconds:.0f} s", "≤ 1 %")]


def _one(port: int, name: str, policy: Policy, seconds: float, pipe: Any) -> None:
    """One agent of its own process; says when it has a seat, or what it takes while it has none."""
    clerk, local = _clerk(connect_tcp("127.0.0.1", port, RUN, 10.0), name, policy)
    agent = Agent(RUN, clerk, local)
    if name == "active":
        agent.next_round(failed=False)
        pipe.send("seated")
        time.sleep(10 * seconds)
        return
    threading.Thread(target=agent.next_round, kwargs={"failed": False}, daemon=True).start()
    time.sleep(2.0)
    before = resource.getrusage(resource.RUSAGE_SELF)
    time.sleep(seconds)
    after = resource.getrusage(resource.RUSAGE_SELF)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    pipe.send(used_s / seconds)
    time.sleep(10 * seconds)
