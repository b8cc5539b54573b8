"""Claim, then commit one version after the other: the rules of core/publish.py; names in core/names.py."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from holdfast.core import names
from holdfast.core.names import Version
from holdfast.core.publish import (
    Abandoned,
    Admitted,
    ClaimLost,
    ClaimMade,
    ClaimsRead,
    Commit,
    Committed,
    CreateClaim,
    Effect,
    Event,
    Fenced,
    Phase,
    Point,
    Pointed,
    Publish,
    Published,
    Publisher,
    ReadClaims,
    Stage,
    Staged,
    Unsure,
    step,
)
from holdfast.errors import UsageError

START = Version(1, 8, 0, "abcdef")
OPEN = Publisher(phase=Phase.OPEN, cycle=2, starts_from=START)
FIRST = Version(2, 9, 0, "000001")


def play(state: Publisher, *events: Event) -> tuple[Publisher, tuple[Effect, ...]]:
    effects: tuple[Effect, ...] = ()
    for event in events:
        state, effects = step(state, event)
    return state, effects


def published(state: Publisher, number: int, nonce: str = "000001", highest: int = 2) -> Publisher:
    return play(state, Publish(number, nonce), Staged(), ClaimsRead(highest), Committed(), Pointed())[0]


def test_a_claim_is_made_before_anything_is_published() -> None:
    state, effects = play(Publisher(starts_from=START), Admitted(2))
    assert effects == (CreateClaim(2, START),)
    with pytest.raises(AssertionError):
        play(state, Publish(9, "000001"))
    assert play(state, ClaimMade())[0].phase is Phase.OPEN


def test_who_lost_the_race_asks_again() -> None:
    state, effects = play(Publisher(), Admitted(2), ClaimLost())
    assert effects == (ReadClaims(),)
    assert (state.phase, state.cycle) == (Phase.NEW, 0)


def test_the_order_of_a_publish() -> None:
    state, effects = play(OPEN, Publish(9, "000001"))
    assert effects == (Stage(FIRST, START),)
    state, effects = play(state, Staged())
    assert effects == (ReadClaims(),)
    state, effects = play(state, ClaimsRead(2))
    assert effects == (Commit(FIRST),)
    state, effects = play(state, Committed())
    assert effects == (Point(FIRST),)
    state, effects = play(state, Pointed())
    assert effects == (Published(FIRST),)
    assert (state.phase, state.last) == (Phase.OPEN, FIRST)


def test_I8_a_higher_claim_fences_before_the_commit() -> None:
    state, effects = play(OPEN, Publish(9, "000001"), Staged(), ClaimsRead(3))
    assert isinstance(effects[0], Fenced)
    assert state.phase is Phase.FENCED
    with pytest.raises(AssertionError):
        play(state, Publish(10, "000002"))


def test_I8_a_higher_claim_fences_between_two_publishes() -> None:
    assert isinstance(play(OPEN, ClaimsRead(3))[1][0], Fenced)
    assert play(OPEN, ClaimsRead(2)) == (OPEN, ())


@pytest.mark.parametrize("before", [(), (Staged(),), (Staged(), ClaimsRead(2))])
def test_what_failed_may_be_published_again_at_the_same_step(before: tuple[Event, ...]) -> None:
    state, _ = play(OPEN, Publish(9, "000001"), *before, Abandoned())
    assert state.last is None
    assert published(state, 9, "000002").last == Version(2, 9, 0, "000002")


def test_a_commit_that_cannot_be_told_spends_its_name() -> None:
    state, _ = play(OPEN, Publish(9, "000001"), Staged(), ClaimsRead(2), Unsure())
    assert published(state, 9, "000002").last == Version(2, 9, 1, "000002")


def test_a_version_descends_from_the_one_before() -> None:
    state = published(OPEN, 9)
    _, effects = play(state, Publish(12, "000002"))
    assert effects == (Stage(Version(2, 12, 0, "000002"), FIRST),)


def test_other_bytes_of_one_step_are_the_next_attempt() -> None:
    assert published(published(OPEN, 9), 9, "000002").last == Version(2, 9, 1, "000002")


@pytest.mark.parametrize("after_one", [False, True])
def test_steps_never_go_down_nor_below_the_start(after_one: bool) -> None:
    state = published(OPEN, 9) if after_one else OPEN
    parent = state.parent
    assert parent is not None
    with pytest.raises(UsageError) as caught:
        play(state, Publish(parent.step - 1, "000002"))
    assert caught.value.code == "step_went_down"


@pytest.mark.parametrize("bad", [-1, names.STEP_MAX + 1, True, 1.5, "3", None])
def test_what_is_no_step_is_refused(bad: Any) -> None:
    with pytest.raises(UsageError) as caught:
        play(OPEN, Publish(bad, "000001"))
    assert caught.value.code == "bad_step"


def test_attempts_at_one_step_end() -> None:
    state = Publisher(phase=Phase.OPEN, cycle=2, last=Version(2, 9, names.ATTEMPT_MAX, "000001"))
    with pytest.raises(UsageError) as caught:
        play(state, Publish(9, "000002"))
    assert caught.value.code == "too_many_attempts"


versions = some.builds(
    Version,
    some.integers(1, names.CYCLE_MAX),
    some.integers(0, names.STEP_MAX),
    some.integers(0, names.ATTEMPT_MAX),
    some.text("0123456789abcdef", min_size=6, max_size=6),
)


@given(versions)
def test_a_name_reads_back_as_what_it_names(version: Version) -> None:
    assert names.parse_version(str(version)) == version


@given(some.lists(versions, min_size=2))
def test_names_sort_as_their_versions_do(several: list[Version]) -> None:
    assert [str(version) for version in sorted(several)] == sorted(str(version) for version in several)


@given(some.text())
def test_any_other_name_is_nobodys(text: str) -> None:
    found = names.parse_version(text)
    assert found is None or str(found) == text


@pytest.mark.parametrize(
    "path",
    ["", "/a", "../a", "a/../b", "a//b", "a/", ".", "a\\b", "a\nb", "a\x00b", "x" * 256, "a/" * 600 + "a", "\ud800"],
)
def test_a_path_that_could_leave_or_hurt_is_refused(path: str) -> None:
    with pytest.raises(UsageError):
        names.check_path(path)


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".hidden", "a b", "x" * 101, "ü"])
def test_a_consumers_name_is_no_path(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        names.check_participant(name)
    assert caught.value.code == "bad_consumer_name"
