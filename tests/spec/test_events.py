"""Events: one schema, one writer per file, and every decision with its reason."""

from __future__ import annotations

import json
import os
import pathlib
import select
import subprocess
import sys
import threading
from typing import Any

import pytest

from holdfast import FencedError, Retention, Term
from holdfast.channel.checking import stable_text
from holdfast.errors import UsageError
from holdfast.events import Event, EventLog, log_to, read_events
from tests.support.channels import Place, payload, until

FIELDS = {"time", "clock_s", "process", "event", "version", "reason", "fields"}


def _events(directory: pathlib.Path, process: str) -> list[Event]:
    paths = sorted(directory.glob(f"{process}-*.jsonl"))
    return sorted((event for path in paths for event in read_events(path)), key=lambda event: event.clock_s)


def _said(events: list[Event], name: str) -> list[tuple[str | None, str]]:
    return [(event.version, event.reason) for event in events if event.event == name]


def _a_day(place: Place, events: Any) -> dict[str, str]:
    """A publisher, its successor, two consumers and a sweeper do a bit of everything."""
    names: dict[str, str] = {}
    other = Term(job="other", round=0, nonce="1")
    with place.channel(events=events).consumer("c") as consumer:
        assert consumer.take(0.0) is None
        with place.channel(events=events).publisher(sweep=False) as publisher:
            names["one"] = str(publisher.publish_payload(1, payload("one")))
            held = until(lambda: consumer.take(0.2))
            held.acknowledge()
            names["two"] = str(publisher.publish_payload(2, payload("two")))
            until(lambda: consumer.take(0.2)).fail()
            until(lambda: consumer.take(0.2)).reject("its loss is not a number")
            with (
                place.channel(events=events).publisher(
                    sweep=False, term=other, take_over=True, resume_from=names["one"]
                ) as second,
                place.channel(events=events).sweeper(Retention(keep_recent=1)) as sweeper,
            ):
                with pytest.raises(FencedError):
                    publisher.publish_payload(3, payload("zombie"))
                names["three"] = str(second.publish_payload(3, payload("three")))
                held.release()
                sweeper.sweep()
    return names


def test_every_decision_is_told_with_its_reason(directory: Place) -> None:
    names = _a_day(directory, True)
    events = directory.path / "events"
    said = _events(events, "publisher")
    assert [reason for _, reason in _said(said, "claimed")] == [
        "first claim of the channel",
        _said(said, "claimed")[1][1],
    ]
    assert "is taken over as told" in _said(said, "claimed")[1][1]
    assert {version for version, _ in _said(said, "published")} == set(names.values())
    assert "cycle 1 was replaced by cycle 2" in _said(said, "fenced")[0][1]
    told = _events(events, "consumer-c")
    assert any("no channel" in reason for _, reason in _said(told, "waiting"))
    assert [version for version, _ in _said(told, "given")] == [names["one"], names["two"], names["two"]]
    assert _said(told, "acknowledged")[0][0] == names["one"]
    assert _said(told, "failed")[0][0] == names["two"]
    assert _said(told, "rejected") == [(names["two"], "its loss is not a number")]
    assert _said(told, "released")[0][0] == names["one"]
    swept = _events(events, "sweeper")
    for event in ("tombstone", "swept"):
        assert dict(_said(swept, event)) == {  # type: ignore[arg-type]
            names["two"]: "goes: outside the lineage of cycle 2",
        } | {version: reason for version, reason in _said(swept, event) if version == names["one"]}
    assert all(reason for _, reason in _said(swept, "swept"))


def test_every_line_has_the_one_schema_and_each_file_one_writer(directory: Place) -> None:
    _a_day(directory, True)
    files = sorted((directory.path / "events").iterdir())
    assert len(files) >= 4
    for file in files:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert lines
        assert len({line["process"] for line in lines}) == 1
        for line in lines:
            assert set(line) <= FIELDS
            assert line["process"]
            assert line["event"].replace("_", "").isalpha()
            assert line["event"].islower()
        assert [line["clock_s"] for line in lines] == sorted(line["clock_s"] for line in lines)
        assert file.stat().st_mode & 0o777 == 0o644


def test_every_event_is_in_the_list_of_the_format(directory: Place) -> None:
    _a_day(directory, True)
    text = (pathlib.Path(__file__).resolve().parents[2] / "FORMAT.md").read_text()
    listed = text[text.index("\n## Events") :]
    seen = {event.event for path in (directory.path / "events").iterdir() for event in read_events(path)}
    assert {name for name in seen if f"`{name}`" not in listed} == set()


