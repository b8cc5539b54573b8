"""What breaks while the job trains. Each fault is done to the real processes from outside; none of them helps along."""

from __future__ import annotations

import datetime as dt
import json
import pathlib
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import msgspec
from inotify_simple import INotify, flags

from examples.demo.processes import LOOK_S, Cast, DemoFailed, Worker, freeze, is_there, tree, wake
from examples.demo.stage import Stage
from examples.demo.watching import Watch
from holdfast.channel.checking import stable_text
from holdfast.core.names import Version
from holdfast.events import Event, EventLog

WEIGHTS = "adapter_model.safetensors"
PLANTED = "00bad0"
T = TypeVar("T")
PAUSE_S = 0.3
STALL_S = 5.0  # at least; a clean-up that keeps the two newest versions would have deleted what is held much earlier


class Faults:
    """Breaks the job, one fault after the other, and looks whether it goes on. Each gives one line: what was survived.

    Raises:
        DemoFailed: it was not.
    """

    def __init__(self, stage: Stage, cast: Cast, watch: Watch, events: EventLog) -> None:
        self._stage = stage
        self._cast = cast
        self._watch = watch
        self._events = events
        self.planted = ""
        self.later: list[Callable[[], str]] = []  # what is only seen in the end

    def at(self, name: str) -> Callable[[], str]:
        return {
            "server": self.server,
            "kill": self.kill,
            "stall": self.stall,
            "corrupt": self.corrupt,
            "zombie": self.zombie,
            "member": self.member,
        }[name]

    def server(self) -> str:
        """An inference server is killed; a supervisor starts it again. Sync fills it anew; clients ask the other."""
        self._say("kill -9 of inference server b", "serve-b")
        self._cast.now["serve-b"].kill_all()
        mark, killed = self._watch.mark, dt.datetime.now(dt.UTC)
        self._stage.start_server("b")
        self.later.append(lambda: self._full_again(mark, killed))  # vLLM takes a minute, and training goes on
        return "inference server killed, and started again"

    def _full_again(self, mark: int, killed: dt.datetime) -> str:
        (ready, *_) = self._cast.wait_for("server b to serve the newest weights again", lambda: self._serves(mark))
        took = dt.datetime.fromisoformat(ready.time) - killed
        return (
            f"the inference server that was killed served the newest weights again after {took.total_seconds():.1f} s"
        )

    def kill(self) -> str:
        """The node of rank 0 dies in the middle of a publish, all of its processes at once; later it comes back."""
        worker, torn = self._caught_publishing()
        agent = self._cast.now[worker.node]
        self._say(f"kill -9 of {worker.node}, agent and workers, in the middle of a publish ({torn})", worker.node)
        killed_s, mark = time.monotonic(), self._watch.mark
        agent.kill_all()
        told = self._next_cycle(mark, killed_s)
        self._stage.start_node(worker.node)  # a machine that was repaired: it is parked as a spare
        return f"{worker.node} killed in the middle of a publish: {told}"

    def zombie(self) -> str:
        """The node of rank 0 freezes in the middle of a publish, is replaced, and wakes up: its worker first of all."""
        worker, _ = self._caught_publishing()
        others = [pid for pid in tree(self._cast.now[worker.node].pid) if pid != worker.pid]
        freeze(others)
        self._say(f"{worker.node} is frozen in the middle of a publish", worker.node)
        frozen_s, mark = time.monotonic(), self._watch.mark
        told = self._next_cycle(mark, frozen_s)
        before = self._newest()
        self._say("the frozen trainer wakes up, and goes on publishing: a zombie", worker.node)
        wake([worker.pid])
        self._wait_for(
            "the zombie to be fenced", lambda: not is_there(worker.pid) or self._watch.events("fenced", since=mark)
        )
        wake([*others, worker.pid])
        self._wait_for("the zombie's worker to be gone", lambda: not is_there(worker.pid))
        if not self._watch.events("fenced", since=mark):
            raise DemoFailed("the zombie ended without having been told that it was fenced")
        after = self._newest()
        if after.cycle != before.cycle or after.step < before.step:
            raise DemoFailed(f"the zombie was heard: {before}, then {after}")
        return f"{worker.node} frozen in the middle of a publish, replaced and woken: {told}; the zombie was fenced"

    def stall(self) -> str:
        """The orchestrator hangs while the trainer goes on; what it held is still there when it comes back."""
        pid = self._cast.now["orchestrator"].pid
        held = self._stalled()
        self._say("the orchestrator is stalled", "orchestrator")
        stalled_s = time.monotonic()
        self._wait_for("two newer versions", lambda: self._num_newer(held) >= 2)
        time.sleep(max(0.0, STALL_S - (time.monotonic() - stalled_s)))  # how long it hangs: nothing is waited for
        newer, there = self._num_newer(held), str(held) in self._watch.there()
        wake([pid])
        if not there:
            raise DemoFailed(f"{held} was swept, although the orchestrator held it")
        took_s = time.monotonic() - stalled_s
        return f"orchestrator stalled for {took_s:.1f} s: its version was kept, although {newer} newer ones came"

    def corrupt(self) -> str:
        """A version with a wrong bit is planted as the newest of all. No server may ever load it."""
        newest = self._newest()
        self.planted = str(_plant(self._stage.trainer_channel / "versions", newest))
        self._say(f"a version with a wrong bit is planted: {self.planted}", "storage")
        mark = self._watch.mark
        self._wait_for("versions to go on beyond the planted one", lambda: len(self._watch.published(since=mark)) >= 2)
        return f"corrupted version planted ({self.planted})"

    def member(self) -> str:
        """One of the three members of the store dies, etcd and its keeper; it is started again."""
        self._say("kill -9 of one of three etcd members", "control-m1")
        self._cast.now["control-m1"].kill_all()
        step = min(self._newest().step + 3, self._stage.run.config.steps)
        self._wait_for("training to go on", lambda: self._watch.reached(step))
        self._stage.start_member("m1")
        return "etcd member killed: training went on, and it was started again"

    # What several of them do

    def _say(self, text: str, target: str) -> None:
        self._cast.say(text)
        self._events.emit("fault", text, target=target)

    def _wait_for(self, what: str, condition: Callable[[], T]) -> T:
        """As the cast does, but not beyond the end of the training: after that nothing would be survived."""
        return self._cast.wait_for(what, lambda: condition() or self._not_over(what))

    def _not_over(self, what: str) -> None:
        if self._cast.now["orchestrator"].code is not None:
            raise DemoFailed(f"the training was over before {what}")

    def _newest(self) -> Version:
        newest = self._watch.newest()
        assert newest is not None, "faults begin when training has"
        return newest

    def _caught_publishing(self) -> tuple[Worker, str]:
        """Rank 0's process, stopped between two writes of a publish, at a step after that of the newest checkpoint."""
        every = self._stage.run.config.checkpoint_every
        staging = self._stage.trainer_channel / "staging"
        until_s = time.monotonic() + self._cast.limit_s
        while time.monotonic() < until_s:
            self._not_over("a publish could be caught")
            worker = self._cast.workers().get(0)
            if worker is None or not self._watch.reached(1):
                time.sleep(LOOK_S)
                continue
            with INotify() as inotify:
                inotify.add_watch(str(staging), flags.CREATE)
                made = [event.name for event in inotify.read(timeout=5000)]
                for name in made:
                    with suppress(FileNotFoundError):
                        inotify.add_watch(str(staging / name), flags.CREATE | flags.MODIFY)
                inotify.read(timeout=5)  # until something is in it
            freeze([worker.pid])
            cycle = f"c{self._newest().cycle:06d}-"
            for name in made:
                if name.startswith(cycle) and (staging / name).is_dir() and self._newest().step % every > 0:
                    return worker, _contents(staging / name)
            wake([worker.pid])
        raise DemoFailed("rank 0 was never caught in the middle of a publish")

    def _next_cycle(self, mark: int, lost_s: float) -> str:
        """Wait until another trainer has published; how long each part took."""
        watch = self._watch
        self._wait_for("a round without the lost node", lambda: watch.events("round_committed", since=mark))
        committed_s = time.monotonic() - lost_s
        self._wait_for("the next trainer's claim", lambda: watch.events("claimed", since=mark))
        claimed_s = time.monotonic() - lost_s
        cycle = self._wait_for("its cycle", lambda: watch.events("claimed", since=mark)[0].fields.get("cycle"))
        self._wait_for(
            "its first version", lambda: any(version.cycle == cycle for version in watch.published(since=mark))
        )
        published_s = time.monotonic() - lost_s
        return (
            f"new round after {committed_s:.1f} s, training again after {claimed_s:.1f} s, "
            f"next version after {published_s:.1f} s"
        )

    def _serves(self, mark: int) -> list[Event]:
        """What server b is said to serve, proved, since `mark`."""
        told = self._watch.events("server_state", since=mark)
        return [event for event in told if "sync-b" in event.process and event.fields.get("state") == "ready"]

    def _num_newer(self, held: Version) -> int:
        return sum((version.cycle, version.step) > (held.cycle, held.step) for version in self._watch.published())

    def _stalled(self) -> Version:
        """Stops the orchestrator when it has work in store and holds a version that is soon to be swept: that one.

        The trainers are held up until then: on a busy machine they use up each batch as soon as it is there.
        """
        every, orchestrator = self._stage.run.config.checkpoint_every, self._cast.now["orchestrator"].pid
        while True:
            self._not_over("the orchestrator had work in store")
            workers = [worker.pid for worker in self._cast.workers().values()]
            freeze(workers)
            newest = self._newest()
            if newest.step % every:
                self._wait_for("work in store", lambda newest=newest: self._num_ready(newest) >= 2)  # type: ignore[misc]
                freeze([orchestrator])
            if newest.step % every and self._watch.held_by("orchestrator") == {str(newest)}:
                wake(workers)
                return newest
            wake([*workers, orchestrator])
            time.sleep(PAUSE_S)

    def _num_ready(self, newest: Version) -> int:
        done = self._batches_done(newest)
        return sum(int(path.stem) >= done for path in self._stage.run.batches.glob("*.json"))

    def _batches_done(self, version: Version) -> int:
        path = self._stage.trainer_channel / "versions" / str(version) / "manifest.json"
        return int(json.loads(path.read_text())["metadata"]["batch"])


def _plant(versions: pathlib.Path, newest: Version) -> Version:
    """A copy of the newest version as that of the next step, whole in every respect but one bit of its weights."""
    planted = msgspec.structs.replace(newest, step=newest.step + 1, nonce=PLANTED)
    making = versions.parent / "staging" / "planted"
    with suppress(FileNotFoundError):
        shutil.rmtree(making)
    shutil.copytree(versions / str(newest), making)
    manifest = json.loads((making / "manifest.json").read_text())
    manifest |= {"version": str(planted), "step": planted.step, "parent": str(newest)}
    text = json.dumps(manifest).encode()
    (making / "manifest.json").write_bytes(text)
    (making / "STABLE").write_bytes(stable_text(text))
    weights = bytearray((making / WEIGHTS).read_bytes())
    weights[len(weights) // 2] ^= 1
    (making / WEIGHTS).write_bytes(weights)
    making.rename(versions / str(planted))
    return planted


def _contents(directory: pathlib.Path) -> str:
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return ", ".join(f"{path.name}: {path.stat().st_size:,} bytes" for path in files) or "nothing written yet"
