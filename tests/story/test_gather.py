"""A whole run, gathered: what it counts, what bounds it, and what wrong files can do to it."""

from __future__ import annotations

import pathlib

import pytest

from holdfast import Retention
from holdfast.eventfiles import find_event_files
from holdfast.story.gather import ANOMALIES_MAX, BARS_MAX, POINTS_MAX, SERIES_MAX, gather
from holdfast.story.page import page
from holdfast.story.run import Run
from tests.story.conftest import Scene
from tests.support.channels import Place, payload
from tests.support.manyevents import Scale, write


def small(tmp_path: pathlib.Path, **scale: int) -> Run:
    return gather(find_event_files([write(tmp_path, Scale(**scale))]))


def test_a_small_run_is_told_whole(tmp_path: pathlib.Path) -> None:
    run = small(tmp_path)
    assert run.outcome == ("succeeded", 0, "all nodes are done")
    assert (run.totals.published, run.totals.swept, run.totals.faults) == (40, 37, 2)
    assert run.totals.served == run.totals.published - run.totals.refused
    assert run.totals.loads == run.totals.acknowledged
    assert (run.totals.answered, run.totals.retried, run.totals.failed) == (2560, 3, 0)
    assert [round_.kind for round_ in run.rounds] == ["first", "failover", "failover"]
    assert run.left_out == {}
    series = {one.name: one for one in run.series}
    assert {"reward", "control_reward", "staleness", "loss"} <= series.keys()
    assert not [name for name in series if name.startswith("requests_")]
    reward = series["reward"]
    assert reward.first_tenth is not None
    assert reward.last_tenth is not None
    assert reward.last_tenth > reward.first_tenth + 0.3
    assert [lane.group for lane in run.lanes] == sorted(
        (lane.group for lane in run.lanes),
        key=["Faults", "Nodes", "Training", "Servers", "Consumers", "Sweepers"].index,
    )


def test_a_large_run_has_a_small_page(tmp_path: pathlib.Path) -> None:
    run = small(tmp_path, nodes=80, spares=6, servers=8, versions=500, failovers=12)
    assert sum(len(bars) for lane in run.lanes for bars in lane.bars.values()) <= BARS_MAX
    assert all(len(series.points) <= POINTS_MAX for series in run.series)
    assert run.totals.published == 500
    assert len(run.failovers) == 12
    assert len(page(run, "large", "1")) < 3_000_000


def test_what_a_real_channel_tells(directory: Place) -> None:
    channel = directory.channel()
    with channel.publisher(sweep=False) as publisher, directory.channel().consumer("c") as consumer:
        names = [str(publisher.publish_payload(1, payload("one")))]
        held = consumer.take(30.0)
        assert held is not None
        held.acknowledge()
        held.release()
        names.append(str(publisher.publish_payload(2, payload("two"))))
        other = consumer.take(30.0)
        assert other is not None
        other.acknowledge()
        log = directory.channel().event_log("trainer-0")
        log.emit("measured", step=1, reward=0.5)
        log.close()
        with directory.channel().sweeper(Retention(keep_recent=1)) as sweeper:
            sweeper.sweep()
    run = gather(find_event_files([directory.path]))
    assert (run.totals.published, run.totals.served, run.totals.swept) == (2, 2, 1)
    assert run.totals.serve_s is not None
    assert run.outcome is None
    lanes = {lane.name: lane for lane in run.lanes}
    assert {"publisher", "consumer-c", "sweeper"} <= lanes.keys()
    assert [bar[4].split()[0] for bar in lanes["consumer-c"].bars["hold"]] == names
    assert len(lanes["sweeper"].bars["announced"]) == len(lanes["sweeper"].bars["swept"]) == 1


def test_requests_are_counted_since_each_process_began(scene: Scene) -> None:
    for counts in ((5, 9, 2, 4), (10, 10)):
        say = scene.file("orchestrator")
        for place, count in enumerate(counts):
            say(float(place), "measured", step=place, batch=place, requests_answered=count, requests_failed=-1)
    run = scene.run()
    assert (run.totals.answered, run.totals.failed) == (9 + 4 + 10, 0)
    assert run.series == ()


