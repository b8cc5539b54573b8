"""PublishCallback in real TRL trainers: versions reach a consumer, a lost node costs no lineage, a rival stops it."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping

import pytest

from holdfast import Channel, HeldVersion, Term
from holdfast.channel.consumer import Consumer
from holdfast.events import read_events
from holdfast.integrations.transformers import PublishCallback
from tests.integrations.small import ALL, base, lineage, llama, sums, take, tokenizer
from tests.support.etcds import LONG_S
from tests.support.jobs import Job

pytestmark = [pytest.mark.integrations, pytest.mark.timeout(300)]

SCRIPT = pathlib.Path(__file__).with_name("grpo.py")
HELD_UP_AT = 10  # the gate's step
SAVED_AT = 8  # the newest checkpoint then


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return base(tmp_path_factory.mktemp("base"))


class Scene:
    """Where one training lies, and the words of its script."""

    def __init__(self, model_path: pathlib.Path, root: pathlib.Path, steps: int) -> None:
        self.channel = Channel(root / "weights", lease_s=10.0)
        self.gate = root / "gate"
        self.gate.touch()
        self.words = [str(word) for word in (model_path, root / "out", self.channel.name, steps, self.gate)]

    def last_of(self, cycle: int) -> str:
        """The last version that this cycle's publisher made, by its own events."""
        made = [
            event.version
            for path in (pathlib.Path(self.channel.name) / "events").glob("publisher-*")
            for event in read_events(path)
            if event.event == "published"
        ]
        return max(str(version) for version in made if str(version).startswith(f"c{cycle:06d}-"))


def taken(consumer: Consumer) -> HeldVersion:
    held = consumer.take(LONG_S)
    assert held is not None
    return held


def until_step(consumer: Consumer, step: int) -> HeldVersion:
    """Take, use and let go, until that step comes."""
    while True:
        with taken(consumer) as held:
            held.acknowledge()
        if held.step == step:
            return held


def test_a_consumer_gets_what_grpo_trains_until_a_rival_stops_it(
    model_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    scene = Scene(model_path, tmp_path, steps=20)
    command = [sys.executable, str(SCRIPT), *scene.words]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as run:
        try:
            seen = []
            with scene.channel.consumer("server", every=True) as consumer:
                while HELD_UP_AT not in seen:
                    with taken(consumer) as held:
                        assert held.manifest.kind == "adapter"
                        seen.append(held.step)
            assert seen == sorted(seen)
            rival = scene.channel.publisher(ALL, term=Term(job="rival", round=0, nonce="1"), take_over=True)
            with rival:
                rival.publish_directory(3, model_path)
            scene.gate.unlink()
            _, said = run.communicate(timeout=LONG_S)
        finally:
            run.kill()
    assert run.returncode == 1
    assert "FencedError" in said.splitlines()[-1]
    assert lineage(scene.channel) == [(2, 3)]


class TrlJob(Job):
    """A job whose workers run the GRPO script."""

    scene: Scene

    def command(self, name: str, number: int, words: Mapping[str, object]) -> list[str]:
        *agent, _script, _root, _kind = super().command(name, number, words)
        return [*agent, str(SCRIPT), *self.scene.words]


def test_a_node_that_dies_costs_grpo_the_steps_since_its_checkpoint(
    model_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    scene = Scene(model_path, tmp_path, steps=16)
    with TrlJob(tmp_path / "job", spares=1) as job, scene.channel.consumer("server") as consumer:
        job.scene = scene
        job.start_first("c")  # hosts the store, and is the spare: the others come first by name
        job.start("a", "b")
        before = until_step(consumer, HELD_UP_AT)
        assert before.cycle == 1
        assert {node.node: node.group_rank for node in job.view().nodes} == {"a": 0, "b": 1, "c": None}
        job["a"].kill()  # the publisher, too
        scene.gate.unlink()
        after = taken(consumer)
        after.release()
        assert after.rewound_from == before.name  # to the checkpoint's version, or to what already came of it
        assert until_step(consumer, 16).cycle == 2
        assert (job["b"].code(), job["c"].code()) == (0, 0)
        job.assert_no_orphans()
    claims = scene.channel.observer().claims()
    assert [claim.cycle for claim in claims] == [1, 2]
    assert claims[1].starts_from is not None
    assert (claims[1].starts_from.cycle, claims[1].starts_from.step) == (1, SAVED_AT)
    assert claims[0].term.job == claims[1].term.job
    assert claims[0].term.round < claims[1].term.round


def test_a_drained_node_costs_grpo_nothing(model_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    scene = Scene(model_path, tmp_path, steps=60)
    with TrlJob(tmp_path / "job", spares=1) as job, scene.channel.consumer("server") as consumer:
        job.scene = scene
        job.start_first("c")
        job.start("a", "b")
        until_step(consumer, HELD_UP_AT)
        command = [
            sys.executable,
            "-m",
            "holdfast.cli.main",
            "drain",
            "a",
            "--endpoint",
            job.endpoint,
            "--run",
            job.run,
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as drain:
            job.wait(lambda: any(node.draining for node in job.view().nodes), "no drain is asked for")
            scene.gate.unlink()
            assert until_step(consumer, 60).cycle == 2
            said, _ = drain.communicate(timeout=LONG_S)
        assert drain.returncode == 0, said
        assert job.codes() == {"a": 0, "b": 0, "c": 0}
        job.assert_no_orphans()
    first, second = scene.channel.observer().claims()
    assert second.starts_from is not None
    last = scene.last_of(first.cycle)
    assert str(second.starts_from) == last


def test_sft(model_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    channel = Channel(tmp_path / "weights", lease_s=10.0)
    arguments = SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=4,
        per_device_train_batch_size=2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    with PublishCallback(channel, every_steps=3, retention=ALL) as publish:
        training = SFTTrainer(
            model=llama(model_path, lora=False),
            args=arguments,
            train_dataset=Dataset.from_list(sums()),
            processing_class=tokenizer(),
            callbacks=[publish],
        )
        training.train()
    assert lineage(channel) == [(1, 0), (1, 3), (1, 4)]
    assert take(channel).manifest.kind == "full"
