"""Whole jobs under virtual time, with faults: M1 to M7 hold at every event, and every job ends.

`python -m tests.sim.replay SEED --nodes N --faults N --trace` plays one again.
HOLDFAST_SOAK=1: ten times as many seeds.
"""

from __future__ import annotations

import pytest

from holdfast.core.membership import Ending, Policy
from tests.sim.job import simulate
from tests.sim.scenario import Plan

pytestmark = [pytest.mark.sim, pytest.mark.timeout(600)]

NUM_CHUNKS = 20
SEEDS_PER_CHUNK = 10
SMALL = (2, 3, 4, 6, 9)


@pytest.mark.parametrize("chunk", range(NUM_CHUNKS))
def test_64_nodes_with_faults(chunk: int, effort: int) -> None:
    for seed in range(chunk, NUM_CHUNKS * SEEDS_PER_CHUNK * effort, NUM_CHUNKS):
        simulate(Plan(seed=seed))


@pytest.mark.parametrize("nodes", SMALL)
def test_few_nodes_with_many_faults(nodes: int, effort: int) -> None:
    for seed in range(300 * effort):
        simulate(Plan(seed=seed, nodes=nodes, faults=12))


@pytest.mark.parametrize("chunk", range(4))
def test_so_many_faults_that_little_is_trained(chunk: int, effort: int) -> None:
    for seed in range(chunk, 40 * effort, 4):
        simulate(Plan(seed=seed, faults=50))


def test_ten_thousand_nodes() -> None:
    policy = Policy(min_nodes=9900, max_nodes=9900, spares=100, restart_budget=-1)
    result = simulate(Plan(seed=1, nodes=10_000, faults=3, kinds=("kill", "freeze", "fail")), policy=policy)
    assert result.outcome is not None
    assert result.outcome.ending is Ending.SUCCEEDED
    assert result.rounds > 1


@pytest.mark.parametrize("seed", [5, 17])
def test_the_same_seed_gives_the_same_trace(seed: int) -> None:
    first, second, other = (simulate(Plan(seed=each)) for each in (seed, seed, seed + 1))
    assert first == second
    assert first.digest != other.digest


@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 8, 64, 300, 1000])
def test_M6_without_a_fault_there_is_exactly_one_round(nodes: int) -> None:
    for seed in range(20 if nodes <= 64 else 2):
        result = simulate(Plan(seed=seed, nodes=nodes, faults=0))
        assert (result.rounds, result.proposed, result.takeovers) == (1, 1, 0), f"seed {seed}"
        assert result.outcome is not None
        assert result.outcome.ending is Ending.SUCCEEDED, f"seed {seed}"


@pytest.mark.parametrize("seed", range(6))
def test_looks_that_are_left_out_change_nothing(seed: int) -> None:
    """Every look simulated, and only those that could find something: the same rounds at the same time."""
    plan = Plan(seed=seed, nodes=12, faults=4, kinds=("kill", "fail", "freeze", "partition"))
    some, every = simulate(plan), simulate(plan, skip=False)
    assert some.events < every.events / 1.5
    assert every.outcome is not None
    assert some.outcome is not None
    assert every.outcome.ending is some.outcome.ending
    assert every.committed_s == pytest.approx(some.committed_s, abs=0.5)
