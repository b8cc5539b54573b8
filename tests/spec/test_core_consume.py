"""Find, hold, look, check, give; acknowledge, release: the rules of core/consume.py."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.core import consume
from holdfast.core.consume import (
    Acknowledge,
    Acknowledged,
    Check,
    Checked,
    CheckLease,
    Consume,
    Damaged,
    Drop,
    Effect,
    Event,
    Fail,
    Give,
    Idle,
    LeaseRead,
    Looked,
    Lost,
    Mode,
    NotVisible,
    Phase,
    ReadSweepers,
    Reject,
    Release,
    SweepersRead,
    WriteRecord,
    Written,
    step,
    unseen_by,
)
from holdfast.core.lineage import Claim, trace
from holdfast.core.names import Version
from holdfast.core.records import Party, SweeperRecord, Term

NEWEST, EVERY, STAGED = Mode(), Mode(every=True), Mode(staged=True, in_place=False)
NO_HOLDS = Mode(staged=True, in_place=False, writes=False)
V1, V2, V3 = (Version(1, number, 0, "abcdef") for number in (1, 2, 3))
NOTHING: frozenset[Version] = frozenset()


def claim(cycle: int = 1, start: Version | None = None) -> Claim:
    return Claim(cycle, Term(job="a", round=cycle, nonce="n"), start)


def looked(
    *versions: Version, claims: tuple[Claim, ...] = (claim(),), tombstoned: frozenset[Version] = NOTHING
) -> Looked:
    return Looked(trace(claims), frozenset(versions), tombstoned)


def play(state: Consume, *events: Event, mode: Mode = NEWEST) -> tuple[Consume, tuple[Effect, ...]]:
    effects: tuple[Effect, ...] = ()
    for event in events:
        state, effects = step(state, event, mode)
    return state, effects


def given(version: Version = V1, mode: Mode = NEWEST, **fields: Any) -> Consume:
    """A consumer that has been given `version`."""
    taken = (looked(version), Written(), SweepersRead(NOTHING), Checked())
    return play(Consume(**fields), *(taken if mode.writes else (taken[0], taken[3])), mode=mode)[0]


def reason(effects: tuple[Effect, ...]) -> str:
    (idle,) = effects
    assert isinstance(idle, Idle)
    return idle.reason


def test_I4_the_hold_is_written_then_the_sweepers_are_read_then_the_version_is_opened() -> None:
    state, effects = play(Consume(), looked(V1, V2))
    assert effects == (WriteRecord(),)
    assert state.holds == {V2}
    state, effects = play(state, Written())
    assert effects == (ReadSweepers(),)
    state, effects = play(state, SweepersRead(NOTHING))
    assert effects == (Check(V2),)
    state, effects = play(state, Checked())
    assert effects == (Give(V2),)
    assert (state.given, state.holds, state.last) == ({V2}, {V2}, V2)


def test_I4_a_version_that_is_tombstoned_at_the_second_look_is_given_up() -> None:
    state, effects = play(Consume(), looked(V1), Written(), SweepersRead(frozenset({V1})))
    assert effects == (WriteRecord(),)
    assert (state.phase, state.holds, state.last) == (Phase.IDLE, NOTHING, None)


def test_a_version_that_is_known_to_be_tombstoned_is_not_tried() -> None:
    assert play(Consume(), looked(V1, V2, tombstoned=frozenset({V2})))[0].taking == V1


def test_nothing_is_loaded_in_place_before_a_sweeper_elsewhere_has_listed_it() -> None:
    unseen = SweepersRead(NOTHING, unseen_by=("s",))
    state, effects = play(Consume(), looked(V1), Written(), unseen)
    assert reason(effects) == "waiting: sweeper s has not listed this consumer yet"
    state, effects = play(state, looked(V1))
    assert effects == (ReadSweepers(),)
    assert play(state, SweepersRead(NOTHING))[1] == (Check(V1),)
    assert play(Consume(), looked(V1), Written(), unseen, mode=STAGED)[1] == (Check(V1),)


def test_who_may_not_know_of_a_hold() -> None:
    here, there = Party(host="h", device="1", bound_s=5.0), Party(host="g", device="1", bound_s=9.0)

    def unseen(mode: Mode = NEWEST, silent: frozenset[str] = frozenset(), **record: Any) -> tuple[str, ...]:
        return unseen_by(
            "me", here, mode, {"s": SweeperRecord(**{"beat": 1, "cycle": 1, "party": there, **record})}, silent
        )

    assert unseen() == ("s",)
    assert unseen(seen=("me",)) == ()
    assert unseen(closed=True) == ()
    assert unseen(silent=frozenset({"s"})) == ()
    assert unseen(party=here) == ()
    assert unseen(bound_s=9.0) == ("s",), "to load in place it has to be listed"
    assert unseen(Mode(in_place=False), bound_s=9.0) == ()
    assert unseen(Mode(in_place=False), bound_s=8.9) == ("s",)


def test_a_staged_copy_ends_the_hold() -> None:
    state, effects = play(Consume(), looked(V1), Written(), SweepersRead(NOTHING), Checked(), mode=STAGED)
    assert effects == (Give(V1), WriteRecord())
    assert (state.holds, state.given) == (NOTHING, {V1})


def test_who_cannot_write_holds_nothing_and_is_given_copies() -> None:
    assert play(Consume(), looked(V1), mode=NO_HOLDS)[1] == (Check(V1),)


# I3: what is given, in which order


def test_I3_under_one_claim_only_later_versions_are_given() -> None:
    assert reason(play(given(V2), looked(V1, V2))[1]) == f"up to date: {V2} is the newest of cycle 1"
    assert play(given(V2), looked(V1, V2, V3))[0].taking == V3


def test_I3_a_lower_claim_than_the_followed_one_is_not_followed() -> None:
    state = given(V1, claim=0)
    state, _ = play(state, looked(V1, claims=(claim(), claim(2, V1))))
    assert state.claim == 2
    state, effects = play(state, looked(V1, V2, V3))
    assert reason(effects) == "waiting: cycle 2 was followed, only cycle 1 is visible here"
    assert state.taking is None


def test_the_newest_is_given_or_every_version_in_order() -> None:
    assert play(Consume(), looked(V1, V2, V3))[0].taking == V3
    state, _ = play(Consume(), looked(V1, V2, V3), mode=EVERY)
    assert state.taking == V1
    assert state.holds == {V1, V2, V3}, "what comes later is held ahead"
    assert play(given(V1, EVERY), looked(V1, V2, V3), mode=EVERY)[0].taking == V2


def test_a_version_outside_the_lineage_is_followed_by_a_rewind() -> None:
    claims = (claim(), claim(2, V1))
    state, _ = play(given(V3), looked(V1, V3, claims=claims))
    assert (state.taking, state.rewound) == (V1, True)
    _, effects = play(state, Written(), SweepersRead(NOTHING), Checked())
    assert effects == (Give(V1, rewound_from=V3),)


def test_a_claim_that_goes_on_from_what_was_given_is_no_rewind() -> None:
    claims = (claim(), claim(2, V3))
    assert reason(play(given(V3), looked(V1, V3, claims=claims))[1]) == f"up to date: {V3} is the newest of cycle 2"
    later = Version(2, 4, 0, "abcdef")
    assert not play(given(V3), looked(V1, V3, later, claims=claims))[0].rewound


def test_every_version_after_a_rewind_begins_with_the_common_ancestor() -> None:
    again = Version(2, 2, 0, "abcdef")
    state, _ = play(given(V3, EVERY), looked(V1, V3, again, claims=(claim(), claim(2, V1))), mode=EVERY)
    assert state.taking == V1


def test_what_is_served_is_stale_while_a_new_cycle_has_nothing_to_give() -> None:
    state, effects = play(given(V1), looked(V1, claims=(claim(), claim(2))))
    (idle,) = effects
    assert isinstance(idle, Idle)
    assert idle.stale
    assert state.taking is None


def test_what_failed_is_given_again_and_what_was_rejected_never() -> None:
    state, _ = play(given(V1), Fail(V1))
    assert play(state, looked(V1))[0].taking == V1
    state, _ = play(given(V1), Reject(V1, "no good"))
    assert play(state, looked(V1))[0].taking is None
    assert dict(state.refused) == {V1: "no good"}
    assert play(Consume(refused=frozenset({(V3, "no good")})), looked(V1, V3))[0].taking == V1


def test_what_failed_for_a_consumer_of_every_version_stays_held() -> None:
    assert play(given(V1, EVERY), Fail(V1), mode=EVERY)[0].holds == {V1}
    assert play(given(V1), Fail(V1))[0].holds == NOTHING


# I1: nothing is given that was not checked


def checking(**mode: Any) -> tuple[Consume, Mode]:
    chosen = Mode(patience_s=10.0, **mode)
    return play(Consume(), looked(V1), Written(), SweepersRead(NOTHING), mode=chosen)[0], chosen


def test_I1_what_is_not_visible_is_looked_for_until_nothing_came_for_patience() -> None:
    state, mode = checking()
    state, effects = play(state, NotVisible("short", 0, 100.0), mode=mode)
    assert reason(effects) == "waiting: short, 0.0 of 10 s"
    state, effects = play(state, looked(V1), mode=mode)
    assert effects == (Check(V1, again=True),)
    state, _ = play(state, NotVisible("short", 1, 109.0), mode=mode)
    state, effects = play(state, NotVisible("short", 1, 118.9), mode=mode)
    assert state.taking == V1, "there was progress at 109"
    state, effects = play(state, NotVisible("short", 1, 119.0), mode=mode)
    assert effects == (WriteRecord(),)
    assert dict(state.refused) == {V1: "short, for 10 s"}
    assert state.given == NOTHING


def test_what_was_swept_before_the_hold_stood_is_given_up_for_what_is_there() -> None:
    state, mode = checking()
    state, _ = play(state, NotVisible("missing", 0, 100.0), mode=mode)
    state, effects = play(state, looked(V2), mode=mode)
    assert effects == (WriteRecord(),)
    assert (state.taking, state.holds, state.refused) == (None, NOTHING, NOTHING)
    assert play(state, looked(V2), mode=mode)[0].taking == V2


def test_what_a_listing_does_not_show_yet_is_waited_for_while_nothing_newer_is_there() -> None:
    state, mode = checking()
    state, _ = play(state, NotVisible("missing", 0, 100.0), mode=mode)
    for versions in ((), (V1,), (V1, V2)):
        assert play(state, looked(*versions), mode=mode) == (state, (Check(V1, again=True),))


def test_I1_what_is_damaged_is_refused_at_once_and_the_next_one_is_taken() -> None:
    state, mode = checking()
    state, effects = play(state, Damaged("flipped"), mode=mode)
    assert effects == (WriteRecord(),)
    assert (dict(state.refused), state.holds) == ({V1: "flipped"}, NOTHING)
    assert play(state, looked(V1, V2), mode=mode)[0].taking == V2


def test_a_version_that_a_rewind_made_unwanted_is_not_waited_for() -> None:
    state, _ = play(given(V1), looked(V1, V3), Written(), SweepersRead(NOTHING))
    state, effects = play(state, looked(V1, V3, claims=(claim(), claim(2, V1))))
    assert effects == (WriteRecord(),)
    assert (state.taking, state.holds) == (None, {V1})


# I6: acknowledge, and being expired


def test_I6_the_lease_is_looked_at_before_anything_is_acknowledged() -> None:
    state, effects = play(given(V1), Acknowledge(V1))
    assert effects == (CheckLease(V1),)
    assert state.serving == NOTHING
    state, effects = play(state, LeaseRead(V1))
    assert effects == (WriteRecord(), Acknowledged(V1))
    assert (state.serving, state.acknowledged, state.acknowledged_cycle) == ({V1}, V1, 1)


@pytest.mark.parametrize("event", [LeaseRead(V1, expired=True), Lost()])
def test_I6_who_was_expired_acknowledges_nothing_and_drops_its_holds(event: Event) -> None:
    state, effects = play(given(V1), event)
    assert effects == (Drop(),)
    assert (state.given, state.holds, state.serving, state.acknowledged) == (NOTHING, NOTHING, NOTHING, None)
    assert state.again == V1, "it may be given once more"


def test_who_was_expired_at_the_second_look_drops_its_holds() -> None:
    _, effects = play(Consume(), looked(V1), Written(), SweepersRead(NOTHING, expired=True))
    assert effects == (Drop(),)


def test_a_staged_copy_outlives_its_consumers_silence() -> None:
    assert play(given(V1, STAGED), Lost(), mode=STAGED)[0].given == {V1}


def test_an_acknowledgement_is_not_a_release() -> None:
    state, _ = play(given(V1), Acknowledge(V1), LeaseRead(V1))
    assert state.holds == {V1}
    state, effects = play(state, Release(V1))
    assert effects == (WriteRecord(),)
    assert (state.holds, state.serving, state.given) == (NOTHING, NOTHING, NOTHING)


def test_what_was_released_while_the_lease_was_read_is_not_acknowledged() -> None:
    state, effects = play(given(V1), Acknowledge(V1), Release(V1), LeaseRead(V1))
    assert effects == ()
    assert state.acknowledged is None


def test_a_release_during_another_taking_leaves_that_one_alone() -> None:
    state, _ = play(given(V1), looked(V1, V2), Written(), SweepersRead(NOTHING), Release(V1))
    assert (state.phase, state.taking, state.holds) == (Phase.CHECKING, V2, {V2})


def test_a_taking_that_was_interrupted_starts_again_without_its_hold() -> None:
    state = consume.interrupted(play(given(V1), looked(V1, V2), Written())[0])
    assert (state.phase, state.taking, state.holds) == (Phase.IDLE, None, {V1})


def test_an_event_out_of_its_phase_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        play(Consume(), Checked())