def test_names_without_end_are_only_counted(scene: Scene) -> None:
    say = scene.file("trainer")
    for number in range(SERIES_MAX + 5):
        say(float(number), "measured", step=1, **{f"loss_{number}": 1.0})
    for number in range(ANOMALIES_MAX + 7):
        say(float(number), "refused", "x" * (number % 100) + "y" * (number // 100), version=f"v{number}")
    run = scene.run()
    assert len(run.series) == SERIES_MAX
    assert run.left_out["samples"] == 5
    assert len(run.anomalies) == ANOMALIES_MAX
    assert run.num_anomalies == {"refused": ANOMALIES_MAX + 7}
    assert sum(count for name, count in run.left_out.items() if "refused" in name) == 7


@pytest.mark.parametrize("year", ["1970", "2099", "9999", "0001"])
def test_a_clock_that_is_years_off_does_not_stretch_the_run(scene: Scene, year: str) -> None:
    say, off = scene.file("publisher"), scene.file("consumer-c")
    for at_s in range(10):
        say(float(at_s), "published", version=f"c000001-s0000000{at_s}-00000001")
    off(1.0, "refused", "no", version="v")
    files = scene.write()
    (file,) = [file for file in files if file.name.startswith("consumer")]
    file.write_text(file.read_text().replace("2026-", f"{year}-"))
    run = gather(files)
    assert run.end_s - run.start_s == pytest.approx(9.0)
    assert run.num_anomalies == {"refused": 1, "clock_far": 1}
    assert [lane.name for lane in run.lanes] == ["publisher"]
    assert "consumer-c" in page(run, "x", "1")


def test_a_machine_that_booted_in_1970_is_drawn_from_when_its_clock_was_set(scene: Scene) -> None:
    say, other = scene.file("agent-n0"), scene.file("publisher")
    for at_s, state in ((0.0, "parked"), (1.0, "ready"), (2.0, "running"), (9.0, "left")):
        say(at_s, state, round=1)
    other(0.0, "claimed")
    other(9.0, "closed")
    files = scene.write()
    lines = files[0].read_text().splitlines(keepends=True)
    files[0].write_text("".join(line.replace("2026-", "1970-") for line in lines[:2]) + "".join(lines[2:]))
    run = gather(files)
    assert scene.bars(run, "agent-n0", "ready") == [(1, 2)]
    assert scene.bars(run, "agent-n0", "running") == [(2, 9)]
    assert run.num_anomalies == {"clock_jumped": 1, "clock_far": 1}
    assert run.end_s - run.start_s == pytest.approx(9.0)


def test_damaged_files_are_told_of(scene: Scene) -> None:
    scene.file("publisher")(1.0, "closed")
    files = scene.write()
    files[0].write_bytes(files[0].read_bytes() + b"nonsense\n" * 3 + b'{"torn')
    gone = files[0].with_name("gone.jsonl")
    run = gather([*files, gone])
    assert run.num_anomalies == {"damaged_lines": 3, "unreadable_file": 1}
    assert {anomaly.process for anomaly in run.anomalies} == {files[0].name, "gone.jsonl"}
    assert "gone.jsonl" in page(run, "x", "1")


def test_lives_of_one_name_share_a_lane_unless_they_overlap(scene: Scene) -> None:
    for begins_s, ends_s in ((0.0, 10.0), (11.0, 20.0), (15.0, 30.0)):
        say = scene.file("publisher")
        say(begins_s, "claimed", cycle=1)
        say(ends_s, "closed")
    run = scene.run()
    assert [(lane.name, len(lane.bars["claimed"])) for lane in run.lanes] == [("publisher", 2), ("publisher #2", 1)]


def test_nothing_at_all(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    run = gather([tmp_path / "empty.jsonl"])
    assert (run.lanes, run.rounds, run.series, run.anomalies) == ((), (), (), ())
    assert "There is no event" in page(run, "x", "1")
