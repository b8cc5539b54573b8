"""`holdfast report` and `holdfast trace`."""

from __future__ import annotations

import json
import os
import pathlib

import msgspec
import pytest

from holdfast.cli.reporting import Failover, Measured, Reported, Traced
from holdfast.story.run import Totals
from tests.cli.conftest import Filled, Run
from tests.support.manyevents import Scale, write

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def events(tmp_path: pathlib.Path) -> pathlib.Path:
    return write(tmp_path / "run42", Scale())


def test_report_writes_one_page_and_says_what_is_in_it(run: Run, events: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = run("report", events, "-o", tmp_path / "page.html", "--title", "a <run>")
    assert done.code == 0
    assert done.err == ""
    lines = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert lines["run"].startswith("a <run>: succeeded, 2 min")
    assert lines["versions"] == "40 published, 40 served, 37 swept, 0 refused"
    assert lines["failovers"] == "2, longest 2.29 s"
    page = (tmp_path / "page.html").read_text()
    assert "<h1>a &lt;run&gt;</h1>" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "run42"]


def test_report_as_json(run: Run, events: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = run("report", events, "-o", tmp_path / "page.html", "--json")
    reported = msgspec.json.decode(done.out, type=Reported)
    assert (reported.ending, reported.code, reported.rounds) == ("succeeded", 0, 3)
    assert reported.bytes == (tmp_path / "page.html").stat().st_size
    assert [failover.round for failover in reported.failovers] == [2, 3]
    for failover in reported.failovers:
        assert failover.total_s == pytest.approx(sum(failover.phases.values()), abs=0.003)
    assert reported.measured["reward"].num == 40
    assert reported.totals.failed == 0
    assert reported.title == "run42"


def test_a_channel_is_called_by_its_run(run: Run, filled: Filled, tmp_path: pathlib.Path) -> None:
    write(filled.path, Scale())
    done = run("report", filled.path, "-o", tmp_path / "page.html", "--json")
    assert done.data["title"] == filled.channel.open().run
    done = run("report", filled.path / "events", "-o", tmp_path / "page.html", "--json")
    assert done.data["title"] == filled.channel.open().run
    assert done.data["totals"]["published"] == 40 + len(filled.versions)


def test_trace_writes_what_perfetto_reads(run: Run, events: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = run("trace", events, "-o", tmp_path / "trace.json", "--json")
    traced = msgspec.json.decode(done.out, type=Traced)
    assert traced.bytes == (tmp_path / "trace.json").stat().st_size
    assert json.loads((tmp_path / "trace.json").read_text())["otherData"] == {"run": "run42"}
    assert "ui.perfetto.dev" in run("trace", events, "-o", tmp_path / "trace.json").out


@pytest.mark.parametrize("command", ["report", "trace"])
def test_several_places_are_one_run(run: Run, events: pathlib.Path, tmp_path: pathlib.Path, command: str) -> None:
    files = sorted(events.iterdir())
    assert run(command, *files, "-o", tmp_path / "one").code == 0
    assert run(command, events, files[0], "-o", tmp_path / "two", "--title", files[0].name).code == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("command", ["report", "trace"])
def test_what_cannot_be_read_or_written_is_said(
    run: Run, events: pathlib.Path, tmp_path: pathlib.Path, command: str
) -> None:
    (tmp_path / "empty").mkdir()
    for words, code in (
        ([tmp_path / "none"], "no_such_place"),
        ([tmp_path / "empty"], "no_events"),
        ([events, "-o", tmp_path / "no" / "page"], "cannot_write"),
        ([events, "-o", tmp_path], "cannot_write"),
        ([], "usage"),
    ):
        done = run(command, *words, "--json")
        assert (done.code, done.data["error"]["code"]) == (2, code)
        assert done.data["error"]["hint"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "run42"]


def test_an_output_that_stands_is_replaced_as_a_whole(run: Run, events: pathlib.Path, tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    os.link(page, tmp_path / "kept")
    assert run("report", events, "-o", page).code == 0
    assert (tmp_path / "kept").read_text() == "old"
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("kind", [Reported, Failover, Measured, Totals, Traced], ids=lambda kind: kind.__name__)
def test_every_field_of_json_is_documented(kind: type[msgspec.Struct]) -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    part = text[text.index("## report, trace") :]
    assert [name for name in kind.__struct_fields__ if f"`{name}`" not in part] == []


def test_large_numbers_are_printed_plainly(run: Run, tmp_path: pathlib.Path) -> None:
    events = write(tmp_path / "run42", Scale(nodes=1, spares=0, servers=1, versions=1001, failovers=0, refusals=0))
    done = run("report", events, "-o", tmp_path / "page.html")
    assert "1001 published" in done.out
    assert "\\u" not in done.out
