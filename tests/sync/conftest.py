"""A channel, fake servers and sync processes for one test; all of them end with it."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.syncing import Scene


@pytest.fixture
def scene(tmp_path: pathlib.Path) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(tmp_path, stack, sys.executable)
