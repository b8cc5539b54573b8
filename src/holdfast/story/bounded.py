"""What a run may be remembered in: collections that keep their size however long the run was."""

from __future__ import annotations

import math
import re
from operator import itemgetter

_DIGITS = re.compile(r"[0-9a-f]*[0-9][0-9a-f]*")


class Bars:
    """Bars of one kind in one lane; neighbours melt into one once there are more than `limit`.

    A bar is [start_s, end_s, num, busy_s, text]: from the first one's start to the last one's end, how many melted,
    how much of that time they took together, and what the first one said.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bars: list[tuple[float, float, int, float, str]] = []
        self._grain_s = 0.0

    def add(self, start_s: float, took_s: float, text: str) -> None:
        self.bars.append((start_s, start_s + took_s, 1, took_s, text))
        if len(self.bars) > 2 * self.limit:
            self.shrink(self.limit)

    def shrink(self, limit: int) -> None:
        """To at most `limit` bars; a gap that is small beside the others is closed first."""
        self.bars.sort(key=itemgetter(0))
        limit = max(1, limit)
        while len(self.bars) > limit:
            gaps = sorted(later[0] - bar[1] for bar, later in zip(self.bars, self.bars[1:], strict=False))
            self._grain_s = max(self._grain_s, gaps[len(self.bars) - limit - 1])
            melted = [self.bars[0]]
            for bar in self.bars[1:]:
                last = melted[-1]
                if bar[0] - last[1] <= self._grain_s:
                    melted[-1] = (last[0], max(last[1], bar[1]), last[2] + bar[2], last[3] + bar[3], last[4])
                else:
                    melted.append(bar)
            self.bars = melted


class Curve:
    """One series over steps, kept in at most `limit` bins of equal width.

    A bin is [num, sum, min, max, last_s, step]: of its values, when the last one was measured, and the first step.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.width = 1
        self.bins: dict[int, list[float]] = {}

    def add(self, step: int, value: float, at_s: float) -> None:
        bin_ = self.bins.get(step // self.width)
        if bin_ is None:
            self.bins[step // self.width] = [1, value, value, value, at_s, step]
            while len(self.bins) > self.limit:
                self._widen()
            return
        bin_[0] += 1
        bin_[1] += value
        bin_[2] = min(bin_[2], value)
        bin_[3] = max(bin_[3], value)
        bin_[4] = max(bin_[4], at_s)
        bin_[5] = min(bin_[5], step)

    def _widen(self) -> None:
        old, self.bins = self.bins, {}
        self.width *= 2
        for place, bin_ in old.items():
            into = self.bins.get(place // 2)
            if into is None:
                self.bins[place // 2] = bin_
                continue
            into[:] = [
                into[0] + bin_[0],
                into[1] + bin_[1],
                min(into[2], bin_[2]),
                max(into[3], bin_[3]),
                max(into[4], bin_[4]),
                min(into[5], bin_[5]),
            ]

    @property
    def points(self) -> list[tuple[int, float, float, float, int, float]]:
        """(step, mean, least, greatest, num, when the last was measured), by step."""
        found = [(int(b[5]), b[1] / b[0], b[2], b[3], int(b[0]), b[4]) for _, b in sorted(self.bins.items())]
        return [point for point in found if math.isfinite(point[1])]

    def part(self, first: float, last: float) -> float | None:
        """The mean of the values between these parts of all, in the order of steps: part(0, 0.1) is the first tenth."""
        total = sum(bin_[0] for bin_ in self.bins.values())
        low, high, seen, sum_, weight = first * total, last * total, 0.0, 0.0, 0.0
        for _, bin_ in sorted(self.bins.items()):
            share = max(0.0, min(high, seen + bin_[0]) - max(low, seen))
            sum_ += share * bin_[1] / bin_[0]
            weight += share
            seen += bin_[0]
        return sum_ / weight if weight else None


class Alike:
    """Things that were said, those alike counted together; after `limit` unlike ones, only counted by their kind."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.rows: dict[tuple[str, str, str], list[float]] = {}  # first_s, last_s, num
        self.texts: dict[tuple[str, str, str], tuple[str, str]] = {}  # of the first: version, reason
        self.left_out: dict[str, int] = {}

    def add(self, kind: str, process: str, at_s: float, version: str, reason: str, num: int = 1) -> None:
        """Alike are those of one kind and process whose reasons differ in their numbers alone."""
        key = (kind, process, _DIGITS.sub("#", reason[:120]))
        row = self.rows.get(key)
        if row is None:
            if len(self.rows) >= self.limit:
                self.left_out[kind] = self.left_out.get(kind, 0) + num
                return
            self.rows[key] = [at_s, at_s, num]
            self.texts[key] = (version, reason)
            return
        if at_s < row[0]:
            row[0] = at_s
            self.texts[key] = (version, reason)
        row[1] = max(row[1], at_s)
        row[2] += num
