"""The places that channels are tested on."""

from __future__ import annotations

import pathlib

import pytest

from tests.support.channels import Place


@pytest.fixture(params=["memory", "posix"])
def place(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Place:
    """One channel's place, on a directory and on an object store."""
    return Place(request.param, tmp_path / "channel")


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> Place:
    """A place on a directory."""
    return Place("posix", tmp_path / "channel")
