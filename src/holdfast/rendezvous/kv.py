"""The key-value store that membership needs: a small contract, several stores, one conformance suite.

Three kinds of keys, which never mix:

    cell         `control`: changed by compare-and-set alone, so that of many writers one wins, and all learn of it
    listed       `put_listed(collection, name, …)`: found again by `list_all(collection)`; one writer for each name
    plain        `put(…)`: found by those who know the key; written before the cell that names it, then never changed

Every call is over within a few seconds, whatever the network does, so that any thread may make it. Nothing here waits
for another participant. A write that raised UnavailableError may or may not have happened; each of them can be repeated
but `compare_and_set`, whose caller stamps what it writes and reads it back.

Keys, collections and names are text of at most KEY_BYTES_MAX bytes in UTF-8, not empty, without a line break. Values
are at most VALUE_BYTES_MAX bytes (etcd takes 1.5 MiB as a request): a longer list is put in pieces, under several keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from holdfast.errors import UsageError

VALUE_BYTES_MAX = 2**20
KEY_BYTES_MAX = 1024


class Cell(msgspec.Struct, frozen=True):
    """What stands in a cell. `revision` grows with every change of it."""

    value: bytes
    revision: int


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """What a store is like.

    Attributes:
        kind: "tcp" or "etcd", for people.
        survives: it outlives the loss of any one node; if not, a store that is lost stays lost.
        look_s: how often a participant of a small job looks whether a cell has changed (seconds). Large where `watch`
            tells of changes by itself.
    """

    kind: str
    survives: bool
    look_s: float


class KeyValueStore(Protocol):
    """One client of a store, for use by several threads. All keys are below the prefix that it was opened with.

    Every method raises:
        UnavailableError: not now: try again (code "store_unavailable"), or never again (code "store_lost").
        UsageError: code "store_rights": this user may not; code "bad_key" or "value_too_large". Codes "bad_endpoint",
            "not_a_store" … come when the store is opened.
    """

    @property
    def traits(self) -> Traits: ...

    def read(self, cell: str) -> Cell | None:
        """What stands in the cell now; None: it was never set."""
        ...

    def newer(self, cell: str, revision: int) -> Cell | None:
        """The cell if it stands at another revision than this one; None: it does not. Cheaper than `read`."""
        ...

    def compare_and_set(self, cell: str, expected: int, value: bytes) -> Cell:
        """Set the cell if it stands at revision `expected` (0: never set). What stands there now, ours or not.

        Durability: once it returned ours, everybody who reads sees it, or a later one.
        """
        ...

    def watch(self, cell: str, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` soon after the cell changes; also now and then without a change, and some stores never do
        (`Traits.look_s`). It may be called by any thread, the writer's own too, so it neither blocks nor raises; an
        event's `set` is what is meant. Returns what ends it."""
        ...

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The values of those plain keys that are there."""
        ...

    def put(self, values: Mapping[str, bytes]) -> None:
        """Set plain keys. Not all at once."""
        ...

    def put_listed(self, collection: str, name: str, value: bytes) -> None:
        """Set what is called `name` in the collection, now listed there."""
        ...

    def list_all(self, collection: str) -> dict[str, bytes]:
        """All of the collection by name, each value as it was at some time during this call."""
        ...

    def get_listed(self, collection: str, names: Iterable[str]) -> dict[str, bytes]:
        """Those of these names that are in the collection. Cheaper than `list_all` where most are known."""
        ...

    def names(self, collection: str) -> frozenset[str]:
        """The names in the collection."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove plain keys; those that are not there, too."""
        ...

    def drop(self, collection: str) -> None:
        """Remove the whole collection, once nobody puts into it any more."""
        ...

    def tidy(self) -> None:
        """Let go of what the store keeps of the past; the coordinator calls it every minute or so."""
        ...

    def close(self) -> None: ...


def check_key(*texts: str) -> None:
    """UsageError code "bad_key": one of these cannot be a key, a collection or a name."""
    for text in texts:
        if not text or "\n" in text or len(text.encode()) > KEY_BYTES_MAX:
            raise UsageError(
                f"{text[:80]!r} is no key", code="bad_key", hint=f"1 to {KEY_BYTES_MAX} bytes without a line break"
            )


def check_value(value: bytes) -> None:
    """UsageError code "value_too_large"."""
    if len(value) > VALUE_BYTES_MAX:
        raise UsageError(
            f"a value of {len(value)} bytes is too long for a store",
            code="value_too_large",
            hint=f"put it in pieces of at most {VALUE_BYTES_MAX} bytes",
        )
