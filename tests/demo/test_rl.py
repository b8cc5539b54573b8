"""The parts of the RL example: a task that can be checked, whole batches, a trainer that learns and resumes."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Iterator

import msgspec
import pytest
import torch
import torch.distributed as dist

from examples.rl import base, task
from examples.rl.config import Config, Run
from examples.rl.rollouts import Answer, Batch, Batches, Group
from examples.rl.trainer import START, Trainer, newest, save

TINY = Config(width=32, layers=1, warm_up_steps=2, warm_up_batch=4, learning_rate=1e-2)


def test_the_reward_is_what_is_right_of_the_answer() -> None:
    asked = task.encode("58213>")
    assert task.answer(asked) == task.encode("12358.")
    assert task.reward(asked, task.encode("12358.")) == 1.0
    assert task.reward(asked, task.encode("85321.")) == pytest.approx(2 / 6)
    assert task.reward(asked, []) == 0.0
    assert task.reward(asked, task.encode("12358.9")) == 1.0


def test_a_demonstration_is_sorted_one_way_or_the_other() -> None:
    teacher = random.Random(0)
    for _ in range(50):
        shown = task.demonstration(teacher)
        digits = shown[task.DIGITS + 1 : -1]
        assert digits in (sorted(digits), sorted(digits, reverse=True))
        assert sorted(shown[: task.DIGITS]) == sorted(digits)


def test_batches_are_taken_in_order_whole_and_again(tmp_path: pathlib.Path) -> None:
    batches = Batches(tmp_path / "batches")
    assert batches.last() == -1
    for number in (0, 1, 3):
        batches.put(Batch(number, []))
    (tmp_path / "batches" / ".000000.making").touch()
    assert (batches.last(), batches.take(0).number, batches.take(2).number) == (3, 0, 3)
    assert batches.take(0) == batches.take(0)
    batches.forget(1)
    assert batches.take(0).number == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One with a base model; this process is the only rank."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("rl")
    (root / "config.json").write_bytes(msgspec.json.encode(TINY))
    run = Run(root)
    base.make_base(run.base, TINY)
    dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=0, world_size=1)
    yield run
    dist.destroy_process_group()


def _batch(number: int, *, step: int, digit: str = "7") -> Batch:
    """Rollouts in which this digit first is good, and another is bad."""
    logprobs = [-2.5] * task.ANSWER_TOKENS
    good = Answer(task.encode(f"{digit}2358."), logprobs, 1.0)
    bad = Answer(task.encode("02358."), logprobs, 0.0)
    return Batch(number, [Group(task.encode("58213>"), "c000001-s00000001-00abcdef", step, [good, bad])] * 2)


def _chance(trainer: Trainer, digit: str) -> float:
    with torch.no_grad():
        logits = trainer.policy(torch.tensor([task.encode("58213>")])).logits[0, -1]
        return float(torch.softmax(logits, -1)[task.VOCABULARY[digit]])


def test_what_is_rewarded_becomes_likelier(run: Run) -> None:
    trainer = Trainer(run, START)
    before = _chance(trainer, "7")
    for number in range(40):
        measured = trainer.learn(_batch(number, step=number - 2))
        assert (measured["staleness"], measured["dropped"]) == (2.0, 0.0)
    assert (trainer.step, trainer.batch) == (40, 40)
    assert _chance(trainer, "7") > 1.5 * before


def test_what_is_too_stale_is_dropped_and_teaches_nothing(run: Run) -> None:
    trainer = Trainer(run, START)
    before = _chance(trainer, "7")
    measured = trainer.learn(_batch(0, step=-TINY.staleness_max - 1))
    assert (measured["dropped"], measured["staleness"], trainer.step) == (2.0, 0.0, 1)
    assert _chance(trainer, "7") == before


def test_a_trainer_goes_on_from_its_checkpoint_as_if_nothing_had_happened(run: Run) -> None:
    straight = Trainer(run, START)
    for number in range(4):
        straight.learn(_batch(number, step=number))
        if number == 1:
            save(run.checkpoints, straight.checkpoint("c000001-s00000002-00abcdef"))
    checkpoint = newest(run.checkpoints)
    assert checkpoint["version"] == "c000001-s00000002-00abcdef"
    resumed = Trainer(run, checkpoint)
    assert (resumed.step, resumed.batch) == (2, 2)
    for number in (2, 3):
        resumed.learn(_batch(number, step=number))
    for name, weights in straight.trained.items():
        assert torch.equal(weights, resumed.trained[name]), name


def test_of_checkpoints_the_newest_two_are_kept(run: Run) -> None:
    for step in (3, 4, 5):
        save(run.checkpoints, START | {"step": step})
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["000004.pt", "000005.pt"]
