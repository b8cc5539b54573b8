"""PublishCallback in a plain transformers.Trainer: what is published when, what a checkpoint knows, who is refused."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import distributed
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from holdfast import Channel, FencedError, Term, UnavailableError, UsageError
from holdfast.channel.ops import RealOps
from holdfast.channel.posix import PosixStorage
from holdfast.events import read_events
from holdfast.integrations.transformers import PublishCallback, check_whole, last_checkpoint
from holdfast.launched import worker_environment
from holdfast.testing.faults import FaultyOps
from tests.integrations.small import ALL, Halt, Halted, base, lineage, llama, settings, take, trainer
from tests.support.etcds import LONG_S, free_ports, until

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = pathlib.Path(__file__).with_name("plain.py")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def channel(tmp_path: pathlib.Path) -> Channel:
    return Channel(tmp_path / "weights", lease_s=5.0)


@pytest.mark.parametrize("wait", [True, False])
def test_an_adapter_is_published_at_the_start_at_every_nth_step_and_at_the_end(
    model_path: pathlib.Path, channel: Channel, tmp_path: pathlib.Path, wait: bool
) -> None:
    publish = PublishCallback(channel, every_steps=4, retention=ALL, wait=wait, metadata=lambda s: {"epoch": s.epoch})
    model = llama(model_path)
    trainer(model, settings(tmp_path / "out"), publish).train()
    assert lineage(channel) == [(1, 0), (1, 4), (1, 6)]
    held = take(channel)
    assert held.manifest.kind == "adapter"
    assert held.manifest.metadata == {"epoch": 6 / 50}
    served = PeftModel.from_pretrained(llama(model_path, lora=False), held.path)
    tokens = torch.arange(4, 12)[None]
    model.eval()
    assert torch.equal(served(tokens).logits, model(tokens).logits)


def test_what_the_trainer_logs_is_measured(model_path: pathlib.Path, channel: Channel, tmp_path: pathlib.Path) -> None:
    publish = PublishCallback(channel, every_steps=100, measured=("loss", "grad_norm", "nothing_of_that_name"))
    training = trainer(llama(model_path), settings(tmp_path / "out", max_steps=3, logging_steps=1), publish)
    training.train()
    (path,) = (pathlib.Path(channel.name) / "events").glob("trainer-*")
    events = read_events(path)
    assert {(event.event, event.process) for event in events} == {("measured", "trainer")}
    logged = [line for line in training.state.log_history if "loss" in line]
    assert [event.fields for event in events] == [
        {name: line[name] for name in ("step", "loss", "grad_norm")} for line in logged
    ]


def test_full_weights_open_with_from_pretrained_tokenizer_included(
    model_path: pathlib.Path, channel: Channel, tmp_path: pathlib.Path
) -> None:
    model = llama(model_path, lora=False)
    publish = PublishCallback(channel.name, every_steps=100, retention=ALL)
    trainer(model, settings(tmp_path / "out", max_steps=2), publish).train()
    held = take(channel)
    assert (held.manifest.kind, held.step) == ("full", 2)
    opened = AutoModelForCausalLM.from_pretrained(held.path)
    assert all(torch.equal(weight, opened.state_dict()[name]) for name, weight in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(held.path).decode([5, 14, 6]) == "1+2"


def test_a_resumed_training_goes_on_from_what_its_checkpoint_names(
    model_path: pathlib.Path, channel: Channel, tmp_path: pathlib.Path
) -> None:
    arguments = settings(tmp_path / "out", save_strategy="steps", save_steps=3, max_steps=7)
    with pytest.raises(Halted), PublishCallback(channel, every_steps=2, retention=ALL) as publish:
        trainer(llama(model_path), arguments, publish, Halt(5)).train()
    assert lineage(channel) == [(1, 0), (1, 2), (1, 4)]

    with channel.consumer("server") as consumer:
        before = consumer.take(20.0)
        assert before is not None
        assert before.step == 4
        checkpoint = tmp_path / "moved"
        (tmp_path / "out" / "checkpoint-3").rename(checkpoint)
        with PublishCallback(channel, every_steps=2, retention=ALL) as publish:
            resumed = trainer(llama(model_path), arguments, publish, Look(publish))
            resumed.train(resume_from_checkpoint=str(checkpoint))
        after = consumer.take(20.0)
        assert after is not None
        assert (after.cycle, after.step, after.rewound_from) == (2, 7, before.name)
    assert lineage(channel) == [(1, 0), (1, 2), (2, 4), (2, 6), (2, 7)]


class Look(TrainerCallback):  # type: ignore[misc]
    """At the start, what is there is what the checkpoint named: nothing is published anew."""

    def __init__(self, publish: PublishCallback) -> None:
        self._publish = publish

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        newest = self._publish.newest
        assert newest is not None
        assert (newest.cycle, newest.step) == (1, 2)


def test_a_version_that_was_swept_meanwhile_is_no_obstacle(
    model_path: pathlib.Path, channel: Channel, tmp_path: pathlib.Path
) -> None:
    arguments = settings(tmp_path / "out", save_strategy="steps", save_steps=1, max_steps=1)
    trainer(llama(model_path), arguments, PublishCallback(channel, retention=ALL)).train()
    state = tmp_path / "out" / "checkpoint-1" / "trainer_state.json"
    written = json.loads(state.read_text())
    named = written["stateful_callbacks"]["holdfast"]["version"]
    assert named.startswith("c000001-s00000001-")
    written["stateful_callbacks"]["holdfast"]["version"] = named[:-8] + "00000000"
    state.write_text(json.dumps(written))

    arguments.max_steps = 2
    with PublishCallback(channel, retention=ALL) as publish:
        trainer(llama(model_path), arguments, publish).train(resume_from_checkpoint=str(state.parent))
    assert lineage(channel) == [(2, 1), (2, 2)]  # the resumed weights, then what came of them


def test_a_replaced_trainer_stops(model_path: pathlib.Path, channel: Channel, tmp_path: pathlib.Path) -> None:
    class Replace(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                with channel.publisher(ALL, term=Term(job="another", round=0, nonce="0"), take_over=True) as other:
                    other.publish_directory(2, model_path)

    with PublishCallback(channel, retention=ALL) as publish:
        training = trainer(llama(model_path), settings(tmp_path / "out"), publish, Replace())
        with pytest.raises(FencedError):
            training.train()
    assert training.state.global_step == 3
    assert lineage(channel) == [(2, 2)]
    assert take(channel).cycle == 2


@pytest.mark.parametrize("wait", [True, False])
def test_storage_that_refuses_for_a_moment_is_tried_again_after_the_next_step(
    model_path: pathlib.Path, tmp_path: pathlib.Path, wait: bool
) -> None:
    ops = FaultyOps(RealOps())
    channel = Channel(PosixStorage(tmp_path / "weights", ops=ops), lease_s=5.0)

    class Fail(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                ops.fail("fsync", errno.ENOSPC, path="*/staging/*")

    publish = PublishCallback(channel, every_steps=2, retention=ALL, wait=wait)
    trainer(llama(model_path), settings(tmp_path / "out", max_steps=8), publish, Fail()).train()
    steps = [step for _, step in lineage(channel)]
    # In the background, how many steps later it is noticed depends on the disk; never is step 2 itself published.
    assert steps == [0, 3, 4, 6, 8] if wait else (steps[0], 2 in steps, steps[-1]) == (0, False, 8)


def test_storage_that_refuses_for_good_ends_the_training(model_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    ops = FaultyOps(RealOps())
    ops.fail("fsync", errno.ENOSPC, path="*/staging/*", times=None)
    publish = PublishCallback(Channel(PosixStorage(tmp_path / "weights", ops=ops), lease_s=5.0), tries=3)
    training = trainer(llama(model_path), settings(tmp_path / "out"), publish)
    with publish, pytest.raises(UnavailableError) as raised:
        training.train()
    assert raised.value.code == "errno_enospc"
    assert training.state.global_step == 2  # at the start, after step 1, after step 2


def test_sharded_weights_are_refused_before_the_channel_is_touched(
    model_path: pathlib.Path, channel: Channel, tmp_path: pathlib.Path
) -> None:
    whole, marked = llama(model_path, lora=False), llama(model_path, lora=False)
    next(iter(marked.parameters())).ds_id = 7
    arguments = settings(tmp_path / "out")
    check_whole(whole, arguments)
    for model in (sharded(whole), marked):
        publish = PublishCallback(channel)
        with pytest.raises(UsageError) as raised:
            publish.on_train_begin(arguments, None, None, model=model)
        assert raised.value.code == "sharded_model"
    assert not (tmp_path / "weights").exists()


def sharded(model: Any) -> Any:
    """Under FSDP 2, in a world of one."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        return fully_shard(model)
    finally:
        distributed.destroy_process_group()


