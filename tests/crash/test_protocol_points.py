"""Crash points: every prefix of what the shells write, every legal loss, recovered by the real code."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest

from holdfast.testing.durability import PROFILES
from tests.crash import acts
from tests.crash.hand import Hand
from tests.crash.points import Act, Comeback, comebacks, num_points
from tests.crash.recovery import recover, recover_and_wait
from tests.crash.rest import check_at_rest
from tests.crash.world import World, clone, prepared

DISKS_PER_POINT = 16  # all of them, nearly everywhere; see `SimulatedDisk.crash_states` for the choice among more
RECOVERIES = 32
LONG_RECOVERIES = 5
AGAIN = 8  # recoveries that are cut short, too


class Case(NamedTuple):
    act: Act
    before: tuple[Act, ...]


CASES = {
    "begin": Case(acts.begin, ()),
    "publish": Case(acts.publish_more, (acts.begin,)),
    "rewind": Case(acts.rewind, (acts.publish_four,)),
    "take": Case(acts.take, (acts.publish_four,)),
    "reject": Case(acts.reject, (acts.publish_four,)),
    "every": Case(acts.every, (acts.publish_four,)),
    "come back": Case(acts.come_back, (acts.publish_four, acts.serve)),
    "sweep": Case(acts.sweep, (acts.publish_four, acts.serve)),
    "expire": Case(acts.expire, (acts.publish_four, acts.serve)),
}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", CASES)
def test_I1_to_I8_after_a_power_cut_at_any_operation(name: str, profile: str, hand: Hand, effort: int) -> None:
    case = CASES[name]
    disk, told = prepared(hand, profile, *case.before)
    backs = comebacks(hand, disk, told, case.act, limit=DISKS_PER_POINT * effort)
    assert len({back.point for back in backs}) > 10
    for back in backs:
        run(hand, back, check_at_rest)
    for back in chosen(backs, RECOVERIES * effort):
        run(hand, back, recover)
    for back in chosen(backs, LONG_RECOVERIES * effort):
        run(hand, back, recover_and_wait)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", CASES)
def test_a_power_cut_during_the_recovery(name: str, profile: str, hand: Hand, effort: int) -> None:
    case = CASES[name]
    disk, told = prepared(hand, profile, *case.before)
    num_firsts = AGAIN * effort
    spread = num_points(hand, disk, told, case.act)
    firsts = {(2 * i + 1) * spread // (2 * num_firsts) for i in range(num_firsts)}
    for i, back in enumerate(chosen(comebacks(hand, disk, told, case.act, points=firsts), num_firsts)):
        cut = (7 * i + 3) % num_points(hand, back.disk, back.told, recover)
        agains = comebacks(hand, back.disk, back.told, recover, points={cut})
        assert agains
        for again in chosen(agains, 3):
            run(hand, again, check_at_rest)
            run(hand, again, recover)


def chosen(backs: list[Comeback], number: int) -> list[Comeback]:
    """`number` of them at even distances: of all points, of all kinds of loss."""
    if len(backs) <= number:
        return backs
    return [backs[i * len(backs) // number] for i in range(number)]


def run(hand: Hand, back: Comeback, act: Act) -> None:
    """Do `act` on a copy of what came back."""
    world = World(hand, clone(back.disk), copy.deepcopy(back.told))
    try:
        act(world)
    finally:
        world.abandon()
