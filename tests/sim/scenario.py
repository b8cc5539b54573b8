"""What a seed means: a job's rules, its nodes, and what befalls them."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from holdfast.core.membership import NO_DOMAIN, NO_INFRA_RANK, Node, Policy, Request, Wish, check_policy, lease_s
from tests.sim.node import SimNode, Traits
from tests.sim.world import Trouble, World

FAULTS_FROM_S = 2.0
FAULTS_UNTIL_S = 200.0
HEALED_S = 240.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`faults`: how many; `nodes`: of the job, spares included."""

    seed: int
    nodes: int = 64
    faults: int = 16
    kinds: tuple[str, ...] = ()


def policy_of(rng: random.Random, nodes: int) -> Policy:
    spares = min(nodes - 1, rng.choice([0, 1, 2, 4, 8, 8, 16]))
    most = nodes - spares
    segment = rng.choice([1, 1, 1, 1, 2, 4])
    most -= most % segment
    if most < segment:
        most, segment = max(1, nodes - spares), 1
    least = rng.choice([most, most, max(1, most - 4), max(1, most // 2)])
    return check_policy(
        Policy(
            min_nodes=least,
            max_nodes=most,
            spares=spares,
            segment=segment,
            lease_s=rng.choice([0.0, 0.0, 0.5, 2.0, 4.0]),
            last_call_s=rng.choice([1.0, 3.0, 5.0, 5.0]),
            stop_s=rng.choice([15.0, 35.0, 45.0]),
            wait_s=rng.choice([40.0, 90.0, 150.0]),
            restart_budget=rng.choice([-1, -1, 20, 20, 20, 3, 0]),
            node_budget=rng.choice([1, 3, 3]),
        )
    )


class Scenario:
    """Builds a world for a plan, and lets things happen to it."""

    def __init__(self, plan: Plan, *, skip: bool = True, trace: bool = False, policy: Policy | None = None) -> None:
        self.plan = plan
        self.rng = rng = random.Random(plan.seed * 7919 + plan.nodes)
        self.policy = policy if policy is not None else policy_of(rng, plan.nodes)
        self.world = World(plan.seed, self.policy, train_s=rng.uniform(40.0, 120.0), skip=skip, trace=trace)
        self.lease = lease_s(self.policy)
        self.lives = 0
        self.hangs = rng.choice([0.0, 0.02, 0.2]) if plan.faults else 0.0
        self.checks = rng.random() < 0.3
        self.grouped = (
            rng.random() < 0.2 and policy is None and self.policy.segment == 1 and self.policy.max_nodes % 2 == 0
        )
        self.ranked = rng.random() < 0.5
        spread_s = min(4.0, self.policy.last_call_s * 0.8)
        for index in range(plan.nodes):
            self.world.at(rng.uniform(0.0, spread_s), self.join, index)
        for _ in range(plan.faults):
            kind = rng.choice(plan.kinds or tuple(KINDS))
            until_s = min(FAULTS_UNTIL_S, 20.0 + 1.5 * self.world.train_s)
            self.world.at(rng.uniform(FAULTS_FROM_S, until_s), self._befall, kind)
        self.world.at(HEALED_S, self._heal)

    def join(self, index: int) -> SimNode:
        """A life of node `index` begins."""
        self.lives += 1
        rng, healthy = self.rng, not self.plan.faults
        record = Node(
            node=f"n{index}",
            incarnation=f"{self.lives}",
            infra_rank=index if self.ranked else NO_INFRA_RANK,
            domain=f"d{index // 16}" if self.policy.segment > 1 else NO_DOMAIN,
            group=f"g{index // 2}" if self.grouped else "",
            group_size=2 if self.grouped else 1,
        )
        traits = Traits(
            checks=self.checks,
            slow=1.0 if healthy or rng.random() > 0.05 else rng.uniform(1.0, 2.0),
            hangs=self.hangs,
            no_restarts=not healthy and rng.random() < 0.05,
        )
        node = SimNode(self.world, record, traits, rng.randrange(2**60))
        self.world.note(node.name, "joins")
        self.world.add(node)
        return node

    # What befalls it

    def _befall(self, kind: str) -> None:
        self.world.note("", kind)
        KINDS[kind](self)

    def _victim(self) -> SimNode | None:
        """Somebody: the coordinator, one with a seat, or anybody."""
        world, draw = self.world, self.rng.random()
        control = world.store.cell.control if world.store.cell is not None else None
        live = world.live()
        if not live:
            return None
        if draw < 0.3 and control is not None:
            named = [node for node in live if node.name == control.coordinator]
        elif draw < 0.7:
            seats = set(world.seated())
            named = [node for node in live if node.name in seats]
        else:
            named = live
        return self.rng.choice(named or live)

    def _span_s(self) -> float:
        """Shorter than a lease, about as long, or much longer."""
        return self.lease * self.rng.choice([0.4, 0.8, 1.1, 1.5, 3.0, 10.0, 30.0])

    def kill(self) -> None:
        for _ in range(self.rng.choice([1, 1, 2, 5])):
            self.kill_one()

    def kill_one(self) -> None:
        node = self._victim()
        if node is not None:
            node.kill()
            self.world.note(node.name, "is killed")
            if self.rng.random() < 0.4:
                self._return(node, self.rng.choice([0.2, 2.0, 10.0, 40.0]))

    def _return(self, node: SimNode, after_s: float) -> None:
        self.world.at(self.world.now_s + after_s, self.join, int(node.record.node[1:]))

    def twin(self) -> None:
        """A second process of one name."""
        node = self._victim()
        if node is not None:
            self._return(node, 0.0)

    def freeze(self) -> None:
        node = self._victim()
        if node is not None and not node.frozen:
            self.world.note(node.name, "is frozen")
            node.freeze()
            self.world.at(self.world.now_s + self._span_s(), self._thaw, node)

    def _thaw(self, node: SimNode) -> None:
        if node.alive and node.frozen:
            self.world.note(node.name, "wakes")
            node.thaw()

    def trap(self) -> None:
        """The coordinator is frozen in the middle of a decision, soon; and something is to be decided."""
        self.world.traps.append((self.rng.choice(["swap", "swap", "prepare"]), self._span_s()))
        self.world.at(self.world.now_s + 0.5, self.rng.choice([self.kill, self.fail]))

    def partition(self) -> None:
        for _ in range(self.rng.choice([1, 1, 2, 10])):
            node = self._victim()
            if node is None or node.partitioned:
                continue
            self.world.note(node.name, "is cut off")
            node.partitioned = True
            node.update()
            self.world.at(self.world.now_s + self._span_s(), self._join_again, node)

    def _join_again(self, node: SimNode) -> None:
        if node.partitioned:
            node.partitioned = False
            node.at(self.rng.uniform(0.0, 0.3), self._reaches_again, node)

    def _reaches_again(self, node: SimNode) -> None:
        node.looks = True
        node.update()
        node.wake(0.001)

    def away(self) -> None:
        """The store answers nobody."""
        store = self.world.store
        if store.away:
            return
        store.away = True
        for node in self.world.live():
            node.update()
        self.world.at(
            self.world.now_s + self.rng.choice([0.2 * self.lease, 1.5 * self.lease, 3.0, 10.0, 20.0]), self._is_back
        )

    def _is_back(self) -> None:
        store, world = self.world.store, self.world
        store.away, store.back_s = False, world.now_s
        for node in world.live():
            node.at(self.rng.uniform(0.0, min(0.3, 0.3 * self.lease)), self._reaches_again, node)

    def trouble(self) -> None:
        rng, world = self.rng, self.world
        node = self._victim() if rng.random() < 0.7 else None
        name = node.name if node is not None else ""
        world.troubles[name] = rng.choice(
            [
                Trouble(fail=0.3),
                Trouble(lost=0.3),
                Trouble(late=0.3),
                Trouble(slow_s=0.3 * self.lease),
                Trouble(fail=0.1, lost=0.1, late=0.1, slow_s=0.1),
            ]
        )
        for each in world.live():
            each.update()
        world.at(world.now_s + rng.uniform(2.0, 20.0), self._over, name)

    def _over(self, name: str) -> None:
        self.world.troubles.pop(name, None)
        self.world.trouble_over_s = self.world.now_s
        for node in self.world.live():
            node.update()

    def clock(self) -> None:
        node = self._victim()
        if node is not None:
            if node.co is not None:
                node.co.interrupt(self.world.now_s)
            stall_s = self.rng.choice([0.0, 0.5, 5.0])
            node.clock.set(self.world.now_s, rate=self.rng.uniform(0.995, 1.005), stall_s=stall_s)

    def come(self) -> None:
        """More nodes."""
        for _ in range(self.rng.choice([1, 2, 4])):
            self.join(self.plan.nodes + self.lives)

    def fail(self) -> None:
        node = self._victim()
        if node is not None:
            node.workers_fail(node.life)

    def term(self) -> None:
        node = self._victim()
        if node is not None:
            self.world.note(node.name, "gets SIGTERM")
            node.checks_signal("told to leave by a signal")

    def drain(self) -> None:
        node = self._victim()
        if node is not None:
            request = Request(wish=Wish.DRAIN, member=node.name, timeout_s=self.rng.choice([1.0, 10.0, 40.0]))
            self.world.store.requests[f"drain-{self.world.fresh()}"] = request
            self.world.touch()

    def stop(self) -> None:
        if self.rng.random() < 0.2:
            self.world.store.requests["stop"] = Request(wish=Wish.STOP, code=3, by="somebody")
            self.world.touch()

    def sick(self) -> None:
        node = self._victim()
        if node is not None:
            self.world.sick_nodes.add(node.record.node)
            self.world.at(
                self.world.now_s + self.rng.uniform(5.0, 100.0), self.world.sick_nodes.discard, node.record.node
            )

    def _heal(self) -> None:
        """From now on nothing fails."""
        world = self.world
        world.traps.clear()
        world.sick_nodes.clear()
        world.troubles.clear()
        world.trouble_over_s = world.now_s
        if world.store.away:
            self._is_back()
        for node in world.live():
            self._join_again(node)
            self._thaw(node)
            node.update()

    def expect_the_end(self) -> None:
        """M6, M7: everybody has left."""
        world, checks = self.world, self.world.checks
        left = world.live()
        if world.outcome is None:
            checks.want(
                not left, f"M6: no outcome, and {len(left)} nodes are still there: {left[0].name if left else ''}"
            )
        checks.want(
            not left, f"M6: {[f'{n.name} {n.doing} {n.state.beat.state.value}' for n in left[:5]]} have not left"
        )


KINDS: dict[str, Callable[[Scenario], None]] = {
    "kill": Scenario.kill,
    "kill one": Scenario.kill_one,
    "twin": Scenario.twin,
    "freeze": Scenario.freeze,
    "freeze again": Scenario.freeze,
    "trap": Scenario.trap,
    "partition": Scenario.partition,
    "away": Scenario.away,
    "trouble": Scenario.trouble,
    "clock": Scenario.clock,
    "come": Scenario.come,
    "fail": Scenario.fail,
    "term": Scenario.term,
    "drain": Scenario.drain,
    "stop": Scenario.stop,
    "sick": Scenario.sick,
}
