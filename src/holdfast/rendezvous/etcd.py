"""The store that outlives any node: etcd, over its HTTP/JSON gateway.

A cell's revision is the `mod_revision` of its key; compare-and-set is a transaction that reads back what stands there
where it loses. What one participant puts into a collection is compared too, with the revision of what it put there
before, so that a request that an endpoint held back for a while can't bring back what was replaced meanwhile.

Beats are ordinary puts. Each leaves a revision behind, so `tidy` compacts: up to where the store stood at the previous
call, that everybody who looks back a little still can.
"""

from __future__ import annotations

import base64
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from holdfast.errors import UnavailableError, UsageError
from holdfast.rendezvous.etcd_http import EtcdOptions, Gateway, not_etcd
from holdfast.rendezvous.etcd_watch import EtcdWatch
from holdfast.rendezvous.kv import KEY_BYTES_MAX, Cell, Traits, check_key, check_value

__all__ = ["EtcdOptions", "EtcdStore", "open_etcd"]

TRAITS = Traits(kind="etcd", survives=True, look_s=1.0)
TXN_OPERATIONS = 100  # etcd's own limit is 128
TXN_BYTES = 2**20
PAGE = 1000
LIST_RATHER = 2000  # names, from which on a whole collection of 10 000 comes sooner than they do one by one
WRITER_TRIES = 5
VERSION_S = 1.5
AGAIN_S = 0.3
STRANGER_S = 3.0
logger = logging.getLogger(__name__)

T = TypeVar("T")


class _Header(msgspec.Struct):
    revision: int = 0


class _Pair(msgspec.Struct):
    key: str = ""
    value: str = ""
    mod_revision: int = 0


class _Range(msgspec.Struct):
    header: _Header = msgspec.field(default_factory=_Header)
    kvs: list[_Pair] = []
    more: bool = False


class _Response(msgspec.Struct):
    response_range: _Range | None = None


class _Txn(msgspec.Struct):
    header: _Header = msgspec.field(default_factory=_Header)
    succeeded: bool = False
    responses: list[_Response] = []


class _Done(msgspec.Struct):
    pass


class _Version(msgspec.Struct):
    etcdserver: str


