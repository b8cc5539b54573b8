"""A training script for tests: takes steps until it is told otherwise, and says what it sees. Run by torchrun.

    trainer.py DIRECTORY gloo|plain

With *gloo*, every step is an all-reduce; *plain* needs no torch, starts at once, and no worker waits for another. What
to do stands in DIRECTORY/orders.json, a list of orders; one without `rank`, `round` or `node` is for everybody:

    finish                 end well: with gloo, all after the same step
    fail      code         exit with this code
    hang                   take no more steps, until another order comes
    stubborn               ignore SIGTERM from now on
    lingering              at SIGTERM: end only once there is an order `let_go`
    drain                  say that now is a good time to be stopped, once somebody is to be drained
    publish   channel      publish a version, once for each order; `number` tells orders apart

What it saw is written to DIRECTORY/said/, a file for each worker.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

STEP_S = 0.03


class Trainer:
    """One worker."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.node = os.environ["HOLDFAST_NODE"]
        self.round = int(os.environ["HOLDFAST_ROUND"])
        self.rank = int(os.environ["RANK"])
        self.world = int(os.environ["WORLD_SIZE"])
        self.pause = threading.Event()
        self._orders = directory / "orders.json"
        self._said = directory / "said" / f"{self.node}-{os.getpid()}.jsonl"
        self._done: set[int] = set()
        self._publisher: Any = None

    def say(self, what: str, **more: object) -> None:
        line = {
            "what": what,
            "node": self.node,
            "round": self.round,
            "rank": self.rank,
            "world": self.world,
            "pid": os.getpid(),
            "time": time.time(),
            **more,
        }
        with self._said.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def orders(self) -> dict[str, dict[str, Any]]:
        """What is to be done now, by its name."""
        mine = {"rank": self.rank, "round": self.round, "node": self.node}
        return {
            order["do"]: order
            for order in json.loads(self._orders.read_text())
            if all(order.get(name, own) == own for name, own in mine.items())
        }

    def obey(self, orders: dict[str, dict[str, Any]]) -> None:
        """What one worker does by itself."""
        if "stubborn" in orders:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if "lingering" in orders:
            signal.signal(signal.SIGTERM, self._linger)
        if "fail" in orders:
            self.say("fails")
            sys.exit(int(orders["fail"].get("code", 1)))
        if "publish" in orders and orders["publish"]["number"] not in self._done:
            self._done.add(orders["publish"]["number"])
            self._publish(orders["publish"])
        while "hang" in orders:
            self.say("hangs")
            self.pause.wait(STEP_S)
            orders = self.orders()

    def wants_drain(self, orders: dict[str, dict[str, Any]]) -> bool:
        """Whether to stop at this step boundary, as far as this worker knows."""
        import holdfast

        return "drain" in orders and holdfast.drain_requested()

    def drain(self) -> None:
        import holdfast

        self.say("drains")
        holdfast.ready_to_drain()

    def _linger(self, number: int, frame: FrameType | None) -> None:
        self.say("lingers")
        while "let_go" not in self.orders():
            self.pause.wait(STEP_S)
        sys.exit(0)

    def _publish(self, order: dict[str, Any]) -> None:
        import holdfast

        weights = pathlib.Path(order["weights"])
        try:
            if self._publisher is None:
                self._publisher = holdfast.Channel(order["channel"]).publisher()
                self._publisher.__enter__()
            version = self._publisher.publish_directory(order["number"], weights)
            self.say("published", version=str(version), number=order["number"])
        except holdfast.HoldfastError as error:
            self.say("refused", code=error.code, kind=type(error).__name__, number=order["number"])


def gloo(trainer: Trainer) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    step = 0
    while True:
        orders = trainer.orders()
        wishes = torch.tensor([float("finish" in orders), float(trainer.wants_drain(orders)), 1.0])
        dist.all_reduce(wishes)
        assert wishes[2].item() == trainer.world
        if step == 0:
            began(trainer)
        trainer.say("step", step=step)
        step += 1
        if wishes[0].item() > 0:
            break
        if wishes[1].item() > 0:
            trainer.drain()
        trainer.obey(orders)
        trainer.pause.wait(STEP_S)
    dist.destroy_process_group()


def plain(trainer: Trainer) -> None:
    began(trainer)
    step = 0
    while "finish" not in (orders := trainer.orders()):
        trainer.say("step", step=step)
        step += 1
        trainer.obey(orders)
        trainer.pause.wait(STEP_S)


def began(trainer: Trainer) -> None:
    told = {name: value for name, value in os.environ.items() if name.startswith(("HOLDFAST_", "GROUP_", "MASTER_"))}
    trainer.say("began", told=told)


def main() -> None:
    trainer = Trainer(pathlib.Path(sys.argv[1]))
    {"gloo": gloo, "plain": plain}[sys.argv[2]](trainer)
    trainer.say("ends")


if __name__ == "__main__":
    main()
