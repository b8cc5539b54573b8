"""A store within one process: for tests, and for what runs on one machine in threads.

`MemoryServer` holds what is stored and can be told to fail as real ones do: `away` (nobody is served), `lose` (for
good), `lose_answer` (the next change is made, but its writer is not told).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import NoReturn

from holdfast.errors import UnavailableError
from holdfast.rendezvous.kv import Cell, Traits, check_key, check_value

TRAITS = Traits(kind="memory", survives=False, look_s=0.05)


class MemoryServer:
    """What its clients share. Attribute `away`: while it is set, every call raises UnavailableError."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cells: dict[str, Cell] = {}
        self.plain: dict[str, bytes] = {}
        self.listed: dict[str, dict[str, bytes]] = {}
        self.watchers: dict[str, list[Callable[[], None]]] = {}
        self.away = False
        self._lost = False
        self._answers_to_lose = 0

    def connect(self, prefix: str = "") -> MemoryStore:
        return MemoryStore(self, prefix)

    def lose(self) -> None:
        """From now on the store is gone for good."""
        self._lost = True

    def lose_answer(self) -> None:
        """The next change is made, and its writer gets UnavailableError."""
        self._answers_to_lose += 1

    def serve(self) -> None:
        """Raises if nobody is served now; the lock is held."""
        if self._lost:
            raise UnavailableError("the store in memory is gone", code="store_lost")
        if self.away:
            raise UnavailableError("the store in memory does not answer", code="store_unavailable")

    def answer(self) -> None:
        """Raises if the answer to the change that was just made is to be lost; the lock is held."""
        if self._answers_to_lose:
            self._answers_to_lose -= 1
            raise UnavailableError("the answer of the store in memory was lost", code="store_unavailable")


class MemoryStore:
    """One client of a MemoryServer; see `KeyValueStore`."""

    def __init__(self, server: MemoryServer, prefix: str = "") -> None:
        self._server = server
        self._prefix = f"{prefix}\n"
        self._closed = False

    @property
    def traits(self) -> Traits:
        return TRAITS

    def _enter(self) -> None:
        if self._closed:
            _closed()
        self._server.serve()

    def read(self, cell: str) -> Cell | None:
        check_key(cell)
        with self._server.lock:
            self._enter()
            return self._server.cells.get(self._prefix + cell)

    def newer(self, cell: str, revision: int) -> Cell | None:
        found = self.read(cell)
        return None if found is None or found.revision == revision else found

    def compare_and_set(self, cell: str, expected: int, value: bytes) -> Cell:
        check_key(cell)
        check_value(value)
        key, server = self._prefix + cell, self._server
        watchers: list[Callable[[], None]] = []
        try:
            with server.lock:
                self._enter()
                found = server.cells.get(key)
                if found is not None and found.revision != expected:
                    return found
                if found is None and expected != 0:
                    raise UnavailableError(f"{cell} has never been set", code="store_lost")
                ours = Cell(bytes(value), expected + 1)
                server.cells[key] = ours
                watchers += server.watchers.get(key, ())
                server.answer()
        finally:
            for changed in watchers:
                changed()
        return ours

    def watch(self, cell: str, changed: Callable[[], None]) -> Callable[[], None]:
        check_key(cell)
        with self._server.lock:
            watchers = self._server.watchers.setdefault(self._prefix + cell, [])
            watchers.append(changed)

        def end() -> None:
            with self._server.lock, suppress(ValueError):  # it was ended already
                watchers.remove(changed)

        return end

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        wanted = list(keys)
        check_key(*wanted)
        with self._server.lock:
            self._enter()
            plain = self._server.plain
            return {key: plain[self._prefix + key] for key in wanted if self._prefix + key in plain}

    def put(self, values: Mapping[str, bytes]) -> None:
        check_key(*values)
        for value in values.values():
            check_value(value)
        with self._server.lock:
            self._enter()
            self._server.plain.update({self._prefix + key: bytes(value) for key, value in values.items()})
            self._server.answer()

    def put_listed(self, collection: str, name: str, value: bytes) -> None:
        check_key(collection, name)
        check_value(value)
        with self._server.lock:
            self._enter()
            self._server.listed.setdefault(self._prefix + collection, {})[name] = bytes(value)
            self._server.answer()

    def list_all(self, collection: str) -> dict[str, bytes]:
        check_key(collection)
        with self._server.lock:
            self._enter()
            return dict(self._server.listed.get(self._prefix + collection, {}))

    def get_listed(self, collection: str, names: Iterable[str]) -> dict[str, bytes]:
        wanted = frozenset(names)
        check_key(*wanted)
        return {name: value for name, value in self.list_all(collection).items() if name in wanted}

    def names(self, collection: str) -> frozenset[str]:
        return frozenset(self.list_all(collection))

    def delete(self, keys: Iterable[str]) -> None:
        wanted = list(keys)
        check_key(*wanted)
        with self._server.lock:
            self._enter()
            for key in wanted:
                self._server.plain.pop(self._prefix + key, None)
            self._server.answer()

    def drop(self, collection: str) -> None:
        check_key(collection)
        with self._server.lock:
            self._enter()
            self._server.listed.pop(self._prefix + collection, None)
            self._server.answer()

    def tidy(self) -> None:
        with self._server.lock:
            self._enter()

    def close(self) -> None:
        self._closed = True


def _closed() -> NoReturn:
    raise UnavailableError("this client of the store was closed", code="store_lost")
