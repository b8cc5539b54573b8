"""The publisher: claims a channel and commits versions into it, until closed or replaced.

Straight lines around `holdfast.core.claims` and `holdfast.core.publish`; who may publish, under which name and in
which order is decided there. One process publishes; each file has one writer.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import secrets
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import msgspec

from holdfast.channel.beats import Beater
from holdfast.channel.checking import read_manifest, stable_text
from holdfast.channel.claiming import claim_channel, process_term
from holdfast.channel.held import HeldVersion
from holdfast.channel.observe import CURRENT
from holdfast.channel.older import Older
from holdfast.channel.payload import Payload, directory_payload, write_payload
from holdfast.channel.sweeper import Sweeper
from holdfast.core import publish as protocol
from holdfast.core.lineage import candidates
from holdfast.core.manifest import STABLE, File, Manifest, encode_manifest
from holdfast.core.names import Version, beat_path, require_version
from holdfast.core.records import BeatRecord, Term, encode, versions_in
from holdfast.core.retention import Retention
from holdfast.errors import (
    ConflictError,
    FencedError,
    HoldfastError,
    IntegrityError,
    NotVisibleError,
    OutcomeUnknownError,
    UnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    from holdfast.channel.channel import Channel
    from holdfast.channel.consumer import Consumer

logger = logging.getLogger(__name__)

COMMIT_TRIES = 3
SHARD_BYTES = 5 * 10**9
ROOM_POLL_S = 0.5


class Publisher:
    """The publisher of `channel`; use it in a `with` block, opened before the first training step.

    Args:
        retention: what the sweeper keeps beside what is held.
        resume_from: the version that training starts from (its name, a HeldVersion, or a step of the lineage); None:
            from nothing, and the first act is to publish what it starts with.
        term: who publishes (job, round), from a launcher; default: a job of this process's own.
        take_over: replace a living publisher of another job.
        wait_s: how long to wait for a dead publisher's lease to end (seconds); default: two leases.
        room_timeout_s: how long publish waits for room below `retention.max_bytes` (seconds).
        sweep: run the sweeper as part of this publisher.
    """

    def __init__(
        self,
        channel: Channel,
        retention: Retention,
        *,
        resume_from: Version | HeldVersion | str | int | None = None,
        term: Term | None = None,
        take_over: bool = False,
        wait_s: float | None = None,
        room_timeout_s: float = 600.0,
        sweep: bool = True,
    ) -> None:
        self.channel = channel
        self.retention = retention
        self.term = term if term is not None else process_term()
        self._resume_from = resume_from
        self._take_over = take_over
        self._wait_s = 2 * channel.lease_s if wait_s is None else wait_s
        self._room_timeout_s = room_timeout_s
        self._sweep = sweep
        self._state = protocol.Publisher()
        self._events = channel.event_log("publisher")
        self._older = Older(channel)
        self._observer = channel.observer()
        self._lock = threading.Lock()  # one publish at a time
        self._beats = 0
        self._writing: str | None = None
        self._last_files: tuple[File, ...] = ()
        self._sizes: dict[Version, int] = {}
        self._room = threading.Event()
        self._fenced: FencedError | None = None
        self._holder: Consumer | None = None
        self._sweeper: Sweeper | None = None
        self._beater = Beater("holdfast-publisher", channel.beat_s, self._beat)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="holdfast-publish")
        self._in_flight: Future[Version] | None = None
        self._closed = False

    @property
    def cycle(self) -> int:
        """This publisher's reign over the channel."""
        return self._state.cycle

    @property
    def last(self) -> Version | None:
        """The newest version that this publisher committed."""
        return self._state.last

    @property
    def starts_from(self) -> Version | None:
        """The version that this cycle starts from."""
        return self._state.starts_from

    # Opening and closing

    def open(self) -> None:
        """Make the channel if there is none, hold what is resumed from, claim, and begin to beat and to sweep.

        Durability: once this returned, nothing of a lower cycle is seen any more, also after a power cut.

        Raises:
            FencedError: this job or round was replaced: stop.
            ConflictError: code "publisher_alive": somebody publishes here.
            NotVisibleError: code "version_gone": what to resume from is not there (any more).
            UsageError: the channel or the arguments are wrong.
        """
        self.channel.open(create=True)
        starts_from = self._hold_start()
        try:
            self._state = claim_channel(
                self.channel,
                msgspec.structs.replace(self._state, starts_from=starts_from),
                self.term,
                take_over=self._take_over,
                wait_s=self._wait_s,
                events=self._events,
            )
            self._beat()
        except BaseException:
            self._release_start()
            self._events.close()
            raise
        self._beater.start()
        if self._sweep:
            self._sweeper = Sweeper(self.channel, self.retention, cycle=self.cycle, writing=self._busy)
            self._sweeper.start()

    def close(self) -> None:
        """Wait for the publish under way, stop sweeping and beating, and leave in order; idempotent.

        Raises: what the last publish in the background raised, if nobody has asked its Future.
        """
        if self._closed:
            return
        self._closed = True
        self._room.set()
        self._pool.shutdown(wait=True)
        if self._sweeper is not None:
            self._sweeper.stop()
        self._beater.stop()
        self._release_start()
        if self.cycle and self._fenced is None:
            try:
                self._beat(closed=True)
            except HoldfastError as error:
                self._events.emit("close_failed", str(error), code=error.code)
        self._events.emit("closed", "the publisher left in order", cycle=self.cycle)
        self._events.close()
        self._raise_background()

    def __enter__(self) -> Publisher:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except HoldfastError as second:
            error.add_note(f"while closing the publisher: {second}")

    # Publishing

    @overload
    def publish_adapter(
        self, step: int, adapter: Any, config: Any = None, *, metadata: Mapping[str, Any] | None = None,
        adapter_name: str | None = None, wait: Literal[True] = True,
    ) -> Version: ...  # fmt: skip
    @overload
    def publish_adapter(
        self, step: int, adapter: Any, config: Any = None, *, metadata: Mapping[str, Any] | None = None,
        adapter_name: str | None = None, wait: Literal[False],
    ) -> Future[Version]: ...  # fmt: skip
    def publish_adapter(
        self,
        step: int,
        adapter: Any,
        config: Any = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        adapter_name: str | None = None,
        wait: bool = True,
    ) -> Version | Future[Version]:
        """Publish a LoRA adapter: a PEFT model, or tensors (name -> tensor) with their `config`.

        Args:
            step: optimizer step; never below the last one of this cycle or the version that it starts from.
            wait: False returns a Future; the tensors are copied first. One is in flight at most: a second call waits.

        Durability: the version survives a power cut once this (or the Future) returned.

        Raises:
            FencedError: this trainer was replaced: stop.
            UsageError: the tensors, the step or the metadata are wrong; nothing was published.
            UnavailableError: the storage refused, or there is no room; nothing is visible, try the step again.
            OutcomeUnknownError: it may be visible; the next publish goes on from it.
        """
        from holdfast.channel.adapter import adapter_payload

        payload = adapter_payload(adapter, config, adapter=adapter_name, copy=not wait)
        return self.publish_payload(step, payload, metadata=metadata, wait=wait)

    def publish(
        self,
        step: int,
        model: Any,
        *,
        files: Mapping[str, Any] | None = None,
        shard_bytes: int = SHARD_BYTES,
        metadata: Mapping[str, Any] | None = None,
        wait: bool = True,
    ) -> Version | Future[Version]:
        """Publish full weights as Hugging Face shards with an index: a transformers model, or a state dict.

        Args: as `publish_adapter`; `files`: more small files (config.json …), name -> bytes, text or a dict for JSON.
        """
        from holdfast.channel.model import model_payload

        payload = model_payload(model, files=files, shard_bytes=shard_bytes, copy=not wait)
        return self.publish_payload(step, payload, metadata=metadata, wait=wait)

    def publish_directory(
        self,
        step: int,
        path: str | os.PathLike[str],
        *,
        kind: str = "directory",
        metadata: Mapping[str, Any] | None = None,
        wait: bool = True,
    ) -> Version | Future[Version]:
        """Publish the files below a local directory; with wait=False leave them unchanged until the Future is done."""
        payload = msgspec.structs.replace(directory_payload(path), kind=kind)
        return self.publish_payload(step, payload, metadata=metadata, wait=wait)

    def publish_payload(
        self, step: int, payload: Payload, *, metadata: Mapping[str, Any] | None = None, wait: bool = True
    ) -> Version | Future[Version]:
        """Publish what a `Payload` describes; the other publish methods end here."""
        self._check_open()
        described = dict(metadata or {})
        if wait:
            self._wait_in_flight()
            return self._publish(step, payload, described)
        self._wait_in_flight()
        self._raise_background()
        self._in_flight = self._pool.submit(self._publish, step, payload, described)
        return self._in_flight

    # One publish

    def _publish(self, step: int, payload: Payload, metadata: dict[str, Any]) -> Version:
        with self._lock:
            self._guard()
            protocol.next_version(self._state, step, "0" * 6)  # a wrong step is told before anything is written
            self._make_room(payload.num_bytes)
            before = self._state.last
            version = self._run(protocol.Publish(step, secrets.token_hex(3)), payload, metadata)
            if version != before:
                self._events.emit("published", version=version, bytes=payload.num_bytes, kind=payload.kind)
                self._release_start()
            if self._sweeper is not None:
                self._sweeper.wake()
            return version

    def _run(self, event: protocol.Event, payload: Payload, metadata: dict[str, Any]) -> Version:
        """Carry `event` through the machine. Whatever fails before the commit leaves nothing visible."""
        published: Version | None = None
        events: list[protocol.Event] = [event]
        staged: bytes = b""
        while events:
            self._state, effects = protocol.step(self._state, events.pop(0))
            for effect in effects:
                match effect:
                    case protocol.Stage(version, parent):
                        staged, again = self._stage(version, parent, payload, metadata)
                        if again is not None:
                            self._abandon()
                            return again
                        events.append(protocol.Staged())
                    case protocol.ReadClaims():
                        events.append(protocol.ClaimsRead(self._highest()))
                    case protocol.Commit(version):
                        self._commit(version, staged)
                        self._sizes[version] = payload.num_bytes
                        events.append(protocol.Committed())
                    case protocol.Point(version):
                        self._point(version)
                        events.append(protocol.Pointed())
                    case protocol.Published(version):
                        published = version
                    case protocol.Fenced(error):
                        self._discard()
                        self._stop_fenced(error)
                        raise error
        assert published is not None
        return published

    def _stage(
        self, version: Version, parent: Version | None, payload: Payload, metadata: dict[str, Any]
    ) -> tuple[bytes, Version | None]:
        """Write everything but the manifest; its bytes, or the version that has these very bytes already."""
        self._writing = f"c{version.cycle:06d}-{secrets.token_hex(4)}"
        try:
            tree = self.channel.store.begin_tree(str(version), self._writing)
            files = write_payload(tree, payload)
            again = self._same(version.step, files)
            if again is not None:
                return b"", again
            manifest = encode_manifest(
                Manifest(
                    version=str(version),
                    cycle=version.cycle,
                    step=version.step,
                    parent=str(parent) if parent is not None else None,
                    kind=payload.kind,
                    files=files,
                    requires=payload.requires,
                    metadata=metadata,
                    created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                )
            )
            with closing(tree.file(STABLE)) as stable:
                stable.write_at(0, memoryview(stable_text(manifest)))
        except BaseException:
            self._abandon()
            raise
        self._last_files = files
        return manifest, None

    def _same(self, step: int, files: tuple[File, ...]) -> Version | None:
        """The last version, if it is of this step, has these bytes, is there, and nobody announced its removal."""
        last = self._state.last
        if last is None or last.step != step or files != self._last_files:
            return None
        if last not in self._observer.versions():
            return None
        for seen in self._observer.sweepers().values():
            if seen.record is None or last in versions_in(seen.record.tombstones):
                return None
        return last

    def _commit(self, version: Version, manifest: bytes) -> None:
        assert self._writing is not None
        for tried in range(1, COMMIT_TRIES + 1):
            try:
                self.channel.store.commit_tree(str(version), self._writing, manifest)
            except OutcomeUnknownError as error:
                if tried < COMMIT_TRIES:
                    continue
                self._state, _ = protocol.step(self._state, protocol.Unsure())
                self._events.emit("publish_unknown", str(error), version=version, code=error.code)
                self._writing = None
                raise
            except HoldfastError:
                self._abandon()
                raise
            self._writing = None
            return

    def _point(self, version: Version) -> None:
        """The legacy link and CURRENT: hints, so their failure is told and not raised."""
        try:
            reason = self._older.link(version)
            if reason is not None and self.channel.record.legacy:
                self._events.emit("no_legacy_link", reason, version=version)
            self.channel.store.replace(CURRENT, f"{version}\n".encode())
        except HoldfastError as error:
            self._events.emit("hint_failed", str(error), version=version, code=error.code)
            logger.warning("%s is published, but CURRENT or its link is not: %s", version, error)

    def _abandon(self) -> None:
        self._state, _ = protocol.step(self._state, protocol.Abandoned())
        self._discard()

    def _discard(self) -> None:
        nonce, self._writing = self._writing, None
        if nonce is not None:
            try:
                self.channel.store.remove_garbage(nonce)
            except HoldfastError as error:  # the sweep finds it
                logger.info("staging/%s stays for the sweep: %s", nonce, error)

    # Guards

    def _check_open(self) -> None:
        if self._fenced is not None:
            raise self._fenced
        if self._closed or not self.cycle:
            raise UsageError("the publisher is not open", code="closed", hint="use it inside its `with` block")

    def _guard(self) -> None:
        """FencedError if a higher claim is visible."""
        self._check_open()
        self._state, effects = protocol.step(self._state, protocol.ClaimsRead(self._highest()))
        for effect in effects:
            assert isinstance(effect, protocol.Fenced)
            self._stop_fenced(effect.error)
            raise effect.error

    def _highest(self) -> int:
        return max(self._observer.cycles(), default=0)

    def _stop_fenced(self, error: FencedError) -> None:
        self._fenced = error
        self._events.emit("fenced", str(error), cycle=self.cycle)

    def _make_room(self, num_bytes: int) -> None:
        """Wait until `num_bytes` more fit below max_bytes. UnavailableError code "no_room" names who holds what."""
        limit = self.retention.max_bytes
        if limit is None:
            return
        if num_bytes > limit:
            raise UsageError(
                f"one version of {num_bytes} bytes is over max_bytes={limit}",
                code="over_max_bytes",
                hint="raise max_bytes",
            )
        waited_s = 0.0
        while (used := self._used()) + num_bytes > limit:
            if waited_s >= self._room_timeout_s or self._closed:
                raise UnavailableError(
                    f"no room for {num_bytes} bytes: {used} of {limit} are used; {self._holders()}",
                    code="no_room",
                    hint="release versions, raise max_bytes, or see `holdfast status`",
                    used_bytes=used,
                )
            if self._sweeper is not None:
                self._sweeper.wake()
            self._room.wait(ROOM_POLL_S)
            waited_s += ROOM_POLL_S
            self._guard()

    def _used(self) -> int:
        versions = self._observer.versions()
        self._sizes = {version: size for version, size in self._sizes.items() if version in versions}
        for version in versions - self._sizes.keys():
            try:
                self._sizes[version] = read_manifest(self.channel.store, version)[0].num_bytes
            except (IntegrityError, NotVisibleError):
                continue
        return sum(self._sizes.values())

    def _holders(self) -> str:
        holders = [
            f"{life.name} holds {len(seen.record.holds)}"
            for life, seen in sorted(self._observer.consumers().items())
            if seen.record is not None and seen.record.holds
        ]
        return ", ".join(holders) or "nobody holds anything, retention keeps them"

    # In the background

    def _wait_in_flight(self) -> None:
        if self._in_flight is not None and not self._in_flight.done():
            self._in_flight.exception()  # waits; its caller hears of it through the Future

    def _raise_background(self) -> None:
        future, self._in_flight = self._in_flight, None
        if future is not None and future.done() and not future.cancelled():
            future.result()

    def _busy(self) -> frozenset[str]:
        return frozenset({self._writing}) if self._writing is not None else frozenset()

    def _beat(self, *, closed: bool = False) -> None:
        self._beats += 1
        record = BeatRecord(cycle=self.cycle, beat=self._beats, closed=closed)
        self.channel.store.replace(beat_path(self.cycle), encode(record))

    # What it starts from

    def _hold_start(self) -> Version | None:
        """Hold the version to resume from, as a consumer holds."""
        start = self._resume_from
        if start is None:
            return None
        from holdfast.channel.consumer import Consumer

        if isinstance(start, HeldVersion):
            start = start.name
        elif isinstance(start, int):
            start = self._of_step(start)
        elif isinstance(start, str):
            start = require_version(start)
        name = f"publisher-{socket.gethostname()[:40]}-{secrets.token_hex(4)}"
        self._holder = Consumer(self.channel, name, in_place=False)
        try:
            self._holder.open()
            self._holder.hold(start)
        except BaseException:
            self._release_start()
            raise
        return start

    def _of_step(self, step: int) -> Version:
        line = candidates(self._observer.lineage(), self._observer.versions())
        for version in line:
            if version.step == step:
                return version
        raise NotVisibleError(
            f"there is no version of step {step} in the present lineage",
            code="version_gone",
            hint="`holdfast ls CHANNEL` lists what is there",
            step=step,
        )

    def _release_start(self) -> None:
        """The first version of this cycle is there (or there will be none): the start needs no hold any more."""
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.close()


__all__ = ["ConflictError", "Publisher"]
