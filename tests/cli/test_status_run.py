"""`holdfast status` of a whole run: from event files, from a channel, and from both."""

from __future__ import annotations

import os
import pathlib
import pty
import signal
import subprocess
import sys

import msgspec
import pytest

from holdfast.cli.screen import shares
from holdfast.events import EventLog
from holdfast.overview.now import RunNow
from tests.cli.conftest import Filled, Run
from tests.support.manyevents import Scale, write


def say(directory: pathlib.Path, process: str) -> EventLog:
    directory.mkdir(parents=True, exist_ok=True)
    return EventLog(directory / f"{process}-host-00000000.jsonl", process)


def job(directory: pathlib.Path, *, waiting: str = "") -> None:
    """Two nodes train in round 2, since a third one was lost."""
    log = say(directory, "agent-n0")
    log.emit("joined", run="train", attempt="3", member="n0.aaaaaaaa")
    log.emit("coordinator", "the job begins", term=1)
    replaced = {"n1.bbbbbbbb": "n1.bbbbbbbb last heard 1.1 s ago"}
    seats = ["n0.aaaaaaaa", "n2.cccccccc"]
    why = "round 2: n1.bbbbbbbb last heard 1.1 s ago"
    log.emit("round_committed", why, round=2, plan="p", seats=seats, replaced=replaced, restarts=1)
    log.emit("round_running", round=2, noticed_s=1.1, stopped_s=0.3, started_s=0.1)
    log.emit("running", round=2)
    if waiting:
        log.emit("waiting", waiting)
    log.close()
    for node, state, round_ in (("n2", "running", 2), ("n3", "parked", 0)):
        log = say(directory, f"agent-{node}")
        log.emit(state, round=round_)
        log.close()


def test_the_job_is_told_from_its_agents_files(run: Run, tmp_path: pathlib.Path) -> None:
    job(tmp_path / "e")
    done = run("status", "--events", tmp_path / "e")
    assert done.code == 0
    assert "train, attempt 3: round 2 since " in done.out
    assert ": n1.bbbbbbbb last heard 1.1 s ago" in done.out
    assert "2 of 2 train, 1 spare (n0 0, n2 1, n3 spare)" in done.out
    assert "1.5 s (noticed 1.1, stopped 0.3, started 0.1)" in done.out


def test_nodes_that_are_not_well_are_named_and_with_all_every_one(run: Run, tmp_path: pathlib.Path) -> None:
    job(tmp_path / "e")
    log = say(tmp_path / "e", "agent-n4")
    log.emit("unhealthy", "nvidia-smi failed", round=0)
    log.close()
    out = run("status", "--events", tmp_path / "e").out
    (line,) = (line for line in out.splitlines() if line.split()[:1] == ["n4"])
    assert line.split() == ["n4", "unhealthy", "nvidia-smi", "failed"]
    assert "1 unhealthy" in out
    out = run("status", "--events", tmp_path / "e", "--all").out
    assert [line.split()[:3] for line in out.splitlines() if "running" in line] == [
        ["0", "n0", "running"],
        ["1", "n2", "running"],
    ]


def test_json_has_the_run_beside_the_channel(run: Run, filled: Filled) -> None:
    job(filled.path / "events")
    log = say(filled.path / "events", "sync-gpu-0")
    said = {"server": "http://gpu-0:8000", "adapter": "policy", "state": "ready"}
    log.emit("server_state", "serves it", version=filled.versions[1], **said)
    log.close()
    log = say(filled.path / "events", "trainer-0")
    log.emit("measured", step=4, reward=0.5, staleness=1)
    log.close()
    data = run("status", filled.path, "--json").data
    assert (data["run"], data["newest"], len(data["versions"])) == ("channel", filled.versions[-1], 4)
    now = msgspec.convert(data, RunNow)
    assert now.job is not None
    assert (now.job.round, now.job.seats, now.job.spares) == (2, 2, 1)
    assert [(one.version, one.behind_versions, one.behind_steps) for one in now.servers] == [(filled.versions[1], 2, 2)]
    assert {one.name: one.value for one in now.measured} == {"reward": 0.5, "staleness": 1.0}
    out = run("status", filled.path).out
    assert "step 4: reward 0.5, staleness 1" in out
    assert "gpu-0:8000" in out
    assert "2 (2 steps)" in out


