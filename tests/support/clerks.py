"""Real clerks over a store in memory, all driven by one thread: a job as its agents would have it, workers aside."""

from __future__ import annotations

import pathlib
import secrets
import threading
from collections.abc import Callable

from holdfast.core.member import Entered, Finished, Rang, Signalled
from holdfast.core.membership import (
    Beat,
    Control,
    Node,
    Policy,
    Request,
    Roster,
    State,
    Wish,
    decode,
    encode,
    round_key,
    seat_key,
)
from holdfast.errors import UnavailableError
from holdfast.events import EventLog
from holdfast.rendezvous.clerk import Clerk
from holdfast.rendezvous.founding import Keys
from holdfast.rendezvous.kv import Cell
from holdfast.rendezvous.local import Local
from holdfast.rendezvous.memory import MemoryServer, MemoryStore
from holdfast.rendezvous.settings import Settings
from holdfast.rendezvous.words import Left, Released, Round

RUN = "train"
LONG_S = 30.0
PASS_S = 0.001
PASSES = 5000  # three times as many as the longest wait needs
POLICY = Policy(min_nodes=2, max_nodes=2, spares=1, lease_s=0.4, last_call_s=1.0, stop_s=5.0, wait_s=20.0)


class CheckedStore(MemoryStore):
    """A client that notices what may never be: a plan in `control` whose records do not stand yet.

    Attributes:
        refuses: so many compare-and-sets to come are not made, and their writer is not told.
        writes: what was written, in order: ("cell", nonce), ("plain", key), ("listed", name).
    """

    def __init__(self, server: MemoryServer, prefix: str) -> None:
        super().__init__(server, prefix)
        self.refuses = 0
        self.writes: list[tuple[str, str]] = []

    def compare_and_set(self, cell: str, expected: int, value: bytes) -> Cell:
        control = decode(value, Control, key=cell)
        keys = Keys(control.attempt)
        for number, plan in ((control.round, control.plan), (control.round + 1, control.proposed)):
            if plan and control.outcome is None:
                self._check_plan(keys, number, plan)
        if self.refuses:
            self.refuses -= 1
            raise UnavailableError("the request was lost", code="store_unavailable")
        self.writes.append(("cell", control.nonce))
        return super().compare_and_set(cell, expected, value)

    def _check_plan(self, keys: Keys, number: int, plan: str) -> None:
        key = keys.plain(round_key(number, plan, "roster"))
        there = self.get([key])
        assert key in there, f"round {number} {plan} is named before its roster stands"
        seats = decode(there[key], Roster, key=key).seats
        wanted = [keys.plain(seat_key(number, plan, member)) for member in seats]
        wanted.append(keys.plain(round_key(number, plan, "head")))
        assert set(self.get(wanted)) == set(wanted), f"round {number} {plan} is named before its seats stand"


class One:
    """One node's agent: its clerk, and a main thread that does what it is told.

    Attributes:
        begun: the rounds that it has begun.
        code: what it left with; None: it is there.
        driven: its thread runs; else it is lost, or frozen.
        deaf: its workers take their time to end.
    """

    def __init__(
        self,
        store: CheckedStore,
        name: str,
        *,
        policy: Policy = POLICY,
        attempt: str | None = None,
        hosts: bool = False,
        events: EventLog | None = None,
    ) -> None:
        self.store = store
        self.node = Node(node=name, incarnation=secrets.token_hex(4), address="127.0.0.1")
        self.local = Local(Settings(), self.node, secrets.token_hex(16))
        self.clerk = Clerk(
            store,
            self.node,
            self.local,
            run=RUN,
            attempt=attempt,
            policy=policy,
            server=object() if hosts else None,
            events=events or EventLog(None, name),
        )
        self.begun: list[Round] = []
        self.code: int | None = None
        self.reason = ""
        self.trains = False
        self.released = False
        self.driven = True
        self.deaf = False
        self.clerk.open()
        self.clerk.tell(Entered())

    @property
    def member(self) -> str:
        return self.node.member

    @property
    def rank(self) -> int:
        return self.begun[-1].seat.group_rank

    def fail(self) -> None:
        """Its workers fail."""
        assert self.trains
        self.trains = False
        self.clerk.tell(Entered(failed=True))

    def finish(self) -> None:
        """Its workers succeed."""
        assert self.trains
        self.trains = False
        self.clerk.tell(Finished())

    def leave(self, reason: str = "told to") -> None:
        """It gets a signal."""
        self.trains = False
        self.code = 0
        self.clerk.tell(Signalled(reason))

    def drive(self) -> None:
        if not self.driven or self.clerk.over:
            return
        self.clerk.turn()
        word = self.clerk.word(wait=False)
        if isinstance(word, Round):
            self.begun.append(word)
            self.trains = True
        elif isinstance(word, Left):
            self.code, self.reason, self.trains = word.code, word.reason, False
        elif isinstance(word, Released):
            self.released = True
            self.leave("succeeded")
        if self.trains and self.clerk.rings and not self.deaf:
            self.trains = False
            self.clerk.tell(Rang())
            self.clerk.tell(Entered())


