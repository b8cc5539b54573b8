"""Reading the channel: fresh listings first, then the records that they show.

What lies there is untrusted. A name that does not parse is nobody's and is left alone; a record that cannot be
read is reported as None, and whoever decides takes the careful side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from holdfast.channel.storage import Storage
from holdfast.core.lineage import Claim, Lineage, trace
from holdfast.core.names import (
    Incarnation,
    Version,
    beat_path,
    claim_path,
    parse_claim,
    parse_incarnation,
    parse_version,
)
from holdfast.core.records import (
    RECORD_BYTES_MAX,
    BeatRecord,
    ClaimRecord,
    ConsumerRecord,
    SweeperRecord,
    decode,
)
from holdfast.errors import IntegrityError, NotVisibleError

CURRENT = "CURRENT"
READ_TRIES = 10


T = TypeVar("T")
K = TypeVar("K")
R = TypeVar("R", ClaimRecord, BeatRecord, ConsumerRecord, SweeperRecord)


class Seen(msgspec.Struct, Generic[T], frozen=True):
    """One participant's file: its record, or None if it cannot be read; `token` changes whenever the bytes do."""

    record: T | None
    token: object


class Observer:
    """Reads one channel. Immutable things (claims) are kept once they were read; not safe for several threads."""

    def __init__(self, store: Storage, claims: Storage) -> None:
        self._store = store
        self._claims = claims
        self._known: dict[int, Claim] = {}
        self._names: frozenset[str] | None = None  # in the channel's directory, at the last listing

    def cycles(self) -> tuple[int, ...]:
        """All cycles with a claim, ascending, by a fresh listing of the channel and of cycles/."""
        self._names = frozenset(entry.name for entry in self._store.list(""))
        cycles = {parse_claim(entry.name) for entry in self._store.list("cycles") if entry.kind == "file"}
        return tuple(sorted(cycle for cycle in cycles if cycle is not None))

    def claim(self, cycle: int) -> Claim:
        """The claim of `cycle`, which a listing showed."""
        known = self._known.get(cycle)
        if known is not None:
            return known
        record = self._record(self._store, claim_path(cycle), ClaimRecord).record
        if record is None or record.cycle != cycle:
            return Claim(cycle, None, None)
        starts_from = parse_version(record.starts_from) if record.starts_from is not None else None
        if record.starts_from is not None and starts_from is None:
            return Claim(cycle, None, None)
        claim = Claim(cycle, record.term, starts_from)
        self._known[cycle] = claim
        return claim

    def claims(self) -> tuple[Claim, ...]:
        """Every claim of the channel."""
        return tuple(self.claim(cycle) for cycle in self.cycles())

    def lineage(self) -> Lineage:
        """The lineage of the highest claim; reads only the claims along it."""
        chain: list[Claim] = []
        cycle = max(self.cycles(), default=0)
        while cycle:
            claim = self.claim(cycle)
            chain.append(claim)
            start = claim.starts_from
            cycle = start.cycle if start is not None and start.cycle < claim.cycle else 0
        return trace(tuple(chain))

    def versions(self) -> frozenset[Version]:
        """The committed versions, by a fresh listing."""
        return frozenset(v for name in self._store.list_trees() if (v := parse_version(name)) is not None)

    def current(self) -> Version | None:
        """What CURRENT names: a hint, as of the last look at the claims (which lists the channel)."""
        if self._names is None:
            self.cycles()
        if (
            self._names is not None and CURRENT not in self._names
        ):  # asked for by name too early, it would stay missing on an NFS client
            return None
        try:
            text = self._store.read(CURRENT, limit_bytes=256)
        except (NotVisibleError, IntegrityError):
            return None
        return parse_version(text.decode("ascii", "replace").strip())

    def beat(self, cycle: int) -> Seen[BeatRecord]:
        """The beat of that cycle's publisher; token None while there is none."""
        names = {entry.name for entry in self._store.list("cycles")}
        path = beat_path(cycle)
        if path.rpartition("/")[2] not in names:
            return Seen(None, None)
        return self._record(self._store, path, BeatRecord)

    def consumers(self) -> dict[Incarnation, Seen[ConsumerRecord]]:
        """Every consumer's file, read afresh."""
        return self._participants("consumers", parse_incarnation, ConsumerRecord)

    def incarnations(self, name: str) -> tuple[Incarnation, ...]:
        """The lives of consumer `name` that have a file, oldest first."""
        lives = (parse_incarnation(_stem(entry.name)) for entry in self._claims.list("consumers"))
        return tuple(sorted(life for life in lives if life is not None and life.name == name))

    def sweepers(self) -> dict[str, Seen[SweeperRecord]]:
        """Every sweeper's file, read afresh."""
        return self._participants("sweepers", _sweeper_key, SweeperRecord)

    def pins(self) -> frozenset[Version]:
        """The versions that are pinned by hand."""
        entries = self._store.list("pins")
        if not entries:
            _require(self._store, "pins")
        return frozenset(v for entry in entries if (v := parse_version(entry.name)) is not None)

    def _participants(self, directory: str, parse: Callable[[str], K | None], kind: type[R]) -> dict[K, Seen[R]]:
        found: dict[K, Seen[R]] = {}
        self._claims.list("")
        entries = self._claims.list(directory)
        if not entries:
            _require(self._claims, directory)
        for entry in entries:
            key = parse(_stem(entry.name))
            if key is None or entry.kind != "file":
                continue
            seen = self._participant(directory, entry.name, kind)
            if seen is not None:
                found[key] = seen
        return found

    def _participant(self, directory: str, name: str, kind: type[R]) -> Seen[R] | None:
        """The file of one participant that a listing showed; None: it left since, and a fresh listing says so.

        An NFS client answers ESTALE where a file is replaced while it reads it. That is a beat, and no farewell:
        whoever took it for one would miss a hold, or a tombstone.
        """
        for _ in range(READ_TRIES):
            try:
                return self._record(self._claims, f"{directory}/{name}", kind, missing_is_error=True)
            except NotVisibleError:
                if all(entry.name != name for entry in self._claims.list(directory)):
                    return None
        return Seen(None, "not visible here")

    def _record(self, store: Storage, path: str, kind: type[R], *, missing_is_error: bool = False) -> Seen[R]:
        try:
            data = store.read(path, limit_bytes=RECORD_BYTES_MAX)
        except NotVisibleError:
            if missing_is_error:
                raise
            return Seen(None, None)
        except IntegrityError as error:
            return Seen(None, str(error))
        try:
            return Seen(decode(data, kind, path=path), data)
        except IntegrityError:
            return Seen(None, data)


def _require(store: Storage, directory: str) -> None:
    """Nobody in a directory that is there is nobody; in one that isn't, there may be anybody.

    Raises:
        NotVisibleError: code "no_directory". Look again; nothing may be concluded.
    """
    if all(entry.name != directory for entry in store.list("")) and store.capabilities.rename_tree:
        raise NotVisibleError(
            f"{directory}/ is not there (any more)",
            code="no_directory",
            hint="is the storage mounted? The channel was made with it",
            path=directory,
        )


def _stem(file_name: str) -> str:
    return file_name[: -len(".json")] if file_name.endswith(".json") else ""


def _sweeper_key(stem: str) -> str | None:
    cycle, dash, nonce = stem.partition("-")
    ours = len(cycle) == 6 and cycle.isdigit() and dash and len(nonce) == 8 and nonce.isalnum() and stem.isascii()
    return stem if ours else None
