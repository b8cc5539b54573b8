"""A rendezvous of its own, to find out what torchrun does with one; and the worker that it starts.

Which behaviour is wanted stands in THROWAWAY; what is called is written to the file THROWAWAY_CALLS.
"""

from __future__ import annotations

import json
import os
import pathlib
import queue
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

GREAT = 10**9


def say(call: str, **more: object) -> None:
    with pathlib.Path(os.environ["THROWAWAY_CALLS"]).open("a") as file:
        file.write(json.dumps({"call": call, **more}) + "\n")


class Store:
    """Takes note of what is asked of it."""

    def __getattr__(self, name: str) -> Callable[..., object]:
        def called(*arguments: object) -> object:
            say(f"store.{name}", keys=repr(arguments))
            if name == "wait" and os.environ["THROWAWAY"] == "barrier":
                raise SystemExit(5)
            return 0

        return called


def throwaway() -> Callable[[Any], Any]:
    """The entry point."""
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

    class Handler(RendezvousHandler):
        def __init__(self) -> None:
            self.behaviour = os.environ["THROWAWAY"]
            self.round = 0
            self.polls = 0
            os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"

        def get_backend(self) -> str:
            return "throwaway"

        def get_run_id(self) -> str:
            return "run"

        @property
        def use_agent_store(self) -> bool:
            return False

        def next_rendezvous(self) -> RendezvousInfo:
            self.round += 1
            signal.signal(signal.SIGTERM, self.parked)
            say("next_rendezvous", round=self.round)
            if self.behaviour.startswith("leaves"):
                raise SystemExit(int(self.behaviour.partition(" ")[2]))
            if self.behaviour == "parks":
                queue.SimpleQueue[None]().get()
            os.environ["THROWAWAY_ROUND"] = str(self.round)
            return RendezvousInfo(
                store=Store(),  # type: ignore[arg-type]
                rank=0,
                world_size=1,
                bootstrap_store_info=RendezvousStoreInfo(master_addr="127.0.0.1", master_port=29999),
            )

        def parked(self, number: int, frame: FrameType | None) -> None:
            raise SystemExit(17)

        def num_nodes_waiting(self) -> int:
            self.polls += 1
            ours = signal.getsignal(signal.SIGTERM) == self.parked
            say("num_nodes_waiting", round=self.round, ours=ours)
            return GREAT if self.behaviour == "rings" and self.polls in (3, 6) else 0

        def is_closed(self) -> bool:
            return False

        def set_closed(self) -> None:
            say("set_closed")

        def shutdown(self) -> bool:
            kind = sys.exc_info()[0]
            say("shutdown", error=None if kind is None else kind.__name__)
            return True

    return lambda parameters: Handler()


def work() -> None:
    """The worker: it ends, fails or goes on for ever, as its round is to."""
    number, behaviour = int(os.environ["THROWAWAY_ROUND"]), os.environ["THROWAWAY"]
    names = ("MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "GROUP_WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE")
    say("worker", round=number, environment={name: os.environ.get(name) for name in names})
    if behaviour == "fails" or (behaviour == "fails once" and number == 1):
        sys.exit(3)
    if behaviour == "runs" or (behaviour == "rings" and number <= 2):
        threading.Event().wait()


if __name__ == "__main__":
    work()
