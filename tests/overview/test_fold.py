"""What the ends of event files tell of a run: the job, its servers, what was measured, what went wrong."""

from __future__ import annotations

import datetime as dt
import os
import pathlib
from typing import Any

import msgspec
import pytest

from holdfast.events import Event
from holdfast.overview.fold import tell
from holdfast.overview.now import RunNow
from holdfast.overview.tails import AGENT_BYTES, TailReader

START_S = dt.datetime(2026, 11, 20, 9, 0, tzinfo=dt.UTC).timestamp()
V1, V2, V3 = (f"c000001-s{step:08d}-00a1b2c3" for step in (10, 20, 30))
SEATS = ["n0.aaaaaaaa", "n1.bbbbbbbb"]


class Files:
    """Event files, written as processes write them; `at_s` counts from the beginning of the run."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def say(self, process: str, at_s: float, event: str, reason: str = "", **fields: Any) -> None:
        version = fields.pop("version", None)
        said = Event(
            time=dt.datetime.fromtimestamp(START_S + at_s, dt.UTC).isoformat(timespec="milliseconds"),
            clock_s=at_s,
            process=process,
            event=event,
            version=version,
            reason=reason,
            fields=fields,
        )
        path = self.path / f"{process}-host-00000000.jsonl"
        with path.open("ab") as file:
            file.write(msgspec.json.encode(said) + b"\n")
        os.utime(path, (START_S + at_s, START_S + at_s))

    def touch(self, process: str, at_s: float) -> None:
        os.utime(self.path / f"{process}-host-00000000.jsonl", (START_S + at_s, START_S + at_s))

    def agent(self, node: str, at_s: float, *states: str, round_: int = 0, attempt: str = "0") -> None:
        self.say(f"agent-{node}", at_s, "joined", run="train", attempt=attempt, member=f"{node}.x", host="h")
        for number, state in enumerate(states):
            self.say(f"agent-{node}", at_s + number, state, round=round_)

    def commit(self, at_s: float, number: int, seats: list[str], by: str = "n0", **more: Any) -> None:
        fields = {"round": number, "plan": f"p{number}", "seats": seats, "spares": [], "replaced": {}, **more}
        self.say(f"agent-{by}", at_s, "round_committed", f"round {number}: the job begins", **fields)

    def now(self, **more: Any) -> RunNow:
        return tell(TailReader([self.path]).look(), **more)


@pytest.fixture
def files(tmp_path: pathlib.Path) -> Files:
    return Files(tmp_path)


def begin(files: Files) -> None:
    """Two nodes train in round 1, and a third is spare."""
    files.agent("n0", 0, "parked")
    files.say("agent-n0", 1, "coordinator", "the job begins", term=1)
    files.say("agent-n0", 2, "waiting", "waiting: 1 of 2 nodes")
    files.agent("n1", 2, "parked")
    files.agent("n2", 3, "parked")
    files.commit(5, 1, SEATS)
    for node in ("n0", "n1"):
        files.say(f"agent-{node}", 6, "running", round=1)


def test_nothing_said_is_nothing_told(files: Files) -> None:
    now = files.now()
    assert (now.job, now.servers, now.measured, now.anomalies, now.problems, now.newest) == (None, [], [], [], [], None)
    assert now.events.files == 0


def test_a_round_with_its_seats_and_spares(files: Files) -> None:
    begin(files)
    job = files.now().job
    assert job is not None
    assert (job.run, job.attempt, job.round, job.coordinator) == ("train", "0", 1, "n0")
    assert (job.seats, job.running, job.spares, job.waiting) == (2, 2, 1, "")
    assert [(node.node, node.group_rank, node.spare) for node in job.nodes] == [
        ("n0", 0, False),
        ("n1", 1, False),
        ("n2", None, True),
    ]
    assert files.now().problems == []


def test_what_is_waited_for_needs_a_person(files: Files) -> None:
    files.agent("n0", 0, "parked")
    files.say("agent-n0", 1, "coordinator", "the job begins", term=1)
    files.say("agent-n0", 2, "waiting", "waiting: 1 of 2 nodes")
    now = files.now()
    assert now.job is not None
    assert (now.job.round, now.job.waiting) == (0, "waiting: 1 of 2 nodes")
    assert now.problems == ["the job waits: waiting: 1 of 2 nodes"]


def test_a_failover_with_its_phases(files: Files) -> None:
    begin(files)
    why = {"n1.bbbbbbbb": "n1.bbbbbbbb last heard 1.1 s ago"}
    files.say("agent-n0", 20, "round_proposed", "round 2: n1 last heard 1.1 s ago")
    files.commit(20.5, 2, ["n0.aaaaaaaa", "n2.cccccccc"], replaced=why, restarts=1)
    job = files.now().job
    assert job is not None
    assert job.last_failover is not None
    assert (job.last_failover.replaced, job.last_failover.total_s) == (why, None)
    files.say("agent-n0", 21, "round_running", round=2, noticed_s=1.1, stopped_s=0.3, started_s=0.1)
    files.say("agent-n2", 21, "running", round=2)
    files.say("agent-n0", 21, "running", round=2)
    job = files.now().job
    assert job is not None
    assert job.last_failover is not None
    assert (job.last_failover.total_s, job.failovers, job.restarts) == (1.5, 1, 1)
    assert {node.node: node.state for node in job.nodes} == {"n0": "running", "n1": "replaced", "n2": "running"}
    assert job.spares == 0


def test_a_seated_node_that_is_silent_needs_a_person(files: Files) -> None:
    begin(files)
    files.touch("agent-n0", 500)
    files.touch("agent-n2", 30)
    now = files.now()
    assert now.problems == ["nothing is heard from n1, with a seat: for 494 s"]
    assert now.job is not None
    assert now.job.states == {"running": 1, "silent": 2}
    assert now.job.spares == 0


def test_agents_that_gave_up_or_cannot_reach_the_store_need_a_person(files: Files) -> None:
    begin(files)
    files.say("agent-n1", 20, "store_away", "no answer")
    assert files.now().problems == ["n1 cannot reach the job's store: no answer"]
    files.say("agent-n1", 21, "store_back", away_s=1.0)
    now = files.now()
    assert now.problems == []
    assert now.job is not None
    assert now.job.running == 2
    for node in ("n0", "n1"):
        files.say(f"agent-{node}", 30, "lost", "the host of the job's store is gone")
        files.say(f"agent-{node}", 31, "left", round=1)
    now = files.now()
    assert now.problems == ["2 agents, n0 for one, gave up: the host of the job's store is gone"]
    assert now.job is not None
    assert now.job.states == {"lost": 2, "parked": 1}
    files.agent("n0", 40, "parked")  # another life of it
    assert files.now().problems == ["n1 gave up: the host of the job's store is gone"]


def test_a_job_whose_agents_have_all_died_needs_a_person(files: Files) -> None:
    begin(files)
    assert files.now(now_s=START_S + 300).problems == []
    wanted = "no agent has been heard for 394 s by this machine's clock, and there is no outcome"
    assert files.now(now_s=START_S + 400).problems == [wanted]
    files.say("agent-n0", 7, "outcome", "all 2 nodes are done", ending="succeeded", code=0)
    assert files.now(now_s=START_S + 400).problems == []


@pytest.mark.parametrize(("ending", "problems"), [("succeeded", 0), ("stopped", 0), ("failed", 1)])
def test_the_outcome(files: Files, ending: str, problems: int) -> None:
    begin(files)
    files.say("agent-n0", 900, "outcome", "all 2 nodes are done", ending=ending, code=0)
    now = files.now()
    assert now.job is not None
    assert now.job.outcome is not None
    assert (now.job.outcome.ending, now.job.outcome.code) == (ending, 0)
    assert len(now.problems) == problems


def test_another_attempt_begins_anew(files: Files) -> None:
    begin(files)
    files.say("agent-n0", 900, "outcome", "the budget is used up", ending="failed", code=1)
    files.say("agent-m0", 1000, "joined", run="train", attempt="1", member="m0.x")
    files.say("agent-m0", 1001, "coordinator", "the job begins", term=1)
    files.commit(1002, 1, ["m0.dddddddd"], by="m0")
    files.say("agent-m0", 1003, "running", round=1)
    job = files.now().job
    assert job is not None
    assert (job.attempt, job.outcome, job.seats) == ("1", None, 1)
    assert [node.node for node in job.nodes] == ["m0"]


def test_servers_the_worst_first_with_their_lag(files: Files) -> None:
    files.say("publisher", 0, "claimed", cycle=1, starts_from=None)
    for number, version in enumerate((V1, V2, V3)):
        files.say("publisher", 1 + number, "published", version=version)
    for number, (state, version) in enumerate((("ready", V3), ("ready", V1), ("gone", None), ("lagging", V2))):
        said = {"server": f"http://gpu-{number}:8000", "adapter": "policy", "state": state}
        files.say(f"sync-gpu-{number}", 10, "server_state", f"is {state}", version=version, **said)
    now = files.now()
    assert now.newest == V3
    assert [(one.server[-6:], one.state, one.behind_versions, one.behind_steps) for one in now.servers] == [
        ("2:8000", "gone", None, None),
        ("3:8000", "lagging", 1, 10),
        ("1:8000", "ready", 2, 20),
        ("0:8000", "ready", 0, 0),
    ]
    assert now.problems == ["http://gpu-2:8000 is gone: is gone", "http://gpu-3:8000 is lagging: is lagging"]


def test_a_server_outside_of_the_lineage(files: Files) -> None:
    files.say("publisher", 0, "claimed", cycle=1, starts_from=None)
    files.say("publisher", 1, "published", version=V1)
    files.say("publisher", 2, "published", version=V2)
    files.say("publisher", 3, "claimed", cycle=2, starts_from=V1)
    files.say("publisher", 4, "published", version="c000002-s00000015-00a1b2c3")
    said = {"server": "http://gpu-0:8000", "adapter": "policy", "state": "ready"}
    files.say("sync-gpu-0", 10, "server_state", version=V2, **said)
    (one,) = files.now().servers
    assert (one.outside_lineage, one.behind_steps) == (True, None)
    files.say("sync-gpu-0", 11, "server_still", version=V1, **said)
    (one,) = files.now().servers
    assert (one.outside_lineage, one.behind_versions, one.behind_steps) == (False, 1, 5)


def test_the_channel_knows_better_than_events(files: Files) -> None:
    said = {"server": "http://gpu-0:8000", "adapter": "policy", "state": "ready"}
    files.say("sync-gpu-0", 10, "server_state", version=V1, **said)
    (one,) = files.now().servers
    assert (one.behind_versions, one.behind_steps) == (None, None)
    (one,) = files.now(newest=V3, present=[V1, V3]).servers
    assert (one.behind_versions, one.behind_steps) == (1, 20)


def test_a_sync_that_was_stopped_is_not_missed_and_one_that_died_is(files: Files) -> None:
    said = {"server": "http://gpu-0:8000", "adapter": "policy", "state": "ready"}
    files.say("sync-a", 10, "server_state", version=V1, **said)
    files.say("sync-b", 10, "server_state", version=V1, **{**said, "server": "http://gpu-1:8000"})
    files.say("sync-b", 11, "closed", "told to stop", sync="b")
    files.say("trainer", 400, "measured", step=1)
    now = files.now()
    assert [(one.server, one.state) for one in now.servers] == [("http://gpu-0:8000", "silent")]
    assert now.problems == [
        "http://gpu-0:8000 is silent: sync-a has said nothing for 390 s; it was ready",
    ]
    files.say("trainer", 10 + 25 * 3600, "measured", step=2)
    assert files.now().servers == []


def test_of_two_processes_for_one_server_the_last_one_counts(files: Files) -> None:
    said = {"server": "http://gpu-0:8000", "adapter": "policy"}
    files.say("sync-a", 10, "server_state", state="gone", **said)
    files.say("sync-b", 20, "server_state", state="ready", version=V1, **said)
    assert [(one.sync, one.state) for one in files.now().servers] == [("sync-b", "ready")]


def test_the_last_of_each_series_whoever_measured_it(files: Files) -> None:
    for step in range(1, 4):
        files.say("trainer-0", step, "measured", step=step, loss=1.0 / step, bad=float(step), note="x")
    files.say("orchestrator", 9, "measured", step=2, reward=0.5, loss=7.0, flag=True)
    assert {one.name: (one.value, one.step, one.process) for one in files.now().measured} == {
        "bad": (3.0, 3, "trainer-0"),
        "loss": (7.0, 2, "orchestrator"),
        "reward": (0.5, 2, "orchestrator"),
    }


def test_anomalies_are_told_once_the_newest_first(files: Files) -> None:
    for at_s in range(5):
        files.say("sync-a", at_s, "engine_failed", f"no answer in {at_s} s", version=V1, code="too_slow")
    files.say("consumer-a", 60, "refused", "wrong digest", version=V2)
    files.say("publisher", 50, "published", version=V1)
    found = files.now().anomalies
    assert [(one.kind, one.num, one.version, one.time[11:19]) for one in found] == [
        ("refused", 1, V2, "09:01:00"),
        ("engine_failed", 5, V1, "09:00:04"),
    ]


def test_a_line_with_a_thousand_seats_is_found_far_back(files: Files) -> None:
    seats = [f"node-{number}.5f0e9a77" for number in range(1000)]
    files.agent("node-0", 0, "parked")
    files.say("agent-node-0", 1, "coordinator", "the job begins", term=1)
    files.commit(2, 7, seats, by="node-0")
    files.say("agent-node-0", 3, "round_running", round=7, noticed_s=0.0, stopped_s=1.0, started_s=1.0)
    assert (files.path / "agent-node-0-host-00000000.jsonl").stat().st_size > 2 * AGENT_BYTES
    job = files.now().job
    assert job is not None
    assert (job.round, job.seats, len(job.nodes)) == (7, 1000, 1000)
    files.commit(4, 8, seats[1:], by="node-0")  # and where it is the very last line
    job = files.now().job
    assert job is not None
    assert (job.round, job.seats) == (8, 999)


def test_hostile_lines_break_nothing(files: Files) -> None:
    begin(files)
    long = "\x1b[31m<script>" * 10_000
    for event in ("round_committed", "round_running", "outcome", "coordinator", "server_state", "measured", "claimed"):
        for value in (long, {}, [], [[]] * 1000, 1e308, -1, None, {"a": {"b": 1}}):
            names = ("round", "seats", "replaced", "restarts", "state", "server", "ending", "cycle", "step", "term")
            files.say("agent-evil", 50, event, long, version=long, **dict.fromkeys(names, value))
    now = files.now()
    assert now.job is not None
    assert len(msgspec.json.encode(now)) < 200_000
    assert "\\u001b" not in msgspec.json.encode(now).decode()


def test_a_file_that_stays_as_it_is_is_read_once(files: Files) -> None:
    begin(files)
    reader = TailReader([files.path])
    first = {tail.path: tail for tail in reader.look().tails}
    files.say("agent-n1", 30, "stopping", round=1)
    again = {tail.path: tail for tail in reader.look().tails}
    assert [path.name for path in first if first[path] is not again[path]] == ["agent-n1-host-00000000.jsonl"]


def test_what_is_read_is_bounded(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        files.say(f"agent-n{number}", number, "parked")
    monkeypatch.setattr("holdfast.overview.tails.FILES_MAX", 20)
    heard = TailReader([files.path]).look()
    assert (len(heard.tails), heard.left_out) == (20, 10)
    assert heard.tails[-1].events[0].process == "agent-n29"
    monkeypatch.setattr("holdfast.overview.tails.BYTES_MAX", 5 * heard.num_bytes // 20)
    heard = TailReader([files.path]).look()
    assert (len(heard.tails), heard.left_out) == (5, 25)