def test_what_needs_a_person_is_exit_code_3(run: Run, tmp_path: pathlib.Path) -> None:
    job(tmp_path / "e", waiting="waiting: 1 of 2 nodes")
    done = run("status", "--events", tmp_path / "e")
    assert done.code == 3
    assert "! the job waits: waiting: 1 of 2 nodes" in done.out
    assert run("status", "--events", tmp_path / "e", "--json").code == 3


def test_there_has_to_be_something_to_look_at(run: Run, tmp_path: pathlib.Path) -> None:
    done = run("status")
    assert done.code == 2
    assert "nothing to look at" in done.err
    done = run("status", "--events", tmp_path / "none", "--json")
    assert (done.code, done.data["error"]["code"]) == (2, "no_such_place")
    done = run("status", "--events", tmp_path)
    assert done.code == 0
    assert "no event file is there" in done.out


def test_several_places_and_single_files(run: Run, tmp_path: pathlib.Path) -> None:
    job(tmp_path / "a")
    log = say(tmp_path / "b", "trainer-0")
    log.emit("measured", step=1, reward=0.25)
    log.close()
    file = tmp_path / "b" / "trainer-0-host-00000000.jsonl"
    data = run("status", "--events", tmp_path / "a", "--events", file, "--events", tmp_path / "b", "--json").data
    assert (data["events"]["files"], data["measured"][0]["value"]) == (4, 0.25)


def test_hostile_text_stays_text(run: Run, filled: Filled) -> None:
    bad = "\x1b]0;owned\x07[bold]\u202e\n<script>"
    log = say(filled.path / "events", "agent-n0")
    log.emit("coordinator", bad, term=1)
    log.emit("round_committed", bad, round=1, plan=bad, seats=[bad], replaced={bad: bad}, restarts=bad)
    log.emit("running", bad, round=1)
    log.emit("outcome", bad, ending=bad, code=bad)
    for server in (bad, "http://gpu"):
        log.emit("server_state", bad, version=bad, server=server, adapter=bad, state="gone")
    log.emit("measured", step=1, **{bad: 1.0})
    log.emit("refused", bad, version=bad)
    log.close()
    for words in ((), ("--json",), ("--all",)):
        done = run("status", filled.path, *words)
        assert done.code == 3
        assert not {"\x1b", "\x07", "\u202e"} & set(done.out)


def test_a_large_run_is_summed_up(run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, Scale(nodes=100, spares=4, servers=40, versions=60, failovers=3))
    short = run("status", "--events", tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("status", "--events", tmp_path).out.splitlines()
    assert len(short.out.splitlines()) < 70
    assert max(len(line) for line in lines) <= 80
    assert "… and 20 more, 20 ready (--all lists them)" in lines
    assert len(run("status", "--events", tmp_path, "--all").out.splitlines()) > len(lines)


def test_a_channel_whose_event_files_may_not_be_listed_has_a_status(
    run: Run, filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.eventfiles.FILES_MAX", 0)
    done = run("status", filled.path)
    assert done.code == 0
    assert "event files are left out" in done.err
    assert filled.versions[-1] in done.out


@pytest.mark.parametrize(
    ("lines", "wants", "given"),
    [
        (100, [5, 7, 0], [5, 7, 0]),
        (10, [20, 20], [5, 5]),
        (10, [2, 20], [2, 8]),
        (9, [1, 20, 3], [1, 5, 3]),
        (0, [20, 1, 5], [2, 1, 2]),
        (-5, [], []),
    ],
)
def test_tables_share_the_lines(lines: int, wants: list[int], given: list[int]) -> None:
    assert shares(lines, wants) == given


def test_watching_ends_by_ctrl_c_and_leaves_the_screen(tmp_path: pathlib.Path) -> None:
    job(tmp_path / "e")
    above, below = pty.openpty()
    words = [str(pathlib.Path(sys.executable).with_name("holdfast")), "status", "--events", str(tmp_path / "e")]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "30"}
    with subprocess.Popen(
        [*words, "--watch", "--every", "0.05"], stdin=below, stdout=below, stderr=below, env=environment
    ) as process:
        os.close(below)
        seen = b""
        while b"round 2" not in seen:
            seen += os.read(above, 65536)
        process.send_signal(signal.SIGINT)
        while True:
            try:
                data = os.read(above, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            seen += data
        assert process.wait(60) == 130
    os.close(above)
    assert b"\x1b[?1049l" in seen  # the terminal's own screen is back
    assert b"Traceback" not in seen
