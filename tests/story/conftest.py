"""Event files as some process would have written them, and what is gathered from them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from holdfast.eventfiles import find_event_files
from holdfast.story.gather import gather
from holdfast.story.run import Lane, Run
from tests.support.manyevents import File
from tests.support.places import directory, room

__all__ = ["directory", "room"]

BOOT_S = 1_795_000_000.0


class Scene:
    """A directory of event files. Times are seconds since the scene began."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.start_s = BOOT_S + 1000.0
        self._files: list[File] = []

    def file(self, process: str, *, boot_s: float = BOOT_S) -> Callable[..., None]:
        """A file of `process`; call what is given with the time, the event's name, and more."""
        file = File(self.directory, process, boot_s)
        self._files.append(file)
        return lambda at_s, event, *words, **fields: file.say(self.start_s + at_s, event, *words, **fields)

    def write(self) -> list[pathlib.Path]:
        """The event files, written."""
        for number, file in enumerate(self._files):
            file.close(number)
        self._files.clear()
        return find_event_files([self.directory])

    def run(self) -> Run:
        return gather(self.write())

    def bars(self, run: Run, lane: str, kind: str) -> list[tuple[float, float]]:
        """(start, end) of the bars of a kind, in seconds of the scene."""
        return [
            (round(bar[0] - self.start_s, 3), round(bar[1] - self.start_s, 3))
            for bar in self.lane(run, lane).bars.get(kind, [])
        ]

    def lane(self, run: Run, name: str) -> Lane:
        (found,) = [lane for lane in run.lanes if lane.name == name]
        return found


@pytest.fixture
def scene(tmp_path: pathlib.Path) -> Scene:
    return Scene(tmp_path)
