"""The thread that makes all tokens.

It alone touches the model. Others hand it jobs and calls, which it takes up between two rounds; in a round, every
running sequence gets one token, so that nobody waits for somebody else's long answer. Jobs start in the order in which
they came.

A job's weights and adapter are settled when it starts, and never again: what is loaded, unloaded or reloaded afterwards
is for later jobs. A job that has to wait, because generation is paused, takes what its model's name means once it
starts.

    running   jobs start, sequences move on
    draining  (pause, wait or abort) no job starts, running ones move on to their end
    frozen    (pause, keep) nothing moves
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import enum
import gc
import logging
import queue
import threading
from collections.abc import Callable
from typing import Literal, TypeVar

from holdfast.serve.errors import ApiError, internal, not_found, unavailable
from holdfast.serve.jobs import Job, Sequence
from holdfast.serve.reading import Adapter
from holdfast.serve.weights import Weights

logger = logging.getLogger(__name__)

PauseMode = Literal["abort", "wait", "keep"]
Found = TypeVar("Found")

RUNNING_SEQUENCES_MAX = 16
WAITING_JOBS_MAX = 4096


class State(enum.Enum):
    RUNNING = "running"
    DRAINING = "draining"
    FROZEN = "frozen"


@dataclasses.dataclass(frozen=True)
class Load:
    """What goes on: numbers of sequences, and the adapters that they are for, each once."""

    num_running: int
    num_waiting: int
    running_adapters: tuple[str, ...]
    waiting_adapters: tuple[str, ...]


@dataclasses.dataclass
class Totals:
    """Counts since the start."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


