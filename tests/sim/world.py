"""The simulated world: virtual time, what befalls a call to the store, and the training that the nodes do together."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

import msgspec

from holdfast.core.member import Seat
from holdfast.core.membership import Control, Outcome, Policy, State, lease_s
from tests.sim.checks import Checks
from tests.sim.node import Call, SimNode
from tests.sim.store import Store, Unavailable

LATENCY_S = 0.001
NOTICE_S = 0.05  # how long after a change of `control` a node looks at the latest


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """What calls suffer from for a while. Probabilities, and `slow_s`: how long a call takes at most, one way."""

    fail: float = 0.0
    lost: float = 0.0
    late: float = 0.0
    slow_s: float = 0.0


class Training:
    """The workers of one plan. They advance while all of them run."""

    def __init__(self, plan: str, size: int) -> None:
        self.plan = plan
        self.size = size
        self.running: dict[str, SimNode] = {}
        self.succeeded: set[str] = set()
        self.broken = False
        self.since_s: float | None = None
        self.version = 0


class World:
    """All that there is. `skip`: looks that can find nothing new are not simulated."""

    def __init__(self, seed: int, policy: Policy, *, train_s: float, skip: bool = True, trace: bool = False) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.policy = policy
        self.skip = skip
        self.now_s = 0.0
        self.lines: list[str] | None = [] if trace else None
        self.digest = hashlib.blake2b(digest_size=16)
        self.num_events = 0
        self.num_proposed = 0
        self.store = Store(self._changed)
        self.nodes: dict[str, SimNode] = {}
        self.checks = Checks(self)
        self.troubles: dict[str, Trouble] = {}  # "" stands for all nodes
        self.trouble_over_s = 0.0
        self.sick_nodes: set[str] = set()
        self.traps: list[tuple[str, float]] = []
        self.trainings: dict[str, Training] = {}
        self.train_s = train_s
        self.trained_s = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._fresh = itertools.count(1)

    @property
    def outcome(self) -> Outcome | None:
        return self.store.cell.control.outcome if self.store.cell is not None else None

    def fresh(self) -> str:
        return f"p{next(self._fresh)}"

    def at(self, at_s: float, act: Callable[..., None], *what: Any) -> None:
        heapq.heappush(self._heap, (at_s, next(self._numbers), act, what))

    def run(self, until_s: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= until_s:
            self.now_s, _, act, what = heapq.heappop(heap)
            self.num_events += 1
            act(*what)
        self.now_s = until_s

    def note(self, who: str, what: str) -> None:
        line = f"{self.now_s:10.4f} {who:14s} {what}"
        self.digest.update(line.encode())
        if self.lines is not None:
            self.lines.append(line)

    def add(self, node: SimNode) -> None:
        self.nodes[node.name] = node
        node.start()

    # The store

    def trouble(self, node: SimNode) -> Trouble | None:
        return self.troubles.get(node.name) or self.troubles.get("") if self.troubles else None

    def call(self, node: SimNode, call: Call) -> None:
        """Carry out a call to the store, as well or badly as it goes."""
        self._spring(node, call)
        if node.frozen:
            node.held_back.append((self._send, (node, call)))
        else:
            self._send(node, call)

    def _spring(self, node: SimNode, call: Call) -> None:
        """A process is frozen in the middle of what it was doing."""
        for trap in self.traps:
            if trap[0] == call.what:
                self.traps.remove(trap)
                node.freeze()
                self.note(node.name, f"is frozen before its {call.what} for {trap[1]:.1f} s")
                self.at(self.now_s + trap[1], self._thaw, node)
                return

    def _thaw(self, node: SimNode) -> None:
        if node.alive and node.frozen:
            self.note(node.name, "wakes")
            node.thaw()

    def _send(self, node: SimNode, call: Call) -> None:
        trouble = self.trouble(node)
        there_s = back_s = LATENCY_S
        rng = node.rng
        if trouble is not None:
            draw = rng.random()
            if trouble.slow_s:
                there_s, back_s = rng.uniform(0.0, trouble.slow_s), rng.uniform(0.0, trouble.slow_s)
            if draw < trouble.fail:
                self._fails(node, rng.uniform(0.01, 1.5))
                return
            if draw < trouble.fail + trouble.lost:
                self.at(self.now_s + there_s, self._arrives, node, call, None)
                self._fails(node, there_s + rng.uniform(0.1, 2.0))
                return
            if draw < trouble.fail + trouble.lost + trouble.late and call.what != "get":
                self.at(self.now_s + rng.uniform(0.5, 8.0), self._arrives, node, call, None)
                self._fails(node, rng.uniform(0.1, 1.0))
                return
        if there_s + back_s > 0.2:
            self._blocks(node)
        self.at(self.now_s + there_s, self._arrives, node, call, back_s)

    def _fails(self, node: SimNode, after_s: float) -> None:
        if after_s > 0.1:
            self._blocks(node)
        node.at(after_s, node.answer, None, Unavailable())

    def _blocks(self, node: SimNode) -> None:
        node.blocked = True
        node.update()

    def _arrives(self, node: SimNode, call: Call, back_s: float | None) -> None:
        """`back_s` None: nobody waits for the answer."""
        if self.store.away or (node.partitioned and back_s is not None):
            if back_s is not None:
                most_s = 0.2 * lease_s(self.policy) if self.store.away else 1.0  # a store that is back answers soon
                self._fails(node, node.rng.uniform(0.02, max(0.03, most_s)))
            return
        value = call.act(self.now_s)
        if back_s is not None:
            node.at(back_s, node.answer, value, None)

    def touch(self) -> None:
        """Something changed that a coordinator would see."""
        control = self.store.cell.control if self.store.cell is not None else None
        node = self.nodes.get(control.coordinator) if control is not None else None
        if node is not None and node.co is not None:
            node.co.touch(self.now_s)
            if node.task is None:
                node.wake(max(0.0, node.co.due_s - self.now_s))

    def beating_changed(self, node: SimNode) -> None:
        self.touch()
        control = self.store.cell.control if self.store.cell is not None else None
        if control is not None and control.coordinator == node.name:
            for other in self.nodes.values():
                if other.alive:
                    other.watch_if_needed()

    def founding(self, node: SimNode) -> Control:
        return Control(
            run="sim",
            attempt="0",
            job="sim",
            policy=self.policy,
            term=1,
            coordinator=node.name,
            nonce=self.fresh(),
            reason=f"founded by {node.name}",
        )

    def _changed(self, before: Control | None, after: Control, writer: str) -> None:
        ending = after.outcome.ending if after.outcome else "no outcome"
        self.note(
            writer,
            f"control: term {after.term} of {after.coordinator}, round {after.round} {after.plan}, proposed "
            f"{after.proposed or '-'}, restarts {after.restarts}, {ending}: {after.reason}",
        )
        if after.proposed and (before is None or before.proposed != after.proposed):
            self.num_proposed += 1
        self.checks.changed(before, after, writer)
        for node in self.nodes.values():
            if node.alive and node.exit is None and not node.looks:
                node.at(node.rng.uniform(0.001, NOTICE_S), self._notice, node)

    def _notice(self, node: SimNode) -> None:
        node.looks = True
        if node.task is None:
            node.wake(0.0)

    # Training

    def trains(self, node: SimNode, seat: Seat) -> None:
        training = self.trainings.setdefault(seat.plan, Training(seat.plan, seat.head.world_size))
        training.running[node.name] = node
        if training.broken:
            self._loses_peer(node)
        self._go_on(training)

    def trains_not(self, node: SimNode) -> None:
        """Its workers have ended, for whatever reason."""
        seat = node.seat
        training = self.trainings.get(seat.plan) if seat is not None else None
        if training is None or node.name not in training.running:
            return
        self._pause(training)
        del training.running[node.name]
        if node.name in training.succeeded or training.broken:
            return
        training.broken = True
        self.trained_s = max(0.0, self.trained_s - 5.0)  # since the last checkpoint
        for other in training.running.values():
            if other.name not in training.succeeded:
                self._loses_peer(other)

    def paused(self, node: SimNode) -> None:
        """It was frozen, or has woken up."""
        training = self.trainings.get(node.seat.plan) if node.seat is not None else None
        if training is not None:
            self._pause(training)
            self._go_on(training)

    def _loses_peer(self, node: SimNode) -> None:
        """Its workers fail soon, or hang until they are ended."""
        if node.rng.random() < 0.6:
            node.at(node.rng.uniform(0.05, 4.0), node.workers_fail, node.life)

    def _go_on(self, training: Training) -> None:
        whole = len(training.running) == training.size and not training.broken and not training.succeeded
        if whole and training.since_s is None and not any(node.frozen for node in training.running.values()):
            training.since_s = self.now_s
            training.version += 1
            left_s = max(0.5, self.train_s - self.trained_s)
            self.at(self.now_s + left_s, self._trained, training, training.version)

    def _pause(self, training: Training) -> None:
        if training.since_s is not None:
            self.trained_s += self.now_s - training.since_s
            training.since_s = None
            training.version += 1

    def _trained(self, training: Training, version: int) -> None:
        if version != training.version:
            return
        self.note("training", "is over")
        for node in training.running.values():
            late = node.rng.random() < 0.05
            training.succeeded.add(node.name)
            node.at(node.rng.uniform(0.0, 3.0 if late else 0.3), node.workers_succeed, node.life)

    # Nodes

    def sick(self, node: SimNode) -> bool:
        return node.record.node in self.sick_nodes

    def live(self) -> list[SimNode]:
        return [node for node in self.nodes.values() if node.alive and node.exit is None]

    def seated(self) -> list[str]:
        control = self.store.cell.control if self.store.cell is not None else None
        return list(self.checks.rosters.get(control.plan, ())) if control is not None else []

    def usable_for(self, since_s: float) -> set[str]:
        """Nodes that could have had a seat all the while."""
        if self.store.away or self.now_s - self.store.back_s < since_s:
            return set()
        draining = {request.member for request in self.store.requests.values()}
        states = (State.PARKED, State.READY, State.RUNNING, State.STOPPING)
        return {
            node.record.node
            for node in self.live()
            if node.well() and self.now_s - node.last_unwell_s >= since_s and node.joined
            if node.name not in draining and node.record.node not in self.sick_nodes
            if node.state.beat.state in states and self.trouble(node) is None
        }
