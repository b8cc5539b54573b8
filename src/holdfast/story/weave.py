"""Lanes: the strands of one process's several files put one behind the other, on a time line that all can share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import msgspec

from holdfast.story.bounded import Bars
from holdfast.story.kinds import GROUPS, RARE
from holdfast.story.run import Bar, Lane
from holdfast.story.telling import NAME_CHARACTERS_MAX, clip

FAR_S = 31 * 86400.0  # a run is shorter; a clock that is further off than this is wrong
LANES_MAX = 10_000
_PIECES = re.compile(r"([^0-9]*)([0-9]{0,18})")


class Strand(msgspec.Struct):
    """One file's part of one lane.

    Attributes:
        server: names the lane within a process that has several, or "".
        open: (kind, start_s, text) of what had not ended where the file ends.
    """

    process: str
    server: str
    group: str
    bars: dict[str, Bars] = {}
    open: list[tuple[str, float, str]] = []
    first_s: float = float("inf")
    last_s: float = float("-inf")
    num: int = 0

    def touch(self, at_s: float) -> None:
        """Something happened then."""
        self.first_s = min(self.first_s, at_s)
        self.last_s = max(self.last_s, at_s)
        self.num += 1


class Woven(msgspec.Struct, frozen=True):
    """Lanes by group and name, at most LANES_MAX; the first and the last second of the run."""

    lanes: tuple[Lane, ...] = ()
    start_s: float = 0.0
    end_s: float = 0.0
    left_out: int = 0


def weave(
    strands: Sequence[Strand], far: Callable[[Strand, str], None], replaced: Mapping[str, list[float]], bars_max: int
) -> Woven:
    """The lanes, with `bars_max` bars at most.

    A strand whose clock is a month and more away from most events is left out, and `far` is told of it. What was open
    where a file ends goes on until the same process begins another, is `replaced` (process -> when), or the run ends.
    """
    if not strands:
        return Woven()
    middle_s = _middle(strands)
    near = []
    for strand in strands:
        if abs(strand.last_s - middle_s) < FAR_S:
            strand.first_s = max(strand.first_s, middle_s - FAR_S)
            near.append(strand)
        else:
            far(strand, f"by {strand.first_s - middle_s:+.0f} s; what it did is not drawn")
    end_s = max(s.last_s for s in near)
    rows = [row for named in _by_name(near).values() for row in _rows(named)]
    for row, _ in rows:
        for strand in row:
            _cut(strand, replaced.get(strand.process, []))
        _end_what_is_open(row, replaced.get(row[0].process, []), end_s)
    _clip_to(near, middle_s - FAR_S, end_s)
    _shrink(near, bars_max)
    lanes = [_lane(row, number) for row, number in rows]
    left_out = len(lanes[LANES_MAX:])
    del lanes[LANES_MAX:]
    lanes.sort(key=lambda lane: (GROUPS.index(lane.group), _natural(lane.name)))
    return Woven(tuple(lanes), min(s.first_s for s in near), end_s, left_out)


def _middle(strands: Sequence[Strand]) -> float:
    """The time around which most events lie."""
    ordered = sorted(strands, key=lambda strand: strand.last_s)
    half = sum(strand.num for strand in strands) / 2
    seen = 0
    for strand in ordered:
        seen += strand.num
        if seen >= half:
            return strand.last_s
    raise AssertionError("unreachable")


def _cut(strand: Strand, replaced_s: list[float]) -> None:
    """What a frozen node believed to be, from when it had lost its seat until it woke, is told as such."""
    for kind in ("running", "ready"):
        for place, bar in enumerate(strand.bars[kind].bars if kind in strand.bars else ()):
            lost_s = min((at_s for at_s in replaced_s if bar[0] < at_s < bar[1]), default=None)
            if lost_s is not None and bar[2] == 1:
                strand.bars[kind].bars[place] = (bar[0], lost_s, 1, lost_s - bar[0], bar[4])
                strand.bars.setdefault("silent", Bars(strand.bars[kind].limit)).add(lost_s, bar[1] - lost_s, bar[4])


def _clip_to(strands: Sequence[Strand], low_s: float, high_s: float) -> None:
    """Nothing lies outside the run."""
    for bars in (bars for strand in strands for bars in strand.bars.values()):
        bars.bars = [
            bar if low_s <= bar[0] and bar[1] <= high_s else (max(bar[0], low_s), min(bar[1], high_s), *bar[2:])
            for bar in bars.bars
            if bar[0] <= high_s and bar[1] >= low_s
        ]


def _shrink(strands: Sequence[Strand], bars_max: int) -> None:
    """To `bars_max` bars; the lanes that have the most give most."""
    for rare in (True, False):
        some = [bars for s in strands for kind, bars in s.bars.items() if (kind in RARE) == rare]
        limit = max((len(bars.bars) for bars in some), default=0)
        while limit > 1 and sum(min(len(bars.bars), limit) for bars in some) > bars_max // 2:
            limit = limit * 3 // 4
        for bars in some:
            bars.shrink(limit)


def _by_name(strands: Sequence[Strand]) -> dict[tuple[str, str], list[Strand]]:
    named: dict[tuple[str, str], list[Strand]] = {}
    for strand in strands:
        if strand.bars or strand.open or not strand.server:
            named.setdefault((strand.process, strand.server), []).append(strand)
    servers = {process for process, server in named if server}
    # Beside the lanes of its servers a sync process has nothing of its own to show, most of the time.
    return {
        key: strands
        for key, strands in named.items()
        if key[1] or key[0] not in servers or any(strand.bars or strand.open for strand in strands)
    }


def _rows(strands: list[Strand]) -> list[tuple[list[Strand], int]]:
    """One lane for lives that follow each other; one more for each that lives at the same time as another."""
    rows: list[list[Strand]] = []
    for strand in sorted(strands, key=lambda strand: strand.first_s):
        free = next((row for row in rows if row[-1].last_s <= strand.first_s), None)
        if free is None:
            rows.append([strand])
        else:
            free.append(strand)
    return [(row, number) for number, row in enumerate(rows, 1)]


def _end_what_is_open(row: list[Strand], replaced_s: list[float], end_s: float) -> None:
    begins_s = [strand.first_s for strand in row[1:]] + [end_s]
    for strand, next_s in zip(row, begins_s, strict=True):
        for kind, start_s, text in strand.open:
            stops_s = min((at_s for at_s in replaced_s if at_s >= start_s), default=next_s)
            took_s = max(0.0, min(stops_s, next_s) - start_s)
            if kind not in strand.bars:
                strand.bars[kind] = Bars(1)
            strand.bars[kind].add(start_s, took_s, text)


def _lane(row: list[Strand], number: int) -> Lane:
    bars: dict[str, list[Bar]] = {}
    for strand in row:
        for kind, more in strand.bars.items():
            bars.setdefault(kind, []).extend(more.bars)
    first = row[0]
    name = clip(f"{first.process} {first.server.removeprefix('http://')}".strip(), NAME_CHARACTERS_MAX)
    return Lane(
        name=name if number == 1 else f"{name} #{number}",
        group=first.group,
        first_s=first.first_s,
        last_s=max(strand.last_s for strand in row),
        bars=bars,
    )


def _natural(name: str) -> list[tuple[str, int]]:
    """node-2 before node-10."""
    return [(word, int(digits or 0)) for word, digits in _PIECES.findall(name)]
