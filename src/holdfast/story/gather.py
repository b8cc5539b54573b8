"""Gathers a run from its event files: each is read once, from its beginning to its end, one line in memory at a time.

Whatever the files hold, what is remembered has a bound: bars melt into their neighbours, series into bins, anomalies
that say the same into one, and names beyond a limit are only counted.
"""

from __future__ import annotations

import pathlib
import statistics
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from holdfast.core.names import parse_version
from holdfast.eventfiles import Damage, iter_events
from holdfast.events import Event
from holdfast.story.bounded import Alike, Bars, Curve
from holdfast.story.kinds import GROUPS, PLACES, TROUBLES, group_of
from holdfast.story.rounds import Rounds
from holdfast.story.run import Anomaly, Run, Series, Totals
from holdfast.story.telling import NAME_CHARACTERS_MAX, FileClock, Item, Teller, clip, number
from holdfast.story.weave import Strand, weave

BARS_MAX = 60_000
LANE_BARS_MIN, LANE_BARS_MAX = 100, 1500
VERSIONS_MAX = 200_000
SERIES_MAX = 32
POINTS_MAX = 1000
ANOMALIES_MAX = 600
ACTIVITY_MAX = 2_000_000
STEP_MAX = 10**12
PROCESSES_PER_FILE_MAX = 8
ERAS_MAX = 4
PUBLISHED, SERVED, SWEPT, REFUSED = 1, 2, 4, 8
SERVE_SERIES = "published → first served (s)"
COUNTS = frozenset({"requests_answered", "requests_retried", "requests_failed"})

Progress = Callable[[int], None]


class Fate(msgspec.Struct):
    """What became of one version, as far as it was told."""

    marks: int = 0
    published_s: float | None = None
    served_s: float | None = None


