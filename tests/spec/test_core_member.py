"""One node's life: the rules of core/member.py. Names begin with the invariant that a test is about, if with any."""

from __future__ import annotations

import msgspec
import pytest

from holdfast.core import member
from holdfast.core.member import (
    Begin,
    Check,
    Checked,
    CoordinatorSeen,
    DrainReady,
    Effect,
    Entered,
    Event,
    Find,
    Finished,
    Leave,
    Member,
    Rang,
    Release,
    Saw,
    Say,
    Seat,
    SeatFound,
    Signalled,
    Stand,
    Stood,
)
from holdfast.core.membership import Beat, Control, Ending, Head, Outcome, Policy, State

POLICY = Policy(min_nodes=2, max_nodes=2, lease_s=1.0)
FOUNDED = Control(run="r", attempt="0", job="r", policy=POLICY, term=1, coordinator="c.1", nonce="n1")
SUCCEEDED = Outcome(ending=Ending.SUCCEEDED, code=0, reason="all are done")
FAILED = Outcome(ending=Ending.FAILED, code=1, reason="a.1 has left")


class Life:
    """One member, told things one after the other."""

    def __init__(self, name: str = "a.1", *, checks: bool = False) -> None:
        self.state = Member(member=name, checks=checks)
        self.control = FOUNDED
        self.now_s = 1000.0

    @property
    def beat(self) -> Beat:
        return self.state.beat

    @property
    def rings(self) -> bool:
        return member.rings(self.state)

    def tell(self, *events: Event) -> list[Effect]:
        effects: list[Effect] = []
        for event in events:
            self.state, these = member.step(self.state, event, self.now_s)
            effects += these
        return effects

    def see(self, **changes: object) -> list[Effect]:
        self.control = msgspec.structs.replace(self.control, **changes)
        return self.tell(Saw(self.control))

    def propose(self, plan: str, *, seat: int | None) -> list[Effect]:
        """`plan` is proposed, and found to have this seat for it."""
        effects = self.see(proposed=plan)
        number = self.control.round + 1
        assert Find(number, plan) in effects
        head = Head(round=number, plan=plan, world_size=2)
        return self.tell(SeatFound(plan, None if seat is None else Seat(head=head, group_rank=seat)))

    def commit(self) -> list[Effect]:
        return self.see(round=self.control.round + 1, plan=self.control.proposed, proposed="")

    def run(self, plan: str = "p1", seat: int = 1) -> None:
        self.see()
        self.tell(Entered())
        self.propose(plan, seat=seat)
        assert any(isinstance(effect, Begin) for effect in self.commit())
        assert self.beat.state is State.RUNNING

    def watch(self, *counts: int, every_s: float = 0.25, state: State = State.RUNNING) -> list[Effect]:
        effects: list[Effect] = []
        for count in counts:
            self.now_s += every_s
            effects += self.tell(CoordinatorSeen(self.control.coordinator, Beat(count=count, state=state)))
        return effects


def kinds(effects: list[Effect]) -> list[type]:
    return [type(effect) for effect in effects]


# Seats


def test_a_node_says_yes_then_begins_once_its_plan_is_committed() -> None:
    life = Life()
    life.tell(Entered())
    assert life.propose("p1", seat=1) == [Say(life.beat)]
    assert (life.beat.state, life.beat.plan) == (State.READY, "p1")
    say, begin = life.commit()
    assert isinstance(say, Say)  # what follows from a beat comes after it
    assert isinstance(begin, Begin)
    assert (begin.seat.group_rank, begin.seat.plan, begin.control) == (1, "p1", life.control)
    assert (life.beat.state, life.beat.round) == (State.RUNNING, 1)


def test_M2_a_spare_stays_parked() -> None:
    life = Life()
    life.tell(Entered())
    assert life.propose("p1", seat=None) == []
    assert life.commit() == []
    assert life.beat.state is State.PARKED


def test_M2_a_seat_counts_only_in_the_plan_that_is_committed() -> None:
    life = Life()
    life.tell(Entered())
    life.propose("p1", seat=1)
    assert Begin not in kinds(life.see(round=1, plan="p2", proposed=""))
    assert not member.seated(life.state)


def test_M2_nobody_begins_while_the_next_round_is_proposed() -> None:
    life = Life()
    life.tell(Entered())
    life.propose("p1", seat=1)
    effects = life.see(round=1, plan="p1", proposed="p2")
    assert Begin not in kinds(effects)
    assert Find(2, "p2") in effects


def test_M2_workers_that_ended_do_not_begin_again_in_the_same_plan() -> None:
    life = Life()
    life.run()
    assert Begin not in kinds(life.tell(Entered(failed=True)))
    assert (life.beat.state, life.beat.failed, life.beat.round) == (State.PARKED, True, 1)


def test_a_late_answer_about_an_older_plan_is_no_seat() -> None:
    life = Life()
    life.tell(Entered())
    life.see(proposed="p1")
    life.see(proposed="p2")
    old = Seat(head=Head(round=1, plan="p1", world_size=2), group_rank=0)
    assert life.tell(SeatFound("p1", old)) == [Find(1, "p2")]
    assert life.beat.state is State.PARKED


