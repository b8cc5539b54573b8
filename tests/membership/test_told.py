"""What a job's event files tell of a change of round: enough to say how long each of its phases took."""

from __future__ import annotations

import pathlib

import pytest

from holdfast.core.membership import Timing, decode, round_key
from holdfast.events import Event, read_events
from tests.support.clerks import Crew


def told(directory: pathlib.Path, name: str) -> list[Event]:
    events = [event for path in directory.iterdir() for event in read_events(path)]
    return sorted((event for event in events if event.event == name), key=lambda event: event.clock_s)


def test_a_failover_is_told_with_its_phases(tmp_path: pathlib.Path) -> None:
    crew = Crew(tmp_path)
    try:
        crew.add("n0", "n1", "n2")
        crew.until(lambda: len([one for one in crew.ones if one.trains]) == 2)
        lost = next(one for one in crew.ones if one.trains and one is not crew.coordinator)
        stays = next(one for one in crew.ones if one.trains and one is not lost)
        crew.until(lambda: told(tmp_path, "round_running"))
        spare = crew.spare()
        lost.driven = False
        crew.train(2, stays, spare)
        crew.until(lambda: len(told(tmp_path, "round_running")) == 2)
        key = crew.keys.plain(round_key(2, crew.control.plan, "timing"))
        timing = decode(crew.store.get([key])[key], Timing, key=key)
    finally:
        crew.close()
    proposed, committed, running = (
        told(tmp_path, f"round_{word}")[-1] for word in ("proposed", "committed", "running")
    )
    assert proposed.fields == {"round": 2, "plan": committed.fields["plan"]}
    assert committed.fields["replaced"].keys() == {lost.member}
    assert committed.fields["voluntary"] is False
    assert running.fields == {
        "round": 2,
        "noticed_s": timing.noticed_s,
        "stopped_s": timing.stopped_s,
        "started_s": timing.started_s,
    }
    assert running.fields["noticed_s"] == pytest.approx(committed.fields["lost_s"], abs=0.001)
    assert proposed.clock_s <= committed.clock_s <= running.clock_s
    assert running.clock_s - committed.clock_s >= running.fields["started_s"] - 0.001