class Gathering:
    """Hears the events of all files, one file after the other."""

    def __init__(self, num_files: int) -> None:
        self.damage = Damage()
        self.strands: list[Strand] = []
        self.alike = Alike(ANOMALIES_MAX)
        self.troubles: dict[str, int] = {}
        self.rounds = Rounds()
        self.left_out: dict[str, int] = {}
        self.published_s, self.measured_s = array("d"), array("d")
        self._limit = max(LANE_BARS_MIN, min(LANE_BARS_MAX, BARS_MAX // max(1, num_files)))
        self._curves: dict[str, Curve] = {}
        self._fates: dict[str, Fate] = {}
        self._counts: dict[str, int] = {}
        self._sums: dict[str, int] = {}
        self._outcome: tuple[float, tuple[str, int, str]] | None = None
        self._num_files = num_files
        self._file = 0
        self._lanes: dict[tuple[str, str], Strand] = {}
        self._process: dict[str, str] = {}
        self._counters: dict[str, int] = {}

    def read(self, path: pathlib.Path) -> None:
        """One whole file."""
        damage, clock, tellers = Damage(), FileClock(), dict[str, Teller]()
        self._file += 1
        self._lanes, self._process, self._counters = {}, {}, {}
        eras = 0
        for event in iter_events(path, damage):
            at_s = clock.place(event)
            if clock.num_jumps > eras and eras < ERAS_MAX:  # what was said by the wrong time stands by itself
                eras, self._lanes = clock.num_jumps, {}
            if at_s is None:
                damage.num_lines += 1
                continue
            process = self._name(event.process)
            teller = tellers.get(process)
            if teller is None:
                teller = tellers[process] = Teller()
            self._count("events")
            self._strand(process, "").touch(at_s)
            for item in teller.hear(event, at_s):
                self._add(process, item)
            self._hear(event, at_s)
        for process, teller in tellers.items():
            for item in teller.finish():
                self._add(process, item)
        self._tell_of_file(path, damage, clock)

    def run(self) -> Run:
        """What all that was read makes."""
        rounds = self.rounds.tell(sorted(self.published_s or self.measured_s))
        replaced: dict[str, list[float]] = {}
        for round_ in rounds:
            for member, why in list(round_.replaced.items()):
                self._trouble("node_replaced", clip(member), round_.committed_s, "", why)
                replaced.setdefault(f"agent-{member.rpartition('.')[0]}", []).append(round_.start_s)
        woven = weave(self.strands, self._trouble_of_clock, replaced, BARS_MAX)
        self.left_out |= {"rounds": self.rounds.left_out, "lanes": woven.left_out}
        return Run(
            start_s=woven.start_s,
            end_s=woven.end_s,
            outcome=self._outcome[1] if self._outcome else None,
            lanes=woven.lanes,
            rounds=tuple(rounds),
            series=self._series(),
            anomalies=self._anomalies(),
            num_anomalies=dict(sorted(self.troubles.items())),
            totals=self._totals(),
            left_out={name: num for name, num in self.left_out.items() if num},
        )

    # Hearing

    def _name(self, process: str) -> str:
        known = self._process.get(process)
        if known is None:
            if len(self._process) >= PROCESSES_PER_FILE_MAX:  # one file has one writer
                return next(iter(self._process.values()))
            known = self._process[process] = clip(process, NAME_CHARACTERS_MAX)
        return known

    def _strand(self, process: str, server: str) -> Strand:
        strand = self._lanes.get((process, server))
        if strand is None:
            strand = self._lanes[process, server] = Strand(process, server, group_of(process))
            self.strands.append(strand)
        return strand

    def _add(self, process: str, item: Item) -> None:
        if item.trouble:
            self._trouble(item.trouble, process, item.start_s, item.version, item.reason)
        strand = self._strand(process, item.server)
        if item.kind == "fault":  # whoever breaks things stands above all
            strand.group = GROUPS[0]
        if item.server or not strand.num:
            strand.touch(item.start_s + item.took_s)
        text = f"{item.version}  {item.reason}" if item.version else item.reason
        if item.open:
            strand.open.append((item.kind, item.start_s, text))
            return
        bars = strand.bars.get(item.kind)
        if bars is None:
            bars = strand.bars[item.kind] = Bars(self._limit)
        bars.add(item.start_s, item.took_s, text)

    def _hear(self, event: Event, at_s: float) -> None:
        """What counts for the run as a whole."""
        match event.event:
            case "round_committed" | "round_proposed" | "round_running" | "running":
                self.rounds.hear(self._file, at_s, event)
            case "measured":
                _put(self.measured_s, at_s)
                self._measure(event, at_s)
            case "published":
                _put(self.published_s, at_s)
                self._count("bytes", int(number(event.fields.get("bytes")) or 0))
                self._fate(event, at_s, PUBLISHED)
            case "acknowledged":
                self._count("acknowledged")
                self._fate(event, at_s, SERVED)
            case "swept":
                self._fate(event, at_s, SWEPT)
            case "refused":
                self._fate(event, at_s, REFUSED)
            case "engine_did":
                self._count("loads", int(event.fields.get("action") in ("load", "reload")))
            case "fault":
                self._count("faults")
            case "outcome":
                self._end(event, at_s)

    def _measure(self, event: Event, at_s: float) -> None:
        fields: dict[str, Any] = event.fields
        step = number(fields.get("step"))
        for name, value in fields.items():
            found = number(value)
            if name in PLACES or found is None:
                continue
            if name in COUNTS:
                self._sum(name, int(min(max(0.0, found), STEP_MAX)))
            elif step is not None and 0 <= step < STEP_MAX:
                self._curve(clip(name, NAME_CHARACTERS_MAX), int(step), found, at_s)

    def _sum(self, name: str, now: int) -> None:
        """`name` stands at `now` in this file; it falls only where the process began anew."""
        before = self._counters.get(name, 0)
        self._sums[name] = self._sums.get(name, 0) + now - (before if now >= before else 0)
        self._counters[name] = now

    def _curve(self, name: str, step: int, value: float, at_s: float) -> None:
        curve = self._curves.get(name)
        if curve is None:
            if len(self._curves) >= SERIES_MAX:
                self.left_out["samples"] = self.left_out.get("samples", 0) + 1
                return
            curve = self._curves[name] = Curve(POINTS_MAX)
        curve.add(step, value, at_s)

    def _fate(self, event: Event, at_s: float, mark: int) -> None:
        version = event.version or ""
        fate = self._fates.get(version)
        if fate is None:
            if len(self._fates) >= VERSIONS_MAX or len(version) > NAME_CHARACTERS_MAX:
                self.left_out["versions"] = self.left_out.get("versions", 0) + 1
                return
            fate = self._fates[version] = Fate()
        fate.marks |= mark
        if mark == PUBLISHED:
            fate.published_s = at_s if fate.published_s is None else min(fate.published_s, at_s)
        elif mark == SERVED:
            fate.served_s = at_s if fate.served_s is None else min(fate.served_s, at_s)

    def _end(self, event: Event, at_s: float) -> None:
        if self._outcome is None or at_s >= self._outcome[0]:
            code = number(event.fields.get("code"))
            ending = clip(event.fields.get("ending", "unknown"), NAME_CHARACTERS_MAX)
            self._outcome = at_s, (ending, int(code or 0), clip(event.reason))

    def _count(self, name: str, more: int = 1) -> None:
        self._counts[name] = self._counts.get(name, 0) + more

    # Trouble

    def _trouble(self, kind: str, process: str, at_s: float, version: str, reason: str, num: int = 1) -> None:
        self.troubles[kind] = self.troubles.get(kind, 0) + num
        self.alike.add(kind, process, at_s, version, reason, num)

    def _trouble_of_clock(self, strand: Strand, reason: str) -> None:
        self._trouble("clock_far", strand.process, strand.first_s, "", reason)

    def _tell_of_file(self, path: pathlib.Path, damage: Damage, clock: FileClock) -> None:
        name = clip(path.name, NAME_CHARACTERS_MAX)
        last_s = max((strand.last_s for strand in self._lanes.values()), default=float("nan"))
        if bad := damage.num_lines + damage.num_long:
            self._trouble("damaged_lines", name, last_s, "", f"{bad} lines are no events", bad)
        if damage.num_unreadable:
            self._trouble("unreadable_file", name, last_s, "", "it is gone, or may not be read")
        if clock.jump_s:
            why = f"by {clock.jump_s:+.1f} s against its own monotonic clock; durations are not touched by it"
            self._trouble("clock_jumped", name, last_s, "", why)

    # Telling

    def _series(self) -> tuple[Series, ...]:
        waits = Curve(POINTS_MAX)
        for name, fate in self._fates.items():
            version = parse_version(name)
            if version is not None and fate.published_s is not None and fate.served_s is not None:
                waits.add(version.step, max(0.0, fate.served_s - fate.published_s), fate.served_s)
        curves = self._curves | ({SERVE_SERIES: waits} if waits.bins else {})
        return tuple(
            Series(
                name=name,
                points=curve.points,
                num=int(sum(bin_[0] for bin_ in curve.bins.values())),
                first_tenth=curve.part(0.0, 0.1),
                last_tenth=curve.part(0.9, 1.0),
            )
            for name, curve in curves.items()
        )

    def _anomalies(self) -> tuple[Anomaly, ...]:
        self.left_out |= {f"anomalies: {TROUBLES.get(k, k)}": num for k, num in self.alike.left_out.items()}
        rows = [
            Anomaly(
                kind=kind,
                what=TROUBLES.get(kind, kind),
                process=process,
                first_s=row[0],
                last_s=row[1],
                num=int(row[2]),
                version=self.alike.texts[kind, process, alike][0],
                reason=self.alike.texts[kind, process, alike][1],
            )
            for (kind, process, alike), row in self.alike.rows.items()
        ]
        return tuple(sorted(rows, key=lambda row: (row.first_s != row.first_s, row.first_s)))

    def _totals(self) -> Totals:
        fates = self._fates.values()
        waits_s = [max(0.0, f.served_s - f.published_s) for f in fates if f.served_s and f.published_s]
        return Totals(
            processes=len({strand.process for strand in self.strands}),
            events=self._counts.get("events", 0),
            files=self._num_files,
            published=sum(bool(fate.marks & PUBLISHED) for fate in fates),
            published_bytes=self._counts.get("bytes", 0),
            served=sum(bool(fate.marks & SERVED) for fate in fates),
            swept=sum(bool(fate.marks & SWEPT) for fate in fates),
            refused=sum(bool(fate.marks & REFUSED) for fate in fates),
            loads=self._counts.get("loads", 0),
            acknowledged=self._counts.get("acknowledged", 0),
            answered=self._sums.get("requests_answered"),
            retried=self._sums.get("requests_retried"),
            failed=self._sums.get("requests_failed"),
            serve_s=statistics.median(waits_s) if waits_s else None,
            faults=self._counts.get("faults", 0),
        )


def _put(times_s: array[float], at_s: float) -> None:
    if len(times_s) < ACTIVITY_MAX:
        times_s.append(at_s)


def gather(files: Sequence[pathlib.Path], progress: Progress = lambda done_bytes: None) -> Run:
    """The run that `files` tell of. `progress` is called with the bytes of the files read so far.

    Never raises for what stands in a file; one that cannot be read is an anomaly of the run.
    """
    gathering, done_bytes = Gathering(len(files)), 0
    for path in files:
        gathering.read(path)
        try:
            done_bytes += path.stat().st_size
        except OSError:
            continue
        progress(done_bytes)
    return gathering.run()
