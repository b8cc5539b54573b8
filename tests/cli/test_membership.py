"""`holdfast members`, `drain`, `stop`: on a real TCPStore, with records that these tests have put there."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from holdfast.core.liveness import Watch, Watched
from holdfast.core.membership import (
    Answer,
    Attempt,
    Beat,
    Control,
    Ending,
    Node,
    Outcome,
    Policy,
    Request,
    Roster,
    State,
    Timing,
    Wish,
    decode,
    encode,
    round_key,
)
from holdfast.errors import UsageError
from holdfast.rendezvous.founding import ATTEMPTS, Keys
from holdfast.rendezvous.kv import KeyValueStore
from holdfast.rendezvous.memory import MemoryServer
from holdfast.rendezvous.open import open_store
from holdfast.rendezvous.tcp import serve_tcp
from holdfast.rendezvous.view import JobView, NodeView, Records, RequestView, living, look, view
from tests.cli.conftest import Run
from tests.support.channels import until

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "cli.md"
ENDLESS_S = 3600.0
NUMBERS = itertools.count(1)
CONTROL = Control(
    run="train", attempt="0", job="train.1", policy=Policy(), term=1, coordinator="n0.a", nonce="x", reason="round 1: …"
)


class Paper:
    """A job that stands on paper alone: its records, as its nodes would have written them."""

    def __init__(self, store: KeyValueStore, endpoint: str, run: str, attempt: str = "0") -> None:
        self.store = store
        self.words = ("--endpoint", endpoint, "--run", run)
        self.keys = Keys(attempt)
        self.run = run

    def control(self, **fields: Any) -> None:
        fields = {"run": self.run, "attempt": self.keys.attempt, **fields}
        before = self.store.read(self.keys.control)
        control = CONTROL if before is None else decode(before.value, Control, key="control")
        value = encode(msgspec.structs.replace(control, **fields))
        stands = self.store.compare_and_set(self.keys.control, 0 if before is None else before.revision, value)
        assert stands.value == value

    def node(self, member: str, state: State | None = State.RUNNING, *, round: int = 1, **fields: Any) -> None:  # noqa: A002
        name, _, incarnation = member.rpartition(".")
        beat = {"reason": fields.pop("reason", ""), "done": fields.pop("done", False)}
        node = Node(node=name, incarnation=incarnation, host=f"{name}.example", address="10.0.0.1", **fields)
        self.store.put_listed(self.keys.nodes, member, encode(node))
        if state is not None:
            self.beat(member, Beat(count=next(NUMBERS), state=state, round=round, **beat))

    def beat(self, member: str, beat: Beat) -> None:
        self.store.put_listed(self.keys.beats, member, encode(beat))

    def seats(self, *members: str, policy: Policy, timing: Timing | None = None, **fields: Any) -> None:
        """Round 1 is committed with these seats."""
        self.store.put({self._key("roster"): encode(Roster(round=1, plan="p", seats=members, **fields))})
        if timing is not None:
            self.store.put({self._key("timing"): encode(timing)})
        self.control(policy=policy, round=1, plan="p")

    def _key(self, what: str) -> str:
        return self.keys.plain(round_key(1, "p", what))

    def requests(self) -> dict[str, Request]:
        return {name: decode(data, Request, key=name) for name, data in self.store.list_all("0/requests").items()}

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """While the block runs, all beats go on. With a lease of ENDLESS_S it decides nothing how often."""
        ended = threading.Event()

        def go_on() -> None:
            while not ended.wait(0.01):
                for member, data in self.store.list_all(self.keys.beats).items():
                    beat = decode(data, Beat, key=member)
                    self.beat(member, msgspec.structs.replace(beat, count=beat.count + 1))

        with in_background(go_on, ended.set):
            yield

    @contextlib.contextmanager
    def coordinating(self, decide: Callable[[str, Request], None]) -> Iterator[None]:
        """While the block runs, the next request is decided so."""
        ended = threading.Event()

        def wait() -> None:
            while not ended.wait(0.01):
                for name, request in self.requests().items():
                    decide(name, request)
                    return

        with in_background(wait, ended.set):
            yield

    def answer(self, name: str, *, done: bool, reason: str) -> None:
        self.store.put_listed(self.keys.answers, name, encode(Answer(done=done, reason=reason)))


@contextlib.contextmanager
def in_background(work: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    wrong: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            wrong.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        end()
        thread.join(30)
        assert not thread.is_alive()
        assert wrong == []


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server, port = serve_tcp("127.0.0.1", 0)
    yield f"127.0.0.1:{port}"
    del server


@pytest.fixture
def paper(endpoint: str) -> Iterator[Paper]:
    run = f"run-{next(NUMBERS)}"
    with contextlib.closing(open_store(endpoint, run, timeout_s=30)) as store:
        yield Paper(store, endpoint, run)


def policy(most: int = 2, *, lease_s: float = ENDLESS_S, **fields: Any) -> Policy:
    return Policy(**{"min_nodes": most, "max_nodes": most, "lease_s": lease_s, **fields})


def job(run: Run, paper: Paper, *words: object, code: int = 0) -> JobView:
    done = run("members", *paper.words, *words, "--json")
    assert done.code == code, done
    return msgspec.json.decode(done.out, type=JobView)


# members


def test_a_healthy_job_with_its_seats_and_spares(run: Run, paper: Paper) -> None:
    timing = Timing(round=1, noticed_s=1.1, stopped_s=2.25, started_s=0.5)
    for number, state in enumerate((State.RUNNING, State.RUNNING, State.PARKED)):
        paper.node(f"n{number}.a", state, infra_rank=number, domain="rack-1")
    failures = {"n1": 2}
    paper.seats("n1.a", "n0.a", policy=policy(spares=1), timing=timing, failures=failures, replaced={"n9.z": "gone"})
    with paper.beating():
        now = job(run, paper)
        text = run("members", *paper.words).out
    assert now.problems == []
    assert [(one.node, one.group_rank, one.spare, one.life) for one in now.nodes] == [
        ("n1", 0, False, "beats"),
        ("n0", 1, False, "beats"),
        ("n2", None, True, "beats"),
    ]
    assert (now.round, now.seats, now.spares, now.spares_wanted, now.store) == (1, 2, 1, 1, "tcp")
    assert (now.last_change, now.replaced) == (timing, {"n9.z": "gone"})
    rows = [line.split() for line in text.splitlines() if "10.0.0.1" in line]
    assert rows == [
        ["0", "n1", "running,", "failed", "2", "times", "beats", "1", "rack-1", "10.0.0.1"],
        ["1", "n0", "running", "beats", "0", "rack-1", "10.0.0.1"],
        ["n2", "spare", "beats", "2", "rack-1", "10.0.0.1"],
    ]
    assert "noticed after 1.1 s, ready in 2.2 s, running in 0.5 s" in text


def test_a_silent_seat_is_lost_and_its_spares_are_missing(run: Run, paper: Paper) -> None:
    paper.node("n0.a")
    paper.node("n1.a", State.PARKED)
    paper.seats("n0.a", policy=policy(1, lease_s=0.2, spares=1))
    now = job(run, paper, code=3)
    assert [one.life for one in now.nodes] == ["silent", "silent"]
    assert now.problems[0].startswith("group rank 0: n0.a last heard ")
    assert now.problems[1:] == ["degraded: 0 of 1 spares"]
    text = run("members", *paper.words)
    assert text.code == 3
    assert "! group rank 0: n0.a last heard " in text.out
    assert "… and 1 that have left or fallen silent (--all lists them)" in text.out
    assert "n1" in run("members", *paper.words, "--all").out


def test_a_job_that_has_shrunk_is_degraded(run: Run, paper: Paper) -> None:
    paper.node("n0.a")
    paper.seats("n0.a", policy=policy(4, min_nodes=1))
    with paper.beating():
        now = job(run, paper, code=3)
        text = run("members", *paper.words).out
    assert now.problems == ["degraded: 1 of 4 nodes train"]
    assert "round        1: 1 nodes of 1 to 4" in text


def test_nodes_that_share_a_name_are_told_apart_by_member(run: Run, paper: Paper) -> None:
    paper.node("n0.old", State.PARKED)
    paper.node("n0.new")
    paper.node("n1.a", State.PARKED)
    paper.seats("n0.new", policy=policy(1))
    with paper.beating():
        words = run("members", *paper.words).out.split()
    assert {"n0.old", "n0.new", "n1"} <= set(words)


def test_while_nodes_are_waited_for_it_says_for_how_many(run: Run, paper: Paper) -> None:
    paper.control(policy=policy(8), reason="waiting: 7 of 8 nodes")
    paper.node("n0.a", State.PARKED)
    with paper.beating():
        now = job(run, paper, code=3)
    assert now.problems == ["there is no round yet: waiting: 7 of 8 nodes"]
    assert (now.round, now.nodes[0].group_rank, now.nodes[0].spare) == (0, None, True)


def test_the_outcome_is_told_and_a_failed_job_needs_a_person(run: Run, paper: Paper) -> None:
    paper.seats("n0.a", policy=policy(1))
    paper.control(outcome=Outcome(ending=Ending.SUCCEEDED, code=0, reason="all 1 nodes are done"))
    assert job(run, paper).outcome == Outcome(ending=Ending.SUCCEEDED, code=0, reason="all 1 nodes are done")
    paper.control(outcome=Outcome(ending=Ending.FAILED, code=7, reason="no \x1b[31mnodes"))
    done = run("members", *paper.words)
    assert done.code == 3
    assert "failed, exit code 7: no \\x1b[31mnodes" in done.out


def test_what_was_asked_for_is_told_with_its_answer(run: Run, paper: Paper) -> None:
    paper.seats("n0.a", policy=policy(1))
    paper.node("n0.a")
    paper.control(draining=("n0.a",))
    paper.store.put_listed("0/requests", "r1", encode(Request(wish=Wish.DRAIN, member="n0.a", by="ann@h")))
    paper.store.put_listed("0/requests", "r2", encode(Request(wish=Wish.STOP, by="bob@h")))
    paper.answer("r1", done=False, reason="nobody can take its place")
    with paper.beating():
        now = job(run, paper)
        text = run("members", *paper.words).out
    answers = [one.answer for one in now.requests]
    assert answers == [Answer(done=False, reason="nobody can take its place"), None]
    assert now.nodes[0].draining
    assert "drain n0.a by ann@h: nobody can take its place" in text
    assert "stop by bob@h: no answer yet" in text
    assert "running, to be drained" in text


def test_a_store_that_changes_underfoot_is_read_again(run: Run) -> None:
    server = MemoryServer()
    paper = Paper(server.connect("run"), "", "run")
    paper.seats("n0.a", policy=policy(1))
    paper.store.delete(["0/rounds/1/p/roster"])
    now = look(paper.store)
    assert now.problems == ["who sits in round 1 cannot be read"]


@pytest.mark.parametrize(
    ("state", "life", "done", "why"),
    [
        (State.RUNNING, Watched(1, 0.0, beaten=True), False, ""),
        (State.RUNNING, Watched(1, 9.0), False, "last heard 9.0 s ago"),
        (State.RUNNING, Watched(1, 0.5), False, ""),
        (State.DONE, Watched(1, 9.0), True, ""),
        (State.LEFT, Watched(1, 9.0), True, ""),
        (State.LEFT, Watched(1, 0.0), False, "has left: SIGTERM"),
        (State.UNHEALTHY, Watched(1, 0.0, beaten=True), False, "is unhealthy: SIGTERM"),
        (None, None, False, "has never been heard"),
    ],
)
def test_which_seats_are_lost(state: State | None, life: Watched | None, done: bool, why: str) -> None:
    reason = "SIGTERM" if state in (State.LEFT, State.UNHEALTHY) else ""
    found = Records(
        control=msgspec.structs.replace(CONTROL, policy=policy(1, lease_s=5.0), round=3, plan="p"),
        kind="tcp",
        roster=Roster(round=3, plan="p", seats=("n0.a",)),
        beats={} if state is None else {"n0.a": Beat(count=1, state=state, round=3, done=done, reason=reason)},
    )
    now = view(found, Watch(1.0, {} if life is None else {"n0.a": life}))
    assert now.problems == ([f"group rank 0: n0.a {why}"] if why else [])


def test_spares_are_those_that_could_take_a_seat_now() -> None:
    states = [State.PARKED, State.READY, State.PARKED, State.PARKED, State.UNHEALTHY, State.LEFT, State.STOPPING]
    beats = {f"n{i}.a": Beat(count=1, state=state) for i, state in enumerate(states)}
    watched = {member: Watched(1, 0.0, beaten=True) for member in beats} | {"n3.a": Watched(1, 9.0, beaten=True)}
    found = Records(
        control=msgspec.structs.replace(
            CONTROL, policy=policy(0, lease_s=5.0, spares=3), round=1, plan="p", draining=("n2.a",)
        ),
        kind="tcp",
        roster=Roster(),
        nodes={member: Node(node=member[:-2], incarnation="a") for member in beats},
        beats=beats,
    )
    now = view(found, Watch(1.0, watched))
    assert [one.node for one in now.nodes if one.spare] == ["n0", "n1"]
    assert now.problems == ["degraded: 2 of 3 spares"]


# Which job


def test_the_newest_attempt_is_meant_unless_another_is_named(run: Run, paper: Paper) -> None:
    for attempt, first in (("77.0", 5), ("9.1", 9), ("8.0", 7)):
        paper.store.put_listed(ATTEMPTS, attempt, encode(Attempt(job="j", first=first)))
        Paper(paper.store, "", paper.run, attempt).control(reason=f"of {attempt}")
    assert job(run, paper, code=3).attempt == "9.1"
    assert job(run, paper, "--attempt", "77.0", code=3).reason == "of 77.0"
    done = run("members", *paper.words, "--attempt", "3", "--json")
    assert (done.code, done.data["error"]["code"]) == (2, "no_such_job")
    assert done.data["error"]["hint"] == "this run has the attempts 77.0, 8.0, 9.1"


def test_the_environment_names_the_job(run: Run, paper: Paper, monkeypatch: pytest.MonkeyPatch) -> None:
    paper.seats(policy=policy(1), reason="by environment")
    monkeypatch.setenv("HOLDFAST_ENDPOINT", paper.words[1])
    monkeypatch.setenv("HOLDFAST_RUN_ID", paper.run)
    assert run("members", "--json").data["run"] == paper.run
    monkeypatch.setenv("HOLDFAST_ATTEMPT", "12")
    assert run("members", "--json").data["error"]["fields"] == {"attempt": "12"}


@pytest.mark.parametrize("words", [("members",), ("drain", "n0"), ("stop",)], ids=lambda words: words[0])
def test_where_no_job_is(run: Run, paper: Paper, words: tuple[str, ...]) -> None:
    done = run(*words, *paper.words)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines() == [
        "error: there is no job here (yet) with attempt 0",
        "hint: check --endpoint and --run",
    ]


@pytest.mark.parametrize("words", [("members",), ("drain", "n0"), ("stop",)], ids=lambda words: words[0])
def test_where_no_store_is(run: Run, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.cli.membership.CONNECT_S", 0.1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        done = run(*words, "--endpoint", f"127.0.0.1:{free.getsockname()[1]}")
    assert (done.code, done.out) == (75, "")
    assert done.err.startswith("error: no store at 127.0.0.1:")
    done = run(*words, "--endpoint", "nowhere", "--json")
    assert (done.code, done.data["error"]["code"]) == (2, "bad_endpoint")
    done = run(*words, "--endpoint", "127.0.0.1:1", "--user", "ann", "--json")
    assert (done.code, done.data["error"]["code"]) == (2, "bad_endpoint")


def test_what_is_no_record_of_ours_is_said_to_be_none(run: Run, paper: Paper) -> None:
    paper.store.compare_and_set("0/control", 0, b"not ours")
    done = run("members", *paper.words, "--json")
    assert (done.code, done.data["error"]["code"]) == (3, "bad_record")


# drain


def test_drain_asks_for_the_living_member_and_says_what_became_of_it(run: Run, paper: Paper) -> None:
    paper.node("n0.old", State.LEFT)
    paper.node("n0.new")
    paper.seats("n0.new", policy=policy(1))
    asked: list[Request] = []

    def leave(name: str, request: Request) -> None:
        asked.append(request)
        paper.answer(name, done=True, reason=f"{request.member} has left: drained")

    with paper.beating(), paper.coordinating(leave):
        done = run("drain", "n0", *paper.words, "--timeout", "7", "--json")
    assert done.code == 0, done
    assert (done.data["member"], done.data["done"]) == ("n0.new", True)
    assert done.data["reason"] == "n0.new has left: drained"
    (request,) = asked
    assert (request.wish, request.member, request.timeout_s) == (Wish.DRAIN, "n0.new", 7.0)
    assert socket.gethostname() in request.by
    assert list(paper.requests()) == [done.data["request"]]


def test_a_drain_that_is_refused_has_failed(run: Run, paper: Paper) -> None:
    paper.node("n0.a")
    paper.seats("n0.a", policy=policy(1))
    reason = "nobody can take its place: waiting: 0 of 1 nodes"
    with paper.beating(), paper.coordinating(lambda name, _: paper.answer(name, done=False, reason=reason)):
        done = run("drain", "n0.a", *paper.words)
    assert (done.code, done.out) == (1, f"{reason}\n")


def test_a_drain_without_an_answer_has_failed_and_its_request_stands(
    run: Run, paper: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.cli.membership.PATIENCE_S", 0.0)
    paper.node("n0.a")
    paper.seats("n0.a", policy=policy(1, lease_s=0.2, last_call_s=0.0, stop_s=0.0))
    done = run("drain", "n0.a", *paper.words, "--timeout", "0.1", "--json")
    assert done.code == 1
    assert done.data["done"] is None
    assert done.data["reason"].endswith("the request stands")
    assert list(paper.requests()) == [done.data["request"]]


def test_a_job_that_ends_meanwhile_needs_no_answer(run: Run, paper: Paper) -> None:
    paper.node("n0.a")
    paper.seats("n0.a", policy=policy(1))
    outcome = Outcome(ending=Ending.SUCCEEDED, code=0, reason="all 1 nodes are done")
    with paper.beating(), paper.coordinating(lambda *_: paper.control(outcome=outcome)):
        done = run("drain", "n0", *paper.words)
    assert (done.code, done.out) == (0, "the job has ended: succeeded: all 1 nodes are done\n")
    done = run("drain", "n0", *paper.words, "--json")
    assert (done.code, done.data["error"]["code"]) == (2, "job_over")


def test_drain_need_not_wait(run: Run, paper: Paper) -> None:
    paper.node("n0.a")
    paper.seats("n0.a", policy=policy(1))
    with paper.beating():
        done = run("drain", "n0", *paper.words, "--no-wait", "--json")
    assert (done.code, done.data["done"], done.data["reason"]) == (0, None, "n0.a is asked to leave")
    assert [request.member for request in paper.requests().values()] == ["n0.a"]


def test_a_name_that_means_nobody_or_several_is_refused(run: Run, paper: Paper) -> None:
    paper.node("n0.a")
    paper.node("n0.b", State.PARKED)
    paper.node("n1.a", State.LEFT)
    paper.seats("n0.a", policy=policy(1))
    with paper.beating():
        several = run("drain", "n0", *paper.words, "--json")
        left = run("drain", "n1", *paper.words, "--json")
        nobody = run("drain", "n7", *paper.words, "--json")
    assert (several.code, several.data["error"]["code"]) == (2, "ambiguous_node")
    assert several.data["error"]["fields"] == {"members": ["n0.a", "n0.b"]}
    assert (left.code, left.data["error"]["message"]) == (2, "node n1 has left")
    assert (nobody.code, nobody.data["error"]["message"]) == (2, "there is no node n7 in this job")
    assert paper.requests() == {}


def test_a_silent_life_is_not_meant() -> None:
    found = Records(
        control=msgspec.structs.replace(CONTROL, policy=policy(1, lease_s=5.0)),
        kind="tcp",
        nodes={f"n0.{life}": Node(node="n0", incarnation=life) for life in "ab"},
        beats={f"n0.{life}": Beat(count=1) for life in "ab"},
    )
    now = view(found, Watch(1.0, {"n0.a": Watched(1, 6.0), "n0.b": Watched(1, 0.0, beaten=True)}))
    assert living(now, "n0").member == "n0.b"
    assert living(now, "n0.a").member == "n0.a", "named in full, it is meant"
    now = view(found, Watch(1.0, {"n0.a": Watched(1, 6.0), "n0.b": Watched(1, 6.0)}))
    with pytest.raises(UsageError, match="node n0 is silent"):
        living(now, "n0")


# stop


def test_stop_waits_until_the_outcome_stands(run: Run, paper: Paper) -> None:
    paper.control()

    def end(_: str, request: Request) -> None:
        paper.control(outcome=Outcome(ending=Ending.STOPPED, code=request.code, reason=f"told to stop by {request.by}"))

    with paper.coordinating(end):
        done = run("stop", *paper.words, "--code", "9", "--json")
    assert done.code == 0
    assert (done.data["outcome"]["ending"], done.data["outcome"]["code"]) == ("stopped", 9)
    assert [request.wish for request in paper.requests().values()] == [Wish.STOP]


def test_what_has_ended_is_not_asked_to_stop(run: Run, paper: Paper) -> None:
    paper.control(outcome=Outcome(ending=Ending.FAILED, code=1, reason="no nodes"))
    done = run("stop", *paper.words)
    assert (done.code, done.out) == (0, "the job has ended: failed: no nodes\n")
    assert paper.requests() == {}


def test_stop_without_an_outcome_in_time_has_failed(run: Run, paper: Paper) -> None:
    paper.control()
    done = run("stop", *paper.words, "--timeout", "0.1")
    assert (done.code, done.out) == (1, "no outcome in 0.1 s; the request stands\n")
    done = run("stop", *paper.words, "--no-wait", "--json")
    assert (done.code, done.data["outcome"]) == (0, None)
    assert len(paper.requests()) == 2


def test_a_store_that_goes_away_before_the_outcome_is_seen_leaves_it_unknown(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = MemoryServer()
    paper = Paper(server.connect("train"), "", "train")
    paper.control()
    monkeypatch.setattr(
        "holdfast.cli.membership.open_store", lambda endpoint, prefix, **options: server.connect(prefix)
    )
    with paper.coordinating(lambda *_: server.lose()):
        done = run("stop", "--run", "train", "--json")
    assert (done.code, done.data["error"]["code"]) == (1, "store_lost")


# The documentation


@pytest.mark.parametrize("kind", [JobView, NodeView, RequestView, Timing, Answer], ids=lambda kind: kind.__name__)
def test_every_field_that_json_prints_is_documented(kind: type[msgspec.Struct]) -> None:
    text = DOCS.read_text(encoding="utf-8")
    text = text[text.index("\n## members") :]
    assert [name for name in kind.__struct_fields__ if f"`{name}`" not in text and name != "schema"] == []


def test_the_records_are_left_as_they_were(run: Run, paper: Paper) -> None:
    paper.node("n0.a")
    paper.seats("n0.a", policy=policy(1, lease_s=0.2))
    before = [paper.store.list_all(f"0/{what}") for what in ("nodes", "beats", "requests", "answers")]
    stood = until(lambda: paper.store.read("0/control"))
    run("members", *paper.words)
    assert [paper.store.list_all(f"0/{what}") for what in ("nodes", "beats", "requests", "answers")] == before
    assert paper.store.read("0/control") == stood
