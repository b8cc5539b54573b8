"""A configuration put together: fields, rules, invariants, symmetries."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from holdfast.core.sweep import Phase
from tests.model import channel as channels
from tests.model import consumers, sweepers
from tests.model.channel import Channel, Publishers
from tests.model.consumers import Consumers, Sight
from tests.model.explore import Check, Permutation, Space
from tests.model.sweepers import Holder, Sweepers
from tests.model.tables import Column, Field, Ids, Kind, Mixture, Read, Rule, Table, Views
from tests.model.world import HOLDS, THERE, File, Size, expired_in, record_bits, seen_in


class Model:
    """The space of one configuration, and where it starts."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.consumers, self.sweepers, self.publishers = Consumers(size), Sweepers(size), Publishers(size)
        self.slots = range(len(size.modes))
        self.at_sweeper = [len(size.modes) + j for j in range(len(size.sweepers))]
        self.at_channel = len(size.modes) + len(size.sweepers)
        bits = size.bits
        self.reign = Column(Channel.reign, Views(11))
        self.poll = Column(lambda c: (c.present, c.claims_ever()), Views(8))
        self.present = Column(lambda c: c.present, Views(5))
        self.highest = Column(lambda c: c.claim[0], Views(2))
        self.whole = Column(lambda c: c, Views(bits[2]))
        self.claimant = Column(Channel.holders, Views(4))
        self._consumer_columns(bits[0])
        self._sweeper_columns(bits[1])
        self.channel = Kind("channel", bits[2], self._channel_columns())
        self.space = Space(
            self._fields(),
            self._consumer_rules() + self._sweeper_rules() + self._publisher_rules(),
            self._checks(),
            self._permutations(),
            channel=self.at_channel,
            waiting=[(at, self.sweeper.columns["settles"]) for at in self.at_sweeper],
        )

    def start(self) -> list[list[Any]]:
        first = [
            consumers.Actor(mode, lives=lives)
            for mode, lives in zip(self.size.modes, self.size.lives or (1,) * 9, strict=False)
        ]
        second = [self.sweepers.start(cycle) for cycle in self.size.sweepers]
        return [[*first, *second, self.publishers.start()]]

    def _fields(self) -> list[Field]:
        fields = [Field(f"consumer {slot + 1}", self.consumer) for slot in self.slots]
        fields += [Field(f"sweeper {j + 1} of cycle {c}", self.sweeper) for j, c in enumerate(self.size.sweepers)]
        return [*fields, Field("channel", self.channel)]

    # Columns

    def _consumer_columns(self, bits: int) -> None:
        self.holders = {}  # by (slot, sweeper)
        columns: dict[str, Column] = {"tick": _kin(lambda: self.consumer, _tick_consumer)}
        for slot in self.slots:
            views = Views(9 if len(self.slots) < 3 else 5)
            for j in range(len(self.size.sweepers)):
                self.holders[slot, j] = columns[f"holders {slot} {j}"] = Column(partial(_holders, slot, j), views)
        columns["uses"] = Column(lambda a: a.uses)
        columns["life"] = Column(lambda a: 1 << a.life)
        columns["alive"] = Column(lambda a: not a.over)
        columns["looks"] = Column(self.consumers.looks)
        columns["swap"] = _kin(lambda: self.consumer, _swap_sweepers)
        for j in range(len(self.size.sweepers)):
            columns[f"reads {j}"] = Column(lambda a, j=j: self.consumers.reads(a) >> j & 1)
        self.consumer = Kind("consumer", bits, columns)

    def _sweeper_columns(self, bits: int) -> None:
        rules = self.sweepers
        sights, names = Views(9), [*map(str, self.slots), "p"]
        self.sight = {name: Column(partial(_sights, name, self.size.unseen), sights) for name in names}
        self.others = Column(lambda a: tuple(sorted({record & HOLDS for record in a.file.readable})), Views(8))
        self.announced = Column(lambda a: a.file.now & HOLDS, Views(5))
        self.listed = Column(lambda a: int(a.listed), Views(1))
        columns = {
            "tick": _kin(lambda: self.sweeper, sweepers.Actor.tick),
            "others": self.others,
            "announced": self.announced,
            "listed": self.listed,
            "settles": Column(lambda a: a.settling > 0),
            "alone": Column(lambda a: bool(rules.alone(a, 2))),
            "first": Column(rules.first_looks),
            "again": Column(rules.looks_again),
            "goes on": Column(rules.second_look_goes_on),
            "removes": Column(rules.removes),
            "doomed": Column(rules.doomed),
        }
        for slot in self.slots:
            columns[f"ends {slot}"] = Column(partial(rules.second_look_ends, slot))
            columns[f"expired {slot}"] = Column(partial(_expired, str(slot)))
        columns["expired p"] = Column(partial(_expired, "p"))
        for name, column in self.sight.items():
            columns[f"sight {name}"] = column
        for order in _orders(self.size):
            columns[f"order {order}"] = _kin(lambda: self.sweeper, partial(_rename, order))
        self.sweeper = Kind("sweeper", bits, columns)

    def _channel_columns(self) -> dict[str, Column]:
        columns = {
            "tick": _kin(lambda: self.channel, Channel.tick),
            "reign": self.reign,
            "poll": self.poll,
            "present": self.present,
            "clean": Column(channels.is_clean),
            "present mask": Column(lambda c: c.present),
            "highest": self.highest,
            "whole": self.whole,
            "claimant": self.claimant,
            "uses": Column(channels.uses),
            "swap": _kin(lambda: self.channel, _swap_in_channel),
            "alone": Column(lambda c: 1),
        }
        for j in range(len(self.size.sweepers)):
            columns[f"reads {j}"] = Column(lambda c, j=j: self.publishers.reads(c) >> j & 1)
        return columns

    # Rules

    def _consumer_rules(self) -> list[Rule]:
        rules = []
        c, ask = self.consumer, self.consumers
        number = len(self.at_sweeper)
        sight, present = _views(self.sight["0"]), _views(self.present)
        listed = [_views(self.listed)] * number if self.size.unseen else []
        alone = Table(lambda a, *ls: ask.alone(a, _mask(ls)), c, listed)
        look = Table(lambda a, view, *ls: ask.look(a, *view, _mask(ls)), c, [_views(self.poll), *listed])
        reads = [Table(partial(ask.read, j), c, [sight, present]) for j in range(number)]
        read_all = Table(ask.read_all, c, [*[sight] * number, present])
        see = tuple(Read((at,), (self.listed,)) for at in self.at_sweeper) if self.size.unseen else ()
        poll, there = self._of_channel(self.poll), self._of_channel(self.present)
        for slot in self.slots:
            rules.append(Rule("alone", alone, slot, see, c.columns["alive"]))
            rules.append(Rule("look", look, slot, (poll, *see), c.columns["looks"]))
            sights = tuple(Read((at,), (self.sight[str(slot)],)) for at in self.at_sweeper)
            if not self.size.torn:
                rules.append(Rule("read", read_all, slot, (*sights, there), c.columns["reads 0"]))
                continue
            for j, one in enumerate(sights):
                rules.append(Rule("read", reads[j], slot, (one, there), c.columns[f"reads {j}"]))
        return rules

    def _of_channel(self, column: Column) -> Read:
        return Read((self.at_channel,), (column,))

    def _sweeper_rules(self) -> list[Rule]:
        s, ask = self.sweeper, self.sweepers
        every = self._mixture([*self.slots])
        others = Mixture([_views(self.others)] * (len(self.at_sweeper) - 1), _all_others, bits=7)
        announced = [_views(self.announced)] * (len(self.at_sweeper) - 1)
        look = [every.views, others.views, _views(self.reign)]
        first, again = Table(ask.first_look, s, look), Table(ask.second_look, s, look)
        alone = Table(ask.alone, s, [_views(self.highest)])
        remove = Table(ask.remove, s, [*announced, _views(self.whole)], self.channel)
        reign, highest, state = (self._of_channel(c) for c in (self.reign, self.highest, self.whole))
        torn = self._torn_looks(others) if self.size.torn else None
        rules = []
        for j, at in enumerate(self.at_sweeper):
            left = tuple(o for o in self.at_sweeper if o != at)
            other = Read(left, (self.others,) * len(left), others)
            told = tuple(Read((o,), (self.announced,)) for o in left)
            whole = (self._files(j, [*self.slots], every), other, reign)
            rules.append(Rule("alone", alone, at, (highest,), s.columns["alone"]))
            rules.append(Rule("first look", first, at, whole, s.columns["first"]))
            rules.append(Rule("remove", remove, at, (*told, state), s.columns["removes"]))
            rules += torn(j, at, other) if torn else [Rule("second look", again, at, whole, s.columns["again"])]
        return rules

    def _torn_looks(self, others: Mixture) -> Callable[[int, int, Read], list[Rule]]:
        """The second look in three parts: claims; versions and one consumer's files; the rest."""
        s, ask = self.sweeper, self.sweepers
        claims = Table(ask.second_look_claims, s, [_views(self.reign)])
        files = {slot: Mixture([_views(self.holders[slot, 0])], ask.holdings, bits=7) for slot in self.slots}
        half = {
            slot: Table(partial(ask.second_look_half, slot), s, [files[slot].views, _views(self.reign)])
            for slot in self.slots
        }
        rest = {slot: self._mixture([i for i in self.slots if i != slot]) for slot in self.slots}
        ends = {slot: Table(ask.second_look_rest, s, [rest[slot].views, others.views]) for slot in self.slots}
        reign = self._of_channel(self.reign)

        def rules(j: int, at: int, other: Read) -> list[Rule]:
            found = [Rule("claims", claims, at, (reign,), s.columns["again"])]
            for slot in self.slots:
                file = Read((slot,), (self.holders[slot, j],), files[slot])
                left = self._files(j, [i for i in self.slots if i != slot], rest[slot])
                found.append(Rule("half", half[slot], at, (file, reign), s.columns["goes on"]))
                found.append(Rule("rest", ends[slot], at, (left, other), s.columns[f"ends {slot}"]))
            return found

        return rules

    def _mixture(self, slots: list[int]) -> Mixture:
        """What may be read in the files of the consumers in `slots` and of publisher 2."""
        parts = [*(_views(self.holders[slot, 0]) for slot in slots), _views(self.claimant)]
        return Mixture(parts, self.sweepers.holdings, bits=12)

    def _files(self, sweeper: int, slots: list[int], mixture: Mixture) -> Read:
        columns = [*(self.holders[slot, sweeper] for slot in slots), self.claimant]
        return Read((*slots, self.at_channel), tuple(columns), mixture)

    def _publisher_rules(self) -> list[Rule]:
        g, ask = self.channel, self.publishers
        sight = _views(self.sight["p"])
        rules = [Rule("alone", Table(ask.alone, g, []), self.at_channel, (), g.columns["alone"])]
        sights = tuple(Read((at,), (self.sight["p"],)) for at in self.at_sweeper)
        if not self.size.torn:
            table = Table(ask.read_all, g, [sight] * len(sights))
            return [*rules, Rule("read", table, self.at_channel, sights, g.columns["reads 0"])]
        for j, one in enumerate(sights):
            table = Table(partial(ask.read, j), g, [sight])
            rules.append(Rule("read", table, self.at_channel, (one,), g.columns[f"reads {j}"]))
        return rules

    # Invariants over states

    def _checks(self) -> list[Check]:
        return [("I4 a version that a live consumer holds is about to be deleted", self._doomed_in_use)]

    def _doomed_in_use(self, ids: list[Ids]) -> npt.NDArray[np.bool_]:
        """A sweeper that has decided to remove a version does it in its next step: so what it may remove is judged."""
        doomed = np.zeros(len(ids[0]), np.int64)
        for at in self.at_sweeper:
            doomed |= self.sweeper.columns["doomed"].of(ids[at])
        doomed &= self.channel.columns["present mask"].of(ids[self.at_channel])
        bad = np.zeros(len(ids[0]), bool)
        for slot in self.slots:
            mine = self.consumer.columns
            expired = self._expired(ids, str(slot)) & mine["life"].of(ids[slot])
            bad |= ((mine["uses"].of(ids[slot]) & doomed) != 0) & (expired == 0)
        held = self.channel.columns["uses"].of(ids[self.at_channel])
        return bad | (((held & doomed) != 0) & (self._expired(ids, "p") == 0))

    def is_clean(self, ids: list[Ids]) -> npt.NDArray[np.bool_]:
        """Of all that was published, what a fresh consumer would be given is there, and nothing else."""
        return self.channel.columns["clean"].of(ids[self.at_channel]) != 0

    def _expired(self, ids: list[Ids], name: str) -> Ids:
        expired = np.zeros(len(ids[0]), np.int64)
        for at in self.at_sweeper:
            expired |= self.sweeper.columns[f"expired {name}"].of(ids[at])
        return expired

    # Symmetries

    def _permutations(self) -> list[Permutation]:
        found: list[Permutation] = []
        swaps = [False, True] if len(self.size.sweepers) == 2 and len(set(self.size.sweepers)) == 1 else [False]
        number = len(self.size.modes)
        for order in [tuple(self.slots), *_orders(self.size)]:
            for swap in swaps:
                if order == tuple(self.slots) and not swap:
                    continue
                sources = [*order, *(reversed(self.at_sweeper) if swap else self.at_sweeper), self.at_channel]
                rename = None if order == tuple(self.slots) else f"order {order}"
                renames = (
                    ["swap" if swap else None] * number + [rename] * len(self.at_sweeper) + ["swap" if swap else None]
                )
                found.append((tuple(sources), tuple(renames)))
        return found


