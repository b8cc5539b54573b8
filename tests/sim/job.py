"""One job from its first node to its last, for a seed."""

from __future__ import annotations

import msgspec

from holdfast.core.membership import Outcome, Policy
from tests.sim.checks import Violation
from tests.sim.scenario import Plan, Scenario

END_S = 600.0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How it went. `digest`: of all that happened."""

    outcome: Outcome | None
    rounds: int
    proposed: int
    takeovers: int
    committed_s: tuple[float, ...]
    events: int
    digest: str
    lines: tuple[str, ...] = ()


class Broken(AssertionError):
    """An invariant did not hold; says how to see it again."""


def simulate(plan: Plan, *, policy: Policy | None = None, skip: bool = True, trace: bool = False) -> Result:
    """Raises Broken, with the command that plays it again."""
    scenario = Scenario(plan, skip=skip, trace=trace, policy=policy)
    world = scenario.world
    try:
        world.run(END_S)
        scenario.expect_the_end()
    except (Violation, AssertionError, LookupError, ValueError, TypeError, AttributeError) as error:
        for line in world.lines or ():
            print(line)
        again = f"python -m tests.sim.replay {plan.seed} --nodes {plan.nodes} --faults {plan.faults} --trace"
        raise Broken(f"seed {plan.seed}: {type(error).__name__}: {error}\n  {again}") from error
    history = world.checks.history
    return Result(
        outcome=world.outcome,
        rounds=len(world.checks.committed),
        proposed=world.num_proposed,
        takeovers=history[-1].term - 1 if history else 0,
        committed_s=tuple(world.checks.committed_s),
        events=world.num_events,
        digest=world.digest.hexdigest(),
        lines=tuple(world.lines or ()),
    )
