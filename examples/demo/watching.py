"""What the director sees of the run: the channel, and what all processes say in their event files."""

from __future__ import annotations

import pathlib

import msgspec

import holdfast
from examples.rl.config import Run
from holdfast.core.names import Version, parse_version
from holdfast.events import Event


class Watch:
    """Reads each line of each event file once."""

    def __init__(self, run: Run, channel: pathlib.Path) -> None:
        self.run = run
        self.path = channel
        self.channel = holdfast.Channel(channel)
        self.channel.open()
        self._read_bytes: dict[pathlib.Path, int] = {}
        self._events: list[Event] = []

    def events(self, *names: str, since: int = 0) -> list[Event]:
        """Those of these names, from position `since` on, in the order in which they were found."""
        for path in sorted((self.path / "events").glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read_bytes.get(path, 0))
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read_bytes[path] = self._read_bytes.get(path, 0) + len(whole)
            self._events += [msgspec.json.decode(line, type=Event) for line in whole.splitlines()]
        return [event for event in self._events[since:] if not names or event.event in names]

    @property
    def mark(self) -> int:
        """Where `events(since=…)` begins to tell what happens from now on."""
        self.events()
        return len(self._events)

    def published(self, *, since: int = 0) -> list[Version]:
        told = self.events("published", since=since)
        return [version for event in told if (version := parse_version(event.version or "")) is not None]

    def newest(self) -> Version | None:
        """The newest version of the highest cycle."""
        return max(self.published(), key=lambda version: (version.cycle, version.step), default=None)

    def reached(self, step: int) -> bool:
        """Whether the trainer is at this step or beyond."""
        newest = self.newest()
        return newest is not None and newest.step >= step

    def held_by(self, name: str) -> set[str]:
        """What this consumer holds, as its file in the channel says."""
        seen = self.channel.observer().consumers()
        return {hold for life, each in seen.items() if life.name == name and each.record for hold in each.record.holds}

    def there(self) -> set[str]:
        """The versions that lie in the channel."""
        return {str(version) for version in self.channel.observer().versions()}
