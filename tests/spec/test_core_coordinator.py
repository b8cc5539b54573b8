"""Who has a seat and how the job ends: the rules of core/coordinator.py, seats.py and rosters.py, as examples.

`Job` holds the records that a store would hold, lets a coordinator look at them, and does what it says.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import msgspec
import pytest

from holdfast.core import coordinator
from holdfast.core.coordinator import Coordinator, Effect, Forget, Known, Looked, Prepare, Reply, Stands, Swap
from holdfast.core.membership import (
    Answer,
    Beat,
    Control,
    Ending,
    Head,
    Node,
    Outcome,
    Policy,
    Rank,
    Request,
    Roster,
    State,
    Timing,
    Wish,
    round_key,
    seat_key,
)

LOOK_S = 0.125
POLICY = Policy(
    min_nodes=2,
    max_nodes=2,
    spares=1,
    lease_s=1.0,
    last_call_s=2.0,
    stop_s=10.0,
    wait_s=30.0,
    restart_budget=2,
    node_budget=2,
)


class Job:
    """Nodes a, b, c … of one life each, a's being the coordinator, unless told otherwise."""

    def __init__(self, names: str = "abc", **rules: object) -> None:
        policy = msgspec.structs.replace(POLICY, **rules)
        self.control = Control(run="r", attempt="0", job="r", policy=policy, term=1, coordinator="a.1", nonce="n")
        self.nodes: dict[str, Node] = {}
        self.beats: dict[str, Beat] = {}
        self.requests: dict[str, Request] = {}
        self.answers: dict[str, Answer] = {}
        self.plain: dict[str, msgspec.Struct] = {}
        self.silent: set[str] = set()
        self.effects: list[Effect] = []
        self.now_s = 5000.0
        self.fresh = (f"p{number}" for number in itertools.count(1))
        self.state = Coordinator(member="a.1", control=self.control)
        for name in names:
            self.join(name)

    def join(self, name: str, life: int = 1, **changes: object) -> None:
        node = Node(node=name, incarnation=str(life), address=f"{name}.example", **changes)
        self.nodes[node.member] = node
        self.beats[node.member] = Beat(count=1)

    def say(self, names: str, state: State, life: int = 1, **changes: object) -> None:
        for name in names:
            before = self.beats[f"{name}.{life}"]
            self.beats[f"{name}.{life}"] = msgspec.structs.replace(
                before, state=state, count=before.count + 1, **changes
            )

    def look(self, *, timely: bool = True) -> list[Effect]:
        """One look, and what follows."""
        self.now_s += LOOK_S
        for member, beat in self.beats.items():
            if member[0] not in self.silent:
                self.beats[member] = msgspec.structs.replace(beat, count=beat.count + 1)
        known = Known(
            nodes=dict(self.nodes),
            beats=dict(self.beats),
            requests=dict(self.requests),
            answered=frozenset(self.answers),
        )
        self.state, effects = coordinator.step(self.state, Looked(known, next(self.fresh), timely), self.now_s)
        self.carry_out(effects)
        return list(effects)

    def carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            self.effects.append(effect)
            match effect:
                case Prepare(values):
                    self.plain |= values
                case Swap(control):
                    self.control = control
                    self.stands()
                case Reply(request, answer):
                    self.answers[request] = answer
                case Forget(keys):
                    for key in keys:
                        self.plain.pop(key, None)

    def stands(self) -> None:
        self.state, effects = coordinator.step(self.state, Stands(self.control), self.now_s)
        self.carry_out(effects)

    def wait(self, seconds: float) -> list[Effect]:
        """Looks for so long."""
        effects: list[Effect] = []
        for _ in range(int(seconds / LOOK_S)):
            effects += self.look()
        return effects

    def seats(self, plan: str | None = None) -> str:
        """Names by group rank, in the plan that is proposed, or else committed."""
        plan = plan or self.control.proposed or self.control.plan
        roster = self.state.plans[plan]
        return "".join(member[0] for member in roster.seats)

    def yes(self, names: str, life: int = 1) -> None:
        self.say(names, State.READY, life, plan=self.control.proposed, port=29500)

    def run(self, names: str, life: int = 1) -> None:
        self.say(names, State.RUNNING, life, round=self.control.round, failed=False, done=False)

    def begin(self, names: str = "ab") -> None:
        """Round 1 with these."""
        for _ in range(40):
            if not self.control.proposed:
                self.look()
        self.yes(names)
        self.look()
        assert (self.control.round, self.seats()) == (1, names)
        self.run(names)
        self.wait(0.5)

    def fail(self, names: str) -> None:
        """Their workers fail, and they are parked."""
        self.say(names, State.PARKED, failed=True, plan="")

    def replaced_by_round(self, names: str) -> None:
        """The proposal is answered and begun by these."""
        self.yes(names)
        self.look()
        self.run(names)
        self.look()


