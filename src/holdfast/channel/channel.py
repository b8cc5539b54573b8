"""A channel: the place of one run's versions, and the door to its publisher, consumers and sweeper."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING, Literal

import msgspec

from holdfast.channel.observe import Observer
from holdfast.channel.storage import Entry, Storage
from holdfast.core.bounds import (
    BEATS_PER_LEASE,
    BOUND_S_MAX,
    LEASE_LOCAL_S,
    LEASE_NETWORK_S,
    check_lease,
    check_seconds,
)
from holdfast.core.names import Version, path_problem
from holdfast.core.records import BOUND_UNKNOWN_S, RECORD_BYTES_MAX, ChannelRecord, Party, Term, decode, encode
from holdfast.core.retention import Retention
from holdfast.errors import ConflictError, HoldfastError, IntegrityError, NotVisibleError, UnavailableError, UsageError
from holdfast.events import EventLog, file_name

if TYPE_CHECKING:
    from holdfast.channel.consumer import Consumer
    from holdfast.channel.held import HeldVersion
    from holdfast.channel.publisher import Publisher
    from holdfast.channel.sweeper import Sweeper

CHANNEL = "channel.json"
OPEN_TO_ALL = ("consumers", "sweepers", "events")
OWN = ("cycles", "versions", "staging", "pins")
BEAT_S_MAX = 10.0
MAKE_TRIES = 5
_OURS = frozenset((*OPEN_TO_ALL, *OWN, CHANNEL, "CURRENT"))


class Channel:
    """One run's weight channel at `place`. Making this object does no I/O; `open` and the `with` blocks do.

    Args:
        place: a directory on storage that trainer and servers share, or a `Storage`.
        claims: another place for consumers/ and sweepers/, where consumers cannot write below `place`.
        run: a name for the run, recorded when the channel is made; default: the directory's name.
        legacy: name of the directory of links for readers that know only step_N/STABLE; "" for none.
        visibility_bound_s: how late (seconds) a change may become visible between this mount and others; default: what
            `holdfast doctor` measured and stored, else 90.
        lease_s: how long a participant may be silent before it counts as gone; default 60 s on a local file system,
            300 s on a network one. At least two visibility bounds and three beats.
        events: True writes event files below the channel, False none, a path writes them there.
    """

    def __init__(
        self,
        place: str | os.PathLike[str] | Storage,
        *,
        claims: str | os.PathLike[str] | Storage | None = None,
        run: str | None = None,
        legacy: str = "broadcasts",
        visibility_bound_s: float | None = None,
        lease_s: float | None = None,
        events: bool | str | os.PathLike[str] = True,
    ) -> None:
        self.store = _storage(place)
        self.claims = self.store if claims is None else _storage(claims)
        if legacy and _legacy_problem(legacy):
            raise UsageError(f"legacy={legacy!r} must be a plain name of its own", code="bad_legacy")
        self._run = run
        self._legacy = legacy
        self._bound_s = visibility_bound_s
        self._lease_s = lease_s
        self._events = events
        self._record: ChannelRecord | None = None
        self._local = False
        if visibility_bound_s is not None:
            check_seconds("visibility_bound_s", visibility_bound_s)
        if lease_s is not None:
            check_lease(lease_s, visibility_bound_s or 0.0)

    @property
    def record(self) -> ChannelRecord:
        """channel.json as it was when the channel was opened."""
        return self._record if self._record is not None else self.open()

    @property
    def name(self) -> str:
        """Where it lies, for messages."""
        try:
            return str(self.store.local_path(""))
        except UsageError:
            return f"<{self.store.capabilities.kind}>"

    @property
    def lease_s(self) -> float:
        """The lease that this process grants and keeps (seconds); opens the channel where the default depends on it."""
        if self._lease_s is not None:
            return self._lease_s
        return LEASE_LOCAL_S if self.local else LEASE_NETWORK_S

    @property
    def local(self) -> bool:
        """Whether only this machine sees the channel; opens it where that isn't known yet."""
        if self._record is None:
            self.open()
        return self._local

    @property
    def beat_s(self) -> float:
        """Time between two beats (seconds)."""
        return min(self.lease_s / BEATS_PER_LEASE, BEAT_S_MAX)

    def open(self, *, create: bool = False) -> ChannelRecord:
        """Read channel.json, or make the channel where there is none and `create` is set.

        Raises:
            NotVisibleError: there is no channel (yet). Look again, or create it.
            UsageError: code "not_a_channel": another program's directory; "newer_format".
            UnavailableError: the storage refuses.
        """
        entries = self.store.list("")
        if not any(entry.name == CHANNEL for entry in entries):
            self._check_foreign(entries)
            if not create:
                raise NotVisibleError(
                    f"{self.name}: there is no channel here (yet)",
                    code="no_channel",
                    hint="the trainer's publisher makes it; check the path if one is running",
                )
            self._make()
        self._record = self._read()
        self._local = self.store.capabilities.local and self.claims.capabilities.local
        return self._record

    def publisher(
        self,
        retention: Retention | None = None,
        *,
        resume_from: Version | HeldVersion | str | int | None = None,
        term: Term | None = None,
        take_over: bool = False,
        wait_s: float | None = None,
        room_timeout_s: float = 600.0,
        sweep: bool = True,
    ) -> Publisher:
        """The channel's publisher, not yet opened; see `Publisher`. A launched worker's has the launcher's term."""
        from holdfast.channel.publisher import Publisher

        return Publisher(
            self,
            retention if retention is not None else Retention(),
            resume_from=resume_from,
            term=term,
            take_over=take_over,
            wait_s=wait_s,
            room_timeout_s=room_timeout_s,
            sweep=sweep,
        )

    def consumer(
        self,
        name: str,
        *,
        stage: str | os.PathLike[str] | None = None,
        every: bool = False,
        on_close: Literal["release", "keep"] = "release",
        patience_s: float | None = None,
        poll_s: float | None = None,
        stage_bytes: int | None = None,
        in_place: bool = True,
    ) -> Consumer:
        """A consumer of the channel, not yet opened; see `Consumer`."""
        from holdfast.channel.consumer import Consumer

        return Consumer(
            self,
            name,
            stage=stage,
            every=every,
            on_close=on_close,
            patience_s=patience_s,
            poll_s=poll_s,
            stage_bytes=stage_bytes,
            in_place=in_place,
        )

    def sweeper(self, retention: Retention | None = None) -> Sweeper:
        """A sweeper on its own; see `Sweeper`."""
        from holdfast.channel.sweeper import Sweeper

        return Sweeper(self, retention if retention is not None else Retention())

    def observer(self) -> Observer:
        """A new reader of this channel, for one thread."""
        return Observer(self.store, self.claims)

    def party(self) -> Party:
        """Where this process sees the channel from, and how late things may become visible here."""
        bound_s = self._bound_s
        if bound_s is None:
            bound_s = self.record.visibility_bound_s
        mount, other = self.store.mount(), self.claims.mount()
        device = mount.device if other == mount else f"{mount.device}+{other.device}"
        return Party(host=mount.host, device=device, bound_s=BOUND_UNKNOWN_S if bound_s is None else bound_s)

    def event_log(self, process: str) -> EventLog:
        """A new event file of this process's own, beside those of the channel's other participants.

        For trainers and orchestrators, too: `holdfast status` and `report` show what they say. By custom a step
        is "measured", with any numbers beside its step:

            log = channel.event_log("trainer-0")
            log.emit("measured", step=12, reward=0.4, staleness=1)

        Nothing is written before this `Channel` was opened, by `open`, a publisher or a consumer: until then the last
        100 events are kept. A directory that is missing or full means no events, never an error. Thread-safe.

        Args:
            process: who speaks, such as `trainer-0`; a plain name.

        Raises:
            UsageError: code "bad_name": it cannot be part of a file's name.
        """
        name = file_name(process)
        if not process or "/" in name or path_problem(name):
            raise UsageError(f"{process!r} cannot name an event file", code="bad_name", hint="give one like trainer-0")
        if not isinstance(self._events, bool):
            return EventLog(pathlib.Path(self._events) / name, process)
        if not self._events:
            return EventLog(None, process)
        try:
            path = self.claims.local_path(f"events/{name}")
        except UsageError:  # a storage without directories
            return EventLog(None, process)
        return EventLog(path, process, ready=lambda: self._record is not None)

    def store_bound(self, bound_s: float, probed: dict[str, object]) -> None:
        """Record what `holdfast doctor` found. Durability: as `Storage.replace`. Unknown fields are kept."""
        raw = msgspec.json.decode(self.store.read(CHANNEL, limit_bytes=RECORD_BYTES_MAX))
        raw["visibility_bound_s"] = bound_s
        raw["probed"] = {**raw.get("probed", {}), **probed}
        self.store.replace(CHANNEL, msgspec.json.encode(raw) + b"\n")
        self._record = self._read()

    def _read(self) -> ChannelRecord:
        try:
            data = self.store.read(CHANNEL, limit_bytes=RECORD_BYTES_MAX)
            record = decode(data, ChannelRecord, path=f"{self.name}/{CHANNEL}")
        except IntegrityError as error:
            raise UsageError(
                str(error), code="newer_format" if error.code == "newer_format" else "not_a_channel", hint=error.hint
            ) from error
        if record.legacy and (_legacy_problem(record.legacy) or record.legacy.startswith(".")):
            raise UsageError(f"{self.name}: bad legacy directory {record.legacy!r}", code="not_a_channel")
        bound_s = record.visibility_bound_s
        if bound_s is not None and not 0.0 <= bound_s <= BOUND_S_MAX:
            raise UsageError(f"{self.name}: bad visibility_bound_s {bound_s!r}", code="not_a_channel")
        return record

    def _make(self) -> None:
        for tried in range(1, MAKE_TRIES + 1):
            try:
                self._make_once()
            except (
                NotVisibleError
            ):  # another machine makes it too, and one's new directory took the place of the other's
                if tried == MAKE_TRIES:
                    raise
            else:
                return

    def _make_once(self) -> None:
        self.store.make_directory("", 0o755)
        if self.claims is not self.store:
            self.claims.make_directory("", 0o755)
        for directory in OWN:
            self.store.make_directory(directory, 0o755)
        for directory in OPEN_TO_ALL:
            self.claims.make_directory(directory, 0o1777)
        if self._legacy:
            self.store.make_directory(self._legacy, 0o755)
        record = ChannelRecord(
            run=self._run or pathlib.PurePath(self.name).name,
            legacy=self._legacy if self.store.capabilities.links else "",
            probed={"capabilities": msgspec.to_builtins(self.store.capabilities)},
        )
        try:
            self.store.create(CHANNEL, encode(record))
        except ConflictError:
            return  # somebody else made it just now; theirs counts

    def _check_foreign(self, entries: tuple[Entry, ...]) -> None:
        foreign = [e.name for e in entries if e.name not in _OURS and e.name != self._legacy and e.name[0] != "."]
        if foreign:
            raise UsageError(
                f"{self.name} is not a channel: it has {foreign[0]!r} and no {CHANNEL}",
                code="not_a_channel",
                hint="give an empty directory, or one that does not exist yet",
                found=foreign[:10],
            )


def _legacy_problem(name: str) -> str | None:
    """Why `name` cannot be the legacy directory's, or None if it can."""
    return path_problem(name) or ("not a plain name of its own" if "/" in name or name in _OURS else None)


def is_read_only(error: HoldfastError) -> bool:
    """Whether `error` says that this process may not write there at all."""
    return isinstance(error, UnavailableError) and error.code in ("errno_erofs", "errno_eacces", "errno_eperm")


def _storage(place: str | os.PathLike[str] | Storage) -> Storage:
    if isinstance(place, str | os.PathLike):
        from holdfast.channel.posix import PosixStorage

        return PosixStorage(place)
    return place