def _orders(size: Size) -> list[tuple[int, ...]]:
    """Every other order of the consumers that leaves each slot's mode as it is."""
    slots = range(len(size.modes))
    orders = [o for o in itertools.permutations(slots) if all(size.modes[o[i]] == size.modes[i] for i in slots)]
    return [order for order in orders if order != tuple(slots)]


def _all_others(*others: tuple[int, ...]) -> tuple[int, ...]:
    """What may be read of all other sweepers' tombstones together."""
    return tuple(sorted({functools.reduce(operator.or_, one, 0) for one in itertools.product(*others)}))


def _views(column: Column) -> Views:
    assert column.views is not None
    return column.views


def _kin(kind: Any, turn: Any) -> Column:
    """A column that holds the number of another value of the same kind."""
    return Column(lambda value: kind().number(turn(value)))


def _mask(flags: tuple[int, ...]) -> int:
    return sum(flag << i for i, flag in enumerate(flags))


def _tick_consumer(actor: consumers.Actor) -> consumers.Actor:
    before = actor.before.tick() if actor.before is not None else None
    return actor._replace(file=actor.file.tick(), before=before)


def _swap_sweepers(actor: consumers.Actor) -> consumers.Actor:
    reading = actor.reading
    if reading is not None:
        reading = reading._replace(read=(0, 2, 1, 3)[reading.read])
    return actor._replace(reading=reading, hidden=(0, 2, 1, 3)[actor.hidden])


