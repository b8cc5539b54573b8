"""The places that channels are tested on."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from tests.support.channels import Place, quick_directory


@pytest.fixture
def room(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory for a channel and its neighbours, in memory where there is one: nothing here is about power cuts."""
    with quick_directory(tmp_path) as directory:
        yield directory


@pytest.fixture(params=["memory", "posix"])
def place(request: pytest.FixtureRequest, room: pathlib.Path) -> Place:
    """One channel's place, on a directory and on an object store."""
    return Place(request.param, room / "channel")


@pytest.fixture
def directory(room: pathlib.Path) -> Place:
    """A place on a directory."""
    return Place("posix", room / "channel")
