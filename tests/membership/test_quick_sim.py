"""A few seconds of the simulation; `pytest -m sim` has the rest.

Every fault by itself, and all of them together, in jobs so small that each fault hits something that matters.
"""

from __future__ import annotations

import pytest

from holdfast.core.membership import Ending, Policy
from tests.sim.job import simulate
from tests.sim.scenario import KINDS, Plan

POLICY = Policy(min_nodes=6, max_nodes=6, spares=3, wait_s=120.0, restart_budget=-1)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_one_kind_of_fault_again_and_again(kind: str) -> None:
    for seed in range(20):
        simulate(Plan(seed=seed, nodes=9, faults=5, kinds=(kind,)))


@pytest.mark.parametrize("nodes", [2, 4, 7])
def test_all_kinds_of_faults(nodes: int) -> None:
    for seed in range(1000, 1100):
        simulate(Plan(seed=seed, nodes=nodes, faults=10))


def test_64_nodes() -> None:
    for seed in range(2000, 2008):
        simulate(Plan(seed=seed))


@pytest.mark.parametrize("nodes", [1, 2, 9, 64])
def test_M6_without_a_fault_there_is_exactly_one_round(nodes: int) -> None:
    for seed in range(10):
        result = simulate(Plan(seed=seed, nodes=nodes, faults=0))
        assert (result.rounds, result.proposed, result.takeovers) == (1, 1, 0), f"seed {seed}"
        assert result.outcome is not None
        assert result.outcome.ending is Ending.SUCCEEDED


def test_a_store_that_was_away_costs_no_round() -> None:
    for seed in range(30):
        result = simulate(Plan(seed=seed, nodes=9, faults=3, kinds=("away",)), policy=POLICY)
        assert result.rounds == 1, f"seed {seed}"
        assert result.takeovers <= 1  # it may have been away while the first node came


def test_M7_the_loss_of_any_node_is_survived() -> None:
    for seed in range(60):
        result = simulate(Plan(seed=seed, nodes=9, faults=1, kinds=("kill one",)), policy=POLICY)
        assert result.outcome is not None
        assert result.outcome.ending is Ending.SUCCEEDED, f"seed {seed}: {result.outcome}"


def test_the_same_seed_gives_the_same_trace() -> None:
    assert simulate(Plan(seed=11, nodes=9)) == simulate(Plan(seed=11, nodes=9))
