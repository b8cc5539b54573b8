"""A run in the Trace Event Format, which Perfetto and chrome://tracing open.

Each group of lanes is a "process" of the trace, each process of the run a "thread"; states and loads are complete
events, holds and tombstones asynchronous ones (they overlap), marks are instants, measured numbers counters. Times are
microseconds since 1970. Written while it is read: nothing is left out, and little is kept.

Source: Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import bisect
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from holdfast.eventfiles import Damage, iter_events
from holdfast.events import Event
from holdfast.story.kinds import BARS, GROUPS, KINDS, PLACES, group_of
from holdfast.story.rounds import Rounds
from holdfast.story.telling import NAME_CHARACTERS_MAX, FileClock, Item, Teller, clip, number

Write = Callable[[str], object]
OVERLAP = frozenset({"hold", "announced", "store_away"})
WORK = frozenset({"load", "engine", "publishing"})
COUNTERS_MAX = 1000
YEARS_S = 946_684_800.0, 7_258_118_400.0  # 2000 to 2200: no clock that runs says another year


class Tracing:
    """Writes what it hears at once; what is open at the end of a file waits until it is known what came after."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._threads: dict[tuple[str, str, str], int] = {}
        self._named: set[int] = set()
        self._counters: set[str] = set()
        self._open: list[tuple[str, Item]] = []
        self._begins_s: dict[str, list[float]] = {}
        self._rounds = Rounds()
        self._file = 0
        self._last_s = 0.0
        self._ids = 0
        self._first = True

    def read(self, path: pathlib.Path) -> None:
        """One whole file."""
        clock, tellers = FileClock(), dict[str, Teller]()
        self._file += 1
        for event in iter_events(path, Damage()):
            at_s = clock.place(event)
            if at_s is None or not YEARS_S[0] < at_s < YEARS_S[1]:
                continue
            process = clip(event.process, NAME_CHARACTERS_MAX)
            if process not in tellers:
                tellers[process] = Teller()
                self._begins_s.setdefault(process, []).append(at_s)
            self._last_s = max(self._last_s, at_s)
            for item in tellers[process].hear(event, at_s):
                self._tell(process, item, item.took_s)
            self._hear(process, event, at_s)
        for process, teller in tellers.items():
            self._open += [(process, item) for item in teller.finish()]

    def finish(self) -> None:
        """What was still open: until the same process begins anew, loses its seat, or the run ends."""
        stops_s = {process: sorted(begins_s) for process, begins_s in self._begins_s.items()}
        for round_ in self._rounds.tell(()):
            for member in round_.replaced:
                bisect.insort(stops_s.setdefault(f"agent-{member.rpartition('.')[0]}", []), round_.start_s)
        for process, item in self._open:
            later_s = stops_s[process]
            place = bisect.bisect_right(later_s, item.start_s)
            end_s = later_s[place] if place < len(later_s) else self._last_s
            self._tell(process, item, max(0.0, end_s - item.start_s))

    def _hear(self, process: str, event: Event, at_s: float) -> None:
        if event.event in ("round_committed", "round_proposed", "round_running", "running"):
            self._rounds.hear(self._file, at_s, event)
        if event.event != "measured":
            return
        for name, value in event.fields.items():
            found = number(value)
            if found is None or name in PLACES:
                continue
            counter = clip(f"{process} {name}", 2 * NAME_CHARACTERS_MAX)
            if counter in self._counters or len(self._counters) < COUNTERS_MAX:
                self._counters.add(counter)
                pid = self._group(group_of(process))
                self._put({"ph": "C", "name": counter, "pid": pid, "tid": 0, "ts": _us(at_s), "args": {"value": found}})

    def _tell(self, process: str, item: Item, took_s: float) -> None:
        kind = KINDS[item.kind]
        thread = self._thread(process, item.server, "work" if item.kind in WORK else "")
        arguments = {"version": item.version, "reason": item.reason, "trouble": item.trouble}
        said: dict[str, Any] = {
            "name": f"{kind.label} {item.version}".strip() if item.kind in BARS else kind.label,
            "cat": item.kind,
            "pid": self._group(group_of(process)),
            "tid": thread,
            "ts": _us(item.start_s),
            "args": {name: value for name, value in arguments.items() if value} | ({"open": True} if item.open else {}),
        }
        if not kind.lasts:
            self._put({"ph": "i", "s": "t"} | said)
        elif item.kind in OVERLAP:
            self._ids += 1
            end = {"ts": _us(item.start_s + took_s), "args": {}}
            own = {"id2": {"local": f"0x{self._ids:x}"}}  # a plain "id" would be one of the whole trace
            name = {"name": f"{process} {kind.label}"}  # Perfetto makes a track of what has one name
            self._put({"ph": "b"} | said | own | name)
            self._put({"ph": "e"} | said | own | name | end)
        else:
            self._put({"ph": "X", "dur": max(0, _us(item.start_s + took_s) - _us(item.start_s))} | said)

    def _group(self, group: str) -> int:
        pid = GROUPS.index(group) + 1
        if pid not in self._named:
            self._named.add(pid)
            self._put({"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": group}})
            self._put({"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}})
        return pid

    def _thread(self, process: str, server: str, part: str) -> int:
        thread = self._threads.get((process, server, part))
        if thread is None:  # above all process ids: the thread of the same number would be called the main one
            thread = self._threads[process, server, part] = len(GROUPS) + len(self._threads) + 1
            name = " ".join(word for word in (process, server, part) if word)
            pid = self._group(group_of(process))
            self._put({"ph": "M", "name": "thread_name", "pid": pid, "tid": thread, "args": {"name": name}})
        return thread

    def _put(self, said: dict[str, Any]) -> None:
        self._write(("" if self._first else ",\n") + json.dumps(said, ensure_ascii=True, separators=(",", ":")))
        self._first = False


def write_trace(
    files: Sequence[pathlib.Path],
    write: Write,
    *,
    title: str,
    progress: Callable[[int], None] = lambda done_bytes: None,
) -> None:
    """Write the trace of what `files` tell by calls of `write`. `progress` is called with the bytes read so far.

    Never raises for what stands in a file. Raises what `write` raises.
    """
    write('{"displayTimeUnit":"ms","otherData":' + json.dumps({"run": title}) + ',"traceEvents":[\n')
    tracing, done_bytes = Tracing(write), 0
    for path in files:
        tracing.read(path)
        try:
            done_bytes += path.stat().st_size
        except OSError:
            continue
        progress(done_bytes)
    tracing.finish()
    write("\n]}\n")


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