def test_what_is_told_twice_changes_nothing() -> None:
    life = Life()
    life.run()
    assert life.tell(Saw(life.control)) == []


def test_a_member_that_comes_back_looks_again_for_its_seat_in_the_same_proposal() -> None:
    life = Life()
    life.run()
    life.see(proposed="p2")
    life.tell(Rang())
    assert Find(2, "p2") in life.tell(Entered())


# The bell


@pytest.mark.parametrize(
    "change",
    [{"proposed": "p2"}, {"round": 2, "plan": "p2"}, {"outcome": FAILED}],
    ids=["proposal", "round", "outcome"],
)
def test_the_bell_rings_for_any_proposal_a_newer_round_and_the_outcome(change: dict[str, object]) -> None:
    life = Life()
    life.run()
    assert not life.rings
    life.see(**change)
    assert life.rings
    life.tell(Rang())
    assert life.beat.state is State.STOPPING
    assert not life.rings


def test_a_frozen_node_that_wakes_finds_itself_replaced_and_becomes_a_spare() -> None:
    life = Life()
    life.run()
    life.now_s += 3600.0
    life.see(round=2, plan="p9", proposed="")
    assert life.rings
    life.tell(Rang(), Entered())
    assert life.beat.state is State.PARKED
    assert not member.seated(life.state)


def test_the_bell_does_not_ring_for_a_node_that_is_done() -> None:
    life = Life()
    life.run()
    life.tell(Finished())
    life.see(proposed="p2")
    assert not life.rings
    assert life.beat.state is State.DONE


# Exit codes


@pytest.mark.parametrize("outcome", [SUCCEEDED, FAILED])
def test_M5_a_node_without_a_seat_exits_with_0_on_any_outcome(outcome: Outcome) -> None:
    life = Life()
    life.tell(Entered())
    life.see(round=1, plan="p1")
    assert kinds(life.see(outcome=outcome)) == [Say, Leave]
    assert (life.state.leaving, life.beat.state) == (0, State.LEFT)


def test_M5_a_node_that_comes_after_the_end_sees_the_outcome_and_exits_with_0() -> None:
    life = Life()
    life.tell(Entered())
    assert any(effect == Leave(0, "failed: a.1 has left") for effect in life.see(outcome=FAILED))


def test_M5_with_a_seat_the_workers_are_ended_before_it_leaves_with_the_outcomes_code() -> None:
    life = Life()
    life.run()
    assert life.see(outcome=FAILED) == []
    assert Leave not in kinds(life.tell(Rang()))
    assert Leave(1, "failed: a.1 has left") in life.tell(Entered())


def test_M5_done_and_succeeded_it_is_let_out_of_the_exit_barrier_once() -> None:
    life = Life()
    life.run()
    assert kinds(life.tell(Finished())) == [Say]
    assert (life.beat.done, life.beat.round) == (True, 1)
    assert life.see(outcome=SUCCEEDED) == [Release()]
    assert life.tell(Saw(life.control)) == []


def test_M5_done_and_failed_it_leaves_the_exit_barrier_with_the_outcomes_code() -> None:
    life = Life()
    life.run()
    life.tell(Finished())
    assert Leave(1, "failed: a.1 has left") in life.see(outcome=FAILED)


def test_M5_a_replaced_node_exits_with_0() -> None:
    life = Life()
    life.run()
    life.see(round=2, plan="p2")
    life.tell(Rang(), Entered())
    assert any(isinstance(effect, Leave) and effect.code == 0 for effect in life.see(outcome=FAILED))


def test_nothing_more_is_done_once_it_has_left() -> None:
    life = Life()
    life.tell(Entered(), Signalled("SIGTERM"))
    assert (life.beat.state, life.beat.reason) == (State.LEFT, "SIGTERM")
    assert life.see(proposed="p1") == []
    life.tell(Signalled("again"))
    assert life.beat.reason == "SIGTERM"


def test_an_agent_that_gives_up_says_that_its_workers_failed_unless_they_were_done() -> None:
    gives_up, done = Life(), Life()
    for life in (gives_up, done):
        life.run()
    gives_up.tell(Signalled("no restarts", failed=True))
    done.tell(Finished(), Signalled("no restarts", failed=True))
    assert (gives_up.beat.failed, gives_up.beat.done) == (True, False)
    assert (done.beat.failed, done.beat.done) == (False, True)


# Drains


def test_a_drained_spare_leaves_with_0() -> None:
    life = Life()
    life.tell(Entered())
    assert Leave(0, "drained") in life.see(round=1, plan="p1", draining=("a.1",))


def test_a_drained_node_leaves_only_after_the_round_without_it_is_committed() -> None:
    life = Life()
    life.run()
    life.see(draining=("a.1",), proposed="p2")
    life.tell(Rang())
    assert Leave not in kinds(life.tell(Entered()))
    assert Leave(0, "drained") in life.see(round=2, plan="p2", proposed="")


