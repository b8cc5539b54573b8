"""A channel under prime-rl's broadcaster: its side of the trainer, and a reader that behaves as its watcher does."""

from __future__ import annotations

import pathlib
import shutil
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from examples.recipes.prime_rl import ThroughChannel
from holdfast import Channel, FencedError, Retention, Term
from tests.support.channels import until

KEPT_LONG = Retention(keep_recent=1, min_age_s=3600.0)
SHAPE = (64, 64)


class Broadcast:
    """prime-rl's `FileSystemWeightBroadcast`: each step into broadcasts/step_N, then a word that it is there."""

    def __init__(self, output_dir: pathlib.Path) -> None:
        self.output_dir = output_dir
        self.world = SimpleNamespace(is_master=True)

    def broadcast_weights(self, step: int) -> None:
        save_dir = self.output_dir / "broadcasts" / f"step_{step}"
        save_dir.mkdir(parents=True, exist_ok=True)
        for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
            save_file({name[:11]: np.full(SHAPE, step, dtype=np.float32)}, save_dir / name)
        (save_dir / "model.safetensors.index.json").write_text("{}")
        self._notify_orchestrator(save_dir)

    def _notify_orchestrator(self, save_dir: pathlib.Path) -> None:
        (save_dir / "STABLE").touch()


class Watcher:
    """prime-rl's `WeightWatcher`: again and again the newest step that has a STABLE, if it is newer than the last."""

    def __init__(self, output_dir: pathlib.Path, name: str = "") -> None:
        self.directory = output_dir / "broadcasts"
        self.loaded: dict[int, set[float]] = {}  # step -> every value that its tensors have
        self.step = -1
        self._says = f"LOADED_STEP-{name}" if name else ""

    def poll(self) -> int:
        steps = sorted((int(path.name.split("_")[-1]) for path in self.directory.glob("step_*")), reverse=True)
        newest = next((step for step in steps if (self.directory / f"step_{step}" / "STABLE").exists()), -1)
        if newest > self.step:
            self.step = newest
            tensors = [load_file(path) for path in sorted((self.directory / f"step_{newest}").glob("*.safetensors"))]
            assert len(tensors) == 2
            self.loaded[newest] = {float(value) for each in tensors for t in each.values() for value in np.unique(t)}
            if self._says:
                (self.directory / self._says).write_text(f"{newest}\n")
        return self.step


@pytest.fixture
def job(tmp_path: pathlib.Path) -> Iterator[Job]:
    job = Job(tmp_path / "outputs")
    yield job
    job.end()


class Job:
    """The runs of one job after each other, in one output directory."""

    def __init__(self, output_dir: pathlib.Path) -> None:
        output_dir.mkdir()
        self.output_dir = output_dir
        self.channel = Channel(output_dir / "weights")
        self._rounds: list[ThroughChannel] = []

    def trainer(self, retention: Retention = KEPT_LONG) -> ChannelBroadcast:
        """The next run's broadcaster, as its trainer makes it."""
        options = {"retention": retention, "term": Term(job="prime", round=len(self._rounds), nonce="0")}
        trainer: ChannelBroadcast = type("Configured", (ChannelBroadcast,), options)(self.output_dir)
        self._rounds.append(trainer)
        return trainer

    def steps(self) -> list[int]:
        return sorted(version.step for version in self.channel.observer().versions())

    def end(self) -> None:
        for trainer in self._rounds:
            trainer.publisher.close()


class ChannelBroadcast(ThroughChannel, Broadcast):
    """What docs/recipes/prime-rl.md makes of the two."""


def test_a_watcher_beside_a_live_publisher_loads_whole_versions_in_order(job: Job) -> None:
    trainer, watcher = job.trainer(), Watcher(job.output_dir)
    last = 30

    def publish() -> None:
        for step in range(last + 1):
            trainer.broadcast_weights(step)

    thread = threading.Thread(target=publish)
    thread.start()
    until(lambda: watcher.poll() == last)
    thread.join()
    assert watcher.loaded == {step: {float(step)} for step in watcher.loaded}
    assert list(watcher.loaded) == sorted(watcher.loaded)
    assert list((job.output_dir / "outbox" / "broadcasts").iterdir()) == []


def test_what_a_watcher_has_seen_stays_for_min_age(job: Job) -> None:
    trainer, watcher = job.trainer(KEPT_LONG), Watcher(job.output_dir)
    trainer.broadcast_weights(0)
    watcher.poll()
    for step in range(1, 5):
        trainer.broadcast_weights(step)
    trainer.publisher.close()
    with job.channel.sweeper(KEPT_LONG) as sweeper:
        swept = sweeper.sweep()
    assert swept.removed == ()
    assert [reason for name, reason in sorted(swept.reasons.items())][:4] == ["kept: younger than 3600 s"] * 4
    with job.channel.sweeper(Retention(keep_recent=1)) as sweeper:
        assert len(sweeper.sweep().removed) == 4


def test_without_min_age_nothing_protects_a_watcher(job: Job) -> None:
    trainer, watcher = job.trainer(Retention(keep_recent=1)), Watcher(job.output_dir)
    trainer.broadcast_weights(0)
    watcher.poll()
    trainer.broadcast_weights(1)
    until(lambda: job.steps() == [1])
    watcher.poll()
    assert list(watcher.loaded) == [0, 1]


def test_what_a_watcher_says_it_has_loaded_stays_while_newer_ones_come_and_go(job: Job) -> None:
    trainer, watcher = job.trainer(Retention(keep_recent=1)), Watcher(job.output_dir, "rollout")
    trainer.broadcast_weights(0)
    watcher.poll()
    for step in range(1, 5):
        trainer.broadcast_weights(step)
    until(lambda: job.steps() == [0, 4])
    watcher.poll()
    until(lambda: job.steps() == [4])


def test_a_restarted_trainer_has_links_of_its_own_and_the_replaced_one_reaches_nobody(job: Job) -> None:
    first = job.trainer()
    for step in range(4):
        first.broadcast_weights(step)
    second = job.trainer()
    second.broadcast_weights(2)  # the first act of a prime-rl trainer is to broadcast what it resumed from
    with pytest.raises(FencedError):
        first.broadcast_weights(4)
    watcher = Watcher(job.output_dir)
    watcher.poll()
    assert watcher.loaded == {2: {2.0}}
    assert [path.name for path in (job.output_dir / "broadcasts").iterdir()] == ["step_2"]


def test_nobody_deletes_a_version_through_its_link(job: Job) -> None:
    trainer = job.trainer()
    trainer.broadcast_weights(0)
    link = job.output_dir / "broadcasts" / "step_0"
    with pytest.raises(OSError, match="symbolic link"):
        shutil.rmtree(link)
    trainer.maybe_clean(2, None)
    assert (link / "STABLE").exists()
    assert job.steps() == [0]