def _swap_in_channel(channel: Channel) -> Channel:
    return channel._replace(holder=_swap_sweepers(channel.holder)) if channel.holder is not None else channel


def _holders(slot: int, sweeper: int, actor: consumers.Actor) -> tuple[Holder, ...]:
    found = []
    if not actor.hidden >> sweeper & 1 and actor.file.now:
        found.append(Holder(f"{slot}.{actor.life}", actor.file.readable))
    if actor.before is not None and actor.before.now:
        found.append(Holder(f"{slot}.{actor.life - 1}", actor.before.readable))
    return tuple(found)


def _lives(name: str, keys: frozenset[str]) -> frozenset[int]:
    return frozenset(int(key.partition(".")[2]) for key in keys if key.partition(".")[0] == name)


def _sights(name: str, unseen: tuple[int, ...], actor: sweepers.Actor) -> tuple[Sight, ...]:
    working = actor.machine.cycle in unseen and not actor.dead and actor.machine.phase is not Phase.STOPPED
    found = []
    for record in actor.file.readable:
        waits = working and name != "p" and record & THERE  # who only holds, and loads nothing, needs not be listed
        seen = _lives(name, seen_in(record)) if waits else None
        found.append(Sight(record & HOLDS, _lives(name, expired_in(record)), seen))
    return tuple(dict.fromkeys(found))


