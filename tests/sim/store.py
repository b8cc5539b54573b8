"""The simulated store: one cell, beats, and plain keys, with all that ever stood in the cell.

A beat is not a message here: how often a member has beaten by a time follows from when it last began to, so that
hours in which nothing happens cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import msgspec

from holdfast.core.membership import Answer, Beat, Control, Node, Request


class Unavailable(Exception):
    """The call failed, or its answer was lost."""


class Entry:
    """The beat of one member, as it stands in the store.

    `count` beats had landed at `since_s`; while `beating`, one more lands every `every_s`.
    """

    __slots__ = ("_made", "_made_count", "beating", "count", "every_s", "said", "since_s")

    def __init__(self, said: Beat, now_s: float, every_s: float) -> None:
        self.said = said
        self.count = 1
        self.since_s = now_s
        self.every_s = every_s
        self.beating = False
        self._made = said
        self._made_count = -1

    def count_at(self, now_s: float) -> int:
        return self.count + (int((now_s - self.since_s) / self.every_s) if self.beating else 0)

    def changed_s(self, now_s: float) -> float:
        """When the last beat landed."""
        if not self.beating:
            return self.since_s
        return self.since_s + int((now_s - self.since_s) / self.every_s) * self.every_s

    def at(self, now_s: float) -> Beat:
        count = self.count_at(now_s)
        if count != self._made_count:
            self._made = msgspec.structs.replace(self.said, count=count)
            self._made_count = count
        return self._made

    def say(self, said: Beat, now_s: float) -> None:
        self.count, self.since_s, self.said = self.count_at(now_s) + 1, now_s, said
        self._made_count = -1

    def set_beating(self, beating: bool, now_s: float) -> None:
        if beating == self.beating:
            return
        if beating:
            self.count, self.since_s = self.count + 1, now_s
        else:
            self.count, self.since_s = self.count_at(now_s), self.changed_s(now_s)
        self.beating = beating


class Cell(msgspec.Struct, frozen=True):
    control: Control
    revision: int


class Store:
    """What all nodes share. `changed` is told of every new value of the cell: (before, after, writer)."""

    def __init__(self, changed: Callable[[Control | None, Control, str], None]) -> None:
        self.cell: Cell | None = None
        self.nodes: dict[str, Node] = {}
        self.entries: dict[str, Entry] = {}
        self.requests: dict[str, Request] = {}
        self.answers: dict[str, Answer] = {}
        self.plain: dict[str, msgspec.Struct] = {}
        self.put_s: dict[str, float] = {}
        self.away = False
        self.back_s = -math.inf
        self._changed = changed

    def swap(self, expected: int, control: Control, writer: str) -> Cell:
        before = self.cell
        if (before.revision if before else 0) != expected:
            assert before is not None
            return before
        self.cell = Cell(control, expected + 1)
        self._changed(before.control if before else None, control, writer)
        return self.cell

    def put(self, values: Mapping[str, msgspec.Struct], now_s: float) -> None:
        self.plain |= values
        self.put_s |= dict.fromkeys((key for key in values if key.endswith("/roster")), now_s)

    def beats(self, now_s: float) -> Mapping[str, Beat]:
        return {member: entry.at(now_s) for member, entry in self.entries.items()}