class EtcdStore:
    """One client of an etcd; see `KeyValueStore`. Made by `open_etcd`."""

    def __init__(self, gateway: Gateway, prefix: str, *, compact: bool) -> None:
        self._gateway = gateway
        self._prefix = f"{prefix}\n".encode()
        self._compact = compact
        self._tidied = 0
        self._lock = threading.Lock()
        self._watches: list[EtcdWatch] = []
        self._revisions: dict[bytes, int] = {}
        self._closed = False

    @property
    def traits(self) -> Traits:
        return TRAITS

    # --- cells

    def read(self, cell: str) -> Cell | None:
        found = self._range(_range(self._key("cell", cell))).kvs
        return _cell(found[0]) if found else None

    def newer(self, cell: str, revision: int) -> Cell | None:
        request = _range(self._key("cell", cell)) | {"min_mod_revision": str(revision + 1)}
        found = self._range(request).kvs
        return _cell(found[0]) if found else None

    def compare_and_set(self, cell: str, expected: int, value: bytes) -> Cell:
        check_value(value)
        answer = self._swap(self._key("cell", cell), expected, value, idempotent=False)
        if answer.succeeded:
            return Cell(bytes(value), answer.header.revision)
        stands = _found(answer)
        if not stands:
            raise UnavailableError(f"etcd at {self._gateway.name} has lost what {cell} said", code="store_lost")
        return _cell(stands[0])

    def watch(self, cell: str, changed: Callable[[], None]) -> Callable[[], None]:
        watch = EtcdWatch(self._gateway, _text(self._key("cell", cell)), changed)
        with self._lock:
            self._watches.append(watch)

        def end() -> None:
            watch.end()
            with self._lock:
                if watch in self._watches:
                    self._watches.remove(watch)

        return end

    def _swap(self, key: bytes, expected: int, value: bytes, *, idempotent: bool) -> _Txn:
        body = {
            "compare": [{"key": _text(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(expected)}],
            "success": [{"request_put": {"key": _text(key), "value": _text(value)}}],
            "failure": [{"request_range": _range(key)}],
        }
        return self._call("/v3/kv/txn", body, _Txn, idempotent=idempotent)

    # --- plain keys

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        return self._get({key: self._key("plain", key) for key in keys})

    def put(self, values: Mapping[str, bytes]) -> None:
        for value in values.values():
            check_value(value)
        pairs = [(self._key("plain", key), value) for key, value in values.items()]
        for chunk in _chunks(pairs):
            puts = [{"request_put": {"key": _text(key), "value": _text(value)}} for key, value in chunk]
            self._call("/v3/kv/txn", {"success": puts}, _Txn)

    def delete(self, keys: Iterable[str]) -> None:
        pairs = [(self._key("plain", key), b"") for key in keys]
        for chunk in _chunks(pairs):
            gone = [{"request_delete_range": {"key": _text(key)}} for key, _ in chunk]
            self._call("/v3/kv/txn", {"success": gone}, _Done)

    # --- collections

    def put_listed(self, collection: str, name: str, value: bytes) -> None:
        check_value(value)
        key = self._key("listed", collection, name)
        expected = self._revisions.get(key, 0)
        for _ in range(WRITER_TRIES):
            answer = self._swap(key, expected, value, idempotent=True)
            if answer.succeeded:
                self._revisions[key] = answer.header.revision
                return
            stands = _found(answer)
            expected = stands[0].mod_revision if stands else 0
            if stands and base64.b64decode(stands[0].value) == value:  # ours, whose answer was lost
                self._revisions[key] = expected
                return
        raise UnavailableError(f"{name} in {collection} has other writers", code="store_unavailable")

    def list_all(self, collection: str) -> dict[str, bytes]:
        return {name: base64.b64decode(pair.value) for name, pair in self._pages(collection)}

    def get_listed(self, collection: str, names: Iterable[str]) -> dict[str, bytes]:
        keys = {name: self._key("listed", collection, name) for name in names}
        if len(keys) <= LIST_RATHER:
            return self._get(keys)
        return {name: value for name, value in self.list_all(collection).items() if name in keys}

    def names(self, collection: str) -> frozenset[str]:
        return frozenset(name for name, _ in self._pages(collection, keys_only=True))

    def drop(self, collection: str) -> None:
        start = self._key("listed", collection) + b"\n"
        self._call("/v3/kv/deleterange", {"key": _text(start), "range_end": _text(_after(start))}, _Done)
        self._revisions = {key: at for key, at in self._revisions.items() if not key.startswith(start)}

    def _pages(self, collection: str, *, keys_only: bool = False) -> Iterator[tuple[str, _Pair]]:
        start = self._key("listed", collection) + b"\n"
        key, end = start, _after(start)
        while True:
            request = _range(key) | {"range_end": _text(end), "limit": str(PAGE), "keys_only": keys_only}
            page = self._range(request)
            for pair in page.kvs:
                key = base64.b64decode(pair.key)
                yield key[len(start) :].decode(), pair
            if not page.more or not page.kvs:
                return
            key += b"\0"

    # --- the rest

    def tidy(self) -> None:
        now = self._range(_range(self._prefix) | {"count_only": True}).header.revision
        before, self._tidied = self._tidied, now
        if not self._compact or not 0 < before < now:
            return
        try:
            self._call("/v3/kv/compaction", {"revision": str(before)}, _Done)
        except UsageError as error:
            self._compact = False
            logger.warning("etcd's history is not compacted, its own setting will have to do: %s", error)
        except UnavailableError as error:
            if "has been compacted" not in str(error):
                raise

    def close(self) -> None:
        self._closed = True
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.end()
        self._gateway.close()

    def _key(self, kind: str, *names: str) -> bytes:
        check_key(*names)
        return b"\n".join((self._prefix + kind.encode(), *(name.encode() for name in names)))

    def _get(self, keys: dict[str, bytes]) -> dict[str, bytes]:
        wanted = {key: name for name, key in keys.items()}
        found: dict[str, bytes] = {}
        for chunk in _chunks([(key, b"") for key in wanted]):
            asks = [{"request_range": _range(key)} for key, _ in chunk]
            for pair in _found(self._call("/v3/kv/txn", {"success": asks}, _Txn)):
                found[wanted[base64.b64decode(pair.key)]] = base64.b64decode(pair.value)
        return found

    def _range(self, request: dict[str, Any]) -> _Range:
        return self._call("/v3/kv/range", request, _Range)

    def _call(self, path: str, body: object, kind: type[T], *, idempotent: bool = True) -> T:
        if self._closed:
            raise UnavailableError("this client of the store was closed", code="store_lost")
        return self._gateway.call(path, body, kind, idempotent=idempotent)


def open_etcd(options: EtcdOptions, prefix: str, *, timeout_s: float = 10.0) -> EtcdStore:
    """A client of the etcd at `options.endpoints`; its keys lie below `prefix`.

    Args:
        timeout_s: how long to ask again while nobody answers (seconds).

    Raises:
        UsageError: code "bad_endpoint", "not_a_store", "etcd_version", "store_rights", "bad_certificate",
            "bad_password_file".
        UnavailableError: code "store_unavailable": nobody answered in time.
    """
    if "\n" in prefix or len(prefix.encode()) > KEY_BYTES_MAX:
        raise UsageError(f"{prefix[:80]!r} is no prefix", code="bad_key", hint="one line, not too long")
    gateway = Gateway(options)
    store = EtcdStore(gateway, prefix, compact=options.compact)
    began_s = time.monotonic()
    while True:
        try:
            _check_versions(gateway)
            store.read("control")
            return store
        except UnavailableError as error:
            waited_s = time.monotonic() - began_s
            if error.fields.get("hung_up") and waited_s > min(STRANGER_S, timeout_s):
                store.close()
                raise not_etcd(gateway.name, "it hangs up") from error
            if waited_s + AGAIN_S >= timeout_s:
                store.close()
                raise
        except UsageError:
            store.close()
            raise
        time.sleep(AGAIN_S)


def _check_versions(gateway: Gateway) -> None:
    """Each member that answers runs a version that keeps what it is given."""
    failed: UnavailableError | UsageError | None = None
    answered = 0
    for endpoint in gateway.endpoints:
        try:
            said = gateway.ask(endpoint, "/version", _Version, limit_s=VERSION_S).etcdserver
        except UnavailableError as error:
            failed = error
            continue
        answered += 1
        version = tuple(int(number) for number in re.findall(r"\d+", said)[:3])
        if (3, 5, 0) <= version <= (3, 5, 2):
            raise UsageError(
                f"etcd {said} at {endpoint} can become inconsistent when it is killed, without saying so",
                code="etcd_version",
                hint="use 3.5.6 or newer, or 3.4",
            )
        if version < (3, 4):
            raise UsageError(f"etcd {said} at {endpoint} is too old", code="etcd_version", hint="use 3.4 or newer")
    if not answered and failed is not None:
        raise failed


def _found(answer: _Txn) -> list[_Pair]:
    return [pair for response in answer.responses if response.response_range for pair in response.response_range.kvs]


def _cell(pair: _Pair) -> Cell:
    return Cell(base64.b64decode(pair.value), pair.mod_revision)


def _range(key: bytes) -> dict[str, Any]:
    return {"key": _text(key)}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _after(start: bytes) -> bytes:
    """The first key that does not begin with `start`, which ends in a line break."""
    return start[:-1] + bytes([start[-1] + 1])


def _chunks(pairs: list[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    chunk: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in pairs:
        length = len(key) + len(value)
        if chunk and (size + length > TXN_BYTES or len(chunk) >= TXN_OPERATIONS):
            yield chunk
            chunk, size = [], 0
        chunk.append((key, value))
        size += length
    if chunk:
        yield chunk