def _expired(name: str, actor: sweepers.Actor) -> int:
    return sum(1 << life for life in _lives(name, expired_in(actor.file.now)))


def _rename(order: tuple[int, ...], actor: sweepers.Actor) -> sweepers.Actor:
    """The sweeper where consumer order[i] has become consumer i."""
    place = {str(old): str(new) for new, old in enumerate(order)}

    def key(old: str) -> str:
        name, dot, life = old.partition(".")
        return place.get(name, name) + dot + life

    def keys(olds: frozenset[str]) -> frozenset[str]:
        return frozenset(key(old) for old in olds)

    def record(old: int) -> int:
        return old & (HOLDS | THERE) | record_bits(0, keys(expired_in(old)), keys(seen_in(old))) & ~THERE

    machine = sweepers.msgspec.structs.replace(
        actor.machine, seen=keys(actor.machine.seen), expired=keys(actor.machine.expired)
    )
    todo = tuple(
        sweepers.sweep.WriteRecord(e.tombstones, keys(e.seen), keys(e.expired))
        if isinstance(e, sweepers.sweep.WriteRecord)
        else e
        for e in actor.todo
    )
    found = actor.found
    if found is not None:
        holds = tuple(sorted((key(name), mask) for name, mask in found.holds))
        found = found._replace(holds=holds, done=order.index(found.done) if found.done >= 0 else -1)
    return actor._replace(
        machine=machine,
        todo=todo,
        found=found,
        file=File(record(actor.file.now), (record(actor.file.young[0]), record(actor.file.young[1]))),
    )
