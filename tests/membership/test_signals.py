"""Signals: the store is told first, then torchrun's own handler does what it does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from holdfast.core.membership import State
from holdfast.rendezvous.agent import Agent
from holdfast.rendezvous.signals import SIGNALS, Signals
from tests.support.clerks import RUN, Crew, One


@pytest.fixture
def crew() -> Iterator[Crew]:
    made = Crew()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)
    made.close()


def pair(crew: Crew, *, hosts: bool = False) -> tuple[One, Signals]:
    """Two nodes that train; the first one's signals."""
    one = crew.add("n0", hosts=hosts)[0]
    crew.add("n1")
    crew.until(lambda: all(each.trains for each in crew.ones))
    return one, Signals(Agent(RUN, one.clerk, one.local))


@pytest.mark.parametrize("number", SIGNALS)
def test_the_store_is_told_before_torchruns_handler_runs(crew: Crew, number: int) -> None:
    one, signals = pair(crew)
    told: list[State] = []

    def theirs(number: int, frame: FrameType | None) -> None:
        one.clerk.turn()
        told.append(crew.beat(one).state)

    signal.signal(number, theirs)
    signals.wrap()
    signals.wrap()
    signal.raise_signal(number)
    assert told == [State.LEFT]
    assert signal.Signals(number).name in crew.beat(one).reason


def test_parked_it_leaves_with_0_and_seated_with_the_signal(crew: Crew) -> None:
    one, signals = pair(crew)
    spare = crew.add("n2")[0]
    crew.until(lambda: spare.clerk.due_s > 0.0)
    signals.park()
    with pytest.raises(SystemExit) as left:
        signal.raise_signal(signal.SIGTERM)
    assert left.value.code == 128 + signal.SIGTERM
    Signals(Agent(RUN, spare.clerk, spare.local)).park()
    with pytest.raises(SystemExit) as left:
        signal.raise_signal(signal.SIGTERM)
    assert left.value.code == 0
    crew.until(lambda: crew.beat(one).state is State.LEFT and crew.beat(spare).state is State.LEFT)


def test_a_host_that_keeps_the_store_hears_no_sigterm(crew: Crew) -> None:
    one, signals = pair(crew, hosts=True)
    one.leave()
    crew.until(lambda: one.clerk.keeps)
    signals.park()
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGINT)