class Crew:
    """The nodes of one job, and its store. `events`: a directory for their event files."""

    def __init__(self, events: pathlib.Path | None = None) -> None:
        self.events = events
        self.server = MemoryServer()
        self.store = self.server.connect(RUN)
        self.ones: list[One] = []
        self.keys = Keys(None)

    def add(self, *names: str, policy: Policy = POLICY, attempt: str | None = None, hosts: bool = False) -> list[One]:
        """More nodes."""
        made = [
            One(
                CheckedStore(self.server, RUN),
                name,
                policy=policy,
                attempt=attempt,
                hosts=hosts,
                events=EventLog(self.events and self.events / f"agent-{name}.jsonl", f"agent-{name}"),
            )
            for name in names
        ]
        self.ones += made
        return made

    def until(self, found: Callable[[], object], what: str = "never") -> None:
        """Drive them until it is so, for PASSES turns each: on a machine that is slow these take as much longer."""
        pause = threading.Event()
        for _ in range(PASSES):
            if found():
                return
            for one in self.ones:
                one.drive()
            pause.wait(PASS_S)
        raise AssertionError(f"{what}: {[(one.node.node, one.code, one.reason) for one in self.ones]}")

    def train(self, round_: int, *ones: One) -> None:
        """Until exactly these train in that round."""

        def so() -> bool:
            return all(one.trains and one.begun[-1].control.round == round_ for one in ones)

        self.until(so, f"round {round_} does not begin")
        assert {one.member for one in self.ones if one.driven and one.trains} == {one.member for one in ones}
        assert sorted(one.rank for one in ones) == list(range(len(ones)))

    def beats(self, one: One, more: int) -> None:
        """Until it has beaten so many times more."""
        first = self.beat(one).count
        self.until(lambda: self.beat(one).count >= first + more, f"{one.node.node} does not beat")

    def beat(self, one: One) -> Beat:
        return decode(self._listed(one.clerk.keys.beats)[one.member], Beat, key=one.member)

    def _listed(self, collection: str) -> dict[str, bytes]:
        with self.server.lock:
            return dict(self.server.listed.get(f"{RUN}\n{collection}", {}))

    @property
    def control(self) -> Control:
        with self.server.lock:
            cell = self.server.cells[f"{RUN}\n{self.keys.control}"]
        return decode(cell.value, Control, key="control")

    def by_name(self, member: str) -> One:
        return next(one for one in self.ones if one.member == member)

    @property
    def coordinator(self) -> One:
        return self.by_name(self.control.coordinator)

    def spare(self) -> One:
        return next(one for one in self.ones if one.driven and not one.trains and one.code is None)

    def ask(self, wish: Wish, member: str = "", code: int = 0, timeout_s: float = LONG_S) -> str:
        name = secrets.token_hex(8)
        request = Request(wish=wish, member=member, code=code, timeout_s=timeout_s)
        self.store.put_listed(self.keys.requests, name, encode(request))
        return name

    def states(self) -> dict[str, State]:
        return {one.node.node: self.beat(one).state for one in self.ones}

    def close(self) -> None:
        for one in self.ones:
            one.clerk.close()
