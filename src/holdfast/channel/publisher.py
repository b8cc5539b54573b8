"""The publisher: claims a channel and commits versions into it, until closed or replaced.

Straight lines around `holdfast.core.claims` and `holdfast.core.publish`; who may publish, under which name and in
which order is decided there. One process publishes; each file has one writer.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import msgspec

from holdfast.channel.beats import Beater, clock_s
from holdfast.channel.claiming import claim_channel, process_term
from holdfast.channel.committing import Committer
from holdfast.channel.payload import Payload, Progress, directory_payload
from holdfast.channel.room import Room
from holdfast.channel.start import Origin, Start
from holdfast.channel.sweeper import Sweeper
from holdfast.core.bounds import check_seconds
from holdfast.core.names import Version, beat_path
from holdfast.core.publish import next_version
from holdfast.core.records import BeatRecord, Term, encode
from holdfast.core.retention import Retention
from holdfast.errors import FencedError, HoldfastError, OutcomeUnknownError, UnavailableError, UsageError
from holdfast.events import Event

if TYPE_CHECKING:
    from holdfast.channel.channel import Channel

SHARD_BYTES = 5 * 10**9


class Publisher:
    """The publisher of `channel`; use it in a `with` block, opened before the first training step.

    Args:
        retention: what the sweeper keeps beside what is held.
        resume_from: the version that training starts from (its name, a HeldVersion, or a step of the lineage); None:
            from nothing, and the first act is to publish what it starts with.
        term: who publishes (job, round); default: in a worker of `holdfast run` (or of torchrun with this rendezvous)
            the launcher's, so that a later round's publisher fences those of earlier ones; else a job of this
            process's own.
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
        resume_from: Origin | None = None,
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
        self._wait_s = None if wait_s is None else check_seconds("wait_s", wait_s)
        self._sweep = sweep
        self._events = channel.event_log("publisher")
        self._listeners: tuple[Callable[[Event], None], ...] = ()
        observer = channel.observer()
        self._committer = Committer(channel, observer, self._events)
        self._room = Room(channel, observer, retention.max_bytes, check_seconds("room_timeout_s", room_timeout_s))
        self._start = Start(channel)
        self._lock = threading.Lock()  # one publish at a time
        self._beats = 0
        self._fenced: FencedError | None = None
        self._sweeper: Sweeper | None = None
        self._beater = Beater("holdfast-publisher", self._beat)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="holdfast-publish")
        self._in_flight: Future[Version] | None = None
        self._background: BaseException | None = None
        self._closed = False

    @property
    def cycle(self) -> int:
        """This publisher's reign over the channel."""
        return self._committer.state.cycle

    @property
    def last(self) -> Version | None:
        """The newest version that this publisher committed."""
        return self._committer.state.last

    @property
    def starts_from(self) -> Version | None:
        """The version that this cycle starts from."""
        return self._committer.state.starts_from

    @property
    def sweeper(self) -> Sweeper | None:
        """The one that is part of it, once it is open."""
        return self._sweeper

    def listen(self, hear: Callable[[Event], None]) -> None:
        """Tell `hear` every event of this publisher and its sweeper; see `EventLog.listen`. Before it is opened."""
        self._listeners = (*self._listeners, hear)
        self._events.listen(hear)

    # Opening and closing

    def open(self) -> None:
        """Make the channel if there is none, hold what is resumed from, claim, and begin to beat and to sweep.

        Durability: once this returned, nothing of a lower cycle is seen any more, also after a power cut.

        Raises:
            FencedError: this job or round was replaced: stop.
            ConflictError: code "publisher_alive": somebody publishes here.
            NotVisibleError: code "version_gone": what to resume from is not there (any more).
            UsageError: the channel or the arguments are wrong; code "already_open", "closed".
        """
        if self._closed:
            raise UsageError("the publisher is closed", code="closed", hint="make a new one")
        if self.cycle:
            raise UsageError("the publisher is open already", code="already_open", hint="open it once")
        self.channel.open(create=True)
        starts_from = self._start.hold(self._resume_from)
        try:
            self._committer.state = claim_channel(
                self.channel,
                msgspec.structs.replace(self._committer.state, starts_from=starts_from),
                self.term,
                take_over=self._take_over,
                wait_s=2 * self.channel.lease_s if self._wait_s is None else self._wait_s,
                events=self._events,
                check_start=self._start.renew,
            )
            self._first_beat()
        except BaseException:
            self._give_up()
            raise
        self._beater.start(self.channel.beat_s)
        if self._sweep:
            self._sweeper = Sweeper(self.channel, self.retention, cycle=self.cycle, writing=self._busy)
            for hear in self._listeners:
                self._sweeper.listen(hear)
            self._sweeper.start()

    def _first_beat(self) -> None:
        """The claim stands, so this publisher is open, whatever becomes of its beat: there is another one soon."""
        try:
            self._beat()
        except (UnavailableError, OutcomeUnknownError) as error:
            self._events.emit("beat_failed", str(error), code=error.code)

    def _give_up(self) -> None:
        """After a failed opening: a claim that stands is closed, so that the same job can open again."""
        self._closed = True
        self._start.release()
        if self.cycle:
            with suppress(HoldfastError):
                self._beat(closed=True)
        self._events.close()

    def close(self) -> None:
        """Wait for the publish under way, stop sweeping and beating, and leave in order; idempotent.

        Raises: the first error of a publish in the background, though its Future had it too.
        """
        if self._closed:
            return
        self._closed = True
        self._room.close()
        self._pool.shutdown(wait=True)
        if self._sweeper is not None:
            self._sweeper.stop()
        self._beater.stop()
        self._start.release()
        if self.cycle and self._fenced is None:
            try:
                self._beat(closed=True)
            except HoldfastError as error:
                self._events.emit("close_failed", str(error), code=error.code)
        self._events.emit("closed", "the publisher left in order", cycle=self.cycle)
        self._events.close()
        if self._background is not None:
            raise self._background

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
        self, step: int, adapter: object, config: object = ..., *, adapter_name: str | None = ...,
        metadata: Mapping[str, Any] | None = ..., progress: Progress | None = ..., wait: Literal[True] = ...,
    ) -> Version: ...  # fmt: skip

    @overload
    def publish_adapter(
        self, step: int, adapter: object, config: object = ..., *, adapter_name: str | None = ...,
        metadata: Mapping[str, Any] | None = ..., progress: Progress | None = ..., wait: Literal[False],
    ) -> Future[Version]: ...  # fmt: skip

    def publish_adapter(
        self,
        step: int,
        adapter: object,
        config: object = None,
        *,
        adapter_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        wait: bool = True,
    ) -> Version | Future[Version]:
        """Publish a LoRA adapter: a PEFT model, or tensors (name -> tensor) with their `config`.

        Args:
            step: optimizer step; never below the last one of this cycle or the version that it starts from.
            adapter_name: which adapter of a PEFT model; default: the active one.
            metadata: free, for consumers; what JSON can hold.
            progress: told the number of bytes done, from working threads.
            wait: False returns a Future; the tensors are copied first. One is in flight at most: a second call waits.
                The first error of a Future is raised again by `close`.

        Durability: the version survives a power cut once this (or the Future) returned.

        Raises:
            FencedError: this trainer was replaced: stop.
            UsageError: the tensors, the step or the metadata are wrong; nothing was published.
            UnavailableError: the storage refused, or there is no room; nothing is visible, try the step again.
            OutcomeUnknownError: it may be visible; the next publish goes on from it.
        """
        from holdfast.channel.adapter import adapter_payload

        self._begin()
        payload = adapter_payload(adapter, config, adapter=adapter_name, copy=not wait)
        return self._now_or_later(step, payload, metadata, progress, wait)

    @overload
    def publish(
        self, step: int, model: object, *, files: object = ..., shard_bytes: int = ...,
        metadata: Mapping[str, Any] | None = ..., progress: Progress | None = ..., wait: Literal[True] = ...,
    ) -> Version: ...  # fmt: skip

    @overload
    def publish(
        self, step: int, model: object, *, files: object = ..., shard_bytes: int = ...,
        metadata: Mapping[str, Any] | None = ..., progress: Progress | None = ..., wait: Literal[False],
    ) -> Future[Version]: ...  # fmt: skip

    def publish(
        self,
        step: int,
        model: object,
        *,
        files: object = None,
        shard_bytes: int = SHARD_BYTES,
        metadata: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        wait: bool = True,
    ) -> Version | Future[Version]:
        """Publish full weights as Hugging Face shards with an index: a transformers model, or a state dict.

        Args:
            files: what lies beside the weights: name -> bytes, text or JSON; a directory; a tokenizer or configuration.
            shard_bytes: the most bytes of tensors in one file.

        For the rest, and for errors and durability, see `publish_adapter`.
        """
        from holdfast.channel.model import model_payload

        self._begin()
        payload = model_payload(model, files, shard_bytes=shard_bytes, copy=not wait)
        return self._now_or_later(step, payload, metadata, progress, wait)

    @overload
    def publish_directory(
        self, step: int, path: str | os.PathLike[str], *, kind: str = ...,
        metadata: Mapping[str, Any] | None = ..., progress: Progress | None = ..., wait: Literal[True] = ...,
    ) -> Version: ...  # fmt: skip

    @overload
    def publish_directory(
        self, step: int, path: str | os.PathLike[str], *, kind: str = ...,
        metadata: Mapping[str, Any] | None = ..., progress: Progress | None = ..., wait: Literal[False],
    ) -> Future[Version]: ...  # fmt: skip

    def publish_directory(
        self,
        step: int,
        path: str | os.PathLike[str],
        *,
        kind: str = "directory",
        metadata: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        wait: bool = True,
    ) -> Version | Future[Version]:
        """Publish the files below a local directory; with wait=False leave them unchanged until the Future is done.

        See `publish_adapter`.
        """
        self._begin()
        payload = msgspec.structs.replace(directory_payload(path), kind=kind)
        return self._now_or_later(step, payload, metadata, progress, wait)

    def publish_payload(
        self,
        step: int,
        payload: Payload,
        *,
        metadata: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Version:
        """Publish what a `Payload` describes, in the calling thread. See `publish_adapter`."""
        self._begin()
        return self._publish(step, payload, _described(metadata), progress)

    # One publish

    def _begin(self) -> None:
        """Wait for the publish under way, so that at most one copy of the tensors is in memory."""
        self._check_open()
        if self._in_flight is not None:
            self._in_flight.exception()

    def _now_or_later(
        self,
        step: int,
        payload: Payload,
        metadata: Mapping[str, Any] | None,
        progress: Progress | None,
        wait: bool,
    ) -> Version | Future[Version]:
        described = _described(metadata)
        if wait:
            return self._publish(step, payload, described, progress)
        self._in_flight = self._pool.submit(self._publish, step, payload, described, progress)
        self._in_flight.add_done_callback(self._remember)
        return self._in_flight

    def _remember(self, future: Future[Version]) -> None:
        if self._background is None and not future.cancelled():
            self._background = future.exception()

    def _publish(self, step: int, payload: Payload, metadata: dict[str, Any], progress: Progress | None) -> Version:
        with self._lock:
            self._guard()
            next_version(self._committer.state, step, "000000")  # a wrong step is told before anything is written
            began_s = clock_s()
            waited_s = self._wait_for_room(step, payload.num_bytes)
            before = self.last
            try:
                version = self._committer.publish(step, payload, metadata, progress)
            except FencedError as error:
                self._stop_fenced(error)
                raise
            except (UnavailableError, OutcomeUnknownError) as error:
                self._say_fenced_instead(error)
                self._events.emit("publish_failed", str(error), step=step, code=error.code)
                raise
            if version != before:
                took_s = clock_s() - began_s - waited_s
                said: dict[str, Any] = {"waited_s": round(waited_s, 3), "took_s": round(took_s, 6)}
                self._events.emit("published", version=version, bytes=payload.num_bytes, kind=payload.kind, **said)
                self._start.release()
            if self._sweeper is not None:
                self._sweeper.wake()
            return version

    def _wait_for_room(self, step: int, num_bytes: int) -> float:
        try:
            return self._room.wait_for(num_bytes, self._meanwhile)
        except UnavailableError as error:
            self._events.emit("publish_failed", str(error), step=step, code=error.code)
            raise

    def _meanwhile(self) -> None:
        if self._sweeper is not None:
            self._sweeper.wake()
        self._guard()

    def _guard(self) -> None:
        """FencedError if a higher claim is visible."""
        if self._fenced is not None:
            raise self._fenced
        try:
            self._committer.guard()
        except FencedError as error:
            self._stop_fenced(error)
            raise

    def _say_fenced_instead(self, error: HoldfastError) -> None:
        """A successor's sweep takes away what this publisher was writing: say who it was, not which name is missing."""
        try:
            self._guard()
        except FencedError as fenced:
            raise fenced from error
        except HoldfastError as second:
            error.add_note(f"while asking whether this publisher was replaced: {second}")

    def _check_open(self) -> None:
        if self._fenced is not None:
            raise self._fenced
        if self._closed or not self.cycle:
            raise UsageError("the publisher is not open", code="closed", hint="use it inside its `with` block")

    def _stop_fenced(self, error: FencedError) -> None:
        self._fenced = error
        self._events.emit("fenced", str(error), cycle=self.cycle)

    def _busy(self) -> frozenset[str]:
        writing = self._committer.writing
        return frozenset({writing}) if writing is not None else frozenset()

    def _beat(self, *, closed: bool = False) -> None:
        self._beats += 1
        record = BeatRecord(cycle=self.cycle, beat=self._beats, closed=closed)
        self.channel.store.replace(beat_path(self.cycle), encode(record), durable=closed)


def _described(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """`metadata` as it is now; what JSON can hold is checked when the manifest is written."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise UsageError(
            f"metadata is a {type(metadata).__name__}", code="bad_metadata", hint="give a dictionary with string keys"
        )
    return dict(metadata or {})
