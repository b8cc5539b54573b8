"""An inference process: takes each version from the channel into a model, and serves with it until the next one.

    python -m examples.demo.process inference ROOT NAME in-place|staged

In place: the model loads from the channel's own directory, which stays as long as it is held. Staged: from a verified
copy on this machine's disk.
"""

from __future__ import annotations

import pathlib
import signal
from types import FrameType
from typing import Any

from peft import PeftModel

import holdfast
from examples.demo.model import PROMPTS, Texts, complete, held_out_loss, load_base, quietly
from examples.demo.plan import Places
from examples.demo.process import Reporter, wait_for_path

IDLE_S = 0.5


class Engine:
    """The base model with one adapter per loaded version; an adapter's name is its version's."""

    def __init__(self, places: Places) -> None:
        self.texts = Texts(places.base)
        self._base = load_base(places.base)
        self._model: PeftModel | None = None

    def load(self, held: holdfast.HeldVersion) -> float:
        """Load the adapter from its directory and use it; its held-out loss."""
        name = str(held)
        if self._model is None:
            self._model = PeftModel.from_pretrained(self._base, held.path, adapter_name=name)
        else:
            self._model.load_adapter(held.path, adapter_name=name)
            self._model.set_adapter(name)
        return held_out_loss(self._model, self.texts)

    def drop(self, held: holdfast.HeldVersion) -> None:
        assert self._model is not None
        self._model.delete_adapter(str(held))

    def complete(self, prompt: str) -> str:
        return complete(self._model, self.texts, prompt)


class Server:
    """Serves with one version at a time, and lets go of the one before when it is no longer used."""

    def __init__(self, engine: Engine, report: Reporter) -> None:
        self._engine = engine
        self._report = report
        self._serving: holdfast.HeldVersion | None = None
        self._num_served = 0
        self._woken = False
        signal.signal(signal.SIGCONT, self._wake)

    def switch_to(self, held: holdfast.HeldVersion) -> None:
        self.look_after_freeze()
        loss = self._engine.load(held)
        held.acknowledge()
        self._report.say(
            "used",
            version=str(held),
            step=held.step,
            cycle=held.cycle,
            loss=loss,
            rewound_from=str(held.rewound_from or ""),
            path=str(held.path),
            completions=tuple(self._engine.complete(prompt) for prompt in PROMPTS),
        )
        if self._serving is not None:
            self._engine.drop(self._serving)
            self._serving.release()
        self._serving = held

    def serve(self) -> None:
        """What inference is for: one more request, while there is no newer version."""
        self.look_after_freeze()
        if self._serving is not None:
            self._engine.complete(PROMPTS[self._num_served % len(PROMPTS)])
            self._num_served += 1

    def look_after_freeze(self) -> None:
        """Once woken, read what is held from its directory again, as an engine reads an adapter that it had evicted."""
        held = self._serving
        if not self._woken or held is None:
            return
        self._woken = False
        if held.lost:
            self._report.say("lost", version=str(held), step=held.step, cycle=held.cycle)
            return
        self._engine.drop(held)
        loss = self._engine.load(held)
        self._report.say("woke", version=str(held), step=held.step, cycle=held.cycle, loss=loss)

    def _wake(self, _number: int, _frame: FrameType | None) -> None:
        self._woken = True

    def end(self) -> None:
        if self._serving is not None:
            self._serving.release()
        self._report.say("ended", reason=f"{self._num_served} more requests served between versions")


def consume(consumer: Any, server: Server) -> None:
    """Until the version that says of itself that it is the last one."""
    while True:
        held = consumer.take(timeout_s=IDLE_S)
        if held is None:
            server.serve()
            continue
        server.switch_to(held)
        if held.metadata.get("final"):
            server.end()
            return


def main(root: str, name: str, mode: str) -> None:
    quietly()
    places = Places(pathlib.Path(root))
    report = Reporter(places.report(name))
    wait_for_path(places.base)
    engine = Engine(places)
    channel = holdfast.Channel(places.channel)
    with channel.consumer(name, stage=places.stage if mode == "staged" else None) as consumer:
        report.say("ready")
        consume(consumer, Server(engine, report))
