"""The trainer: trains the adapter, publishes it every few steps, keeps checkpoints and resumes from the newest one.

    python -m examples.demo.process trainer ROOT ROUND [HALT_AT [WAIT_AT]]

A launcher would start it with its job and round, as main does here: then a trainer that takes the place of a dead one
need not wait until that one's lease has ended. HALT_AT and WAIT_AT are main's handles: the trainer stops
itself (SIGSTOP) in the middle of publishing that step, to be killed there, or to be woken when it has long been
replaced; and it does not publish this step before main has frozen a host.
"""

from __future__ import annotations

import os
import pathlib
import secrets
import signal
from typing import Any

import msgspec
import torch

import holdfast
from examples.demo.model import (
    Texts,
    held_out_loss,
    load_base,
    new_optimizer,
    quietly,
    rate_at,
    train_step,
    with_new_adapter,
)
from examples.demo.plan import FENCED, JOB, Places, Plan
from examples.demo.process import Reporter, wait_for_path


class Checkpoint(msgspec.Struct, frozen=True):
    """What training goes on from. `version`: its name in the channel, for `resume_from=`."""

    step: int
    version: str
    state: dict[str, Any]


class Trainer:
    """The adapter in training, at optimizer step `step`."""

    def __init__(self, places: Places, plan: Plan) -> None:
        self.places = places
        self.plan = plan
        self.texts = Texts(places.base)
        self.model = with_new_adapter(load_base(places.base), plan)
        self.optimizer = new_optimizer(self.model, 0.0)
        self.step = 0

    def train_until(self, step: int) -> None:
        while self.step < step:
            rate = rate_at(self.step, self.plan.steps)
            train_step(self.model, self.optimizer, self.texts.batch(self.plan, self.step), rate)
            self.step += 1

    def save(self, version: str) -> None:
        """Durability: the checkpoint survives a power cut once this returned; before, the one before it stands."""
        state = {"adapter": self._trained(), "optimizer": self.optimizer.state_dict()}
        path = self.places.checkpoints / f"{self.step:06d}.pt"
        making = path.with_suffix(".making")
        with making.open("wb") as file:
            torch.save({"step": self.step, "version": version, "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        making.rename(path)
        directory = os.open(self.places.checkpoints, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)

    def restore(self, checkpoint: Checkpoint) -> None:
        self.step = checkpoint.step
        self.optimizer.load_state_dict(checkpoint.state["optimizer"])
        with torch.no_grad():
            for name, parameter in self._trained().items():
                parameter.copy_(checkpoint.state["adapter"][name])

    def _trained(self) -> dict[str, torch.Tensor]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}


def newest_checkpoint(directory: pathlib.Path) -> Checkpoint | None:
    paths = sorted(directory.glob("*.pt"))
    return Checkpoint(**torch.load(paths[-1], weights_only=True)) if paths else None


class HaltHalfWay:
    """Told of the bytes that are written, stops this process between two pieces of the weights."""

    def __init__(self, report: Reporter, step: int) -> None:
        self._report = report
        self._step = step
        self._calls = 0

    def __call__(self, done_bytes: int, /) -> None:
        self._calls += 1
        if self._calls == 2:  # the configuration is written, and a first piece of the weights
            self._report.say("halting", step=self._step)
            os.kill(os.getpid(), signal.SIGSTOP)


def run(trainer: Trainer, publisher: Any, report: Reporter, halt_at: int, wait_at: int) -> None:
    """Train to the end of the plan, publishing on the way. The first act without a checkpoint is to publish step 0."""
    plan = trainer.plan
    resumed = publisher.starts_from is not None
    for step in range(trainer.step + plan.publish_every * resumed, plan.steps + 1, plan.publish_every):
        trainer.train_until(step)
        halt = HaltHalfWay(report, step) if step == halt_at else None
        if step == wait_at:
            report.say("waits", step=step)
            wait_for_path(trainer.places.host_frozen)
        loss = held_out_loss(trainer.model, trainer.texts)
        metadata = {"loss": loss, "final": step == plan.steps}
        version = publisher.publish_adapter(step, trainer.model, metadata=metadata, progress=halt)
        report.say("published", version=str(version), step=step, cycle=publisher.cycle, loss=loss)
        if plan.is_checkpoint(step):
            trainer.save(str(version))


def main(root: str, number: str, halt_at: str = "-1", wait_at: str = "-1") -> int:
    quietly()
    places = Places(pathlib.Path(root))
    plan = places.read_plan()
    report = Reporter(places.report(f"trainer-{number}"))
    wait_for_path(places.base)
    trainer = Trainer(places, plan)
    checkpoint = newest_checkpoint(places.checkpoints)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    wait_for_path(places.servers_ready)
    publisher = holdfast.Channel(places.channel).publisher(
        plan.retention,
        resume_from=checkpoint.version if checkpoint is not None else None,
        term=holdfast.Term(job=JOB, round=int(number), nonce=secrets.token_hex(8)),
    )
    try:
        with publisher:
            report.say("opened", cycle=publisher.cycle, step=trainer.step, version=str(publisher.starts_from or ""))
            run(trainer, publisher, report, int(halt_at), int(wait_at))
    except holdfast.FencedError as error:
        report.say("fenced", reason=str(error), step=trainer.step)
        return FENCED
    return 0
