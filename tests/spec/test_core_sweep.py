"""Delete what nobody needs: core/sweep.py, core/retention.py, and who counts as silent: core/liveness.py, bounds.py."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.core import bounds, liveness
from holdfast.core.lineage import Claim, trace
from holdfast.core.names import Version
from holdfast.core.records import Party, Term
from holdfast.core.retention import Known, Retention, keep
from holdfast.core.sweep import (
    Begin,
    Consumer,
    Effect,
    Event,
    Look,
    Looked,
    Phase,
    Remove,
    Removed,
    Settle,
    Settled,
    Sweep,
    View,
    WriteRecord,
    Written,
    judge,
    step,
)
from holdfast.errors import UsageError

POLICY = Retention(keep_recent=1)
V1, V2, V3 = (Version(1, number, 0, "abcdef") for number in (1, 2, 3))


def claim(cycle: int = 1, start: Version | None = None) -> Claim:
    return Claim(cycle, Term(job="a", round=cycle, nonce="n"), start)


def view(*versions: Version, claims: tuple[Claim, ...] = (claim(),), **more: Any) -> View:
    return View(lineage=trace(claims), versions=frozenset(versions), **more)


def held(*versions: Version, key: str = "c", **more: Any) -> Consumer:
    return Consumer(key, frozenset(versions), **more)


def play(state: Sweep, *events: Event) -> tuple[Sweep, tuple[Effect, ...]]:
    effects: tuple[Effect, ...] = ()
    for event in events:
        state, effects = step(state, event, POLICY)
    return state, effects


def entered(**fields: Any) -> Sweep:
    return Sweep(1, entered=True, **fields)


def test_a_sweeper_says_that_it_is_here_and_settles_before_its_first_look() -> None:
    state, effects = play(Sweep(1), Begin(bound_s=3.0))
    assert isinstance(effects[0], WriteRecord)
    state, effects = play(state, Written())
    assert effects == (Settle(3.0),)
    state, effects = play(state, Settled())
    assert effects == (Look(),)


def test_I4_tombstone_then_settle_then_look_then_remove() -> None:
    state, effects = play(entered(), Begin(), Looked(view(V1, V2, V3, bound_s=5.0)))
    assert effects == (WriteRecord(frozenset({V1, V2}), frozenset(), frozenset()),)
    state, effects = play(state, Written())
    assert effects == (Settle(5.0),)
    state, effects = play(state, Settled())
    assert effects == (Look(),)
    state, effects = play(state, Looked(view(V1, V2, V3, bound_s=5.0)))
    assert effects == (Remove(frozenset({V1, V2})),)
    state, effects = play(state, Removed())
    assert effects == (WriteRecord(frozenset(), frozenset(), frozenset()),)
    assert play(state, Written())[0].phase is Phase.IDLE


def at_second_look(**fields: Any) -> Sweep:
    return entered(phase=Phase.RELOOKING, tombstones=frozenset({V1, V2}), **fields)


def test_I4_a_version_that_is_held_at_the_second_look_is_withdrawn() -> None:
    state, effects = play(at_second_look(), Looked(view(V1, V2, V3, consumers=(held(V1),))))
    assert effects == (Remove(frozenset({V2})),)
    state, effects = play(state, Removed())
    assert effects == (WriteRecord(frozenset(), frozenset(), frozenset()),)


def test_I5_what_the_claims_need_at_the_second_look_is_withdrawn() -> None:
    claims = (claim(), claim(2, V2))
    state = Sweep(2, entered=True, phase=Phase.RELOOKING, tombstones=frozenset({V1, V2}))
    _, effects = play(state, Looked(view(V1, V2, V3, claims=claims)))
    assert effects == (Remove(frozenset({V1})),)


def test_I4_only_who_was_expired_durably_before_the_second_look_holds_nothing() -> None:
    seen = view(V1, V2, V3, consumers=(held(V1, key="dead"),), silent=frozenset({"dead"}))
    _, effects = play(at_second_look(), Looked(seen))
    assert effects == (Remove(frozenset({V2})),), "silent only now: nobody could know yet"
    _, effects = play(at_second_look(expired=frozenset({"dead"})), Looked(seen))
    assert effects == (Remove(frozenset({V1, V2})),)


def test_the_expired_stand_in_the_same_record_as_the_tombstones() -> None:
    seen = view(V1, V2, consumers=(held(V1, key="dead"), held(key="new")), silent=frozenset({"dead"}))
    _, effects = play(entered(), Begin(), Looked(seen))
    assert effects == (WriteRecord(frozenset({V1}), frozenset({"dead", "new"}), frozenset({"dead"})),)


def test_a_second_look_that_finds_somebody_who_sees_later_settles_again() -> None:
    state, effects = play(at_second_look(bound_s=1.0), Looked(view(V1, V2, V3, bound_s=9.0)))
    assert effects == (Settle(9.0),)
    assert state.phase is Phase.SETTLING


def test_what_could_not_be_removed_stays_announced() -> None:
    state, _ = play(at_second_look(), Looked(view(V1, V2, V3)))
    _, effects = play(state, Removed(failed=frozenset({V2})))
    assert effects == (WriteRecord(frozenset({V2}), frozenset(), frozenset()),)


@pytest.mark.parametrize("phase", [Phase.LOOKING, Phase.RELOOKING])
def test_I8_a_fenced_sweeper_withdraws_and_stops(phase: Phase) -> None:
    state = entered(phase=phase, tombstones=frozenset({V1}))
    state, effects = play(state, Looked(view(V1, V2, claims=(claim(), claim(2)))))
    assert effects == (WriteRecord(frozenset(), frozenset(), frozenset()),)
    assert play(state, Written())[0].phase is Phase.STOPPED


def test_an_event_out_of_its_phase_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        play(entered(), Settled())


# What stays, and why


def verdict(version: Version, seen: View, policy: Retention = POLICY, expired: frozenset[str] = frozenset()) -> str:
    return judge(seen, policy, expired)[version].reason


def test_every_version_has_a_verdict_with_its_reason() -> None:
    seen = view(V1, V2, V3, consumers=(held(V2),))
    assert verdict(V1, seen) == "goes: nobody holds it and newer versions are kept"
    assert verdict(V2, seen) == "held by c"
    assert verdict(V3, seen) == "kept: a fresh consumer would be given it"


def test_an_unreadable_file_holds_everything_until_its_consumer_is_expired() -> None:
    seen = view(V1, V3, consumers=(Consumer("x", readable=False),))
    assert verdict(V1, seen) == "kept: the file of x cannot be read"
    assert verdict(V1, seen, expired=frozenset({"x"})).startswith("goes")


def test_a_consumer_of_every_version_keeps_what_it_was_not_given_yet() -> None:
    seen = view(V1, V2, V3, consumers=(held(every=True, last=V1),))
    assert verdict(V2, seen) == "kept: c takes every version"
    assert verdict(V1, seen).startswith("goes")
    assert verdict(V1, view(V1, V3, consumers=(held(every=True),))) == "kept: c takes every version"


def test_a_version_of_a_claim_that_is_not_visible_here_yet_is_not_judged() -> None:
    later = Version(2, 1, 0, "abcdef")
    assert verdict(later, view(V1, later)) == "kept: the claim of cycle 2 is not visible here yet"


def test_what_is_outside_the_lineage_goes() -> None:
    seen = view(V1, V2, V3, Version(2, 2, 0, "abcdef"), claims=(claim(), claim(2, V1)))
    assert verdict(V3, seen) == "goes: outside the lineage of cycle 2"


def kept(policy: Retention, *versions: Version, claims: tuple[Claim, ...] = (claim(),), **more: Any) -> set[int]:
    known = Known(lineage=trace(claims), versions=frozenset(versions), **more)
    return {version.step for version in keep(policy, known)}


def test_retention_keeps_the_newest_ones() -> None:
    assert kept(Retention(keep_recent=2), V1, V2, V3) == {2, 3}


def test_retention_keeps_every_nth_step() -> None:
    assert kept(Retention(keep_recent=1, keep_every=2), V1, V2, V3) == {2, 3}


def test_retention_keeps_the_newest_acknowledged_one_of_the_lineage() -> None:
    assert kept(POLICY, V1, V2, V3, acknowledged=frozenset({V1, V2})) == {2, 3}
    assert kept(POLICY, V1, V3, claims=(claim(), claim(2, V1)), acknowledged=frozenset({V1, V3})) == {1}


def test_retention_keeps_what_is_pinned() -> None:
    assert kept(POLICY, V1, V2, V3, pinned=frozenset({V1})) == {1, 3}


def test_retention_keeps_what_is_young_even_outside_the_lineage() -> None:
    policy = Retention(keep_recent=1, min_age_s=10.0)
    assert kept(policy, V1, V2, V3, ages_s={V1: 10.0, V2: 9.9, V3: 0.0}) == {2, 3}
    assert kept(policy, V1, V3, claims=(claim(), claim(2, V1))) == {1, 3}


def test_I5_retention_keeps_what_a_cycle_starts_from_until_it_has_published() -> None:
    assert kept(POLICY, V1, V2, V3, claims=(claim(), claim(2, V2))) == {2}


def test_I5_what_another_sweeper_may_remove_is_not_all_that_is_kept() -> None:
    assert kept(POLICY, V1, V2, V3, blocked=frozenset({V3})) == {2, 3}


def test_I5_nothing_goes_while_the_highest_claim_cannot_be_read() -> None:
    assert kept(POLICY, V1, V2, V3, claims=(claim(), Claim(2, None, None))) == {1, 2, 3}


@pytest.mark.parametrize(
    "bad", [{"keep_recent": 0}, {"keep_every": 0}, {"min_age_s": -1.0}, {"max_bytes": 0}, {"keep_recent": 1.5}]
)
def test_a_retention_that_makes_no_sense_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        Retention(**bad)
    assert caught.value.code == "bad_retention"


# Silence and bounds


def looks(*moments: tuple[float, object]) -> liveness.Watch:
    watch = liveness.Watch()
    for now_s, beat in moments:
        watch = liveness.look(watch, {"p": beat}, now_s, gap_s=5.0)
    return watch


def test_I9_silence_is_what_the_observer_itself_has_watched() -> None:
    assert looks((100.0, 1)).watched["p"].silent_s == 0.0, "a new observer knows nothing"
    assert looks((0.0, 1), (4.0, 1), (8.0, 1)).watched["p"].silent_s == 8.0


def test_I9_time_in_which_the_observer_was_away_does_not_count() -> None:
    assert looks((0.0, 1), (4.0, 1), (3600.0, 1), (3604.0, 1)).watched["p"].silent_s == 8.0


def test_I9_one_look_adds_no_more_silence_than_it_is_credited_with() -> None:
    watch = liveness.Watch()
    for now_s in (0.0, 1.0, 5.0):  # the third look is late: what kept the observer may have kept others, too
        watch = liveness.look(watch, {"p": 1}, now_s, gap_s=5.0, credit_s=1.5)
    assert watch.watched["p"].silent_s == 2.5


def test_I9_a_clock_that_went_back_counts_nothing() -> None:
    assert looks((10.0, 1), (4.0, 1)).watched["p"].silent_s == 0.0


def test_a_beat_that_changes_ends_the_silence() -> None:
    watched = looks((0.0, 1), (4.0, 1), (5.0, 2)).watched["p"]
    assert (watched.silent_s, watched.beaten) == (0.0, True)


def test_silent_are_those_whose_beat_stood_still_for_a_whole_lease() -> None:
    assert liveness.silent(looks((0.0, 1), (4.0, 1)), 4.1) == frozenset()
    assert liveness.silent(looks((0.0, 1), (4.0, 1)), 4.0) == {"p"}


HERE, THERE = Party(host="h", device="1", bound_s=7.0), Party(host="g", device="1", bound_s=9.0)


def test_the_bound_is_zero_on_one_machine_and_device_only() -> None:
    assert bounds.bound_s([HERE, HERE]) == 0.0
    assert bounds.bound_s([HERE, Party(host="h", device="2", bound_s=1.0)]) == 7.0


def test_the_bound_is_the_largest_that_anybody_states() -> None:
    assert bounds.bound_s([HERE, THERE]) == 9.0


def test_a_tombstone_stands_for_two_bounds() -> None:
    assert bounds.settle_s(9.0) == 18.0


def test_a_lease_is_at_least_two_bounds_and_three_beats() -> None:
    assert bounds.check_lease(240.0, 90.0) == 240.0
    with pytest.raises(UsageError) as caught:
        bounds.check_lease(239.0, 90.0)
    assert caught.value.code == "lease_too_short"