def swaps(effects: Iterable[Effect]) -> list[Control]:
    return [effect.control for effect in effects if isinstance(effect, Swap)]


# Rounds


def test_M6_without_a_fault_there_is_exactly_one_round() -> None:
    job = Job()
    job.begin()
    assert job.wait(60.0) == []
    named = {control.proposed for control in swaps(job.effects)} - {""}
    assert (len(named), job.control.round, job.control.restarts) == (1, 1, 0)


def test_the_first_round_does_not_wait_once_everybody_is_there() -> None:
    job = Job("abc")
    job.look()
    assert job.seats() == "ab"


def test_the_first_round_waits_for_spares_until_the_last_call_is_over() -> None:
    job = Job("ab")
    job.wait(1.5)
    assert (job.control.proposed, job.control.reason) == ("", "waiting: 2 of 3 nodes are here; last call")
    job.wait(1.0)
    assert job.seats() == "ab"


def test_the_first_round_waits_while_more_can_be_seated_though_all_are_there_in_number() -> None:
    """Segments: three nodes of one domain are one segment and a rest."""
    job = Job("", min_nodes=2, max_nodes=4, spares=0, segment=2)
    for name, domain in zip("abcd", ("x", "x", "x", "y"), strict=True):
        job.join(name, domain=domain)
    job.wait(1.0)
    assert job.control.proposed == ""
    job.join("e", domain="y")
    job.wait(0.5)
    assert len(job.seats()) == 4


def test_M1_a_plan_stands_before_it_is_named() -> None:
    job = Job()
    prepare, swap = job.look()
    assert isinstance(prepare, Prepare)
    assert isinstance(swap, Swap)
    plan = swap.control.proposed
    head = prepare.values[round_key(1, plan, "head")]
    roster = prepare.values[round_key(1, plan, "roster")]
    assert isinstance(head, Head)
    assert isinstance(roster, Roster)
    assert (head.round, head.plan, head.world_size) == (1, plan, 2)
    assert roster.seats == ("a.1", "b.1")
    for rank, member in enumerate(roster.seats):
        assert prepare.values[seat_key(1, plan, member)] == Rank(rank)


def test_a_round_is_committed_only_when_every_seat_has_said_yes_to_this_plan() -> None:
    job = Job()
    job.look()
    job.yes("a")
    job.look()
    assert job.control.round == 0
    job.say("b", State.READY, plan="another")
    job.look()
    assert job.control.round == 0
    job.yes("b")
    job.look()
    assert (job.control.round, job.control.plan, job.control.proposed) == (1, "p1", "")
    assert (job.control.address, job.control.port) == ("a.example", 29500)


def test_nothing_is_decided_while_it_is_unknown_what_stands() -> None:
    job = Job()
    known = Known(nodes=job.nodes, beats=job.beats)
    state, effects = coordinator.step(job.state, Looked(known, "x1"), job.now_s)
    assert len(swaps(effects)) == 1
    state, effects = coordinator.step(state, Looked(known, "x2"), job.now_s + LOOK_S)
    assert effects == ()
    assert state.control.proposed == ""


def test_M4_an_answer_that_was_lost_is_read_back_and_counts() -> None:
    job = Job()
    known = Known(nodes=job.nodes, beats=job.beats)
    job.state, effects = coordinator.step(job.state, Looked(known, "x1"), job.now_s)
    (job.control,) = swaps(effects)  # it landed, later, and nobody was told
    job.stands()
    job.yes("ab")
    job.look()
    assert (job.control.round, job.control.plan) == (1, "x1")


def test_M4_whoever_was_replaced_decides_nothing_any_more() -> None:
    job = Job()
    job.control = msgspec.structs.replace(job.control, coordinator="b.1", term=2)
    job.stands()
    assert job.state.dismissed
    assert job.wait(5.0) == []


def test_M4_a_former_term_is_over_though_the_name_is_the_same() -> None:
    job = Job()
    job.control = msgspec.structs.replace(job.control, term=3)
    job.stands()
    assert job.state.dismissed


# Losses


