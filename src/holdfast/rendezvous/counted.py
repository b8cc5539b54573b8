"""A store whose calls are counted: a listener is told each one's name, how long it took, and whether it failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from holdfast.rendezvous.kv import Cell, KeyValueStore, Traits


class CountedStore:
    """Does what `store` does. `told(call, seconds, ok)` is called by whoever made the call."""

    def __init__(self, store: KeyValueStore, told: Callable[[str, float, bool], None]) -> None:
        self._store = store
        self._told = told

    @property
    def traits(self) -> Traits:
        return self._store.traits

    def read(self, cell: str) -> Cell | None:
        with self._timed("read"):
            return self._store.read(cell)

    def newer(self, cell: str, revision: int) -> Cell | None:
        with self._timed("newer"):
            return self._store.newer(cell, revision)

    def compare_and_set(self, cell: str, expected: int, value: bytes) -> Cell:
        with self._timed("compare_and_set"):
            return self._store.compare_and_set(cell, expected, value)

    def watch(self, cell: str, changed: Callable[[], None]) -> Callable[[], None]:
        return self._store.watch(cell, changed)

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        with self._timed("get"):
            return self._store.get(keys)

    def put(self, values: Mapping[str, bytes]) -> None:
        with self._timed("put"):
            self._store.put(values)

    def put_listed(self, collection: str, name: str, value: bytes) -> None:
        with self._timed("put_listed"):
            self._store.put_listed(collection, name, value)

    def list_all(self, collection: str) -> dict[str, bytes]:
        with self._timed("list_all"):
            return self._store.list_all(collection)

    def get_listed(self, collection: str, names: Iterable[str]) -> dict[str, bytes]:
        with self._timed("get_listed"):
            return self._store.get_listed(collection, names)

    def names(self, collection: str) -> frozenset[str]:
        with self._timed("names"):
            return self._store.names(collection)

    def delete(self, keys: Iterable[str]) -> None:
        with self._timed("delete"):
            self._store.delete(keys)

    def drop(self, collection: str) -> None:
        with self._timed("drop"):
            self._store.drop(collection)

    def tidy(self) -> None:
        with self._timed("tidy"):
            self._store.tidy()

    def close(self) -> None:
        self._store.close()

    @contextmanager
    def _timed(self, call: str) -> Iterator[None]:
        began_s = time.monotonic()
        ok = False
        try:
            yield
            ok = True
        finally:
            self._told(call, time.monotonic() - began_s, ok)
