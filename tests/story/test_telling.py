"""One file's events as bars and marks: what begins and ends what, and which clock says how long."""

from __future__ import annotations

import pathlib
import re

import pytest

from holdfast.story.kinds import MARK_OF, NODE_STATES, SILENT, TROUBLES
from holdfast.story.telling import clip, number
from tests.story.conftest import BOOT_S, Scene

V1, V2 = "c000001-s00000001-00000001", "c000001-s00000002-00000002"


def test_a_nodes_states_follow_each_other(scene: Scene) -> None:
    say = scene.file("agent-n0")
    for at_s, state in enumerate(("parked", "ready", "running", "stopping", "ready", "running", "done", "left")):
        say(float(at_s), state, round=1)
    run = scene.run()
    assert scene.bars(run, "agent-n0", "running") == [(2, 3), (5, 6)]
    assert scene.bars(run, "agent-n0", "stopping") == [(3, 4)]
    assert scene.bars(run, "agent-n0", "done") == [(6, 7)]
    assert scene.lane(run, "agent-n0").group == "Nodes"


@pytest.mark.parametrize("end", ["released", "failed", "rejected", "refused", "expired", "lease_lost", "closed"])
def test_a_hold_lasts_from_given_to_whatever_ends_it(scene: Scene, end: str) -> None:
    say = scene.file("consumer-c")
    say(1.0, "given", "newest", version=V1)
    say(4.0, end, "why", version=None if end in ("expired", "lease_lost", "closed") else V1)
    say(9.0, "registered")
    assert scene.bars(scene.run(), "consumer-c", "hold") == [(1, 4)]


def test_one_hold_ends_and_another_goes_on(scene: Scene) -> None:
    say = scene.file("consumer-c")
    say(1.0, "given", version=V1)
    say(2.0, "given", version=V2)
    say(3.0, "released", version=V1)
    say(5.0, "registered")
    assert scene.bars(scene.run(), "consumer-c", "hold") == [(1, 3), (2, 5)]


def test_a_server_has_a_lane_of_its_own_within_sync(scene: Scene) -> None:
    say = scene.file("sync-s")
    for server in ("http://a:8000", "http://b:8000"):
        say(0.0, "server_state", "never looked at", server=server, adapter="x", state="unknown")
        say(5.0, "engine_did", server=server, action="load", version=V1, took_s=2.0)
        say(5.5, "server_state", "serves it", server=server, adapter="x", state="ready", version=V1)
    say(8.0, "server_state", "connection refused", server="http://a:8000", adapter="x", state="gone", version=None)
    say(9.0, "engine_failed", "connection refused", server="http://a:8000", action="load")
    run = scene.run()
    assert scene.bars(run, "sync-s a:8000", "load") == [(3, 5)]
    assert scene.bars(run, "sync-s a:8000", "serving") == [(5.5, 8)]
    assert scene.bars(run, "sync-s a:8000", "gone") == [(8, 9)]
    assert scene.bars(run, "sync-s b:8000", "serving") == [(5.5, 9)]
    assert run.num_anomalies == {"server_gone": 1, "engine_failed": 1}


def test_a_server_that_is_still_the_same_after_its_file_was_begun_anew(scene: Scene) -> None:
    say = scene.file("sync-s")
    for at_s, version in ((60.0, V1), (120.0, V2)):
        say(at_s, "server_still", "serves it", server="a", adapter="x", state="ready", version=version)
    say(130.0, "closed")
    assert scene.bars(scene.run(), "sync-s a", "serving") == [(60, 130)]


def test_what_nobody_ended_goes_on_until_the_same_process_begins_anew(scene: Scene) -> None:
    first, second, other = scene.file("agent-n0"), scene.file("agent-n0"), scene.file("agent-n1")
    first(0.0, "running", round=1)
    second(10.0, "parked")
    other(0.0, "running", round=1)
    other(30.0, "left")
    run = scene.run()
    assert scene.bars(run, "agent-n0", "running") == [(0, 10)]
    assert scene.bars(run, "agent-n0", "parked") == [(10, 30)]


def test_what_nobody_ended_goes_on_until_its_node_loses_its_seat(scene: Scene) -> None:
    lost, chief = scene.file("agent-n1"), scene.file("agent-n0")
    lost(0.0, "running", round=1)
    chief(0.0, "round_committed", "round 1: the job begins", round=1, plan="a", seats=["n0.x", "n1.x"])
    chief(20.0, "round_proposed", round=2, plan="b")
    chief(
        21.0,
        "round_committed",
        round=2,
        plan="b",
        seats=["n0.x"],
        replaced={"n1.x": "last heard 3.0 s ago"},
        lost_s=3.0,
    )
    chief(40.0, "left")
    assert scene.bars(scene.run(), "agent-n1", "running") == [(0, 17)]


