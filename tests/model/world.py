"""What all actors of the model share: its versions, files that are read late, and how big it is.

**Time.** Any number of things happen within one instant. With `Size.stale` = 2 an overwritten value of a file may still
be read during the instant in which it was overwritten and the next one; the visibility bound B is one and a half
instants, and a sweeper that settles for 2 B waits for three.

Why that is the protocol's time. All that the protocol knows of time is: a stale read lies *less* than B after the
overwriting, and a second look at least 2 B after the tombstones. An order of events can happen iff every cycle of such
constraints allows it: with k stale reads and s settlings on it, iff k B > 2 s B (stale reads are strict), that is
k ≥ 2 s + 1. In the model it can iff k ≥ 3 s. For s = 1 that is the same; for more it asks for more stale reads. So
whatever the model finds is real, and it misses only orders that need two passes of sweepers and five stale reads in
turn on one cycle. (Stale reads of one instant and a settling of four would ask for k ≥ 4 already at s = 1.) Settling
for B instead of 2 B is two instants, and has its counterexample.

`Size.stale` = 1 is the same with coarser instants: a stale read within the instant of the overwriting, a settling of
one. Then no sum of stale reads outlasts a settling; all else is the same, at a fraction of the states.

**Crashes.** Nobody can tell a crashed process from one that does nothing for ever, and every actor may do nothing
for ever at any point: crashes and freezes of publishers and sweepers need no rule. A consumer that comes back has one.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import NamedTuple

from holdfast.core.lineage import Claim, Lineage, trace
from holdfast.core.names import Version
from holdfast.core.records import Term

SETTLED = 2  # instants after which everybody has seen what happened
INSTANTS = {0: 0.0, 1: 0.5, 2: 1.5}  # `Size.stale` -> the visibility bound, in instants

# At most three versions exist, of these five names: up to three of publisher 1, up to two of publisher 2.
NAMES = tuple(Version(cycle, step, 0, "000000") for cycle, step in ((1, 1), (1, 2), (1, 3), (2, 4), (2, 5)))
FIRST = {1: 0, 2: 3}  # cycle -> the index of its first name
TERMS = {1: Term(job="one", round=0, nonce="1"), 2: Term(job="two", round=0, nonce="2")}
CLAIMANT = "p.1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """One configuration: who takes part and what may go wrong.

    Attributes:
        versions: how many are committed in all.
        per_cycle: how many by each publisher at most.
        second_publisher: publisher 2 may claim, from nothing or from any version that it holds.
        modes: how each consumer works: "newest", "every" (both in place) or "staged".
        at_once: how many versions a consumer has at most when it asks for another one (+ 1).
        sweepers: the cycle of each. One of cycle 1 is fenced when publisher 2 claims.
        keep_recent: the retention's. Nothing is kept because it was acknowledged: keeping less finds more trouble.
        stale: how late files may be read (see above); 0: never.
        late_listings: listings of versions/ may be as late. Those of cycles/ may with `stale`.
        torn: whoever looks reads one file after the other, with any time between; else all at once.
        expiry: the cycles whose sweepers may take anybody for dead, at any first look.
        expired_at_most: how many in all, each.
        lives: how often each consumer begins: with 2 it may crash, or find itself expired, and come back once.
        fails: what was given last may fail, and is then given again; else it is released.
        acknowledges: consumers acknowledge what they were given.
        removals_fail: removing versions may fail.
        pins: any versions may be pinned at any look.
        unseen: the cycles whose sweepers may never notice a consumer's file that was made after their first look.
        entering: those sweepers enter in the course of events, and may be known to be dead; else they looked before.
        bits: of a consumer's, a sweeper's and the channel's number.
    """

    versions: int = 3
    per_cycle: tuple[int, int] = (2, 1)
    second_publisher: bool = True
    modes: tuple[str, ...] = ("newest", "newest")
    at_once: int = 1
    sweepers: tuple[int, ...] = (1, 2)
    keep_recent: int = 1
    stale: int = 1
    late_listings: bool = False
    torn: bool = False
    expiry: tuple[int, ...] = ()
    expired_at_most: int = 1
    lives: tuple[int, ...] = ()
    fails: bool = False
    acknowledges: bool = False
    removals_fail: bool = False
    pins: bool = False
    unseen: tuple[int, ...] = ()
    entering: bool = False
    bits: tuple[int, int, int] = (13, 13, 10)

    @property
    def bound(self) -> float:
        """The visibility bound, in instants."""
        return INSTANTS[self.stale]


class File(NamedTuple):
    """One file with one writer, as a set of bits, and which bits a reader may still miss.

    `young`: the bits that were set in this instant, and in the one before.

    Older values that say *more* (a hold that is released by now, a tombstone that is withdrawn) are left out. They make
    a reader careful and nothing else. A sweeper that sees a released hold keeps the version, as it keeps a pinned one;
    `Size.pins` explores keeping anything at any look. A consumer that sees a withdrawn tombstone gives the version up,
    as one that is given it and lets go at once.
    """

    now: int = 0
    young: tuple[int, int] = (0, 0)

    def write(self, bits: int, *, stale: int) -> File:
        added = bits & ~self.now
        newest, newer = self.young[0] & bits, self.young[1] & bits & ~added
        return File(bits, (newest | (added if stale == 2 else 0), newer | (added if stale == 1 else 0)))

    def tick(self) -> File:
        return File(self.now, (0, self.young[0])) if self.young != (0, 0) else self

    @property
    def readable(self) -> tuple[int, ...]:
        """What a reader may find."""
        newest, newer = self.young
        return tuple(dict.fromkeys((self.now, self.now & ~newest, self.now & ~newest & ~newer)))


# Bits of a consumer's file: its holds, by NAMES, and that the file is there.
HOLDS = (1 << len(NAMES)) - 1
THERE = 1 << len(NAMES)
# Bits of a sweeper's file: tombstones, by NAMES; that it is there; lives that are expired; lives that were seen.
LIVES = 2
_KEYS_AT = len(NAMES) + 1
_KEYS_MAX = 4 * LIVES  # three consumers and the claimant


def key_bit(key: str) -> int:
    """The place of a consumer's life ("0.1", "p.1") among all keys."""
    name, _, life = key.partition(".")
    return (3 if name == "p" else int(name)) * LIVES + int(life) - 1


