"""What must hold while processes are killed and afterwards, told from the journals and the bare files alone.

Nothing here asks Holdfast: names, claims and lineages are read by this file's own few lines.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.kill.journal import Reader, digests

_NAME = re.compile(r"c(\d{6})-s(\d{8})-([0-9a-f]{2})[0-9a-f]{6}")
VERSION_BYTES_MAX = 42_000
SLACK = 4 * VERSION_BYTES_MAX  # each of some publishers at once (all but one of them fenced) may add the last that fits
OVERHEAD_BYTES = 2_000  # manifest.json and STABLE of one version
REST_BYTES_MAX = 12_000_000  # a reserve per dead sweeper, records, and a staging place per dead publisher
# What a user may be told when others are killed, frozen or started in its place.
EXPECTED = {
    "publisher": {
        "fenced",  # replaced by a higher round
        "superseded",  # replaced before it had claimed
        "version_gone",  # what it wanted to resume from was swept meanwhile
        "errno_enoent",  # frozen for a lease, or fenced: its staging place was swept
        "lease_lost",  # frozen while it held what it wanted to resume from
    },
    "consumer": {"superseded_consumer", "errno_enoent"},
    "sweeper": {"no_channel", "errno_enoent"},  # before the first publisher has made the channel
}


class Place(NamedTuple):
    """Where a version stands: comparable along one lineage."""

    cycle: int
    step: int
    attempt: int


def place_of(name: str) -> Place:
    match = _NAME.fullmatch(name)
    assert match, name
    return Place(int(match[1]), int(match[2]), int(match[3], 16))


class Claims:
    """The claims of a channel, and which versions descend from which."""

    def __init__(self, channel: pathlib.Path) -> None:
        self.starts: dict[int, Place | None] = {}
        for path in (channel / "cycles").glob("*.json"):
            record = json.loads(path.read_bytes())
            assert record["cycle"] == int(path.stem), path
            self.starts[record["cycle"]] = place_of(record["starts_from"]) if record["starts_from"] else None
        assert sorted(self.starts) == list(range(1, len(self.starts) + 1)), "each claim is the highest + 1"

    @property
    def highest(self) -> int:
        return len(self.starts)

    def descends(self, cycle: int, place: Place) -> bool:
        """Whether the publisher of `cycle` descends from the version at `place`, or made it."""
        last: Place | None = None
        while cycle:
            if place.cycle == cycle:
                return last is None or place <= last
            last = self.starts[cycle]
            cycle = last.cycle if last is not None else 0
        return False

    def follows(self, given: Iterable[str]) -> str | None:
        """Why no rising (followed claim, step) explains that `given` was given in this order; None: one does."""
        followed, before = 1, None
        for name in given:
            place = place_of(name)
            for cycle in range(followed, self.highest + 1):
                if self.descends(cycle, place) and (cycle > followed or before is None or place >= before):
                    followed, before = cycle, place
                    break
            else:
                return f"{name} was given after {before} under claim {followed}"
        return None


@dataclass
class Told:
    """What the journals said so far."""

    reader: Reader
    intents: dict[tuple[int, int], list[dict[str, str]]] = field(default_factory=dict)
    committed: set[str] = field(default_factory=set)
    given: dict[str, list[str]] = field(default_factory=dict)  # process -> versions in the order given
    lives: dict[str, list[float]] = field(default_factory=dict)  # process -> when it said something first and last
    lost_copies: list[tuple[str, str]] = field(default_factory=list)
    count: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def listen(self) -> None:
        """Read on. Consumers first: what they were given was announced by its publisher before."""
        consumers = self.reader.news("consumer")
        for process, lines in (self.reader.news("publisher") | self.reader.news("sweeper")).items():
            for line in lines:
                self._hear(process, line)
        for process, lines in consumers.items():
            for line in lines:
                self._hear(process, line)

    def lost_alone(self) -> Iterator[str]:
        """Copies that went although nobody else had the name: a copy outlives its consumer's lease."""
        for process, version in self.lost_copies:
            own = self.lives[process]
            name = process.rpartition("-")[0]
            twins = [other for other in self.lives if other.rpartition("-")[0] == name and other != process]
            if not any(self.lives[twin][0] < own[-1] and own[0] < self.lives[twin][-1] for twin in twins):
                yield f"{process} lost its copy of {version}, and had its name alone"

    def right(self, name: str, files: dict[str, str]) -> bool:
        """Whether these bytes are what the publisher of version `name` meant it to hold."""
        place = place_of(name)
        return files in self.intents.get((place.cycle, place.step), [])

    def _hear(self, process: str, line: dict[str, Any]) -> None:
        word = line["word"]
        self.lives.setdefault(process, [line["at_s"]])[1:] = [line["at_s"]]
        self.count[word] = self.count.get(word, 0) + 1
        if word == "intends":
            self.intents.setdefault((line["cycle"], line["step"]), []).append(line["files"])
        elif word == "committed":
            self.committed.add(line["name"])
        elif word in ("given", "adopted", "read again"):
            if not self.right(line["version"], line["files"]):
                self.problems.append(f"{process} was {word} wrong bytes: {line}")
            if word == "given":
                self.given.setdefault(process, []).append(line["version"])
        elif word == "lost copy":
            self.lost_copies.append((process, line["version"]))
        elif word == "violation":
            self.problems.append(f"{process}: {line}")
        elif word == "error":
            role = process.partition("-")[0]
            code = f"error {line['code']}"
            self.count[code] = self.count.get(code, 0) + 1
            if line["code"] not in EXPECTED[role]:
                self.problems.append(f"{process}: unexpected error {line}")


