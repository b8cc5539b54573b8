"""Who has which group rank: the rules of core/placement.py, by example, and against a search through all seatings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import hypothesis.strategies as some
import pytest
from hypothesis import event, given

from holdfast.core.membership import Policy
from holdfast.core.placement import Candidate, Placed, Short, check_groups, place
from holdfast.errors import UsageError


def node(
    name: str, *, life: str = "1", domain: str = "none", group: str = "", size: int = 1, infra: int = -1
) -> Candidate:
    return Candidate(member=f"{name}.{life}", node=name, infra_rank=infra, domain=domain, group=group, group_size=size)


def nodes(names: str, **fields: str | int) -> list[Candidate]:
    return [node(name, **fields) for name in names.split()]  # type: ignore[arg-type]


def rules(most: int, least: int = 1, segment: int = 1) -> Policy:
    return Policy(min_nodes=least, max_nodes=most, segment=segment)


def seat(candidates: Iterable[Candidate], policy: Policy, previous: str | Sequence[str] = ()) -> str:
    """The nodes by group rank; a life other than the first is told apart."""
    before = previous.split() if isinstance(previous, str) else previous
    found = place(candidates, tuple(name if "." in name else f"{name}.1" for name in before), policy)
    assert isinstance(found, Placed), found
    return " ".join(member.removesuffix(".1") for member in found.seats)


def why(candidates: Iterable[Candidate], policy: Policy, previous: str = "") -> str:
    found = place(candidates, tuple(f"{name}.1" for name in previous.split()), policy)
    assert isinstance(found, Short), found
    return found.reason


# Order


def test_without_infrastructure_ranks_names_stand_in_natural_order() -> None:
    assert seat(nodes("n10 n2 n1 m3"), rules(4)) == "m3 n1 n2 n10"
    assert seat(nodes("r2-n1 r10-n1 r2-n01 7"), rules(4)) == "7 r2-n01 r2-n1 r10-n1"


def test_infrastructure_ranks_go_before_names_and_those_without_one_come_last() -> None:
    here = [node("a"), node("z", infra=3), node("b", infra=10), node("y", infra=0)]
    assert seat(here, rules(4)) == "y z b a"
    assert seat([node("b", infra=1), node("a", infra=1)], rules(2)) == "a b"


def test_nodes_beyond_MAX_are_spares_and_fewer_than_MIN_are_waited_for() -> None:
    assert seat(nodes("n1 n2 n3"), rules(2)) == "n1 n2"
    assert seat(nodes("n1 n2 n3"), rules(8, 2)) == "n1 n2 n3"
    assert why(nodes("n1 n2 n3 n4 n5 n6 n7"), rules(8, 8)) == "waiting: 7 of 8 nodes"
    assert why([], rules(8, 0)) == "waiting: 0 of 1 nodes"


# Who had a seat


def test_a_spare_takes_exactly_the_group_rank_of_the_node_that_it_replaces() -> None:
    assert seat(nodes("n0 n1 n3 n4"), rules(4), "n0 n1 n2 n3") == "n0 n1 n4 n3"
    assert seat(nodes("n1 a"), rules(2), "n0 n1") == "a n1"
    assert seat(nodes("n1 n3 x2 x10"), rules(4), "n0 n1 n2 n3") == "x2 n1 x10 n3"


def test_survivors_keep_their_group_ranks_whatever_their_order() -> None:
    assert seat([node("a"), node("b", infra=0), node("c")], rules(3), "c a b") == "c a b"


def test_without_a_spare_the_last_move_into_the_gaps() -> None:
    assert seat(nodes("n0 n2 n3"), rules(4), "n0 n1 n2 n3") == "n0 n3 n2"
    assert seat(nodes("n1 n3 n4 n5"), rules(6), "n0 n1 n2 n3 n4 n5") == "n4 n1 n5 n3"
    assert why(nodes("n0 n2 n3"), rules(4, 4), "n0 n1 n2 n3") == "waiting: 3 of 4 nodes"


def test_a_job_grows_at_its_end() -> None:
    assert seat(nodes("a b n2 n3"), rules(4), "n3 n2") == "n3 n2 a b"


def test_a_node_that_came_back_sits_where_its_former_life_sat_and_before_any_spare() -> None:
    back = [*nodes("a n0 n2"), node("n1", life="2")]
    assert seat(back, rules(3), "n0 n1 n2") == "n0 n1.2 n2"
    assert seat([*back, node("n1")], rules(3), "n0 n1 n2") == "n0 n1 n2", "its older life is still there"


def test_of_two_lives_of_one_node_one_has_a_seat() -> None:
    both = [node("n0", life="b"), node("n0", life="a"), node("n1")]
    assert seat(both, rules(3)) == "n0.a n1"
    assert seat(both, rules(3), ["n1.1", "n0.b"]) == "n1 n0.b"
    assert why(both, rules(3, 3)) == "waiting: 2 of 3 nodes"


# Segments


def racks(**members: str) -> list[Candidate]:
    return [one for domain, names in members.items() for one in nodes(names, domain=domain)]


def test_a_segment_is_of_one_domain_and_domains_come_in_the_order_of_their_first_node() -> None:
    assert seat(racks(a="n1 n4 n5 n8", b="n2 n3 n6"), rules(6, segment=2)) == "n1 n4 n5 n8 n2 n3"
    assert seat(racks(b="n1 n2 n3", a="n4 n5"), rules(4, segment=2)) == "n1 n2 n4 n5"


def test_a_segment_is_mended_in_place_from_its_own_domain() -> None:
    left = racks(a="a1 a3 a9", b="b1 b2 b0")
    assert seat(left, rules(4, segment=2), "a1 a2 b1 b2") == "a1 a3 b1 b2"
    assert seat(racks(a="a1 a9", b="b1 b2 b0"), rules(4, segment=2), "a1 a2 b1 b2") == "a1 a9 b1 b2"


def test_a_segment_that_its_domain_cannot_mend_is_replaced_whole_and_its_survivors_are_spares() -> None:
    left = racks(a="a1", b="b1 b2", c="c1 c2 c3")
    assert seat(left, rules(4, segment=2), "a1 a2 b1 b2") == "c1 c2 b1 b2"


def test_where_a_domain_can_mend_one_segment_the_one_that_lost_most_is_given_up() -> None:
    left = racks(a="a1 a4 a5 a6", b="b1 b2 b3")
    assert seat(left, rules(6, segment=3), "a1 a2 a3 a4 a5 a6") == "b1 b2 b3 a4 a5 a6"
    left = racks(a="a1 a2 a4 a5 a7", b="b1 b2 b3")
    assert seat(left, rules(6, segment=3), "a1 a2 a3 a4 a5 a6") == "a1 a2 a7 b1 b2 b3"


def test_the_survivors_of_a_segment_that_is_given_up_mend_the_others() -> None:
    left = racks(a="a1 a3 a4")
    assert seat(left, rules(6, segment=3), "a1 a2 a3 a4 a5 a6") == "a1 a4 a3"


def test_segments_that_cannot_be_filled_are_closed_by_moving_the_last_ones() -> None:
    left = racks(a="a1", b="b1 b2", c="c1 c2")
    assert seat(left, rules(6, segment=2), "a1 a2 b1 b2 c1 c2") == "c1 c2 b1 b2"
    left = racks(a="a1", b="b1", c="c1 c2", d="d1 d2")
    assert seat(left, rules(6, segment=2), "a1 a2 b1 b2 c1 c2") == "c1 c2 d1 d2"
    left = racks(a="a1", b="b1 b2", c="c1 c2")
    assert why(left, rules(6, 6, segment=2)) == "waiting: 5 of 6 nodes; domain a has 1 node, segments take 2"


def test_what_is_short_is_told_with_the_domains_that_cannot_fill_a_segment() -> None:
    left = racks(a="a1 a2 a3 a4 a5", b="b1 b2 b3")
    told = "domain a has 5 nodes, segments take 4; domain b has 3 nodes, segments take 4"
    assert why(left, rules(8, 8, segment=4)) == f"waiting: 4 of 8 nodes, though 8 are here; {told}"
    assert why(left, rules(8, 5, segment=4)) == f"waiting: 4 of 8 nodes, though 8 are here; {told}"
    many = racks(**{f"d{i}": f"n{i}" for i in range(9)})
    assert why(many, rules(8, 8, segment=2)).endswith("domain d2 has 1 node, segments take 2; and 6 more such")
    assert why(many, rules(5, 5, segment=2)) == "no multiple of 2 nodes lies between MIN 5 and MAX 5"


def test_without_segments_domains_do_not_matter() -> None:
    assert seat(racks(a="a1 a3", b="b2"), rules(3), "a1 b9 a3") == "a1 b2 a3"


def test_a_segment_whose_nodes_now_say_different_domains_is_made_one_again() -> None:
    assert seat(racks(a="n1 n2 n3 n5", b="n4"), rules(4, segment=4), "n1 n4 n2 n3") == "n1 n5 n2 n3"


# Replacement groups


def groups(size: int, **members: str) -> list[Candidate]:
    return [one for group, names in members.items() for one in nodes(names, group=group, size=size)]


def test_a_group_is_seated_whole_and_side_by_side_or_not_at_all() -> None:
    here = [node("n1", group="g", size=2), node("n2"), node("n3", group="g", size=2), node("n4")]
    assert seat(here, rules(4)) == "n1 n3 n2 n4"
    assert seat(here[1:], rules(4)) == "n2 n4"
    assert why(here[1:], rules(4, 4)) == "waiting: 3 of 4 nodes; replacement group g has 1 of its 2 nodes"


def test_groups_and_single_nodes_stand_in_one_order() -> None:
    singles = [node("a", infra=0), node("b", infra=1), node("c", infra=4), node("d", infra=5)]
    group = [node("g1", infra=2, group="g", size=2), node("g2", infra=3, group="g", size=2)]
    assert seat([*group, *singles], rules(6)) == "a b g1 g2 c d"


def test_a_group_that_lost_a_member_is_replaced_by_another_whole_one_and_its_survivors_are_spares() -> None:
    left = groups(2, g="g1", h="h1 h2", i="i1 i2")
    assert seat(left, rules(4), "g1 g2 h1 h2") == "i1 i2 h1 h2"
    assert seat(left, rules(4), "h1 h2 g1 g2") == "h1 h2 i1 i2"


def test_without_a_whole_group_single_nodes_take_its_ranks() -> None:
    left = [*groups(2, g="g1", h="h1 h2"), *nodes("a b")]
    assert seat(left, rules(4), "g1 g2 h1 h2") == "a b h1 h2"
    assert seat([*left, *groups(2, i="i1 i2")], rules(4), "g1 g2 h1 h2") == "i1 i2 h1 h2"


def test_without_either_the_job_shrinks_by_whole_groups() -> None:
    left = [*groups(2, g="g1", h="h1 h2", i="i1 i2"), node("a")]
    assert seat(left, rules(6), "g1 g2 h1 h2 i1 i2") == "i1 i2 h1 h2"
    told = "replacement group g has 1 of its 2 nodes; 5 nodes could sit, replacement groups take 2"
    assert why(left, rules(6, 6), "g1 g2 h1 h2 i1 i2") == f"waiting: 4 of 6 nodes, though 6 are here; {told}"


def test_a_group_that_is_whole_again_sits_where_it_sat() -> None:
    back = [*groups(2, g="g1", h="h1 h2", i="i1 i2"), node("g2", life="2", group="g", size=2)]
    assert seat(back, rules(4), "g1 g2 h1 h2") == "g1 g2.2 h1 h2"
    renamed = groups(3, g="g1 g3 g0", h="h1 h2 h3")
    assert seat(renamed, rules(6), "h1 h2 h3 g1 g2 g3") == "h1 h2 h3 g1 g0 g3", "a new node in the lost one's place"
    renamed = groups(3, g="g0 g1 g9", h="h1 h2 h3")
    assert seat(renamed, rules(6), "h1 h2 h3 g7 g1 g8") == "h1 h2 h3 g0 g1 g9"


def test_a_group_whose_place_is_shared_has_none() -> None:
    here = [*groups(2, g="g1 g2"), *nodes("a b")]
    assert seat(here, rules(4), "g1 a b") == "b a g1 g2"


def test_a_group_with_more_nodes_than_it_takes_goes_on_with_those_that_sit() -> None:
    assert seat(groups(2, g="g0 g1 g2"), rules(2), "g1 g2") == "g1 g2"
    assert seat(groups(2, g="g0 g1 g2"), rules(2)) == "g0 g1"


def test_several_groups_make_a_segment() -> None:
    here = [
        *nodes("a1 a2", domain="a", group="g", size=2),
        *nodes("a3 a4", domain="a", group="h", size=2),
        *nodes("a5 a6", domain="a", group="i", size=2),
        *nodes("b1 b2", domain="b", group="j", size=2),
    ]
    assert seat(here, rules(8, segment=4)) == "a1 a2 a3 a4"
    assert seat(here[:2] + here[3:], rules(8, segment=4), "a1 a2 a3 a4") == "a1 a2 a5 a6"


def test_a_group_of_several_segments_lies_in_one_domain() -> None:
    here = [*nodes("a1 a2 a3 a4", domain="a", group="g", size=4), *nodes("b1 b2", domain="b", group="h", size=4)]
    here += nodes("c1 c2", domain="c", group="h", size=4)
    assert seat(here, rules(8, segment=2)) == "a1 a2 a3 a4"
    assert why(here, rules(8, 8, segment=2)).endswith("replacement group h lies in several domains, segments need one")


def test_groups_that_do_not_go_with_the_segments_are_not_used() -> None:
    here = [*nodes("a1 a2 a3", domain="a", group="g", size=3), *nodes("b1 b2", domain="b")]
    assert seat(here, rules(4, segment=2)) == "b1 b2"
    told = "replacement group g has 3 nodes, which neither divides nor holds segments of 2 whole"
    assert why(here, rules(4, 4, segment=2)) == f"waiting: 2 of 4 nodes, though 5 are here; {told}"
    told = "replacement group g has 3 nodes, which is more than the 2 nodes of the job"
    assert why(here[:3], rules(2)) == f"waiting: 0 of 1 nodes, though 3 are here; {told}"


@pytest.mark.parametrize(
    ("size", "policy", "told"),
    [
        (0, rules(4), "is none"),
        (8, rules(4), "is more than the 4 nodes"),
        (6, rules(12, segment=4), "neither divides nor holds segments of 4"),
        (4, rules(10), "does not divide 10 nodes"),
    ],
)
def test_a_node_whose_own_group_cannot_fit_is_told_so(size: int, policy: Policy, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_groups([node("n1", group="g", size=size)], policy)
    assert caught.value.code == "bad_policy"
    assert told in str(caught.value)


def test_groups_that_fit_and_nodes_without_one_are_told_nothing() -> None:
    check_groups([node("n1", group="g", size=4), node("n2", size=7), node("n3", group="h")], rules(8, segment=2))
    check_groups([node("n1", group="g", size=2)], rules(8, segment=4))


def test_newcomers_that_fit_badly_never_make_the_job_smaller() -> None:
    singles = racks(a="a1 a2", b="b1 b2", c="c1 c2", d="d1 d2")
    group = nodes("e1 e2 e3 e4", domain="e", group="g", size=4)
    before = "a1 a2 b1 b2 c1 c2 d1 d2"
    assert seat([*singles, *group], rules(8, segment=2), before) == before
    whole = groups(4, g="g1 g2 g3 g4", h="h1 h2 h3 h4")
    others = groups(2, i="i1 i2", j="j1 j2", k="k1 k2", l="l1 l2")
    assert seat([*whole, *others], rules(8)) == "g1 g2 g3 g4 h1 h2 h3 h4"
    assert seat([*whole, *others], rules(8), "i1 i2 j1 j2 k1 k2 l1 l2") == "i1 i2 j1 j2 k1 k2 l1 l2"


# Properties


@some.composite
def jobs(draw: some.DrawFn) -> tuple[list[Candidate], Policy]:
    """Up to nine nodes in up to three domains, some in groups of one size, whole or not, some with two lives."""
    segment, size = draw(some.sampled_from([1, 1, 2, 3])), draw(some.sampled_from([1, 1, 2, 3, 4]))
    most = segment * draw(some.integers(1, 8 // segment))
    candidates = []
    joined = [name for name in "ghi" if size > 1 for _ in range(draw(some.sampled_from([0, size, size, size - 1])))]
    joined += [""] * draw(some.integers(0, 8 if size == 1 else 4))
    for number, group in enumerate(draw(some.permutations(joined))[:9]):
        domain = draw(some.sampled_from(["a", "b", "c"])) if not group else {"g": "a", "h": "a", "i": "b"}[group]
        for life in draw(some.sampled_from(["1", "1", "1", "12"])):
            infra = draw(some.sampled_from([-1, number, 20 - number]))
            candidates.append(
                node(f"n{number}", life=life, domain=domain, group=group, size=size if group else 1, infra=infra)
            )
    return draw(some.permutations(candidates)), rules(most, draw(some.integers(1, most)), segment)


def broken_rules(found: Placed, candidates: Sequence[Candidate], policy: Policy) -> list[str]:
    """What is wrong with these seats, read off the rules and not off the code."""
    known = {one.member: one for one in candidates}
    wrong = [f"{member} is no candidate" for member in found.seats if member not in known]
    seats = [known[member] for member in found.seats if member in known]
    if len({one.node for one in seats}) != len(found.seats):
        wrong.append("a node sits twice")
    if not policy.min_nodes <= len(seats) <= policy.max_nodes or len(seats) % policy.segment:
        wrong.append(f"{len(seats)} seats")
    if policy.segment > 1:
        starts = range(0, len(seats), policy.segment)
        mixed = [start for start in starts if len({o.domain for o in seats[start : start + policy.segment]}) > 1]
        wrong += [f"segment at {start} is of several domains" for start in mixed]
    for name in {one.group for one in seats} - {""}:
        ranks = [rank for rank, one in enumerate(seats) if one.group == name]
        if len(ranks) != seats[ranks[0]].group_size or ranks[-1] - ranks[0] != len(ranks) - 1:
            wrong.append(f"group {name} sits at {ranks}")
    return wrong


def most_that_can_sit(candidates: Sequence[Candidate], policy: Policy) -> int:
    """By trying: block after block, each of all ways to choose its nodes."""
    lives = list({one.node: one for one in candidates}.values())
    most = 0
    for size in {one.group_size for one in lives} | {1}:
        block = max(size, policy.segment)
        if block % size == 0 and block % policy.segment == 0:
            usable = [one for one in lives if one.group_size in (1, size)]
            most = max(most, block * _fill(usable, block, policy, policy.max_nodes // block))
    return most


def _fill(left: list[Candidate], block: int, policy: Policy, places: int) -> int:
    if places == 0 or len(left) < block:
        return 0
    first, rest = left[0], left[1:]
    best = _fill(rest, block, policy, places)
    for others in itertools.combinations(rest, block - 1):
        chosen = [first, *others]
        whole = all(sum(o.group == one.group for o in chosen) == one.group_size for one in chosen if one.group)
        if whole and (policy.segment == 1 or len({one.domain for one in chosen}) == 1):
            best = max(best, 1 + _fill([one for one in rest if one not in others], block, policy, places - 1))
    return best


def least(policy: Policy) -> Policy:
    return Policy(min_nodes=1, max_nodes=policy.max_nodes, segment=policy.segment)


@given(jobs())
def test_M1_the_first_round_follows_the_rules_and_seats_as_many_as_can_sit(
    job: tuple[list[Candidate], Policy],
) -> None:
    candidates, policy = job
    found, most = place(candidates, (), policy), most_that_can_sit(candidates, policy)
    if isinstance(found, Short):
        event("short")
        assert most < policy.min_nodes
        assert found.reason
    else:
        event(f"{len(found.seats)} seats")
        assert broken_rules(found, candidates, policy) == []
        assert len(found.seats) == most


@given(jobs(), some.data())
def test_M1_so_does_each_later_round_whoever_is_lost_or_comes(
    job: tuple[list[Candidate], Policy], data: some.DataObject
) -> None:
    candidates, policy = job[0], least(job[1])
    before: tuple[str, ...] = ()
    for _ in range(3):
        here = data.draw(some.lists(some.sampled_from(candidates), unique=True)) if candidates else []
        found = place(here, before, policy)
        most = most_that_can_sit(here, policy)
        if isinstance(found, Short):
            assert most == 0
            continue
        assert broken_rules(found, here, policy) == []
        assert len(found.seats) == most
        before = found.seats


@given(jobs(), some.data())
def test_a_round_placed_again_without_a_change_stays_as_it_is(
    job: tuple[list[Candidate], Policy], data: some.DataObject
) -> None:
    candidates, policy = job[0], least(job[1])
    names = sorted(one.member for one in candidates)
    before = tuple(data.draw(some.lists(some.sampled_from([*names, "gone.1", "lost.1"]), unique=True)))
    found = place(candidates, before, policy)
    again = data.draw(some.permutations(candidates))
    if isinstance(found, Placed):
        assert place(again, found.seats, policy) == found


@given(jobs(), some.data())
def test_who_survives_keeps_its_group_rank_if_nothing_forces_it_away(
    job: tuple[list[Candidate], Policy], data: some.DataObject
) -> None:
    candidates, policy = [one for one in job[0] if not one.group], least(job[1])
    found = place(candidates, (), policy)
    if isinstance(found, Short):
        return
    known = {one.member: one for one in candidates}
    lost = data.draw(some.sets(some.sampled_from(found.seats)))
    left = [one for one in candidates if one.member not in lost]
    after = place(left, found.seats, policy)
    seats = after.seats if isinstance(after, Placed) else ()
    free = {one.node: one for one in left if one.node not in {known[member].node for member in found.seats}}
    back = {known[member].node for member in lost} & {one.node for one in left}
    if back:
        event("a node came back in another life")
    for start in range(0, len(found.seats), policy.segment):
        block = found.seats[start : start + policy.segment]
        domain = known[block[0]].domain
        missing = [m for m in found.seats if m in lost and known[m].node not in back and known[m].domain == domain]
        enough = sum(one.domain == domain for one in free.values()) >= len(missing)
        if start < len(seats) and (not (lost & set(block)) or (policy.segment > 1 and enough)):
            kept = [seats[start + k] if m not in lost else None for k, m in enumerate(block)]
            assert kept == [m if m not in lost else None for m in block]
    for rank, member in enumerate(found.seats[: len(seats)]):
        if member in lost and known[member].node in back and policy.segment == 1:
            assert known[seats[rank]].node == known[member].node