def test_events_go_where_they_are_told_or_nowhere(directory: Place, tmp_path: pathlib.Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    _a_day(directory, tmp_path / "elsewhere")
    assert _events(tmp_path / "elsewhere", "publisher")
    assert list((directory.path / "events").iterdir()) == []


def test_without_events_no_file_is_written(directory: Place) -> None:
    _a_day(directory, False)
    assert list((directory.path / "events").iterdir()) == []


def test_a_disk_that_takes_no_events_fails_nobody(directory: Place, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("x")
    assert _a_day(directory, tmp_path / "file" / "below")


def test_a_refused_version_is_told_with_what_was_wrong(directory: Place) -> None:
    with directory.channel().publisher(sweep=False) as publisher, directory.channel().consumer("c") as consumer:
        version = publisher.publish_payload(1, payload("one"))
        (directory.path / "versions" / str(version) / "manifest.json").write_bytes(b"{}")
        (directory.path / "versions" / str(version) / "STABLE").write_bytes(stable_text(b"{}"))
        assert consumer.take(0.0) is None
        ((name, reason),) = _said(_events(directory.path / "events", "consumer-c"), "refused")
        assert name == str(version)
        assert "manifest" in reason


def test_a_full_file_is_kept_once_and_begun_anew(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.events.EVENTS_BYTES_MAX", 2000)
    log = EventLog(tmp_path / "a.jsonl", "test")
    for number in range(100):
        log.emit("tick", "a reason", number=number)
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.old.jsonl"]
    assert all(path.stat().st_size <= 2200 for path in tmp_path.iterdir())
    assert read_events(tmp_path / "a.jsonl")[-1].fields == {"number": 99}


def test_a_torn_last_line_is_left_out(tmp_path: pathlib.Path) -> None:
    log = EventLog(tmp_path / "a.jsonl", "test")
    log.emit("one")
    log.emit("two", version="v", odd=object())
    log.close()
    data = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_bytes(data + b'{"time":"2026')
    assert [event.event for event in read_events(tmp_path / "a.jsonl")] == ["one", "two"]


def _written(directory: pathlib.Path) -> list[Event]:
    return [event for path in sorted(directory.glob("*.jsonl")) for event in read_events(path)]


def test_in_a_directory_every_log_has_a_file_of_its_own(tmp_path: pathlib.Path) -> None:
    (tmp_path / "run.d").mkdir()
    (tmp_path / "events").mkdir()
    for place in ("run.d", "events", "events/"):
        for _ in range(2):
            log = log_to(f"{tmp_path}/{place}", "agent-n0")
            log.emit("parked", "waits")
            log.close()
    names = [path.name for path in (tmp_path / "events").iterdir()]
    assert len(names) == 4
    assert all(name.startswith("agent-n0-") and name.endswith(".jsonl") for name in names)
    assert [event.process for event in _written(tmp_path / "run.d")] == ["agent-n0"] * 2


def test_a_name_with_an_ending_is_a_file(tmp_path: pathlib.Path) -> None:
    log = log_to(str(tmp_path / "n0.jsonl"), "agent-n0")
    log.emit("parked")
    log.close()
    assert [event.event for event in read_events(tmp_path / "n0.jsonl")] == ["parked"]


def test_a_directory_may_come_later_and_is_never_made(tmp_path: pathlib.Path) -> None:
    events = tmp_path / "channel" / "events"
    log = log_to(str(events), "agent-n0")
    for number in range(3):
        log.emit("parked", number=number)
    assert list(tmp_path.iterdir()) == []
    events.mkdir(parents=True)
    written = until(lambda: _written(events))  # without another word
    assert [event.fields["number"] for event in written] == [0, 1, 2]
    log.emit("ready")
    log.close()
    assert [event.event for event in _written(events)] == ["parked"] * 3 + ["ready"]


NAMED = """
import os, pathlib, sys
from holdfast.events import log_to
place, named = sys.argv[1], []
watched = ("open", "os.scandir", "os.listdir")
sys.addaudithook(lambda event, args: named.append(str(args[0])) if event in watched else None)
log = log_to(place + "/channel/events/", "agent-n0")
log.emit("parked")
log.close()
print("\\n".join(named))
"""


def test_a_name_that_no_listing_has_shown_is_never_asked_for(tmp_path: pathlib.Path) -> None:
    """An NFS client would answer "missing" for 30 s and more, to everybody on its machine."""
    done = subprocess.run([sys.executable, "-c", NAMED, str(tmp_path)], capture_output=True, text=True, check=True)
    named = done.stdout.splitlines()
    assert str(tmp_path) in named  # it has looked
    assert [path for path in named if path.startswith(f"{tmp_path}/channel")] == []


def test_a_directory_that_never_comes_is_said_at_the_end(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = log_to(str(tmp_path / "nowhere"), "agent-n0")
    log.emit("parked")
    log.close()
    assert "1 events were not written" in caplog.text
    log_to(str(tmp_path / "nowhere"), "silent").close()
    assert list(tmp_path.iterdir()) == []


def test_whoever_speaks_goes_on_while_the_storage_hangs(tmp_path: pathlib.Path) -> None:
    """A pipe that nobody reads: the open of its writing end hangs, as an open on a hung mount does."""
    os.mkfifo(tmp_path / "events.jsonl")
    log = log_to(str(tmp_path / "events.jsonl"), "agent-n0")
    for number in range(20_000):
        log.emit("tick", number=number)
    reader = os.open(tmp_path / "events.jsonl", os.O_RDONLY | os.O_NONBLOCK)
    closing = threading.Thread(target=log.close)
    closing.start()
    data = b""
    while closing.is_alive():
        if select.select([reader], [], [], 0.1)[0]:
            data += os.read(reader, 2**20)
    os.close(reader)
    assert b'"number":0}' in data


def test_a_quiet_process_touches_its_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.events.ALIVE_S", 0.01)
    path = tmp_path / "n0.jsonl"
    log = log_to(str(path), "agent-n0")
    log.emit("parked")
    until(path.exists)
    os.utime(path, (1.0, 1.0))
    assert until(lambda: path.stat().st_mtime > 1.0)
    log.close()
    assert [event.event for event in read_events(path)] == ["parked"]


def test_a_process_of_the_users_may_speak_beside_the_others(directory: Place) -> None:
    channel = directory.channel()
    log = channel.event_log("trainer-0")
    log.emit("measured", step=1, reward=0.25)
    channel.open(create=True)
    log.emit("measured", step=2, reward=0.5)
    log.close()
    said = _events(directory.path / "events", "trainer-0")
    assert [event.fields for event in said] == [{"step": 1, "reward": 0.25}, {"step": 2, "reward": 0.5}]
    for name in ("a/b", "../x", "", "a\0b", "x" * 300):
        with pytest.raises(UsageError, match="cannot name an event file"):
            channel.event_log(name)