class Checker:
    """Checks one channel; `problems` says what was found wrong."""

    def __init__(self, channel: pathlib.Path, told: Told, *, keep_recent: int, max_bytes: int) -> None:
        self._channel = channel
        self._told = told
        self._keep_recent = keep_recent
        self._max_bytes = max_bytes
        self._retained: tuple[int, set[str]] = (0, set())
        self._right: set[str] = set()
        self.bytes_max = 0
        self.payload_max = 0
        self.versions_max = 0

    def while_they_run(self) -> list[str]:
        """Nothing torn, nothing lost, disk use bounded. Versions come and go meanwhile."""
        if not (self._channel / "channel.json").exists():
            return []
        self._told.listen()
        committed = set(self._told.committed)
        names = self._versions()
        claims = Claims(self._channel)
        found = [*self._told.problems, *self._lost(committed, names, claims), *self._not_retained(names, claims)]
        self._told.listen()  # what has been committed since is known now
        found += self._torn(names - self._right)
        found += self._too_much()
        self.versions_max = max(self.versions_max, len(names))
        return found

    def at_rest(self) -> list[str]:
        """The same once everybody is dead; then each version is read anew."""
        self._right.clear()
        return [*self.while_they_run(), *self._order(), *self._told.lost_alone()]

    def swept(self) -> list[str]:
        """After one thorough sweep with nobody alive: what retention keeps is there, and nothing else at all."""
        claims = Claims(self._channel)
        names = self._versions()
        line = _line(names, claims)
        announced = self._announced() & names
        wanted = {*line[: self._keep_recent], *[name for name in line if name not in announced][:1]}
        found = [f"{name} is there, and nobody needs it" for name in sorted(names - wanted)]
        found += self._not_retained(names, claims)
        for path in self._channel.rglob("*"):
            where = path.relative_to(self._channel)
            if path.is_symlink() and not path.exists():
                found.append(f"{where} leads nowhere")
            elif (
                ".tmp-" in path.name
                or (where.parts[0] in ("staging", "consumers") and len(where.parts) > 1)
                or (where.parts[0] == "sweepers" and len(where.parts) > 1 and not announced)
            ):
                found.append(f"{where} was left behind")
        return found

    def newest(self) -> str | None:
        """What a fresh consumer has to be given."""
        claims, announced = Claims(self._channel), self._announced()
        return next(iter(_line(self._versions() - announced, claims)), None)

    def _order(self) -> list[str]:
        """I3: for each life of a consumer, (followed claim, step) never fell."""
        claims = Claims(self._channel)
        reasons = ((process, claims.follows(given)) for process, given in sorted(self._told.given.items()))
        return [f"{process}: {reason}" for process, reason in reasons if reason is not None]

    def _lost(self, committed: set[str], names: set[str], claims: Claims) -> Iterator[str]:
        newest = _line(committed, claims)[:1]
        there = _line(names, claims)[:1]
        if newest and (not there or place_of(there[0]) < place_of(newest[0])):
            yield f"{newest[0]} was committed, is the newest of cycle {claims.highest}, and is gone: {there}"

    def _not_retained(self, names: set[str], claims: Claims) -> Iterator[str]:
        """What was among the newest at the last look, and is no longer there although no newer ones came."""
        highest, before = self._retained
        self._retained = (claims.highest, names)
        if highest != claims.highest:
            return  # another lineage: what is among the newest now may have gone before
        for name in _line(before, claims)[: self._keep_recent]:
            newer = [other for other in _line(names, claims) if place_of(other) > place_of(name)]
            if name not in names and len(newer) < self._keep_recent:
                yield f"{name} was retained, and is gone; newer are {newer}"

    def _torn(self, names: set[str]) -> Iterator[str]:
        """Versions whose files are not what was meant; one that is retired while it is read is none."""
        for name in sorted(names):
            directory = self._channel / "versions" / name
            try:
                files = digests(directory)
                whole = (directory / "manifest.json").exists() and (directory / "STABLE").exists()
            except FileNotFoundError:
                files, whole = {}, False
            if whole and self._told.right(name, files):
                self._right.add(name)
            elif name in self._versions():
                yield f"{name} is torn: {files}"

    def _versions(self) -> set[str]:
        return {path.name for path in (self._channel / "versions").iterdir()}

    def _announced(self) -> set[str]:
        """What stands in any sweeper's file as going."""
        announced: set[str] = set()
        for path in (self._channel / "sweepers").glob("*.json"):
            announced |= set(json.loads(path.read_bytes())["tombstones"])
        return announced

    def _too_much(self) -> Iterator[str]:
        """Disk use is bounded: payload by `max_bytes`, the rest by what the dead may leave for a while."""
        payload, rest = 0, 0
        for directory, _, files in os.walk(self._channel):  # which takes no offence at what vanishes meanwhile
            counts = "/versions/" in directory
            for name in files:
                with suppress(FileNotFoundError):
                    size = os.lstat(os.path.join(directory, name)).st_size
                    payload, rest = payload + size * counts, rest + size * (not counts)
        self.bytes_max = max(self.bytes_max, payload + rest)
        self.payload_max = max(self.payload_max, payload)
        if payload > self._max_bytes + SLACK + OVERHEAD_BYTES * len(self._versions()) or rest > REST_BYTES_MAX:
            yield f"{payload} bytes in versions and {rest} bytes elsewhere are on disk"


def _line(names: Iterable[str], claims: Claims) -> list[str]:
    """Those in the lineage of the highest claim, newest first."""
    return sorted((n for n in names if claims.descends(claims.highest, place_of(n))), key=place_of, reverse=True)