def test_M7_a_node_that_is_silent_for_a_lease_is_replaced_by_a_spare_in_its_place() -> None:
    job = Job()
    job.begin()
    job.silent = {"b"}
    job.wait(0.875)
    assert job.control.proposed == ""
    job.wait(0.25)
    assert job.seats() == "ac"
    roster = job.state.plans[job.control.proposed]
    assert (roster.round, roster.restarts) == (2, 1)
    assert roster.replaced == {"b.1": "last heard 1.0 s ago"}
    assert roster.lost_s >= 1.0
    job.say("a", State.PARKED)
    job.replaced_by_round("ac")
    assert (job.control.round, job.control.restarts) == (2, 1)


def test_a_node_that_says_that_it_leaves_is_replaced_at_once() -> None:
    job = Job()
    job.begin()
    job.say("b", State.LEFT, reason="SIGTERM")
    job.look()
    assert job.seats() == "ac"
    assert "b.1 has left: SIGTERM" in job.control.reason


def test_I9_after_a_gap_everybody_has_a_full_lease_again() -> None:
    job = Job()
    job.begin()
    job.silent = {"b"}
    job.wait(0.875)
    job.now_s += 10.0  # the store was away, or this process stood still
    job.wait(1.0)
    assert job.control.proposed == ""
    job.wait(0.25)
    assert job.seats() == "ac"


def test_I9_a_look_that_took_long_says_nothing_of_silence() -> None:
    job = Job()
    job.begin()
    job.silent = {"b"}
    job.wait(0.875)
    job.look(timely=False)
    job.wait(0.875)
    assert job.control.proposed == ""


def test_a_new_coordinator_watches_a_full_lease() -> None:
    job = Job()
    job.begin()
    job.silent = {"b"}
    job.wait(0.875)
    job.state = Coordinator(member="a.1", control=job.control, plans=job.state.plans)
    job.wait(0.875)
    assert job.control.proposed == ""


def test_a_new_coordinator_gives_everybody_the_whole_time_to_begin() -> None:
    job = Job()
    job.wait(3.0)
    job.yes("ab")
    job.look()
    job.run("a")
    job.state = Coordinator(member="a.1", control=job.control, plans=job.state.plans)
    job.wait(9.0)
    assert job.control.proposed == ""
    job.wait(2.0)
    assert "b.1 did not begin for 10 s" in job.control.reason


def test_a_new_coordinator_goes_on_with_a_half_done_proposal_and_gives_the_last_call_anew() -> None:
    job = Job()
    job.begin()
    job.fail("b")
    job.look()
    plan = job.control.proposed
    job.state = Coordinator(member="a.1", control=job.control, plans=job.state.plans)
    job.say("b", State.STOPPING)
    job.yes("a")
    job.wait(1.5)
    assert job.control.proposed == plan
    job.yes("b")
    job.look()
    assert (job.control.round, job.control.plan) == (2, plan)


def test_time_in_which_nothing_could_be_read_does_not_count_for_the_last_call() -> None:
    job = Job()
    job.begin()
    job.fail("b")
    job.look()
    plan = job.control.proposed
    job.say("a", State.STOPPING)
    job.yes("b")
    job.wait(1.0)
    job.now_s += 60.0
    job.wait(0.75)
    assert job.control.proposed == plan
    job.wait(0.5)
    assert job.seats() == "cb"


def test_time_in_which_nothing_could_be_read_does_not_count_as_waiting_for_nodes() -> None:
    job = Job("a")
    job.wait(5.0)
    job.now_s += 3600.0
    job.wait(5.0)
    assert job.control.outcome is None


# Proposals


def test_a_node_that_is_silent_before_it_has_answered_is_replaced() -> None:
    job = Job()
    job.look()
    job.silent = {"b"}
    job.yes("a")
    job.wait(1.5)
    assert job.seats() == "ac"


def test_a_node_that_is_unhealthy_is_replaced_at_once() -> None:
    job = Job()
    job.look()
    job.say("b", State.UNHEALTHY)
    job.look()
    assert job.seats() == "ac"


def test_a_late_joiner_does_not_restart_a_proposal() -> None:
    job = Job(max_nodes=4)
    job.wait(3.0)
    plan = job.control.proposed
    assert job.seats() == "abc"
    job.join("d")
    assert swaps(job.wait(1.0)) == []
    job.yes("abc")
    job.look()
    assert (job.control.round, job.control.plan) == (1, plan)