def test_a_frozen_node_that_wakes_was_silent_since_it_lost_its_seat(scene: Scene) -> None:
    frozen, chief = scene.file("agent-n1"), scene.file("agent-n0")
    frozen(0.0, "running", round=1)
    frozen(60.0, "stopping", round=1)
    frozen(61.0, "left")
    chief(0.0, "round_committed", round=1, plan="a", seats=["n0.x", "n1.x"])
    chief(20.0, "round_proposed", round=2, plan="b")
    chief(21.0, "round_committed", round=2, plan="b", replaced={"n1.x": "last heard 3.0 s ago"}, lost_s=3.0)
    chief(90.0, "left")
    run = scene.run()
    assert scene.bars(run, "agent-n1", "running") == [(0, 17)]
    assert scene.bars(run, "agent-n1", "silent") == [(17, 60)]


def test_whoever_breaks_things_stands_above_all(scene: Scene) -> None:
    scene.file("anybody")(0.0, "fault", "kill -9", target="agent-n0")
    assert scene.lane(scene.run(), "anybody").group == "Faults"


def test_a_wall_clock_that_jumps_back_makes_no_bar_negative(scene: Scene) -> None:
    say = scene.file("consumer-c")
    say(100.0, "given", version=V1)
    scene.write()
    jumped = scene.file("consumer-c", boot_s=BOOT_S - 50.0)  # its clock goes on, its wall clock is 50 s back
    jumped(60.0, "released", version=V1)
    jumped(70.0, "registered")
    second = scene.directory / "consumer-c-host-00000001.jsonl"
    (scene.directory / "consumer-c-host-00000000.jsonl").rename(scene.directory / "first")
    for file in scene.write():
        file.rename(second)
    second.write_bytes((scene.directory / "first").read_bytes() + second.read_bytes())
    run = scene.run()
    assert scene.bars(run, "consumer-c", "hold") == [(50, 60)]
    assert run.num_anomalies == {"clock_jumped": 1}
    assert "-50.0 s" in run.anomalies[0].reason


def test_a_machine_that_was_started_anew_begins_its_clock_anew(scene: Scene) -> None:
    say = scene.file("agent-n0")
    say(100.0, "parked")
    (first,) = scene.write()
    lines = first.read_bytes()
    anew = scene.file("agent-n0", boot_s=scene.start_s + 190.0)
    anew(200.0, "parked")
    anew(210.0, "left")
    (second,) = scene.write()
    second.write_bytes(lines + second.read_bytes())
    run = scene.run()
    assert scene.bars(run, "agent-n0", "parked") == [(100, 200), (200, 210)]
    assert run.num_anomalies == {}


def test_an_event_without_a_readable_time_is_placed_by_the_clock_or_counted(scene: Scene) -> None:
    say = scene.file("agent-n0")
    for at_s, state in enumerate(("parked", "ready", "running")):
        say(float(at_s), state)
    (file,) = scene.write()
    first, second, third = file.read_text().splitlines()
    bad = [line.replace("2026-", "soon ") for line in (first, second)]
    assert all("soon" in line for line in bad)
    file.write_text("\n".join([bad[0], first, bad[1], third, ""]))
    run = scene.run()
    assert scene.bars(run, "agent-n0", "ready") == [(1, 2)]
    assert run.num_anomalies == {"damaged_lines": 1}


def test_an_event_that_nobody_knows_is_a_note(scene: Scene) -> None:
    scene.file("mine")(1.0, "lunch", "soup")
    run = scene.run()
    assert scene.lane(run, "mine").bars["note"][0][4] == "lunch: soup"


@pytest.mark.parametrize(
    ("value", "found"),
    [(1, 1.0), (0.5, 0.5), (True, None), ("1", None), (None, None), (10**400, None), (float("nan"), None), ([], None)],
)
def test_only_finite_numbers_are_numbers(value: object, found: float | None) -> None:
    assert number(value) == found


def test_texts_are_short_and_harmless() -> None:
    assert clip("x" * 999, 10) == "x" * 9 + "…"
    assert clip("a\x1b[2J\r\n\u202eb\ud800") == "a\ufffd[2J\ufffd\ufffd\ufffdb\ufffd"
    assert clip(None) == "None"


def test_a_publish_lasts_as_long_as_it_says(scene: Scene) -> None:
    say = scene.file("publisher")
    say(0.0, "claimed")
    say(5.0, "published", version=V1, bytes=7, kind="adapter", took_s=1.5, waited_s=0.0)
    say(6.0, "published", version=V2, bytes=7, took_s="long")
    run = scene.run()
    assert scene.bars(run, "publisher", "publishing") == [(3.5, 5), (6, 6)]
    assert scene.bars(run, "publisher", "published") == [(5, 5), (6, 6)]


def test_every_event_of_the_format_is_drawn_told_or_left_out_on_purpose() -> None:
    text = (pathlib.Path(__file__).resolve().parents[2] / "FORMAT.md").read_text(encoding="utf-8")
    table = text[text.index("| event | who | when |") :].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`([a-z_]+)`", row.split("|")[1])}
    assert {"published", "measured", "round_running", "engine_did"} <= named
    assert named - set(MARK_OF) - set(TROUBLES) - SILENT - NODE_STATES == set()
