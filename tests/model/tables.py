"""Small state machines as tables of numbers.

Values of an actor are numbered as they come up. What one actor may see of another is a *view*, numbered too. A rule
says what an actor may do, given its own value and some views; it is asked in Python once per combination of numbers,
and its answers are then applied to millions of global states by array arithmetic (see explore.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.int64]
DENSE_BITS_MAX = 24


def sorted_set(words: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """As np.unique, which hashes, and is ten times slower here."""
    words = np.sort(words)
    if len(words) < 2:
        return words
    return words[np.concatenate([[True], words[1:] != words[:-1]])]


class Step(NamedTuple):
    """One thing that an actor may do: what to call it, and what follows.

    `label` may be a function that makes the text. `channel`: the new value of the channel field, if the actor changes
    it. `broken`: the invariant that this very step breaks.
    """

    label: str | Callable[[], str]
    own: Any
    channel: Any = None
    broken: str = ""


class Views:
    """Views and their numbers."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.all: list[Any] = []
        self._ids: dict[Hashable, int] = {}

    def number(self, view: Hashable) -> int:
        number = self._ids.get(view)
        if number is None:
            number = self._ids[view] = len(self.all)
            self.all.append(view)
            assert number < 1 << self.bits, f"more than {1 << self.bits} views"
        return number


class Column:
    """A function of a value, as an array over the values' numbers: of a view's number, or of a plain number."""

    def __init__(self, read: Callable[[Any], Any], views: Views | None = None) -> None:
        self._read = read
        self.views = views
        self._array = np.zeros(1024, np.int64)

    def note(self, number: int, value: Any) -> None:
        if number >= len(self._array):
            self._array = np.concatenate([self._array, np.zeros_like(self._array)])
        seen = self._read(value)
        self._array[number] = int(seen) if self.views is None else self.views.number(seen)

    def of(self, ids: Ids) -> Ids:
        return self._array[ids]


class Mixture:
    """A view made of several views: what one actor may read in several places, brought together."""

    def __init__(self, parts: Sequence[Views], mix: Callable[..., Hashable], *, bits: int) -> None:
        self.parts = parts
        self.views = Views(bits)
        self._mix = mix
        self._numbers = np.full(1 << sum(part.bits for part in parts), -1, np.int32)
        if not parts:
            self.views.number(mix())

    def of(self, numbers: Sequence[Ids]) -> Ids:
        keys = numbers[0]
        for part, more in zip(self.parts[1:], numbers[1:], strict=True):
            keys = (keys << part.bits) | more
        mixed = self._numbers[keys]
        missing = mixed < 0
        if missing.any():
            for key in sorted_set(keys[missing]).tolist():
                self._numbers[key] = self.views.number(self._mix(*_split(key, self.parts)[1]))
            mixed = self._numbers[keys]
        return mixed.astype(np.int64)


def _split(key: int, parts: Sequence[Views]) -> tuple[int, list[Any]]:
    """What is left of `key`, and the views whose numbers it ends with."""
    views = []
    for part in reversed(parts):
        views.append(part.all[key & ((1 << part.bits) - 1)])
        key >>= part.bits
    return key, views[::-1]


class Kind:
    """All values that fields of one kind ever had, numbered, with their columns."""

    def __init__(self, name: str, bits: int, columns: dict[str, Column]) -> None:
        self.name = name
        self.bits = bits
        self.columns = columns
        self.values: list[Any] = []
        self._ids: dict[Any, int] = {}

    def number(self, value: Any) -> int:
        number = self._ids.get(value)
        if number is not None:
            return number
        number = self._ids[value] = len(self.values)
        self.values.append(value)
        assert number < 1 << self.bits, f"more than {1 << self.bits} values of a {self.name}"
        for column in self.columns.values():
            column.note(number, value)
        return number


@dataclasses.dataclass
class Field:
    name: str
    kind: Kind
    shift: int = 0

    def ids(self, states: Words) -> Ids:
        return ((states >> np.uint64(self.shift)) & np.uint64((1 << self.kind.bits) - 1)).astype(np.int64)