def test_the_last_call_is_over_and_a_spare_takes_the_place_of_who_did_not_come_back() -> None:
    job = Job()
    job.begin()
    job.fail("b")
    job.look()
    assert job.seats() == "ab"  # who beats may come back
    job.yes("b")
    job.say("a", State.STOPPING)
    job.wait(1.5)
    assert job.seats() == "ab"
    job.wait(1.0)
    assert job.seats() == "cb"
    job.yes("cb")
    job.look()
    assert (job.control.round, job.control.restarts) == (2, 1)


def test_without_a_spare_who_is_still_stopping_has_stop_s() -> None:
    job = Job("ab", min_nodes=1)
    job.begin()
    job.fail("b")
    job.look()
    job.yes("b")
    job.say("a", State.STOPPING)
    job.wait(9.5)
    assert job.seats() == "ab"
    job.wait(1.0)
    assert job.seats() == "b"


def test_two_lives_of_one_name_never_have_two_seats() -> None:
    job = Job("a", min_nodes=2, max_nodes=3)
    job.join("a", life=2)
    job.wait(3.0)
    assert job.control.proposed == ""
    job.join("b")
    job.wait(3.0)
    assert job.state.plans[job.control.proposed].seats == ("a.1", "b.1")


def test_what_was_proposed_is_off_when_it_cannot_be_placed_any_more() -> None:
    job = Job("ab")
    job.wait(3.0)
    job.say("b", State.UNHEALTHY)
    job.wait(3.0)
    assert job.control.proposed == ""
    assert "waiting: 1 of 2 nodes" in job.control.reason


def test_a_plan_that_nobody_can_be_reading_is_forgotten_and_the_named_ones_stand() -> None:
    job = Job(node_budget=9)
    job.begin()
    first = job.control.plan
    for _ in range(2):
        job.fail("b")
        job.look()
        job.say("a", State.PARKED)
        job.replaced_by_round("ab")
    assert job.control.round == 3
    assert not any(f"/{first}/" in key for key in job.plain)
    assert round_key(3, job.control.plan, "head") in job.plain


def test_a_name_is_never_used_twice() -> None:
    job = Job(restart_budget=-1)
    job.begin()
    for _ in range(5):
        job.fail("b")
        job.look()
        job.say("a", State.PARKED)
        job.replaced_by_round("ab")
    nonces = [control.nonce for control in swaps(job.effects)]
    assert len(set(nonces)) == len(nonces)


def test_how_long_a_change_took_is_written_down_once() -> None:
    job = Job()
    job.begin()
    job.wait(5.0)
    told = [
        value for e in job.effects if isinstance(e, Prepare) for value in e.values.values() if isinstance(value, Timing)
    ]
    assert len(told) == 1


# The ladder


def test_shrink_when_there_is_no_spare() -> None:
    job = Job("ab", min_nodes=1)
    job.begin()
    job.silent = {"b"}
    job.wait(1.25)
    assert job.seats() == "a"


def test_then_wait_then_fail() -> None:
    job = Job("ab")
    job.begin()
    job.say("b", State.LEFT)
    job.wait(29.0)
    assert job.control.outcome is None
    assert "waiting: 1 of 2 nodes" in job.control.reason
    job.wait(2.0)
    assert job.control.outcome is not None
    assert (job.control.outcome.ending, job.control.outcome.code) == (Ending.FAILED, 1)
    assert "nobody came for 30 s" in job.control.outcome.reason


def test_somebody_who_comes_in_time_is_seated() -> None:
    job = Job("ab")
    job.begin()
    job.say("b", State.LEFT)
    job.wait(20.0)
    job.join("d")
    job.look()
    assert job.seats() == "ad"


def test_why_it_waits_is_said_every_two_seconds_at_most() -> None:
    job = Job("ab", wait_s=600.0)
    job.begin()
    job.silent = {"b"}
    assert len(swaps(job.wait(20.0))) <= 11


def test_the_budget_is_the_jobs_and_charged_once_for_each_cut() -> None:
    job = Job("abcd", max_nodes=4, min_nodes=4, spares=0, restart_budget=1, node_budget=9)
    job.begin("abcd")
    job.fail("bc")
    job.look()
    job.say("ad", State.PARKED)
    job.replaced_by_round("abcd")
    assert (job.control.round, job.control.restarts) == (2, 1)
    job.fail("d")
    job.look()
    assert job.control.outcome is not None
    assert job.control.outcome.ending is Ending.FAILED
    assert "the restart budget of 1 is used up" in job.control.outcome.reason


