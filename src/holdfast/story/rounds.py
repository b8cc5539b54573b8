"""Rounds, put together from what coordinators told of them, perhaps several for one round, in any order of files."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import msgspec

from holdfast.events import Event
from holdfast.story.run import Phase, Round
from holdfast.story.telling import NAME_CHARACTERS_MAX, clip, number

ROUNDS_MAX = 10_000
NAMES_MAX = 20
PHASE_S_MAX = 1e7


class Said(msgspec.Struct, frozen=True):
    """What is kept of an event of a round: in which file, when, by whom, and the fields that count."""

    file: int
    at_s: float
    clock_s: float
    process: str
    reason: str
    fields: dict[str, Any]


class Rounds:
    """Hears all events about rounds, and then says what became of each."""

    def __init__(self) -> None:
        self._committed: dict[tuple[int, str], Said] = {}
        self._proposed: dict[tuple[int, str], Said] = {}
        self._running: dict[tuple[int, int], Said] = {}
        self._nodes_run: dict[int, float] = {}
        self.left_out = 0

    def hear(self, file: int, at_s: float, event: Event) -> None:
        round_ = number(event.fields.get("round"))
        if round_ is None or not 0 < round_ < 1e9:
            return
        key = (int(round_), clip(event.fields.get("plan", ""), NAME_CHARACTERS_MAX))
        if event.event == "running":
            if key[0] in self._nodes_run or len(self._nodes_run) < ROUNDS_MAX:
                self._nodes_run[key[0]] = max(at_s, self._nodes_run.get(key[0], at_s))
        elif len(self._committed) + len(self._proposed) + len(self._running) >= 3 * ROUNDS_MAX:
            self.left_out += event.event == "round_committed"
        elif event.event == "round_committed":
            self._committed.setdefault(key, _said(file, at_s, event))
        elif event.event == "round_proposed":
            self._proposed.setdefault(key, _said(file, at_s, event))
        elif event.event == "round_running":
            self._running.setdefault((key[0], file), _said(file, at_s, event))

    def tell(self, output_s: Sequence[float]) -> list[Round]:
        """All rounds by time. `output_s`: when training brought something forth, sorted."""
        told = sorted(self._committed.items(), key=lambda item: item[1].at_s)
        ends_s = [*(said.at_s for _, said in told[1:]), float("inf")][: len(told)]
        return [
            self._round(key, said, first=place == 0 or key[0] == 1, end_s=end_s, output_s=output_s)
            for place, ((key, said), end_s) in enumerate(zip(told, ends_s, strict=True))
        ]

    def _round(
        self, key: tuple[int, str], said: Said, *, first: bool, end_s: float, output_s: Sequence[float]
    ) -> Round:
        fields = said.fields
        replaced: dict[str, str] = fields["replaced"]
        phases, before_s = self._phases(key, said, first=first)
        ran = any(phase.name == "started" for phase in phases)
        runs_s = said.at_s + (phases[-1].took_s if ran else 0.0)
        again = bisect.bisect_right(output_s, runs_s)
        trains_s = output_s[again] if again < len(output_s) and output_s[again] < end_s else None
        return Round(
            number=key[0],
            plan=key[1],
            kind=_kind(first, fields, replaced),
            reason=said.reason.removeprefix(f"round {key[0]}: "),
            coordinator=said.process,
            start_s=said.at_s - before_s,
            committed_s=said.at_s,
            num_seats=fields["seats"],
            num_spares=fields["spares"],
            replaced=replaced,
            phases=phases,
            total_s=sum(phase.took_s for phase in phases) if ran else None,
            output_again_s=trains_s - runs_s if trains_s is not None and ran else None,
        )

    def _phases(self, key: tuple[int, str], said: Said, *, first: bool) -> tuple[tuple[Phase, ...], float]:
        """The phases, and how long those before the commit took together (seconds)."""
        proposed = self._proposed.get(key)
        running = self._running.get((key[0], said.file))
        fields = running.fields if running is not None else {}
        phases = []
        noticed_s = _seconds(fields.get("noticed_s")) or _seconds(said.fields.get("lost_s"))
        if noticed_s and not first:
            phases.append(Phase("noticed", noticed_s))
        stopped_s = _seconds(fields.get("stopped_s"))
        if proposed is not None and proposed.file == said.file and proposed.clock_s <= said.clock_s:
            between_s = said.clock_s - proposed.clock_s
            stopped_s = between_s if stopped_s is None else min(stopped_s, between_s)
            phases += [Phase("stopped", stopped_s), Phase("committed", between_s - stopped_s)]
        elif stopped_s is not None:
            phases.append(Phase("stopped", stopped_s))
        before_s = sum(phase.took_s for phase in phases)
        started_s = _seconds(fields.get("started_s"))
        if started_s is not None:
            phases.append(Phase("started", started_s))
        elif key[0] in self._nodes_run:
            phases.append(Phase("started", max(0.0, self._nodes_run[key[0]] - said.at_s), sure=False))
        return tuple(phases), before_s


def _said(file: int, at_s: float, event: Event) -> Said:
    fields = event.fields
    kept: dict[str, Any] = {
        name: fields.get(name) for name in ("voluntary", "lost_s", "noticed_s", "stopped_s", "started_s")
    }
    kept |= {name: _length(fields.get(name)) for name in ("seats", "spares")}
    kept["replaced"] = _texts(fields.get("replaced"))
    return Said(file, at_s, event.clock_s, clip(event.process, NAME_CHARACTERS_MAX), clip(event.reason), kept)


def _kind(first: bool, fields: dict[str, Any], replaced: dict[str, str]) -> str:
    if first:
        return "first"
    if fields.get("voluntary") is True:
        return "wanted"
    return "failover" if replaced else "restart"


def _seconds(value: object) -> float | None:
    found = number(value)
    return found if found is not None and 0 <= found <= PHASE_S_MAX else None


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    pairs = list(value.items())[:NAMES_MAX]
    return {clip(name, NAME_CHARACTERS_MAX): clip(text) for name, text in pairs}


def _length(value: object) -> int:
    return len(value) if isinstance(value, list) else 0
