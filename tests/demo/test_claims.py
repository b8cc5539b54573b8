"""Each claim of the demo can fail: what it rests on is taken away, and it falls."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import pytest

import holdfast
from examples.demo.main import QUICK
from examples.demo.summary import Claim, claims, figures
from examples.demo.watching import Watch
from examples.rl.config import Run
from holdfast.events import EventLog

PLANTED = "c000001-s00000031-0000bad0"


@dataclasses.dataclass
class Ended:
    name: str
    code: int | None = 0
    killed: bool = False


@dataclasses.dataclass
class Story:
    """A run in which all went well, until somebody changes it."""

    rewards: list[float]
    control: list[float]
    processes: list[Ended]
    answers: dict[str, Any]
    steps: int = QUICK.steps
    loaded: str = ""

    def tell(self, run: Run) -> None:
        events = EventLog(run.channel / "events" / "all.jsonl", "all")
        names = [f"c000001-s{step:08d}-00abcdef" for step in range(self.steps + 1)]
        for step, name in enumerate(names):
            events.emit("published", version=name)
            events.emit("server_state", version=name, state="ready")
            events.emit("measured", step=step, staleness=1.0)
        for batch, (reward, control) in enumerate(zip(self.rewards, self.control, strict=True)):
            events.emit("measured", batch=batch, reward=reward, control_reward=control, **self.answers)
        events.emit("refused", "a wrong digest", version=PLANTED)
        if self.loaded:
            events.emit("server_state", version=self.loaded, state="ready")
        events.close()


@pytest.fixture
def run(tmp_path: pathlib.Path) -> Run:
    run = Run(tmp_path)
    (tmp_path / "config.json").write_text(f'{{"steps": {QUICK.steps}}}')
    holdfast.Channel(run.channel).open(create=True)
    return run


@pytest.fixture
def story() -> Story:
    answers = {"requests_answered": 300, "requests_retried": 4, "requests_failed": 0}
    return Story([0.5, *[0.7] * 8, 0.95], [0.5] * 10, [Ended("node-0"), Ended("serve-b", -9, killed=True)], answers)


def _fallen(story: Story, run: Run) -> list[Claim]:
    story.tell(run)
    return [claim for claim in claims(Watch(run, run.channel), story.processes, PLANTED) if not claim.holds]


def test_all_hold_when_all_went_well(story: Story, run: Run) -> None:
    assert _fallen(story, run) == []
    said = figures(Watch(run, run.channel))
    assert said == f"versions: {QUICK.steps + 1} published, {QUICK.steps + 1} served, 0 swept, 1 refused, 0 left"


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({"processes": [Ended("node-2", 1)]}, "exited with 0"),
        ({"processes": [Ended("node-2", None)]}, "exited with 0"),
        ({"answers": {"requests_answered": 300, "requests_retried": 4, "requests_failed": 1}}, "no request failed"),
        ({"rewards": [0.5] * 10}, "reward rose"),
        ({"rewards": [0.5, *[0.7] * 8, 0.6]}, "reward rose"),
        ({"control": [0.5, *[0.7] * 8, 0.95]}, "reward rose"),
        ({"steps": QUICK.steps - 1}, "last step"),
        ({"loaded": PLANTED}, "no server loaded"),
    ],
)
def test_each_falls_with_what_it_rests_on(story: Story, run: Run, change: dict[str, Any], claim: str) -> None:
    (fallen,) = _fallen(dataclasses.replace(story, **change), run)
    assert claim in fallen.text
