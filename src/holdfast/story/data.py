"""The run as the page's script wants it: short names, whole milliseconds since the run began, texts only once."""

from __future__ import annotations

import json
from typing import Any

from holdfast.story.kinds import GROUPS, KINDS
from holdfast.story.run import Lane, Round, Run, Series

TEXT_CHARACTERS_MAX = 1_200_000
ROUNDS_MAX = 1000
DIGITS = 6


class Texts:
    """A table of texts; when it is full, further ones are empty."""

    def __init__(self) -> None:
        self.table = [""]
        self._places = {"": 0}
        self._left = TEXT_CHARACTERS_MAX

    def place(self, text: str) -> int:
        """Where `text` stands in the table."""
        found = self._places.get(text)
        if found is None:
            self._left -= len(json.dumps(text))
            if self._left < 0:
                return 0
            found = self._places[text] = len(self.table)
            self.table.append(text)
        return found


def page_data(run: Run) -> dict[str, Any]:
    """JSON for the page."""
    texts, names = Texts(), list(KINDS)
    rare = [name for name in reversed(names) if name not in ("acknowledged", "swept")]
    for kind in rare:  # if texts have to go, then those of bars that are many
        for lane in run.lanes:
            for bar in lane.bars.get(kind, ()):
                texts.place(bar[4])
    lanes = [_lane(lane, run.start_s, names, texts) for lane in run.lanes]
    return {
        "start_ms": round(run.start_s * 1000),
        "length_ms": max(1, round((run.end_s - run.start_s) * 1000)),
        "kinds": [[kind.name, kind.label] for kind in KINDS.values()],
        "groups": GROUPS,
        "lanes": lanes,
        "texts": texts.table,
        "rounds": [_round(round_, run.start_s) for round_ in run.rounds[:ROUNDS_MAX]],
        "series": [_series(series, run.start_s) for series in run.series],
    }


def _lane(lane: Lane, start_s: float, names: list[str], texts: Texts) -> dict[str, Any]:
    bars = []
    for kind, found in lane.bars.items():
        flat: list[int] = []
        for first_s, last_s, num, busy_s, text in found:
            flat += [_ms(first_s - start_s), _ms(last_s - first_s), num, _ms(busy_s), texts.place(text)]
        bars.append([names.index(kind), flat])
    return {"name": lane.name, "group": GROUPS.index(lane.group), "bars": bars}


def _round(round_: Round, start_s: float) -> dict[str, Any]:
    took_s = sum(phase.took_s for phase in round_.phases)
    return {
        "number": round_.number,
        "kind": round_.kind,
        "reason": round_.reason,
        "start": _ms(round_.start_s - start_s),
        "took": _ms(took_s),
        "trains": None if round_.output_again_s is None else _ms(round_.output_again_s),
        "phases": [[phase.name, _ms(phase.took_s), phase.sure] for phase in round_.phases],
    }


def _series(series: Series, start_s: float) -> dict[str, Any]:
    points = [
        [step, *(_figure(value) for value in (mean, least, greatest)), num, _ms(at_s - start_s)]
        for step, mean, least, greatest, num, at_s in series.points
    ]
    return {"name": series.name, "points": points}


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _figure(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
