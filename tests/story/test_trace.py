"""The trace keeps to the rules of the Trace Event Format."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from holdfast.eventfiles import find_event_files
from holdfast.story.trace import write_trace
from tests.story.conftest import Scene
from tests.story.test_page import HOSTILE
from tests.support.manyevents import Scale, write

REQUIRED = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid"},
    "i": {"name", "cat", "ts", "s", "pid", "tid"},
    "b": {"name", "cat", "ts", "id2", "pid", "tid"},
    "e": {"name", "cat", "ts", "id2", "pid", "tid"},
    "C": {"name", "ts", "pid", "args"},
    "M": {"name", "pid", "tid", "args"},
}


def traced(files: list[pathlib.Path]) -> list[dict[str, Any]]:
    parts: list[str] = []
    write_trace(files, parts.append, title="run42")
    whole = json.loads("".join(parts))
    assert whole.keys() == {"displayTimeUnit", "otherData", "traceEvents"}
    assert whole["displayTimeUnit"] in ("ms", "ns")
    assert whole["otherData"] == {"run": "run42"}
    events: list[dict[str, Any]] = whole["traceEvents"]
    return events


@pytest.fixture
def small(tmp_path: pathlib.Path) -> list[dict[str, Any]]:
    return traced(find_event_files([write(tmp_path, Scale())]))


def test_every_event_has_what_its_phase_needs(small: list[dict[str, Any]]) -> None:
    assert {event["ph"] for event in small} == set(REQUIRED)
    for event in small:
        assert REQUIRED[event["ph"]] <= event.keys()
        for name in ("ts", "dur"):
            assert isinstance(event.get(name, 0), int)
            assert event.get(name, 0) >= 0
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "i":
            assert event["s"] == "t"
        if event["ph"] == "C":
            assert all(isinstance(value, float) for value in event["args"].values())


def test_every_process_and_thread_has_one_name(small: list[dict[str, Any]]) -> None:
    names = [(e["name"], e["pid"], e["tid"]) for e in small if e["ph"] == "M"]
    assert len(names) == len(set(names))
    processes = {pid for name, pid, _ in names if name == "process_name"}
    threads = {(pid, tid) for name, pid, tid in names if name == "thread_name"}
    for event in small:
        assert event["pid"] in processes
        assert event["ph"] in "MC" or (event["pid"], event["tid"]) in threads
    assert len({tid for _, tid in threads}) == len(threads)


def test_complete_events_of_a_thread_do_not_overlap(small: list[dict[str, Any]]) -> None:
    last: dict[int, int] = {}
    for event in sorted((e for e in small if e["ph"] == "X"), key=lambda e: (e["tid"], e["ts"])):
        assert event["ts"] >= last.get(event["tid"], 0) - 1, event
        last[event["tid"]] = event["ts"] + event["dur"]


def test_what_begins_asynchronously_ends(small: list[dict[str, Any]]) -> None:
    begun = {(e["cat"], e["id2"]["local"]): e for e in small if e["ph"] == "b"}
    ended = {(e["cat"], e["id2"]["local"]): e for e in small if e["ph"] == "e"}
    assert begun.keys() == ended.keys()
    assert all(ended[key]["ts"] >= event["ts"] for key, event in begun.items())
    assert all(ended[key]["name"] == event["name"] for key, event in begun.items())


def test_nothing_is_left_out(small: list[dict[str, Any]]) -> None:
    def num(category: str) -> int:
        return sum(event.get("cat") == category and event["ph"] != "e" for event in small)

    assert num("published") == 40
    assert num("fault") == num("recovered") == 2
    assert num("announced") == num("swept") == 37
    assert num("round_committed") == 3
    counters = {event["name"] for event in small if event["ph"] == "C"}
    assert {"orchestrator reward", "trainer-0 loss"} <= counters
    assert sum(event["name"] == "orchestrator reward" for event in small) == 40


def test_what_nobody_ended_ends_with_the_run(scene: Scene) -> None:
    killed, other = scene.file("agent-n0"), scene.file("publisher")
    killed(0.0, "running", round=1)
    other(0.0, "claimed")
    other(8.0, "closed")
    (bar,) = [event for event in traced(scene.write()) if event["ph"] == "X"]
    assert bar["dur"] == 8_000_000
    assert bar["args"]["open"] is True


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_stays_text(scene: Scene, text: str) -> None:
    say = scene.file("publisher")
    for place, name in enumerate(("refused", "measured", "fault", "server_state", text)):
        say(float(place), name, text, version=text, target=text, server=text, state=text, **{text: 1.0})
    events = traced(scene.write())
    assert any(event["ph"] == "C" for event in events)
    assert json.dumps(events).isascii()


def test_nothing_at_all_is_a_trace_too(tmp_path: pathlib.Path) -> None:
    assert traced([]) == []
