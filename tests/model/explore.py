"""Breadth-first exploration of a product of small state machines, whole and exact.

A global state is one number per *field* (a consumer, a sweeper, the channel), packed into one 64-bit word; a level of
the search is one sorted array of words. Nothing is hashed away and nothing is cut off: a state is either in an array or
was never reached, and a value or a view that does not fit its bits is an error.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.model.tables import Column, Field, Ids, Rule, Words, sorted_set

CHUNK = 1 << 19


class Broken(AssertionError):
    """An invariant does not hold; the message is the transcript."""


@dataclasses.dataclass
class Report:
    states: int = 0
    steps: int = 0
    levels: int = 0

    def __str__(self) -> str:
        return f"{self.states:,} states, {self.steps:,} steps, {self.levels} levels"


class Seen:
    """A set of words as a few sorted arrays, each at least twice as long as the next."""

    def __init__(self) -> None:
        self.runs: list[Words] = []

    def absent(self, words: Words) -> Words:
        for run in self.runs:
            if not len(words):
                break
            at = np.searchsorted(run, words)
            at[at == len(run)] = 0
            words = words[run[at] != words]
        return words

    def add(self, words: Words) -> None:
        self.runs.append(words)
        while len(self.runs) > 1 and len(self.runs[-2]) < 2 * len(self.runs[-1]):
            merged = np.concatenate([self.runs.pop(), self.runs.pop()])
            merged.sort(kind="stable")
            self.runs.append(merged)


Check = tuple[str, Callable[[list[Ids]], npt.NDArray[np.bool_]]]
Permutation = tuple[tuple[int, ...], tuple[str | None, ...]]


class Space:
    """Fields, rules, what time does, invariants and symmetries: a whole model.

    `permutations`: for each symmetry, which field each field's value comes from, and the column that renames inside it.
    `waiting`: fields and columns that say who waits for time to pass. Only then it does: to everybody else time takes
    away what may be read late and gives nothing, so what can happen after an instant can happen without it.
    """

    def __init__(
        self,
        fields: list[Field],
        rules: list[Rule],
        checks: list[Check],
        permutations: list[Permutation],
        *,
        channel: int,
        waiting: list[tuple[int, Column]],
    ) -> None:
        shift = 0
        for field in fields:
            field.shift = shift
            shift += field.kind.bits
        assert shift <= 64, f"a state needs {shift} bits"
        self.fields = fields
        self.rules = rules
        self.checks = checks
        self.permutations = permutations
        self.channel = channel
        self.waiting = waiting

    def pack(self, values: Sequence[Any]) -> np.uint64:
        word = 0
        for field, value in zip(self.fields, values, strict=True):
            word |= field.kind.number(value) << field.shift
        return np.uint64(word)

    def unpack(self, word: np.uint64) -> list[Any]:
        numbers = self.ids(np.array([word], np.uint64))
        return [field.kind.values[int(own[0])] for field, own in zip(self.fields, numbers, strict=True)]

    def ids(self, states: Words) -> list[Ids]:
        return [field.ids(states) for field in self.fields]

    def join(self, ids: Sequence[Ids]) -> Words:
        words = np.zeros(len(ids[0]), np.uint64)
        for field, numbers in zip(self.fields, ids, strict=True):
            words |= numbers.astype(np.uint64) << np.uint64(field.shift)
        return words

    def canonical(self, states: Words) -> Words:
        """The least of each state's images under the symmetries."""
        if not self.permutations:
            return states
        ids = self.ids(states)
        best = states
        for sources, renames in self.permutations:
            image = []
            for source, rename in zip(sources, renames, strict=True):
                numbers = ids[source]
                image.append(numbers if rename is None else self.fields[source].kind.columns[rename].of(numbers))
            best = np.minimum(best, self.join(image))
        return best

    # What may happen

    def after_tick(self, states: Words, ids: Sequence[Ids]) -> Words:
        """The states in which somebody waits, an instant later."""
        some = self._waiters(ids)
        return self.join(
            [field.kind.columns["tick"].of(own[some]) for field, own in zip(self.fields, ids, strict=True)]
        )

    def _waiters(self, ids: Sequence[Ids]) -> Ids:
        return np.flatnonzero(functools.reduce(operator.or_, (column.of(ids[at]) for at, column in self.waiting)))

    def by_rule(self, rule: Rule, states: Words, ids: Sequence[Ids]) -> Iterator[tuple[Words, Words]]:
        """(from, to) for each alternative of one rule. `ids`: of every field in `states`."""
        some = np.flatnonzero(rule.enabled.of(ids[rule.actor]))
        if not len(some):
            return
        keys = ids[rule.actor][some]
        for read in rule.reads:
            keys = (keys << read.views.bits) | read.numbers(ids, some)
        rows = rule.table.rows(keys)
        first, count, d_own, d_channel, broken = rule.table.arrays
        counts, starts, states = count[rows], first[rows], states[some]
        own_shift, channel_shift = (np.uint64(self.fields[at].shift) for at in (rule.actor, self.channel))
        for k in range(int(counts.max())):
            more = np.flatnonzero(counts > k)
            at, origin = (starts + k, states) if len(more) == len(counts) else (starts[more] + k, states[more])
            to = origin + (d_own[at] << own_shift)
            if rule.table.channel is not None:
                to += d_channel[at] << channel_shift
            if rule.table.breaks and broken[at].any():
                where = int(np.argmax(broken[at]))
                raise _Found(origin[where], to[where], rule.table.broken[at[where]])
            yield origin, to

    def successors(self, states: Words) -> list[Words]:
        ids = self.ids(states)
        found = [to for rule in self.rules for _, to in self.by_rule(rule, states, ids)]
        return [*found, self.after_tick(states, ids)]

    def options(self, word: np.uint64) -> list[tuple[str, np.uint64, str]]:
        """Everything that may happen in one state: (what, next state, what it breaks)."""
        one = np.array([word], np.uint64)
        ids, values = self.ids(one), self.unpack(word)
        here = np.zeros(1, np.int64)
        found: list[tuple[str, np.uint64, str]] = []
        for rule in self.rules:
            if not rule.enabled.of(ids[rule.actor])[0]:
                continue
            views = [read.views.all[int(read.numbers(ids, here)[0])] for read in rule.reads]
            for step in rule.table.answer(values[rule.actor], *views):
                after = list(values)
                if step.channel is not None:
                    after[self.channel] = step.channel
                after[rule.actor] = step.own
                label = step.label if isinstance(step.label, str) else step.label()
                found.append((f"{self.fields[rule.actor].name}: {label}", self.pack(after), step.broken))
        return [*found, *(("an instant passes", later, "") for later in self.after_tick(one, ids))]

    # The search

    def explore(self, start: Sequence[Sequence[Any]]) -> Report:
        """Every reachable state, each checked. Raises Broken with a shortest transcript."""
        report, _ = self.levels(start)
        return report

    def levels(self, start: Sequence[Sequence[Any]]) -> tuple[Report, list[Words]]:
        """As `explore`; also the reachable states by their distance from the start."""
        seen = Seen()
        frontier = sorted_set(self.canonical(np.array([self.pack(values) for values in start], np.uint64)))
        report = Report()
        levels: list[Words] = []
        try:
            while len(frontier):
                seen.add(frontier)
                levels.append(frontier)
                report.states += len(frontier)
                report.levels += 1
                self._check(frontier)
                frontier = self._next_level(frontier, seen, report)
        except _Found as found:
            raise Broken(self._transcript(found, levels)) from None
        return report, levels

    def _check(self, states: Words) -> None:
        for begin in range(0, len(states), CHUNK):
            part = states[begin : begin + CHUNK]
            ids = self.ids(part)
            for name, bad in self.checks:
                wrong = bad(ids)
                if wrong.any():
                    raise _Found(part[int(np.argmax(wrong))], None, name)

    def _next_level(self, frontier: Words, seen: Seen, report: Report) -> Words:
        fresh: list[Words] = []
        for begin in range(0, len(frontier), CHUNK):
            found = self.successors(frontier[begin : begin + CHUNK])
            report.steps += sum(len(part) for part in found)
            words = sorted_set(np.concatenate(found))
            if self.permutations:
                words = sorted_set(self.canonical(words))
            fresh.append(seen.absent(words))
        return sorted_set(np.concatenate(fresh)) if len(fresh) > 1 else fresh[0]

    def stuck(self, levels: list[Words], good: Check) -> str:
        """How one comes to a state from which no `good` one can be reached any more; "" if there is none."""
        states = sorted_set(np.concatenate(levels))
        pairs = [self._edges(states, begin) for begin in range(0, len(states), CHUNK)]
        origins, targets = (np.concatenate(part) for part in zip(*pairs, strict=True))
        name, test = good
        reached = test(self.ids(states))
        before = -1
        while before != (now := int(reached.sum())):
            before = now
            reached[origins[reached[targets]]] = True
        if reached.all():
            return ""
        return self._transcript(_Found(states[int(np.argmin(reached))], None, name), levels)

    def _edges(self, states: Words, begin: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """(from, to) as indices into `states`, of all steps from one chunk of them."""
        chunk = states[begin : begin + CHUNK]
        ids = self.ids(chunk)
        steps = [step for rule in self.rules for step in self.by_rule(rule, chunk, ids)]
        steps.append((chunk[self._waiters(ids)], self.after_tick(chunk, ids)))
        origins, targets = (np.concatenate(part) for part in zip(*steps, strict=True))
        at = np.searchsorted(states, self.canonical(targets))
        return np.searchsorted(states, origins).astype(np.int32), at.astype(np.int32)

    # Telling how it came to that

    def _transcript(self, found: _Found, levels: list[Words]) -> str:
        """A shortest way to the broken invariant: back through the levels, then forward with the actors' own names."""
        target = self.canonical(np.array([found.state], np.uint64))[0]
        depth = next(i for i, level in enumerate(levels) if (level == target).any())
        path = [target]
        for level in reversed(levels[:depth]):
            path.append(self._predecessor(level, path[-1]))
        path.reverse()
        word = path[0]
        lines = []
        for target in path[1:]:
            label, word = next(
                (label, after)
                for label, after, _ in self.options(word)
                if self.canonical(np.array([after], np.uint64))[0] == target
            )
            lines.append(label)
        if found.after is not None:
            lines += [next(label for label, _, broken in self.options(word) if broken == found.broken)]
        told = [f"{number:3}. {line}" for number, line in enumerate(lines, 1)]
        return "\n".join([f"{found.broken}: {len(lines)} steps", *told])

    def _predecessor(self, level: Words, target: np.uint64) -> np.uint64:
        for begin in range(0, len(level), CHUNK):
            states = level[begin : begin + CHUNK]
            ids = self.ids(states)
            hit = self.canonical(self.after_tick(states, ids)) == target
            if hit.any():
                return states[self._waiters(ids)[int(np.argmax(hit))]]
            for rule in self.rules:
                try:
                    for origin, to in self.by_rule(rule, states, ids):
                        hit = self.canonical(to) == target
                        if hit.any():
                            return origin[int(np.argmax(hit))]
                except _Found:  # what is looked for lies on this level, behind other steps
                    continue
        raise AssertionError("a state without a predecessor")


class _Found(Exception):
    """A broken invariant: in `state`, or by the step from it to `after`."""

    def __init__(self, state: np.uint64, after: np.uint64 | None, broken: str) -> None:
        super().__init__(broken)
        self.state = state
        self.after = after
        self.broken = broken
