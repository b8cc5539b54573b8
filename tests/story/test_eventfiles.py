"""Event files: found wherever they lie, and read whatever stands in them."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import pytest

from holdfast.errors import UsageError
from holdfast.eventfiles import CHUNK_BYTES, LINE_BYTES_MAX, Damage, find_event_files, iter_events, tail_events
from holdfast.events import EventLog


def line(event: str = "published", **more: Any) -> bytes:
    said = {"time": "2026-11-20T10:00:00.000+00:00", "clock_s": 1.0, "process": "p", "event": event} | more
    return json.dumps(said).encode() + b"\n"


def read(path: pathlib.Path) -> tuple[list[str], Damage]:
    damage = Damage()
    return [event.event for event in iter_events(path, damage)], damage


def test_a_channel_a_directory_and_a_file_are_places(tmp_path: pathlib.Path) -> None:
    events = tmp_path / "channel" / "events"
    events.mkdir(parents=True)
    for name in ("b-host-1.jsonl", "a-host-2.old.jsonl", "a-host-2.jsonl", "a-host-10.jsonl", "notes.txt"):
        (events / name).write_bytes(line())
    wanted = [events / n for n in ("a-host-10.jsonl", "a-host-2.old.jsonl", "a-host-2.jsonl", "b-host-1.jsonl")]
    assert find_event_files([tmp_path / "channel"]) == wanted
    assert find_event_files([events]) == wanted
    assert find_event_files([events / "b-host-1.jsonl"]) == wanted[-1:]
    assert find_event_files([events, tmp_path / "channel", events / "b-host-1.jsonl"]) == wanted


def test_a_place_without_event_files_adds_none(tmp_path: pathlib.Path) -> None:
    assert find_event_files([tmp_path]) == []


def test_a_place_that_is_not_there_is_an_error_of_the_caller(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError) as raised:
        find_event_files([tmp_path / "none"])
    assert raised.value.code == "no_such_place"


def test_links_and_pipes_in_a_directory_are_no_event_files(tmp_path: pathlib.Path) -> None:
    (tmp_path / "secret").write_bytes(line())
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "directory.jsonl").mkdir()
    assert find_event_files([tmp_path]) == []
    for name in ("link.jsonl", "pipe.jsonl", "directory.jsonl", "gone.jsonl"):
        assert read(tmp_path / name) == ([], Damage(num_unreadable=1))


def test_what_a_log_writes_is_read_back(tmp_path: pathlib.Path) -> None:
    log = EventLog(tmp_path / "p.jsonl", "p")
    log.emit("published", "why", version="c000001-s00000001-00a1b2c3", bytes=5)
    log.close()
    (event,) = iter_events(tmp_path / "p.jsonl")
    assert (event.process, event.event, event.reason, event.fields) == ("p", "published", "why", {"bytes": 5})


@pytest.mark.parametrize(
    "bad",
    [
        b"\n" * 3 + b"{}\n",
        b"not json\n",
        b"\xff\xfe\x00\n",
        line().replace(b"published", b"\xff"),
        b"null\n",
        b'["a"]\n',
        line(clock_s="1"),
        line().replace(b"1.0", b"1e999"),
        line().replace(b"1.0", b"NaN"),
        line(fields=7),
        line(fields={}).replace(b"{}", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        line(reason="x").replace(b'"x"', b'"\\ud800"'),
    ],
    ids=lambda bad: ascii(bad[:30]),
)
def test_a_line_that_is_no_event_is_counted_and_passed_over(tmp_path: pathlib.Path, bad: bytes) -> None:
    (tmp_path / "p.jsonl").write_bytes(line("claimed") + bad + line("closed"))
    assert read(tmp_path / "p.jsonl") == (["claimed", "closed"], Damage(num_lines=1))


def test_a_torn_last_line_is_left_out(tmp_path: pathlib.Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(line("claimed") + line("closed")[:-1])
    assert read(tmp_path / "p.jsonl") == (["claimed"], Damage(num_torn=1))


@pytest.mark.parametrize("more", [0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 7])
def test_a_line_that_is_too_long_is_passed_over_without_being_held(tmp_path: pathlib.Path, more: int) -> None:
    long = line(reason="x" * (LINE_BYTES_MAX + CHUNK_BYTES + more))
    (tmp_path / "p.jsonl").write_bytes(line("claimed") + long + line("closed"))
    assert read(tmp_path / "p.jsonl") == (["claimed", "closed"], Damage(num_long=1))
    (tmp_path / "p.jsonl").write_bytes(line("claimed") + long[:-1])
    assert read(tmp_path / "p.jsonl") == (["claimed"], Damage(num_long=1, num_torn=1))


def test_lines_are_whole_wherever_a_chunk_ends(tmp_path: pathlib.Path) -> None:
    lines = [line("given", reason="y" * (CHUNK_BYTES // 3 + n)) for n in range(7)]
    (tmp_path / "p.jsonl").write_bytes(b"".join(lines))
    assert read(tmp_path / "p.jsonl") == (["given"] * 7, Damage())


def test_a_tail_is_what_stands_whole_in_the_last_bytes(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "p.jsonl"
    lines = [line(f"e{number}") for number in range(100)]
    path.write_bytes(b"".join(lines) + b'{"time":"2026')
    one = len(lines[-1])
    for limit, wanted in ((13, 0), (12 + one, 0), (14 + one, 1), (13 + 3 * one, 2), (2**20, 100)):
        assert [event.event for event in tail_events(path, limit)] == [f"e{n}" for n in range(100 - wanted, 100)]


def test_a_tail_passes_over_whatever_is_no_event(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "p.jsonl"
    hostile = (b"\xff\xfe\n", b"[" * 5000 + b"\n", b"{}\n", b"\n", b'{"time":1}\n', b"x" * 70_000 + b"\n")
    path.write_bytes(line("first") + b"".join(hostile) + line("last"))
    assert [event.event for event in tail_events(path, 2**20)] == ["first", "last"]
    (tmp_path / "link.jsonl").symlink_to(path)
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("link.jsonl", "pipe.jsonl", "gone.jsonl", "."):
        assert tail_events(tmp_path / name, 2**20) == []
