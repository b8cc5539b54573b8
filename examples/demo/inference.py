"""A client of one inference server: measures each version that is served, over HTTP. It needs no torch, no channel.

    python -m examples.demo.process inference ROOT NAME URL_OF_SYNC

`holdfast.Served` says which version the server serves, and under which name. Whatever is asked for by that name is
answered by that version: that is how a rollout gets its label.
"""

from __future__ import annotations

import json
import pathlib
import signal
import time
from collections.abc import Callable
from types import FrameType

import holdfast
from examples.demo.asking import PROMPTS, Refused, Server
from examples.demo.plan import HELD_OUT, Places
from examples.demo.process import Reporter, wait_for_path
from holdfast.sync.served import ServedModel

LOOK_S = 0.05


class Client:
    """Measures versions, and reports each measurement under the version that made it."""

    def __init__(self, places: Places, report: Reporter) -> None:
        self._rows = json.loads((places.base / HELD_OUT).read_text())
        self._report = report
        self._server = Server("")
        self._last: ServedModel | None = None
        self._woken = False
        signal.signal(signal.SIGCONT, self._wake)

    def follow(self, served: holdfast.Served, last_step: int) -> None:
        """Until a version of the last step was measured."""
        while self._last is None or self._last.version is None or self._last.version.step < last_step:
            self.look_after_freeze()
            for one in served.ready():  # one server, one channel
                if self._last is None or one.version != self._last.version:
                    self._last, self._server.url = one, one.url
                    self._try(self._measure, one)
            time.sleep(LOOK_S)
        self._report.say("ended", answers=self._server.num_answers)

    def look_after_freeze(self) -> None:
        """Once woken, have the server read what it serves from its directory again, as if it had been evicted."""
        if self._woken and self._last is not None:
            self._woken = False
            self._try(self._read_again, self._last)

    def _measure(self, one: ServedModel) -> None:
        assert one.model is not None
        self._server.made_by.clear()
        loss = self._server.loss(one.model, self._rows)
        completions = tuple(self._server.complete(one.model, prompt) for prompt in PROMPTS)
        self._say("used", one, loss, completions=completions, made_by=tuple(sorted(self._server.made_by)))

    def _read_again(self, one: ServedModel) -> None:
        assert one.model is not None
        self._server.load("read-again", self._server.path_of(one.model))
        self._say("woke", one, self._server.loss("read-again", self._rows))
        self._server.unload("read-again")

    def _say(self, event: str, one: ServedModel, loss: float, **more: object) -> None:
        assert one.version is not None
        about = {"step": one.version.step, "cycle": one.version.cycle, "url": one.url, "model": one.model}
        self._report.say(event, version=str(one.version), loss=loss, **about, **more)

    def _try(self, act: Callable[[ServedModel], None], one: ServedModel) -> None:
        try:
            act(one)
        except Refused as error:
            self._report.say("refused", version=str(one.version), reason=str(error))

    def _wake(self, _number: int, _frame: FrameType | None) -> None:
        self._woken = True


def main(root: str, name: str, sync_url: str) -> None:
    places = Places(pathlib.Path(root))
    report = Reporter(places.report(name))
    wait_for_path(places.base)
    client = Client(places, report)
    with holdfast.Served([sync_url], poll_s=LOOK_S) as served:
        report.say("ready")
        client.follow(served, places.read_plan().steps)