class Engine:
    def __init__(self, weights: Weights, find: Callable[[str], Adapter | None], *, max_loras: int) -> None:
        """`find(name)`: what a name means now: an adapter, or None for the model itself; LookupError if nothing."""
        self.weights = weights
        self.totals = Totals()
        self.state = State.RUNNING
        self.failure: str | None = None
        self.on_failure: Callable[[], object] = lambda: None
        self._find = find
        self._max_loras = max_loras
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}
        self._waiting: collections.deque[Job] = collections.deque()
        self._running: list[Job] = []
        self._draining: list[concurrent.futures.Future[None]] = []
        self._ended = False
        self._num_weights = 1
        self._thread = threading.Thread(target=self._run, name="holdfast-serve-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End every job with what it has, and the thread; False if it is still busy after `timeout_s`."""
        self._inbox.put(self._end)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def load(self) -> Load:
        jobs = list(self._jobs.values())
        running = [job for job in jobs if job.started]
        waiting = [job for job in jobs if not job.started]
        return Load(
            sum(job.num_open for job in running),
            sum(job.num_open for job in waiting),
            _adapter_names(running),
            _adapter_names(waiting),
        )

    @property
    def is_paused(self) -> bool:
        return self.state is not State.RUNNING

    def submit(self, job: Job) -> None:
        """Take a job. Its pieces come through its sink.

        Raises:
            ApiError: 503; there are too many already, or the engine has failed.
        """
        if self.failure is not None:
            raise unavailable(f"the engine has failed: {self.failure}")
        if len(self._jobs) >= WAITING_JOBS_MAX:
            raise unavailable(f"{WAITING_JOBS_MAX} requests are waiting or running already")
        self._jobs[id(job)] = job
        self._inbox.put(lambda: self._waiting.append(job))

    def cancel(self, job: Job) -> None:
        """Nobody reads this job's answer any more."""
        job.cancelled.set()
        self._inbox.put(self._drop_cancelled)

    def call(self, act: Callable[[], Found]) -> concurrent.futures.Future[Found]:
        """Have the thread do something with the model between two rounds."""
        future: concurrent.futures.Future[Found] = concurrent.futures.Future()
        if self.failure is not None:
            future.set_exception(unavailable(f"the engine has failed: {self.failure}"))
            return future

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            if self.failure is not None:
                future.set_exception(unavailable(f"the engine has failed: {self.failure}"))
                return
            try:
                future.set_result(act())
            except ApiError as error:
                future.set_exception(error)
            except BaseException as error:
                future.set_exception(internal(f"{type(error).__name__}: {error}"))
                raise

        self._inbox.put(run)
        return future

    def pause(self, mode: PauseMode) -> concurrent.futures.Future[None]:
        """Done when, with `abort` and `wait`, nothing runs any more; with `keep`, when nothing moves any more."""
        future: concurrent.futures.Future[None] = concurrent.futures.Future()

        def act() -> None:
            self.state = State.FROZEN if mode == "keep" else State.DRAINING
            if mode == "abort":
                self._abort_all()
            if mode == "wait" and self._running:
                self._draining.append(future)
            else:
                future.set_result(None)

        self._inbox.put(act)
        return future

    def resume(self) -> concurrent.futures.Future[None]:
        return self.call(self._resume)

    def _resume(self) -> None:
        self.state = State.RUNNING
        self._tell_drained()

    def collect(self) -> None:
        """Drop what no name stands for and no job uses. For `call`, after a name was taken away."""
        used = {(id(job.weights), job.adapter.key) for job in self._running if job.adapter is not None}
        versions = {id(weights): weights for job in self._running if (weights := job.weights) is not None}
        versions[id(self.weights)] = self.weights
        for weights in versions.values():
            for adapter in weights.installed:
                if not adapter.registered and (id(weights), adapter.key) not in used:
                    weights.remove(adapter)
        if len(versions) < self._num_weights:
            gc.collect()  # a model is full of cycles, and too large to wait for the collector
        self._num_weights = len(versions)

    def swap(self, weights: Weights) -> None:
        """From now on jobs start with these full weights; adapters come under them as they are used. For `call`."""
        self.weights = weights
        self._num_weights += 1
        self.collect()

    def _run(self) -> None:
        try:
            while not self._ended:
                self._take_up()
                self._start_jobs()
                if self.state is not State.FROZEN:
                    self._round()
        except BaseException as error:
            self._fail(f"{type(error).__name__}: {error}")
            raise

    def _take_up(self) -> None:
        """Do what was handed over. Waits for something to do where there is nothing."""
        while True:
            block = not self._ended and not self._may_move()
            try:
                self._inbox.get(block=block)()
            except queue.Empty:
                return

    def _may_move(self) -> bool:
        if self.state is State.FROZEN:
            return False
        return bool(self._running) or (self.state is State.RUNNING and bool(self._waiting))

    def _start_jobs(self) -> None:
        while self.state is State.RUNNING and self._waiting and self._has_room(self._waiting[0]):
            job = self._waiting.popleft()
            try:
                self._settle(job)
            except ApiError as error:
                self._finish(job, "error")
                job.sink(error)

    def _has_room(self, job: Job) -> bool:
        """First come, first served: whoever is first waits for room, and all others behind it, so that none starves."""
        if not self._running:
            return True
        adapters = {other.adapter.key for other in self._running if other.adapter is not None}
        if job.adapter is not None and job.adapter.key not in adapters and len(adapters) >= self._max_loras:
            return False
        return sum(other.num_open for other in self._running) + len(job.sequences) <= RUNNING_SEQUENCES_MAX

    def _settle(self, job: Job) -> None:
        """Which weights make this answer. A name that was taken away while the job waited still means what it meant."""
        try:
            job.adapter = self._find(job.model)
        except LookupError as error:
            if job.adapter is None:
                raise not_found(f"The model `{job.model}` does not exist.", "model") from error
        if job.adapter is not None:
            self.weights.install(job.adapter)
        job.weights = self.weights
        job.started = True
        self._running.append(job)
        self.totals.prompt_tokens += sum(len(sequence.prompt) for sequence in job.sequences)

    def _round(self) -> None:
        """One token for every running sequence; those of one adapter together, since changing it costs."""
        for job in sorted(self._running, key=lambda job: "" if job.adapter is None else job.adapter.key):
            try:
                for sequence in job.sequences:
                    self._step(job, sequence)
            except (RuntimeError, ValueError, IndexError, MemoryError) as error:  # torch's own errors are RuntimeErrors
                logger.exception("a request failed: model=%s", job.model)
                self._finish(job, "error")
                job.sink(internal(f"generation failed: {error}"))
        self._drop_finished()

    def _step(self, job: Job, sequence: Sequence) -> None:
        if sequence.finished or job.cancelled.is_set():
            return
        assert job.weights is not None
        piece = sequence.step(job.weights, job.adapter)
        self.totals.generation_tokens += len(piece.token_ids)
        if piece.finish_reason is not None:
            self.totals.finished[piece.finish_reason] += 1
        if job.finished:
            self._finish(job)
        job.sink(piece)

    def _finish(self, job: Job, reason: str | None = None) -> None:
        """Before the client is told, so that who has its answer does not find itself in the metrics."""
        self._jobs.pop(id(job), None)
        for sequence in job.sequences:
            if not sequence.finished:
                sequence.abort()
                self.totals.finished[reason or "abort"] += 1

    def _drop_finished(self) -> None:
        kept = [job for job in self._running if not job.finished]
        if len(kept) < len(self._running):
            self._running = kept
            self.collect()
        if not self._running:
            self._tell_drained()

    def _drop_cancelled(self) -> None:
        for job in [*self._waiting, *self._running]:
            if job.cancelled.is_set():
                self._finish(job)
        self._waiting = collections.deque(job for job in self._waiting if not job.finished)
        self._drop_finished()

    def _abort_all(self) -> None:
        for job in [*self._waiting, *self._running]:
            pieces = [sequence.abort() for sequence in job.sequences if not sequence.finished]
            self.totals.finished["abort"] += len(pieces)
            self._finish(job)
            for piece in pieces:
                job.sink(piece)
        self._waiting.clear()
        self._drop_finished()

    def _tell_drained(self) -> None:
        for future in self._draining:
            with contextlib.suppress(concurrent.futures.InvalidStateError):  # its caller has gone away
                future.set_result(None)
        self._draining.clear()

    def _end(self) -> None:
        self._ended = True
        self._abort_all()

    def _fail(self, reason: str) -> None:
        """The thread dies, and everyone who waits for it is told."""
        self.failure = reason
        for job in list(self._jobs.values()):
            job.sink(internal(f"the engine has failed: {reason}"))
        self._jobs.clear()
        for future in self._draining:
            future.set_exception(internal(f"the engine has failed: {reason}"))
        with contextlib.suppress(queue.Empty):
            while True:
                self._inbox.get_nowait()()
        self.on_failure()


def _adapter_names(jobs: list[Job]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(job.adapter.name for job in jobs if job.adapter is not None))
