"""Something is killed every five seconds while the RL job trains: nothing is left behind, nothing wrong served."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
import signal
import time
from collections.abc import Iterator

import pytest
import torch

from examples.demo.main import QUICK
from examples.demo.processes import Cast
from examples.demo.stage import NODES, Options, Stage
from examples.demo.watching import Watch
from examples.rl.config import Run
from tests.demo.archive import SAME, Archive

pytestmark = [pytest.mark.demo, pytest.mark.timeout(3600)]
SOAK = os.environ.get("HOLDFAST_SOAK") == "1"
LASTS_S = 1800.0 if SOAK else 180.0
KILL_EVERY_S = 5.0
STEPS_AFTER = 5  # the training ends so many steps after the last kill
LIVES_ON = ("control", "serve-a", "sync-a")  # never killed: what they would leak has all the time to grow
GROWTH_MAX = {"descriptors": 30, "threads": 10, "megabytes": 200}


class Chaos:
    """Kills one of everything that can be killed, and starts it again as a supervisor would."""

    def __init__(self, stage: Stage, cast: Cast, seed: int) -> None:
        self._stage = stage
        self._cast = cast
        self._chance = random.Random(seed)
        self.done: list[str] = []

    def strike(self) -> None:
        kind = self._chance.choice(["node", "agent", "worker", "server", "sync", "orchestrator"])
        getattr(self, f"_{kind}")()
        self.done.append(kind)

    def _node(self) -> None:
        name = self._chance.choice(NODES)
        self._cast.now[name].kill_all()
        self._stage.start_node(name)

    def _agent(self) -> None:
        name = self._chance.choice(NODES)
        self._cast.now[name].kill()
        self._stage.start_node(name)

    def _worker(self) -> None:
        workers = self._cast.workers()
        if workers:
            os.kill(self._chance.choice(sorted(worker.pid for worker in workers.values())), signal.SIGKILL)

    def _server(self) -> None:
        self._cast.now["serve-b"].kill_all()
        self._stage.start_server("b")

    def _sync(self) -> None:
        self._cast.now["sync-b"].kill_all()
        self._stage.start_sync("b")

    def _orchestrator(self) -> None:
        self._cast.now["orchestrator"].kill_all()
        self._stage.start_orchestrator()


@pytest.fixture
def run(tmp_path: pathlib.Path) -> Run:
    _write(tmp_path, steps=1_000_000)
    return Run(tmp_path)


@pytest.fixture
def cast(run: Run) -> Iterator[Cast]:
    cast = Cast(run.root / "logs")
    yield cast
    cast.end_all()


def _write(root: pathlib.Path, *, steps: int) -> None:
    config = dataclasses.replace(QUICK, steps=steps, learning_rate=1e-4, checkpoint_every=2)
    making = root / "config.making"
    making.write_text(json.dumps(dataclasses.asdict(config)))
    making.rename(root / "config.json")


def _used(pid: int) -> dict[str, int]:
    status = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
        "megabytes": int(status["VmRSS"].split()[0]) // 1024,
    }


def test_a_kill_every_five_seconds(run: Run, cast: Cast, tmp_path: pathlib.Path) -> None:
    torch.set_num_threads(1)
    options = Options(node_options=("--restart-budget", "-1", "--node-budget", "1000000"))
    stage = Stage(run, cast, options)
    stage.make_base()
    stage.set_up()
    watch, archive = Watch(run, run.channel), Archive(run, tmp_path / "archive")

    def progress(step: int) -> bool:
        archive.look()
        return watch.reached(step)

    cast.wait_for("the first steps", lambda: progress(2))
    chaos = Chaos(stage, cast, seed=random.randrange(2**32) if SOAK else 0)
    began_s, used = time.monotonic(), {}
    while (passed_s := time.monotonic() - began_s) < LASTS_S:
        chaos.strike()
        if not used and passed_s > LASTS_S / 3:
            used = {name: _used(cast.now[name].pid) for name in LIVES_ON}
        due_s = time.monotonic() + KILL_EVERY_S
        cast.wait_for("the next kill", lambda due_s=due_s: progress(1_000_000) or time.monotonic() > due_s)  # type: ignore[misc]
    newest = watch.newest()
    assert newest is not None
    cast.wait_for("training to go on after the last kill", lambda: progress(newest.step + 1))
    grown = {
        (name, what): now - used[name][what] for name in LIVES_ON for what, now in _used(cast.now[name].pid).items()
    }
    assert {key: by for key, by in grown.items() if by > GROWTH_MAX[key[1]]} == {}, (grown, chaos.done)

    newest = watch.newest()
    assert newest is not None
    _write(run.root, steps=newest.step + STEPS_AFTER)  # read by the next round
    os.kill(cast.workers()[0].pid, signal.SIGKILL)
    for name in ("orchestrator", *NODES):
        cast.wait_for(f"{name} to end", lambda name=name: progress(1_000_000) or cast.now[name].code is not None)  # type: ignore[misc]
    archive.look()
    cast.terminate("sync-a", "sync-b", "serve-a", "serve-b", "control")
    assert cast.end_all() == [], chaos.done
    assert {process.name: process.code for process in cast.all if not process.killed and process.code} == {}
    print(f"{len(chaos.done)} kills, {newest.step + STEPS_AFTER} steps, {newest.cycle + 1} cycles; grown by {grown}")
    _nothing_lies_about(run, watch)
    _all_answers_are_of_their_versions(archive)


def _nothing_lies_about(run: Run, watch: Watch) -> None:
    """Of all the publishers, consumers and sweepers that were killed, only what is younger than a lease is left."""
    with watch.channel.sweeper(run.config.retention) as sweeper:
        sweeper.sweep()
    assert list((run.channel / "staging").iterdir()) == []
    kept = set(watch.channel.observer().versions())
    recent = [version for version in kept if version.step % run.config.checkpoint_every]
    assert len(recent) <= 8, sorted(map(str, kept))
    assert len(list(run.checkpoints.iterdir())) <= 3
    assert not list(run.root.glob("stage-*/*/staging/*"))


def _all_answers_are_of_their_versions(archive: Archive) -> None:
    groups, versions = archive.groups(), archive.versions()
    assert len({group.version for group in groups}) >= 3
    assert {group.version for group in groups} <= set(versions), "an answer by a version that never stood"
    own = archive.differences(groups, [group.version for group in groups])
    assert max(own) < SAME, [(group.version, by) for group, by in zip(groups, own, strict=True) if by >= SAME]
    first, last = versions[0], max(group.version for group in groups)
    others = archive.differences(groups, [first if group.version == last else last for group in groups])
    assert max(others) > 10 * SAME, "versions that all answer alike would prove nothing"
    served = {group.version for group in groups}
    print(f"{len(groups)} groups of answers by {len(served)} versions; at most {max(own):.1e} off")
