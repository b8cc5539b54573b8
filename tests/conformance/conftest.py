"""The storages that the suite runs over, each as two objects that stand for two processes."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from holdfast.channel.memory import MemoryStorage, MemoryStore
from holdfast.channel.posix import PosixStorage
from holdfast.channel.storage import Storage
from holdfast.testing import SimulatedDisk

DIRECTORIES = ("cycles", "versions", "staging", "consumers", "sweepers", "pins")


def _posix(path: pathlib.Path) -> Callable[[], Storage]:
    return lambda: PosixStorage(path / "channel")


def _simulated(path: pathlib.Path) -> Callable[[], Storage]:
    disk = SimulatedDisk()
    return lambda: PosixStorage("/channel", ops=disk)


def _memory(path: pathlib.Path) -> Callable[[], Storage]:
    store = MemoryStore()
    return lambda: MemoryStorage(store)


KINDS = {"posix": _posix, "simulated": _simulated, "memory": _memory}


@dataclass
class World:
    """One channel's storage as two processes open it, and a way to open it once more."""

    kind: str
    open: Callable[[], Storage]
    storage: Storage
    other: Storage


@pytest.fixture(params=sorted(KINDS))
def world(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> World:
    make = KINDS[request.param](tmp_path)
    storage = make()
    storage.make_directory("")
    for name in DIRECTORIES:
        storage.make_directory(name)
    return World(request.param, make, storage, make())
