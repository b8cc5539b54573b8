"""Who may publish: the rules of core/claims.py, and which versions then count: core/lineage.py."""

from __future__ import annotations

import pytest

from holdfast.core.claims import Admit, Standing, Wait, admit, fenced
from holdfast.core.lineage import Claim, Lineage, candidates, fresh, trace
from holdfast.core.names import CYCLE_MAX, Version
from holdfast.core.records import Term
from holdfast.errors import ConflictError, FencedError, HoldfastError, UsageError

ALIVE, SILENT, CLOSED = Standing(beaten=True), Standing(silent_s=60.0), Standing(closed=True)


def term(job: str = "a", number: int = 1) -> Term:
    return Term(job=job, round=number, nonce="n")


def version(cycle: int, step: int, attempt: int = 0) -> Version:
    return Version(cycle, step, attempt, "abcdef")


def decide(mine: Term, *claims: Claim, standing: Standing = ALIVE, take_over: bool = False) -> Admit | Wait:
    return admit(mine, claims, standing, lease_s=60.0, take_over=take_over)


def test_the_first_claim_is_cycle_1() -> None:
    assert decide(term()) == Admit(1, "first claim of the channel")


def test_a_claim_is_the_highest_and_one_more() -> None:
    claims = Claim(7, term(number=1), None), Claim(3, term(number=1), None)
    decision = decide(term(number=2), *claims)
    assert isinstance(decision, Admit)
    assert decision.cycle == 8


def test_a_higher_round_of_the_same_job_follows_at_once_though_the_lower_is_alive() -> None:
    assert isinstance(decide(term(number=2), Claim(1, term(number=1), None)), Admit)


def test_the_same_round_is_admitted_only_once_the_first_has_closed() -> None:
    for standing in (ALIVE, SILENT):
        with pytest.raises(ConflictError) as caught:
            decide(term(), Claim(1, term(), None), standing=standing)
        assert caught.value.code == "publisher_alive"
    assert isinstance(decide(term(), Claim(1, term(), None), standing=CLOSED), Admit)


def test_a_lower_round_was_replaced() -> None:
    with pytest.raises(FencedError) as caught:
        decide(term(number=1), Claim(1, term(number=2), None), standing=CLOSED, take_over=True)
    assert caught.value.code == "superseded"


@pytest.mark.parametrize("standing", [CLOSED, SILENT])
def test_another_job_is_followed_once_it_closed_or_was_silent_for_a_lease(standing: Standing) -> None:
    assert isinstance(decide(term("b"), Claim(1, term("a"), None), standing=standing), Admit)


def test_another_job_that_is_not_known_to_be_alive_is_waited_for() -> None:
    decision = decide(term("b"), Claim(1, term("a"), None), standing=Standing(silent_s=59.9))
    assert isinstance(decision, Wait)
    assert decision.reason == "waiting: the publisher of cycle 1 (job a) last heard 59.9 s ago, free after 60 s"


def test_another_job_that_is_alive_is_a_conflict_unless_told_to_take_over() -> None:
    with pytest.raises(ConflictError):
        decide(term("b"), Claim(1, term("a"), None))
    assert isinstance(decide(term("b"), Claim(1, term("a"), None), take_over=True), Admit)


def test_a_superseded_job_never_claims_again() -> None:
    claims = Claim(1, term("a"), None), Claim(2, term("b"), None)
    for standing in (ALIVE, SILENT, CLOSED):
        with pytest.raises(FencedError):
            decide(term("a", 9), *claims, standing=standing, take_over=True)


def test_a_claim_that_cannot_be_read_is_another_job() -> None:
    assert isinstance(decide(term(), Claim(4, None, None), standing=Standing()), Wait)
    assert isinstance(decide(term(), Claim(4, None, None), standing=SILENT), Admit)


def test_when_all_cycles_are_used_nobody_is_admitted() -> None:
    with pytest.raises(UsageError):
        decide(term(number=2), Claim(CYCLE_MAX, term(number=1), None))


def test_I8_fenced_from_the_first_higher_claim_on() -> None:
    assert fenced(3, 3) is None
    error: HoldfastError | None = fenced(3, 4)
    assert isinstance(error, FencedError)


# Lineage

START = version(1, 8)
CLAIMS = (Claim(1, term(number=1), None), Claim(2, term(number=2), START))
ALL = frozenset({version(1, 4), START, version(1, 12), version(2, 9), version(2, 13)})


def test_the_lineage_goes_down_through_what_each_cycle_starts_from() -> None:
    assert candidates(trace(CLAIMS), ALL) == (version(2, 13), version(2, 9), START, version(1, 4))


def test_I8_what_a_zombie_writes_later_is_no_ancestor() -> None:
    late = version(1, 8, attempt=1), version(1, 9), version(1, 99)
    assert not any(one in trace(CLAIMS) for one in late)


def test_I8_another_version_in_the_place_of_the_start_is_no_ancestor() -> None:
    assert Version(1, 8, 0, "000000") not in trace(CLAIMS)


def test_a_cycle_that_starts_from_nothing_has_nothing_to_give_until_it_publishes() -> None:
    claims = (*CLAIMS, Claim(3, term(number=3), None))
    assert fresh(trace(claims), ALL) is None
    assert fresh(trace(claims), ALL | {version(3, 0)}) == version(3, 0)


def test_a_fresh_consumer_is_given_the_start_until_there_is_more() -> None:
    assert fresh(trace(CLAIMS), frozenset({version(1, 4), START, version(1, 12)})) == START


def test_a_claim_that_cannot_be_read_has_nothing_to_give() -> None:
    lineage = trace((*CLAIMS, Claim(3, None, None)))
    assert not lineage.readable
    assert candidates(lineage, ALL | {version(3, 1)}) == ()


def test_a_claim_that_points_upwards_is_followed_no_further() -> None:
    assert trace((Claim(2, term(), version(5, 1)),)) == Lineage(((2, None),))


def test_where_a_lower_claim_is_missing_the_lineage_still_has_its_start() -> None:
    lineage = trace((Claim(2, term(), START),))
    assert not lineage.readable
    assert START in lineage
    assert version(1, 9) not in lineage
