"""Whole jobs for tests: real agents in processes of their own, with real workers, to kill, freeze and tell what to do.

Nothing here waits for a time to pass: everything waits for something to be seen, and gives up after LONG_S.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from holdfast.events import Event, read_events
from holdfast.rendezvous.open import open_store
from holdfast.rendezvous.view import JobView, Viewer, attempt_keys
from tests.support.etcds import LONG_S, free_ports

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAINER = ROOT / "tests" / "support" / "trainer.py"
JOB_NAME = "TEST_JOB"
LIFE_NAME = "TEST_LIFE"


class Life:
    """One agent and all that it starts: workers, guardian. Attributes: `name` of the node; `process` of the agent."""

    def __init__(self, job: Job, name: str, number: int, command: list[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self.tag = f"{name}.{number}"
        self.log = job.root / f"{self.tag}.log"
        self._job = job
        environment = {**environment, JOB_NAME: job.id, LIFE_NAME: self.tag}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    @property
    def events_path(self) -> pathlib.Path:
        return self._job.root / f"{self.tag}.jsonl"

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def said(self) -> list[str]:
        """What Holdfast itself has said to people, line by line."""
        return [line for line in self.output.splitlines() if line.startswith("holdfast: ")]

    def events(self) -> list[Event]:
        return read_events(self.events_path) if self.events_path.exists() else []

    def last(self, event: str) -> Event | None:
        return next((each for each in reversed(self.events()) if each.event == event), None)

    def wait_for(self, event: str, reason: str = "") -> Event:
        """Until it has written this event, with these words in its reason."""
        found: list[Event] = []

        def look() -> bool:
            found[:] = [each for each in self.events() if each.event == event and reason in each.reason]
            return bool(found)

        self._job.wait(look, f"{self.tag}: no event {event} {reason}")
        return found[-1]

    def pids(self) -> list[int]:
        """Its processes that live, zombies aside."""
        return [pid for pid, tag in self._job.processes().items() if tag == self.tag]

    def workers(self) -> list[int]:
        """The processes of its workers."""
        mine = set(self.pids())
        return sorted({line["pid"] for line in self._job.lines("began") if line["node"] == self.name} & mine)

    def signal_all(self, number: int) -> None:
        """All its processes, those too that it starts meanwhile."""
        told: set[int] = set()
        while new := [pid for pid in self.pids() if pid not in told]:
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            told.update(new)

    def kill(self) -> None:
        """The node is gone: agent, workers and guardian, at once."""
        self.signal_all(signal.SIGSTOP)
        self.signal_all(signal.SIGKILL)
        self.process.wait(LONG_S)
        self._job.wait(lambda: not self.pids(), f"{self.tag} does not die")

    def kill_agent(self) -> None:
        """The agent alone."""
        self.process.kill()
        self.process.wait(LONG_S)

    def kill_workers(self) -> None:
        for pid in self.workers():
            os.kill(pid, signal.SIGKILL)

    def freeze(self) -> None:
        self.signal_all(signal.SIGSTOP)

    def wake(self) -> None:
        self.signal_all(signal.SIGCONT)

    def terminate(self, number: int = signal.SIGTERM) -> None:
        os.kill(self.process.pid, number)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def code(self, timeout_s: float = LONG_S) -> int:
        """Its exit code, negative for a signal, once it has ended."""
        self._job.wait(self.ended, f"{self.tag} does not end", timeout_s)
        assert self.process.returncode is not None
        return self.process.returncode


class Job:
    """A job below `root`. Context manager: ends whatever is left of it, and shows what its agents have written.

    Args:
        endpoint: of its store; None: a port on this machine, which its first agent is to serve.
        nnodes, workers: MAX or MIN:MAX nodes, with so many workers each.
        torch: whether workers use gloo; else they start at once and do not wait for each other.
        launcher: "torchrun" or "holdfast" (holdfast run).
        max_restarts: torchrun's own; None: its default.
        words: for all nodes, as --rdzv-conf takes them.
    """

    def __init__(
        self,
        root: pathlib.Path,
        *,
        endpoint: str | None = None,
        nnodes: str = "2",
        workers: int = 1,
        torch: bool = True,
        launcher: str = "torchrun",
        max_restarts: int | None = 1000,
        run: str = "job",
        **words: object,
    ) -> None:
        self.root = root
        self.id = secrets.token_hex(8)
        self.run = run
        self.endpoint = endpoint or f"127.0.0.1:{free_ports(1)[0]}"
        self.lives: dict[str, Life] = {}
        self._nnodes, self._workers, self._torch = nnodes, workers, torch
        self._launcher, self._max_restarts = launcher, max_restarts
        self._words = words
        self._orders: list[dict[str, Any]] = []
        (root / "said").mkdir(parents=True)
        self._write_orders()

    # Agents

    def start(self, *names: str, environment: Mapping[str, str] | None = None, **words: Any) -> None:
        """Start an agent for each of these nodes; a name may be used again."""
        for name in names:
            number = sum(tag.rpartition(".")[0] == name for tag in self.lives)
            life = Life(self, name, number, self.command(name, number, words), self._environment(environment or {}))
            self.lives[life.tag] = life

    def start_first(self, name: str, **words: Any) -> None:
        """Start an agent and wait until it coordinates: of an embedded store, it is the host."""
        self.start(name, **words)
        self[name].wait_for("coordinator")

    def __getitem__(self, name: str) -> Life:
        """The latest life of this node."""
        return [life for life in self.lives.values() if life.name == name][-1]

    def command(self, name: str, number: int, words: Mapping[str, object]) -> list[str]:
        said: dict[str, object] = {"node": name, "events": self.root / f"{name}.{number}.jsonl", **self._words, **words}
        nnodes = str(said.pop("nnodes", self._nnodes))
        endpoint = str(said.pop("endpoint", self.endpoint))
        max_restarts = said.pop("max_restarts", self._max_restarts)
        flags = [f"--nnodes={nnodes}", f"--nproc-per-node={self._workers}", f"--rdzv-id={self.run}"]
        script = [str(TRAINER), str(self.root), "gloo" if self._torch else "plain"]
        if self._launcher == "holdfast":
            ours = [f"--{word.replace('_', '-')}={value}" for word, value in said.items()]
            binary = str(pathlib.Path(sys.executable).with_name("holdfast"))
            return [binary, "run", f"--control={endpoint}", *flags, *ours, *script]
        if max_restarts is not None:
            flags.append(f"--max-restarts={max_restarts}")
        conf = ",".join(f"{word}={value}" for word, value in said.items())
        return [
            *(sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=holdfast"),
            *(f"--rdzv-endpoint={endpoint}", f"--rdzv-conf={conf}", *flags, *script),
        ]

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        ours = ("HOLDFAST_", "SLURM_", "TORCH", "GROUP_", "RANK", "WORLD_", "MASTER_", "LOCAL_", "PYTEST_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return {
            **kept,
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(part for part in (str(ROOT), kept.get("PYTHONPATH")) if part),
            **more,
        }

    # Workers

    def order(self, do: str, **what: object) -> None:
        """Tell workers what to do; see tests/support/trainer.py."""
        self._orders.append({"do": do, **what})
        self._write_orders()

    def withdraw(self, do: str) -> None:
        self._orders = [order for order in self._orders if order["do"] != do]
        self._write_orders()

    def _write_orders(self) -> None:
        new = self.root / "orders.new"
        new.write_text(json.dumps(self._orders))
        new.replace(self.root / "orders.json")

    def lines(self, what: str, **like: object) -> list[dict[str, Any]]:
        """What workers have said, in the order of time."""
        like = {"what": what, **like}
        lines = [
            json.loads(text)
            for path in (self.root / "said").iterdir()
            for text in path.read_text().splitlines(keepends=True)
            if text.endswith("\n") and f'"{what}"' in text
        ]
        found = [line for line in lines if all(line[name] == value for name, value in like.items())]
        return sorted(found, key=lambda line: float(line["time"]))

    def rounds(self) -> dict[int, dict[str, int]]:
        """Round -> the group rank of each node of which workers have begun in it."""
        rounds: dict[int, dict[str, int]] = {}
        for line in self.lines("began"):
            rounds.setdefault(line["round"], {})[line["node"]] = int(line["told"]["GROUP_RANK"])
        return rounds

    def wait_for_round(self, ranks: Mapping[str, int], *, after: int = 0) -> int:
        """Until a round later than `after` runs with exactly these nodes in these group ranks. Its number."""
        found: list[int] = []

        def look() -> bool:
            rounds = self.rounds()
            found[:] = [number for number, seen in rounds.items() if number > after and seen == dict(ranks)]
            assert found or not all(life.ended() for life in self.lives.values()), "all agents have ended"
            return bool(found)

        self.wait(look, f"no round {dict(ranks)} after round {after}")
        number, world = max(found), len(ranks) * self._workers
        self.wait(lambda: len(self.lines("began", round=number)) >= world, f"not all workers of round {number} begin")
        began = self.lines("began", round=number)
        assert sorted((line["rank"], line["world"]) for line in began) == [(rank, world) for rank in range(world)]
        return number

    def wait_for_steps(self, more: int = 5) -> None:
        """Until the newest round has gone on by so many steps."""
        number = max(self.rounds())
        taken = len(self.lines("step", round=number))
        self.wait(lambda: len(self.lines("step", round=number)) >= taken + more, "training does not go on")

    def wait_for_line(self, what: str, **like: object) -> dict[str, Any]:
        """Until a worker has said this."""
        self.wait(lambda: bool(self.lines(what, **like)), f"no worker says {what} {like}")
        return self.lines(what, **like)[-1]

    # All of it

    def view(self) -> JobView:
        """What the store says of it."""
        with contextlib.closing(open_store(self.endpoint, self.run, timeout_s=LONG_S, compact=False)) as store:
            return Viewer(store, attempt_keys(store, None)).look()

    def wait_for_members(self, number: int) -> None:
        """Until so many have come and not left."""
        here = ("parked", "ready", "running")
        self.wait(lambda: sum(node.state in here for node in self.view().nodes) == number, f"no {number} members")

    def wait(self, found: Callable[[], bool], what: str, timeout_s: float = LONG_S) -> None:
        end_s = time.monotonic() + timeout_s
        pause = threading.Event()
        while not found():
            assert time.monotonic() < end_s, what
            pause.wait(0.05)

    def codes(self) -> dict[str, int]:
        """Every node's exit code, of its latest life."""
        return {name: self[name].code() for name in sorted({life.name for life in self.lives.values()})}

    def processes(self) -> dict[int, str]:
        """Processes of this job that live -> the life that they are of; zombies aside."""
        found: dict[int, str] = {}
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "environ").read_bytes().split(b"\0")
                tag = next(
                    (word.partition(b"=")[2] for word in words if word.startswith(LIFE_NAME.encode() + b"=")), b""
                )
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if f"{JOB_NAME}={self.id}".encode() in words and state not in "ZX":
                    found[int(entry.name)] = tag.decode()
        return found

    def assert_no_orphans(self) -> None:
        """All agents have ended, and nothing of them lives."""
        assert all(life.ended() for life in self.lives.values())
        self.wait(lambda: not self.processes(), "processes are left")

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: object) -> None:
        left = self.processes()
        while now := self.processes():
            for pid in now:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for life in self.lives.values():
                life.process.poll()
        for life in self.lives.values():
            life.process.wait(LONG_S)
        self._show(left)

    def _show(self, left: Mapping[int, str]) -> None:
        """For whoever reads the report of a test that failed."""
        print(f"\n=== job {self.root}: still running at the end: {dict(left) or 'nothing'}")
        print(f"=== rounds {self.rounds()}")
        for life in self.lives.values():
            print(f"\n=== {life.tag}: exit code {life.process.returncode}")
            for event in life.events():
                print(f"  {event.time} {event.event} {event.reason} {event.fields or ''}")
            print(*(f"  | {line}" for line in life.output.splitlines()[-60:]), sep="\n")
