"""Reads the ends of event files: newest files first, so much of each, and so much in all."""

from __future__ import annotations

import os
import pathlib
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from holdfast.eventfiles import find_event_files, tail_events
from holdfast.events import Event

FILES_MAX = 5_000
BYTES_MAX = 12 * 2**20  # of all files together
AGENT_BYTES = 8 * 2**10  # an agent says a few lines each round
LEAST_BYTES, MOST_BYTES = 8 * 2**10, 512 * 2**10
DEEP_BYTES, DEEP_FILES = 2 * 2**20, 8  # coordinators' files: a line with a thousand seats is 30 kB
PUBLISHERS_DEEP = 3  # the newest ones say what was published, and began with their claims
AGENT, PUBLISHER = "agent-", "publisher-"
CONTROL = frozenset({"coordinator", "round_proposed", "round_committed", "round_running", "outcome"})


@dataclass(frozen=True)
class Tail:
    """The end of one file. `changed_s`: when it changed last, by the clock of its storage."""

    path: pathlib.Path
    changed_s: float
    num_bytes: int
    limit_bytes: int
    events: Sequence[Event] = field(repr=False)

    @property
    def coordinates(self) -> bool:
        """Whether its writer has decided something for the job lately."""
        return any(event.event in CONTROL for event in self.events)


@dataclass(frozen=True)
class Heard:
    """What was read, oldest change first. `left_out`: how many older files were not read."""

    tails: Sequence[Tail]
    num_bytes: int
    left_out: int

    @cached_property
    def _newest_s(self) -> Mapping[pathlib.Path, float]:
        newest: dict[pathlib.Path, float] = {}
        for tail in self.tails:
            newest[tail.path.parent] = max(tail.changed_s, newest.get(tail.path.parent, 0.0))
        return newest

    def silent_s(self, tail: Tail) -> float:
        """For how long its file has stood still when another one of its directory changed (seconds)."""
        return max(0.0, self._newest_s[tail.path.parent] - tail.changed_s)


class TailReader:
    """Looks at the event files of `places` again and again; a file that has not changed is not read again."""

    def __init__(self, places: Sequence[pathlib.Path]) -> None:
        self._places = places
        self._tails: dict[pathlib.Path, Tail] = {}

    def look(self) -> Heard:
        """UsageError: as `find_event_files`."""
        found = _newest_first(find_event_files(self._places))
        agents = [status.st_size for path, status in found[:FILES_MAX] if path.name.startswith(AGENT)]
        num_others = len(found[:FILES_MAX]) - len(agents)
        left = BYTES_MAX - DEEP_BYTES - sum(min(AGENT_BYTES, size) for size in agents)
        share = left // max(1, num_others)
        share = min(max(share, LEAST_BYTES), MOST_BYTES)
        tails: list[Tail] = []
        num_bytes = num_publishers = 0
        for path, status in found[:FILES_MAX]:
            limit = AGENT_BYTES if path.name.startswith(AGENT) else share
            if path.name.startswith(PUBLISHER):
                num_publishers += 1
                limit = MOST_BYTES if num_publishers <= PUBLISHERS_DEEP else share
            if num_bytes + min(limit, status.st_size) > BYTES_MAX:
                break
            tails.append(self._tail(path, status, limit))
            num_bytes += min(limit, status.st_size)
        self._deepen(tails)
        self._tails = {tail.path: tail for tail in tails}
        return Heard(tails[::-1], num_bytes, len(found) - len(tails))

    def _tail(self, path: pathlib.Path, status: os.stat_result, limit_bytes: int) -> Tail:
        known = self._tails.get(path)
        if (
            known is not None
            and (known.changed_s, known.num_bytes) == (status.st_mtime, status.st_size)
            and known.limit_bytes >= limit_bytes
        ):
            return known
        events = tail_events(path, limit_bytes)
        return Tail(path, status.st_mtime, status.st_size, limit_bytes, events)

    def _deepen(self, tails: list[Tail]) -> None:
        """Read more of the newest files that have decided something, or whose last line is too long for a tail."""
        deep = 0
        for place, tail in enumerate(tails):
            if tail.num_bytes <= tail.limit_bytes or not (tail.coordinates or not tail.events):
                continue
            deep += 1
            if deep > DEEP_FILES:
                return
            if tail.limit_bytes < DEEP_BYTES:
                events = tail_events(tail.path, DEEP_BYTES)
                tails[place] = Tail(tail.path, tail.changed_s, tail.num_bytes, DEEP_BYTES, events)


def _newest_first(paths: Sequence[pathlib.Path]) -> list[tuple[pathlib.Path, os.stat_result]]:
    found = []
    for path in paths:
        try:
            status = path.stat(follow_symlinks=False)
        except OSError:
            continue  # gone meanwhile
        if stat.S_ISREG(status.st_mode):
            found.append((path, status))
    return sorted(found, key=lambda item: (-item[1].st_mtime, item[0]))
