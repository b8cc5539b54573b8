"""Failovers with their phases, put together from what coordinators said, whatever is missing of it."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from holdfast.eventfiles import find_event_files
from holdfast.story.gather import gather
from holdfast.story.run import Round
from tests.story.conftest import Scene
from tests.support.clerks import Crew

REPLACED = {"n1.x": "n1.x last heard 1.5 s ago"}


def told(scene: Scene, say: Any, *, proposed: bool = True, running: bool = True, **fields: Any) -> None:
    """A job's first round, and the change to its second at 20 s."""
    say(0.0, "round_committed", "round 1: the job begins", round=1, plan="a", seats=["n0.x", "n1.x"], spares=["n2.x"])
    if proposed:
        say(20.0, "round_proposed", "round 2: n1.x last heard 1.5 s ago", round=2, plan="b")
    more = {"seats": ["n0.x", "n2.x"], "replaced": REPLACED, "lost_s": 1.5, "voluntary": False} | fields
    say(20.8, "round_committed", "round 2: n1.x last heard 1.5 s ago", round=2, plan="b", **more)
    if running:
        say(21.2, "round_running", "all workers run", round=2, noticed_s=1.5, stopped_s=0.7, started_s=0.3)


def phases(round_: Round) -> dict[str, float]:
    return {phase.name: round(phase.took_s, 3) for phase in round_.phases}


def test_the_phases_of_a_failover_add_up(scene: Scene) -> None:
    say = scene.file("agent-n0")
    told(scene, say)
    scene.file("orchestrator")(21.5, "measured", step=3, reward=1.0)  # it never stopped
    scene.file("publisher")(23.0, "published", version="c000002-s00000003-00000001")
    first, second = scene.run().rounds
    assert (first.kind, second.kind) == ("first", "failover")
    assert phases(second) == {"noticed": 1.5, "stopped": 0.7, "committed": 0.1, "started": 0.3}
    assert second.total_s == pytest.approx(2.6)
    assert second.start_s - scene.start_s == pytest.approx(18.5)
    assert second.output_again_s == pytest.approx(23.0 - 21.1)
    assert (second.number, second.num_seats, second.replaced) == (2, 2, REPLACED)
    assert second.reason == "n1.x last heard 1.5 s ago"
    assert all(phase.sure for phase in second.phases)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [({}, "failover"), ({"replaced": {}, "lost_s": 0.0}, "restart"), ({"voluntary": True}, "wanted")],
)
def test_a_change_of_round_is_forced_or_wanted(scene: Scene, fields: dict[str, Any], kind: str) -> None:
    told(scene, scene.file("agent-n0"), **fields)
    run = scene.run()
    assert run.rounds[1].kind == kind
    assert len(run.failovers) == (kind != "wanted")


def test_a_coordinator_that_died_before_it_could_tell(scene: Scene) -> None:
    told(scene, scene.file("agent-n0"), running=False)
    scene.file("agent-n2")(21.5, "running", round=2)
    second = scene.run().rounds[1]
    assert phases(second) == {"noticed": 1.5, "stopped": 0.8, "committed": 0.0, "started": 0.7}
    assert [phase.sure for phase in second.phases] == [True, True, True, False]


def test_nothing_but_the_commit_was_told(scene: Scene) -> None:
    told(scene, scene.file("agent-n0"), proposed=False, running=False, lost_s=None)
    second = scene.run().rounds[1]
    assert second.phases == ()
    assert second.total_s is None
    assert second.output_again_s is None


@pytest.mark.parametrize("bad", [-1, 1e300, "1", None, [], {}, True])
def test_numbers_that_cannot_be_are_not_believed(scene: Scene, bad: object) -> None:
    say = scene.file("agent-n0")
    told(scene, say, running=False, replaced=bad, seats=bad, spares=bad, lost_s=bad)
    say(22.0, "round_running", round=2, noticed_s=bad, stopped_s=bad, started_s=bad)
    say(23.0, "round_committed", round=bad, plan=bad)
    first, second = scene.run().rounds
    assert (first.number, second.number) == (1, 2)
    assert (second.num_seats, second.num_spares, second.replaced) == (0, 0, {})
    assert phases(second) == {"stopped": 0.8, "committed": 0.0}


def test_a_job_of_real_clerks_tells_its_failover(tmp_path: pathlib.Path) -> None:
    crew = Crew(tmp_path)
    try:
        crew.add("n0", "n1", "n2")
        crew.until(lambda: len([one for one in crew.ones if one.trains]) == 2)
        lost = next(one for one in crew.ones if one.trains and one is not crew.coordinator)
        stays = next(one for one in crew.ones if one.trains and one is not lost)
        spare = crew.spare()
        lost.driven = False
        crew.train(2, stays, spare)
        for one in (stays, spare):
            one.finish()
        crew.until(lambda: all(one.clerk.over for one in (stays, spare)))
    finally:
        crew.close()
    run = gather(find_event_files([tmp_path]))
    (failover,) = run.failovers
    assert failover.replaced.keys() == {lost.member}
    assert [phase.name for phase in failover.phases] == ["noticed", "stopped", "committed", "started"]
    assert failover.phases[0].took_s >= 0.2
    assert failover.total_s is not None
    assert failover.coordinator == f"agent-{crew.coordinator.node.node}"
    assert run.outcome is not None
    assert run.outcome[:2] == ("succeeded", 0)
    assert {lane.name for lane in run.lanes} == {"agent-n0", "agent-n1", "agent-n2"}
    ended_s = {lane.name: max(bar[1] for bar in lane.bars["running"]) for lane in run.lanes if "running" in lane.bars}
    assert ended_s[f"agent-{lost.node.node}"] == pytest.approx(failover.start_s, abs=0.01)