@cache
def keys_of(bits: int) -> frozenset[str]:
    return frozenset(key for key in ALL_KEYS if bits >> key_bit(key) & 1)


@cache
def bits_of_keys(keys: frozenset[str]) -> int:
    return sum(1 << key_bit(key) for key in keys)


ALL_KEYS = tuple(f"{name}.{life}" for name in "012p" for life in range(1, LIVES + 1))


def record_bits(tombstones: int, expired: frozenset[str], seen: frozenset[str]) -> int:
    return tombstones | THERE | bits_of_keys(expired) << _KEYS_AT | bits_of_keys(seen) << (_KEYS_AT + _KEYS_MAX)


def expired_in(record: int) -> frozenset[str]:
    return keys_of(record >> _KEYS_AT & ((1 << _KEYS_MAX) - 1))


def seen_in(record: int) -> frozenset[str]:
    return keys_of(record >> (_KEYS_AT + _KEYS_MAX))


@cache
def versions_of(mask: int) -> frozenset[Version]:
    return frozenset(version for index, version in enumerate(NAMES) if mask >> index & 1)


@cache
def mask_of(versions: frozenset[Version]) -> int:
    return sum(1 << NAMES.index(version) for version in versions)


@cache
def lineage_of(claim: int, start: Version | None) -> Lineage:
    """The lineage of the highest claim: cycle 1 alone, or cycle 2 that starts from `start`."""
    claims = [Claim(1, TERMS[1], None)]
    if claim == 2:
        claims.append(Claim(2, TERMS[2], start))
    return trace(tuple(claims))


def told(mask: int) -> str:
    return "{" + ", ".join(f"c{v.cycle}-s{v.step}" for v in sorted(versions_of(mask))) + "}"


def short(version: Version | None) -> str:
    return "nothing" if version is None else f"c{version.cycle}-s{version.step}"