def test_a_budget_of_minus_1_is_any_number() -> None:
    job = Job(restart_budget=-1, node_budget=99)
    job.begin()
    for _ in range(12):
        job.fail("b")
        job.look()
        job.say("a", State.PARKED)
        job.replaced_by_round("ab")
    assert (job.control.outcome, job.control.restarts) == (None, 12)


def test_one_proposal_after_the_other_for_one_failure_is_charged_once() -> None:
    job = Job("abcd")
    job.begin()
    job.fail("b")
    job.look()
    job.say("a", State.LEFT)
    job.look()
    assert job.state.plans[job.control.proposed].restarts == 1


# Blame


def test_blame_the_node_that_failed_before_all_others_not_those_that_lost_their_peer() -> None:
    job = Job("abc")
    job.begin()
    job.fail("b")
    job.look()
    job.fail("a")
    job.say("b", State.LEFT)
    job.look()
    assert job.state.plans[job.control.proposed].failures == {"b": 1}


def test_blame_nobody_when_several_have_failed_at_once() -> None:
    job = Job()
    job.begin()
    job.fail("ab")
    job.look()
    assert job.state.plans[job.control.proposed].failures == {}


def test_blame_who_was_lost_rather_than_who_failed() -> None:
    job = Job()
    job.begin()
    job.fail("a")
    job.say("b", State.LEFT)
    job.look()
    assert job.state.plans[job.control.proposed].failures == {"b": 1}


def fail_twice(job: Job) -> None:
    job.begin()
    for _ in range(2):
        job.fail("b")
        job.look()
        job.say("a", State.PARKED)
        if job.seats() == "ab":
            job.replaced_by_round("ab")


def test_a_node_that_failed_too_often_is_set_aside() -> None:
    job = Job()
    fail_twice(job)
    assert job.seats() == "ac"


def test_but_only_if_another_can_take_its_place() -> None:
    job = Job("ab")
    fail_twice(job)
    assert job.control.round == 3
    assert job.seats() == "ab"


# The end


def test_M5_all_done_is_succeeded() -> None:
    job = Job()
    job.begin()
    job.say("a", State.DONE, done=True)
    job.wait(5.0)
    assert job.control.outcome is None
    job.say("b", State.DONE, done=True)
    job.look()
    assert job.control.outcome == Outcome(ending=Ending.SUCCEEDED, code=0, reason="all 2 nodes are done")


def test_M5_the_outcome_is_written_once() -> None:
    job = Job()
    job.begin()
    job.say("ab", State.DONE, done=True)
    job.look()
    job.say("ab", State.LEFT)
    job.requests["stop"] = Request(wish=Wish.STOP, code=3)
    assert job.wait(60.0) == []


def test_done_outranks_a_later_silence() -> None:
    job = Job()
    job.begin()
    job.say("b", State.DONE, done=True)
    job.silent = {"b"}
    assert swaps(job.wait(20.0)) == []
    job.say("a", State.DONE, done=True)
    job.look()
    assert job.control.outcome is not None
    assert job.control.outcome.ending is Ending.SUCCEEDED


def test_done_outranks_having_left() -> None:
    job = Job()
    job.begin()
    job.say("b", State.LEFT, done=True)
    job.wait(5.0)
    job.say("a", State.DONE, done=True)
    job.look()
    assert job.control.outcome is not None
    assert job.control.outcome.ending is Ending.SUCCEEDED


@pytest.mark.parametrize("how", ["failed", "silent", "left"])
def test_some_done_and_one_failed_is_failed_everywhere(how: str) -> None:
    job = Job()
    job.begin()
    job.say("a", State.DONE, done=True)
    if how == "failed":
        job.fail("b")
    elif how == "left":
        job.say("b", State.LEFT)
    else:
        job.silent = {"b"}
    job.wait(1.5)
    assert job.control.outcome is not None
    assert (job.control.outcome.ending, job.control.outcome.code) == (Ending.FAILED, 1)
    assert "after a.1 was done" in job.control.outcome.reason


def test_done_in_a_former_round_is_not_done_in_this_one() -> None:
    job = Job()
    job.begin()
    job.say("b", State.RUNNING, round=0, done=True)
    job.say("a", State.DONE, done=True)
    job.look()
    assert job.control.outcome is None