class Table:
    """What a rule answers, per (own value, views). Shared by all actors of one kind.

    `channel`: set where a rule changes the channel too; the last of its views then is the channel as it is.
    """

    def __init__(
        self, ask: Callable[..., list[Step]], own: Kind, views: Sequence[Views], channel: Kind | None = None
    ) -> None:
        self.ask = ask
        self.own = own
        self.views = views
        self.channel = channel
        bits = own.bits + sum(part.bits for part in views)
        assert bits <= 63
        self._dense = np.full(1 << bits, -1, np.int32) if bits <= DENSE_BITS_MAX else None
        self._known = np.zeros(0, np.int64)
        self._known_rows = np.zeros(0, np.int64)
        self.broken: list[str] = []
        self.breaks = False
        # per row: first alternative, number of alternatives; per alternative: changes of numbers, whether it breaks
        self.arrays: tuple[npt.NDArray[Any], ...] = tuple(
            np.zeros(0, kind) for kind in (np.int64, np.int64, np.uint64, np.uint64, np.bool_)
        )

    def answer(self, own: Any, *views: Any) -> list[Step]:
        """What the actor may do. A machine that takes an event for a bug breaks the model as an invariant does."""
        try:
            return self.ask(own, *views)
        except AssertionError as error:
            return [Step("goes on", own, broken=f"a machine of the core could not go on: {error}")]

    def rows(self, keys: Ids) -> Ids:
        rows = self._look_up(keys)
        missing = rows < 0
        if missing.any():
            self._fill(sorted_set(keys[missing]))
            rows[missing] = self._look_up(keys[missing])
        return rows

    def _look_up(self, keys: Ids) -> Ids:
        if self._dense is not None:
            return self._dense[keys].astype(np.int64)
        if not len(self._known):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self._known, keys), len(self._known) - 1)
        return np.where(self._known[at] == keys, self._known_rows[at], -1)

    def _fill(self, keys: Ids) -> None:
        begin = len(self.arrays[0])
        new: list[list[int]] = [[], [], [], [], []]
        for key in keys.tolist():
            own, views = _split(key, self.views)
            steps = self.answer(self.own.values[own], *views)
            channel = self.channel.number(views[-1]) if self.channel is not None else 0
            new[0].append(len(self.broken))
            new[1].append(len(steps))
            for step in steps:
                moved = channel
                if self.channel is not None and step.channel is not None:
                    moved = self.channel.number(step.channel)
                new[2].append(self.own.number(step.own) - own)
                new[3].append(moved - channel)
                new[4].append(bool(step.broken))
                self.broken.append(step.broken)
        self.breaks = self.breaks or any(new[4])
        self.arrays = tuple(
            np.concatenate([old, np.array(part, np.int64).astype(old.dtype)])
            for old, part in zip(self.arrays, new, strict=True)
        )
        rows = np.arange(begin, len(self.arrays[0]))
        if self._dense is not None:
            self._dense[keys] = rows
            return
        merged = np.concatenate([self._known, keys])
        order = np.argsort(merged, kind="stable")
        self._known = merged[order]
        self._known_rows = np.concatenate([self._known_rows, rows])[order]


class Read(NamedTuple):
    """A view of one field, or of several that are mixed."""

    fields: tuple[int, ...]
    columns: tuple[Column, ...]
    mixture: Mixture | None = None

    @property
    def views(self) -> Views:
        views = self.mixture.views if self.mixture is not None else self.columns[0].views
        assert views is not None
        return views

    def numbers(self, ids: Sequence[Ids], some: Ids) -> Ids:
        """`ids`: of every field; `some`: the states in question."""
        found = [column.of(ids[index][some]) for index, column in zip(self.fields, self.columns, strict=True)]
        if not found:
            return np.zeros(len(some), np.int64)
        return self.mixture.of(found) if self.mixture is not None else found[0]


@dataclasses.dataclass
class Rule:
    """`table` applied to the actor in field `actor`, with views of other fields."""

    name: str
    table: Table
    actor: int
    reads: tuple[Read, ...]
    enabled: Column