def test_a_drain_saves_a_checkpoint_and_waits_to_be_stopped(
    model_path: pathlib.Path, channel: Channel, tmp_path: pathlib.Path
) -> None:
    """The test is the agent: it asks for the drain, and calls it off when the worker says that it may be stopped."""
    desk, out = tmp_path / "desk", tmp_path / "out"
    desk.mkdir()
    (desk / "drain").touch()
    names = {"attempt": None, "job": "r", "term_round": 1, "round": 1, "node": "n", "spares": 1, "restarts": 0}
    told = worker_environment(token="t", desk=desk, run="r", reason="", **names)
    ranks = dict.fromkeys(("RANK", "LOCAL_RANK", "GROUP_RANK"), "0")
    sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"), "1")
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(WORKER), str(model_path), str(out), channel.name]
    environment = {**os.environ, **told, **ranks, **sizes, **meeting, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment) as worker:
        try:
            until(lambda: worker.poll() is not None or len(list(desk.iterdir())) > 1, "the worker does not say it")
            assert sorted(path.name for path in desk.iterdir()) == ["drain", "ready-1-0-1"]
            assert last_checkpoint(out) == str(out / "checkpoint-4")
            assert lineage(channel) == [(1, 0), (1, 3)]
            (desk / "drain").unlink()
            assert worker.wait(LONG_S) == 0
        finally:
            worker.kill()
    assert lineage(channel) == [(1, 0), (1, 3), (1, 6)]
    term = channel.observer().claims()[0].term
    assert (term.job, term.round) == ("r", 1)  # the launcher's, without being told


def test_a_checkpoint_in_whose_middle_the_trainer_was_killed_is_passed_over(
    model_path: pathlib.Path, channel: Channel, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "out"
    assert last_checkpoint(out) is None
    arguments = settings(out, save_strategy="steps", save_steps=1, max_steps=11)
    trainer(llama(model_path), arguments, PublishCallback(channel, every_steps=100)).train()
    assert last_checkpoint(out) == str(out / "checkpoint-11")
    (out / "checkpoint-11" / "trainer_state.json").write_text('{"epoch": 1.0, "glo')
    (out / "checkpoint-10" / "trainer_state.json").unlink()
    assert last_checkpoint(out) == str(out / "checkpoint-9")


@pytest.mark.parametrize("name", ["every_steps", "tries", "drain_every_steps"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_counts_are_counts(tmp_path: pathlib.Path, name: str, value: object) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(UsageError) as raised:
        PublishCallback(tmp_path, **options)
    assert raised.value.code == "bad_interval"


def test_holdfast_alone_imports_no_transformers() -> None:
    code = "import sys, holdfast, holdfast.integrations; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