def test_a_proposal_of_free_will_is_off_once_somebody_is_done_and_nobody_stopped() -> None:
    job = Job("ab", min_nodes=1, max_nodes=3, stop_s=0.5)
    job.begin()
    job.join("c")
    job.wait(3.0)
    assert job.seats() == "abc"
    job.say("a", State.DONE, done=True)
    job.look()
    assert (job.control.proposed, job.control.outcome) == ("", None)
    job.say("b", State.DONE, done=True)
    job.look()
    assert job.control.outcome is not None
    assert job.control.outcome.ending is Ending.SUCCEEDED


def test_told_to_stop() -> None:
    job = Job()
    job.begin()
    job.requests["stop"] = Request(wish=Wish.STOP, code=3, by="ops")
    job.look()
    assert job.control.outcome == Outcome(ending=Ending.STOPPED, code=3, reason="told to stop by ops")


# Growth


def grown(seconds: float, **rules: object) -> Job:
    job = Job("ab", min_nodes=1, max_nodes=3, spares=0, stop_s=5.0, **rules)
    job.begin()
    job.wait(6.0)
    job.join("c")
    job.wait(seconds)
    return job


def test_a_job_grows_after_the_last_call() -> None:
    assert grown(1.5).control.proposed == ""
    job = grown(2.5)
    assert (job.seats(), job.control.reason) == ("abc", "round 2: 3 nodes can train instead of 2")
    job.say("ab", State.PARKED)
    job.replaced_by_round("abc")
    assert (job.control.round, job.control.restarts) == (2, 0)  # of free will: nothing is charged


def test_a_job_of_full_size_does_not_grow() -> None:
    job = Job("ab")
    job.begin()
    job.join("c")
    job.join("d")
    assert job.wait(30.0) == []


def test_a_round_lasts_stop_s_before_it_is_cut_for_more_nodes() -> None:
    job = Job("ab", min_nodes=1, max_nodes=3, spares=0)
    job.begin()
    job.join("c")
    job.wait(8.0)
    assert job.control.proposed == ""
    job.wait(3.0)
    assert job.seats() == "abc"


def test_a_round_is_not_cut_for_more_nodes_while_somebody_does_not_run() -> None:
    job = Job("ab", min_nodes=1, max_nodes=3, spares=0, stop_s=5.0)
    job.begin()
    job.say("b", State.STOPPING)  # it heard of a proposal that is off by now
    job.join("c")
    job.wait(8.0)
    assert job.control.proposed == ""


# Drains


def drained(name: str = "b", names: str = "abc", timeout_s: float = 5.0, **rules: object) -> Job:
    job = Job(names, **rules)
    job.begin()
    job.requests["d1"] = Request(wish=Wish.DRAIN, member=f"{name}.1", timeout_s=timeout_s)
    job.look()
    return job


def test_a_drain_is_told_to_all_and_waits_until_all_can_be_stopped() -> None:
    job = drained()
    assert job.control.draining == ("b.1",)
    job.wait(2.0)
    assert job.control.proposed == ""
    job.say("ab", State.RUNNING, drain_ready=True)
    job.look()
    assert job.seats() == "ac"
    assert job.control.draining == ("b.1",)
    job.say("ab", State.PARKED, drain_ready=False)
    job.replaced_by_round("ac")
    assert job.control.restarts == 0
    job.say("b", State.LEFT, reason="drained")
    job.look()
    assert job.answers["d1"] == Answer(done=True, reason="b.1 has left: drained")


def test_a_drain_whose_time_is_over_cuts_the_round() -> None:
    job = drained()
    job.wait(4.5)
    assert job.control.proposed == ""
    job.wait(1.0)
    assert job.seats() == "ac"


def test_a_drain_without_a_spare_is_called_off_when_its_time_is_over() -> None:
    job = drained(names="ab")
    job.wait(4.5)
    assert job.answers == {}
    job.wait(1.0)
    assert not job.answers["d1"].done
    assert "nobody can take its place" in job.answers["d1"].reason
    assert (job.control.draining, job.control.proposed, job.control.outcome) == ((), "", None)


def test_a_drained_spare_costs_no_round() -> None:
    job = drained("c")
    assert (job.control.draining, job.control.proposed) == (("c.1",), "")
    job.wait(10.0)
    assert job.control.round == 1


def test_a_drain_of_somebody_unknown_is_refused() -> None:
    job = drained("x")
    assert job.answers["d1"] == Answer(done=False, reason="x.1 is not in this job")


def test_a_draining_node_is_given_no_seat() -> None:
    job = drained("c")
    job.say("b", State.LEFT)
    job.wait(1.0)
    assert job.control.proposed == ""
    assert "waiting: 1 of 2 nodes" in job.control.reason