def test_workers_say_when_they_can_be_stopped_and_it_is_forgotten_with_them() -> None:
    life = Life()
    life.run()
    life.tell(DrainReady(True))
    assert life.beat.drain_ready
    life.tell(Rang(), Entered())
    assert not life.beat.drain_ready


# Health


def test_an_unhealthy_node_says_no_until_its_check_passes() -> None:
    life = Life(checks=True)
    assert Check() in life.see()
    assert life.tell(Entered()) == []  # it is running
    life.tell(Checked(False, "no GPU"))
    assert (life.beat.state, life.beat.reason) == (State.UNHEALTHY, "no GPU")
    life.propose("p1", seat=0)
    assert life.beat.state is State.UNHEALTHY
    life.now_s += member.HEALTH_RETRY_S - 1.0
    assert Check() not in life.tell(Saw(life.control))
    life.now_s += 1.0
    assert Check() in life.tell(Saw(life.control))
    life.tell(Checked(True))
    assert (life.beat.state, life.beat.plan) == (State.READY, "p1")


def test_a_check_that_passed_long_ago_is_repeated_before_a_yes() -> None:
    life = Life(checks=True)
    life.see()
    life.tell(Entered(), Checked(True))
    life.now_s += member.HEALTH_FRESH_S + 1.0
    assert life.tell(Saw(life.control)) == []  # not while nothing is asked of it
    assert Check() in life.propose("p1", seat=0)
    assert life.beat.state is State.PARKED
    life.tell(Checked(True))
    assert life.beat.state is State.READY


# Coordinators


def test_the_first_node_begins_the_job() -> None:
    life = Life()
    assert life.tell(Entered()) == [Stand(None, "nobody has begun this job yet")]
    assert life.tell(Saw(None)) == []  # one attempt at a time
    assert kinds(life.tell(Stood())) == [Stand]


def test_M7_a_coordinator_that_is_silent_for_a_lease_is_replaced() -> None:
    life = Life()
    life.run(seat=0)
    assert life.watch(1, 1, 1, 1) == []  # 0.75 s across own looks
    (stand,) = life.watch(1)
    assert isinstance(stand, Stand)
    assert stand.control is life.control
    assert stand.reason.startswith("coordinator c.1 last heard 1.0 s ago")


def test_a_coordinator_that_beats_is_let_be() -> None:
    life = Life()
    life.run(seat=0)
    assert life.watch(*range(100)) == []


def test_a_coordinator_that_has_left_is_replaced_without_waiting_for_a_lease() -> None:
    life = Life()
    life.run(seat=0)
    assert kinds(life.watch(1, state=State.LEFT)) == [Stand]


def test_a_coordinator_that_has_left_and_beats_on_is_replaced_by_whoever_is_next() -> None:
    life = Life()
    life.run(seat=1)
    assert life.watch(1) == []
    assert kinds(life.watch(2, 3, every_s=0.2, state=State.LEFT)) == [Stand]


def test_I9_time_in_which_it_did_not_look_does_not_count() -> None:
    life = Life()
    life.run(seat=0)
    life.watch(1, 1, 1, 1)
    assert life.watch(1, every_s=0.75) == []
    assert life.watch(1, 1, 1) == []  # a full lease again
    assert kinds(life.watch(1)) == [Stand]


def test_a_lower_group_rank_stands_earlier_and_half_a_lease_is_the_longest() -> None:
    def waits_s(seat: int | None, name: str = "a.1") -> float:
        life = Life(name)
        if seat is None:
            life.tell(Entered())
            life.see()
        else:
            life.run(seat=seat)
        return member.stagger_s(life.state, life.control, 1.0)

    ranks = [waits_s(seat) for seat in range(4)]
    assert ranks == sorted(set(ranks))
    assert ranks[0] == 0.0
    assert waits_s(100_000) == 0.5
    assert all(ranks[-1] < waits_s(None, f"spare{n}.1") <= 0.5 for n in range(50))


def test_a_coordinator_that_is_back_is_watched_anew() -> None:
    life = Life()
    life.run(seat=0)
    life.watch(1, 1, 1, 1)
    life.see(coordinator="d.1", term=2)
    assert life.see(coordinator="c.1", term=3) == []
    assert life.watch(1, 1, 1, 1) == []
    assert kinds(life.watch(1)) == [Stand]


def test_what_was_read_of_another_coordinator_does_not_count() -> None:
    life = Life()
    life.run(seat=0)
    effects: list[Effect] = []
    for _ in range(20):
        life.now_s += 0.25
        effects += life.tell(CoordinatorSeen("somebody.1", None))
    assert effects == []


def test_the_coordinator_does_not_watch_itself() -> None:
    life = Life("c.1")
    life.run(seat=0)
    assert life.watch(*[1] * 20) == []


def test_nobody_stands_once_there_is_an_outcome() -> None:
    life = Life()
    life.run(seat=0)
    life.see(outcome=FAILED)
    assert life.watch(*[1] * 20) == []
