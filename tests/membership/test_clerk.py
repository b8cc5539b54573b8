"""Real clerks in one job over a store in memory: failures, losses, a store that is away, and how each leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec
import pytest

from holdfast.core.membership import Attempt, Control, Ending, Policy, State, Wish, decode_all
from holdfast.launched import DRAIN
from holdfast.rendezvous.founding import ATTEMPTS, Keys, take_over
from tests.support.clerks import POLICY, RUN, Crew, One


@pytest.fixture
def crew() -> Iterator[Crew]:
    made = Crew()
    yield made
    made.close()


@pytest.fixture
def trio(crew: Crew) -> Crew:
    """Two nodes that train in round 1, and a spare."""
    crew.add("n0", "n1", "n2")
    crew.until(lambda: len([one for one in crew.ones if one.trains]) == 2, "round 1 does not begin")
    return crew


def seated(crew: Crew) -> list[One]:
    return sorted((one for one in crew.ones if one.trains), key=lambda one: one.rank)


def test_without_a_fault_there_is_one_round_and_all_leave_with_0(trio: Crew) -> None:
    zero, one = seated(trio)
    spare = trio.spare()
    assert trio.control.round == 1
    assert (zero.rank, one.rank) == (0, 1)
    assert zero.begun[-1].control.port == one.begun[-1].control.port > 0
    zero.finish()
    trio.until(lambda: trio.beat(zero).done)
    trio.beats(zero, 5)
    assert not zero.released
    one.finish()
    trio.until(lambda: all(each.clerk.over for each in trio.ones))
    outcome = trio.control.outcome
    assert outcome is not None
    assert outcome.ending is Ending.SUCCEEDED
    assert (zero.released, one.released, spare.released) == (True, True, False)
    assert [each.code for each in trio.ones] == [0, 0, 0]
    assert set(trio.states().values()) == {State.LEFT}


def test_workers_that_fail_cost_one_restart_and_a_fresh_port(trio: Crew) -> None:
    zero, one = seated(trio)
    ports = {zero.begun[-1].control.port}
    for number in (2, 3):
        one.fail()
        trio.train(number, zero, one)
        assert trio.control.restarts == number - 1
        ports.add(zero.begun[-1].control.port)
    assert len(ports) == 3
    assert (zero.rank, one.rank) == (0, 1)


def test_a_node_that_is_lost_is_replaced_in_its_place(trio: Crew) -> None:
    zero, one = seated(trio)
    spare, lost = trio.spare(), zero if trio.coordinator is one else one
    rank = lost.rank
    lost.driven = False
    stays = zero if lost is one else one
    trio.train(2, stays, spare)
    assert spare.rank == rank
    assert stays.rank == 1 - rank
    assert trio.control.term == 1


def test_a_node_that_wakes_finds_itself_replaced_and_becomes_a_spare(trio: Crew) -> None:
    zero, one = seated(trio)
    spare, lost = trio.spare(), zero if trio.coordinator is one else one
    stays = zero if lost is one else one
    lost.driven = False
    trio.train(2, stays, spare)
    lost.driven = True
    trio.until(lambda: trio.beat(lost).state is State.PARKED)
    assert not lost.trains
    assert trio.control.round == 2


def test_a_coordinator_that_is_lost_is_succeeded_by_one_other(trio: Crew) -> None:
    lost = trio.coordinator
    others = [one for one in trio.ones if one is not lost]
    ranks = {one.member: one.rank for one in others if one.trains}
    lost.driven = False
    trio.until(lambda: trio.control.term >= 2 and len([one for one in others if one.trains]) == 2)
    assert trio.coordinator in others
    assert {one.member: one.rank for one in others if one.member in ranks} == ranks
    term, round_ = trio.control.term, trio.control.round
    lost.driven = True  # and wakes: what it has decided is never read
    trio.until(lambda: trio.beat(lost).state is State.PARKED)
    trio.beats(lost, 5)
    assert (trio.control.term, trio.control.round) == (term, round_)


def test_a_store_that_was_away_costs_nothing(trio: Crew) -> None:
    before = trio.control
    trio.server.away = True
    for one in trio.ones:
        trio.until(lambda one=one: one.clerk.due_s > 0.0)  # type: ignore[misc]
    passes = iter(range(500))
    trio.until(lambda: next(passes) == 499)
    assert [one.code for one in trio.ones] == [None] * 3
    trio.server.away = False
    for one in trio.ones:
        trio.beats(one, 10)
    assert (trio.control.round, trio.control.term, trio.control.nonce) == (1, 1, before.nonce)


def test_a_store_that_is_lost_ends_everybody_with_1(trio: Crew) -> None:
    trio.server.lose()
    trio.until(lambda: all(one.code == 1 for one in trio.ones))
    assert all(one.clerk.rings and one.clerk.lost for one in trio.ones)


@pytest.mark.parametrize("lost", range(1, 13))
def test_a_lost_answer_changes_nothing(crew: Crew, lost: int) -> None:
    """Of any of the first writes, and then of each, one by one: it is read back, or made again."""
    crew.add("n0", "n1", "n2")
    for _ in range(lost):
        crew.server.lose_answer()
    crew.until(lambda: len([one for one in crew.ones if one.trains]) == 2, "round 1 does not begin")
    zero, one = seated(crew)
    for _ in range(lost):
        crew.server.lose_answer()
    one.fail()
    crew.until(lambda: crew.control.round == 2 and zero.trains and one.trains)
    assert crew.control.restarts == 1
    assert crew.control.term == 1
    nonces = [nonce for each in crew.ones for what, nonce in each.store.writes if what == "cell"]
    assert len(nonces) == len(set(nonces))


def test_a_change_that_was_not_made_is_made_after_reading_back(trio: Crew) -> None:
    zero, one = seated(trio)
    trio.coordinator.store.refuses = 1
    one.fail()
    trio.train(2, zero, one)
    assert (trio.control.term, trio.control.restarts) == (1, 1)


def test_of_two_who_stand_on_what_they_saw_one_wins(trio: Crew) -> None:
    cell = trio.store.read(trio.keys.control)
    assert cell is not None
    first = take_over(trio.store, trio.keys, cell, "a.0", "first")
    assert take_over(trio.store, trio.keys, cell, "b.0", "second") == first
    assert (trio.control.coordinator, trio.control.term) == ("a.0", 2)


def test_a_beat_that_was_not_confirmed_is_put_again(trio: Crew) -> None:
    zero = seated(trio)[0]
    zero.fail()
    trio.server.away = True
    for _ in range(5):
        zero.drive()
    trio.server.away = False
    trio.until(lambda: trio.control.round == 2)
    assert trio.control.restarts == 1


def test_some_are_done_and_one_fails(crew: Crew) -> None:
    crew.add("n0", "n1", policy=msgspec.structs.replace(POLICY, spares=0))
    crew.until(lambda: all(one.trains for one in crew.ones))
    zero, one = seated(crew)
    zero.finish()
    crew.until(lambda: crew.beat(zero).done)
    one.fail()
    crew.until(lambda: all(each.clerk.over for each in crew.ones))
    assert crew.control.outcome is not None
    assert crew.control.outcome.ending is Ending.FAILED
    assert (zero.code, one.code) == (1, 1)
    assert not zero.released


def test_the_outcomes_code_is_for_those_with_a_seat(trio: Crew) -> None:
    spare, trained = trio.spare(), seated(trio)
    trio.ask(Wish.STOP, code=7)
    trio.until(lambda: all(each.clerk.over for each in trio.ones))
    assert [one.code for one in trained] == [7, 7]
    assert spare.code == 0


def test_a_node_that_gets_a_signal_says_so_before_it_goes(trio: Crew) -> None:
    zero, one = seated(trio)
    spare, leaver = trio.spare(), zero if trio.coordinator is one else one
    stays = zero if leaver is one else one
    leaver.leave("told to by SIGTERM")
    leaver.drive()
    assert leaver.clerk.over
    assert trio.beat(leaver).state is State.LEFT
    trio.train(2, stays, spare)
    assert "told to by SIGTERM" in trio.control.reason


def test_a_good_bye_that_was_not_taken_is_said_again(trio: Crew) -> None:
    spare = trio.spare()
    trio.server.away = True
    spare.leave()
    spare.drive()
    assert not spare.clerk.over
    trio.server.away = False
    trio.until(lambda: spare.clerk.over)
    assert trio.beat(spare).state is State.LEFT


def test_a_good_bye_that_nobody_takes_is_given_up(trio: Crew) -> None:
    spare = trio.spare()
    trio.server.away = True
    spare.leave()
    trio.until(lambda: spare.clerk.over)
    trio.server.away = False
    assert trio.beat(spare).state is State.PARKED


def test_a_drain_is_told_to_the_workers_and_answered(trio: Crew) -> None:
    zero, one = seated(trio)
    spare, drained = trio.spare(), zero if trio.coordinator is one else one
    stays = zero if drained is one else one
    name = trio.ask(Wish.DRAIN, drained.member)
    for each in (drained, stays):
        trio.until(lambda each=each: (each.local.desk.path / DRAIN).exists())  # type: ignore[misc]
        said = json.loads((each.local.desk.path / DRAIN).read_text())
        assert drained.member in said["reason"]
    assert trio.control.round == 1
    for each in (drained, stays):
        (each.local.desk.path / "ready-1-0-1").touch()
    trio.train(2, stays, spare)
    trio.until(lambda: drained.code is not None)
    assert drained.code == 0
    trio.until(lambda: name in trio.store.names(trio.keys.answers))
    assert trio.control.restarts == 0
    trio.until(lambda: not (stays.local.desk.path / DRAIN).exists())


def test_the_host_stays_until_all_others_have_left(crew: Crew) -> None:
    host = crew.add("n0", hosts=True, policy=msgspec.structs.replace(POLICY, spares=0))[0]
    other = crew.add("n1")[0]
    crew.until(lambda: host.trains and other.trains)
    other.deaf = True
    crew.ask(Wish.STOP)
    crew.until(lambda: crew.beat(host).state is State.LEFT)
    crew.beats(other, 10)
    assert host.clerk.keeps
    assert not host.clerk.over
    other.deaf = False
    crew.until(lambda: host.clerk.over and other.clerk.over)
    assert (host.code, other.code) == (0, 0)


def test_a_host_that_leaves_keeps_the_store_for_a_job_that_goes_on(crew: Crew) -> None:
    host = crew.add("n0", hosts=True)[0]
    crew.add("n1", "n2")
    crew.until(lambda: len([one for one in crew.ones if one.trains]) == 2)
    host.leave()
    others = [one for one in crew.ones if one is not host]
    crew.until(lambda: all(one.trains for one in others))
    assert not host.clerk.over
    for one in others:
        one.finish()
    crew.until(lambda: all(one.clerk.over for one in crew.ones))
    assert [one.code for one in others] == [0, 0]


# Attempts


def attempts(crew: Crew) -> dict[str, Attempt]:
    return decode_all(crew.store.list_all(ATTEMPTS), Attempt)


def control_of(crew: Crew, attempt: str) -> Control:
    crew.keys = Keys(attempt)
    return crew.control


ALONE = Policy(min_nodes=1, max_nodes=1, lease_s=0.2)


def test_a_new_attempt_ends_the_old_one(crew: Crew) -> None:
    old = crew.add("n0", attempt="7", policy=ALONE)[0]
    crew.until(lambda: old.trains)
    new = crew.add("n1", attempt="8", policy=ALONE)[0]
    crew.until(lambda: new.trains and old.clerk.over)
    assert old.code == 1
    outcome = control_of(crew, "7").outcome
    assert outcome is not None
    assert outcome.ending is Ending.SUPERSEDED
    assert control_of(crew, "8").outcome is None
    first = attempts(crew)
    assert first["8"].first > first["7"].first
    assert first["8"].job == first["7"].job == RUN


def test_a_late_attempt_ends_no_newer_one(crew: Crew) -> None:
    new = crew.add("n1", attempt="8", policy=ALONE)[0]
    crew.until(lambda: new.trains)
    late = crew.add("n0", attempt="7", policy=ALONE)[0]
    crew.until(lambda: late.clerk.over)
    crew.beats(new, 5)
    assert new.trains
    assert control_of(crew, "8").outcome is None
    outcome = control_of(crew, "7").outcome
    assert outcome is not None
    assert outcome.ending is Ending.SUPERSEDED
    assert late.code == 0
    assert not late.begun
