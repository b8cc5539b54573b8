"""For orchestrators: which version each server serves, when enough of them serve one, and what to ask them for.

    with holdfast.Served(["http://gpu-1:8600", "http://gpu-2:8600"]) as served:
        served.wait_until_served(version, quorum=0.8)          # or: await served.until_served(version)
        for one in served.now():
            answer = client.post(f"{one.url}/v1/completions", json={"model": one.model, …})
            rollout.version = one.version                      # with a name per version: the one that made it

The sync processes are asked by a thread of its own; nothing here blocks the caller's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import msgspec

from holdfast.core.names import Version, parse_version, require_version
from holdfast.engines.contract import EngineError
from holdfast.engines.http import Http, unexpected
from holdfast.errors import RewoundError, TimedOutError, UsageError

logger = logging.getLogger(__name__)

POLL_S = 0.25


class ServedModel(msgspec.Struct, frozen=True):
    """What one server serves of one channel.

    Attributes:
        url: the inference server.
        adapter: the channel's adapter name.
        model: the name to ask for; None: nothing is served.
        version: the version that answers to that name, proved; None: unknown.
        state: "ready", "updating", "lagging", "quarantined", "gone" or "unknown".
        reason: why, in words.
    """

    url: str
    adapter: str
    model: str | None
    version: Version | None
    state: str
    reason: str


class _Channel(msgspec.Struct):
    adapter: str
    state: str
    reason: str = ""
    version: str | None = None
    model: str | None = None


class _Server(msgspec.Struct):
    url: str
    channels: list[_Channel]


class _Said(msgspec.Struct):
    servers: list[_Server]


class Served:
    """Watches the sync processes at `urls`.

    Args:
        urls: of each sync process's own HTTP.
        adapter: of which channel, where servers have several; None: whatever there is.
        token: what the sync processes want, or None.
        poll_s: time between two looks (seconds).
    """

    def __init__(
        self, urls: Sequence[str], *, adapter: str | None = None, token: str | None = None, poll_s: float = POLL_S
    ) -> None:
        if isinstance(urls, str) or not urls:
            raise UsageError("urls must be a list of addresses", code="bad_url", hint='give ["http://HOST:8600"]')
        self._https = [Http(url, token=lambda: token, timeout_s=5.0) for url in urls]
        self._adapter = adapter
        self._poll_s = poll_s
        self._known: dict[str, tuple[ServedModel, ...]] = {}
        self._changed = threading.Condition()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="holdfast-served", daemon=True)
        self._pool = ThreadPoolExecutor(min(8, len(self._https)), thread_name_prefix="holdfast-served")

    def open(self) -> None:
        """Begin to watch; the first answers come a moment later."""
        if not self._thread.is_alive():
            self._thread.start()

    def close(self) -> None:
        """Stop watching; idempotent."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown()
        for http in self._https:
            http.close()

    def __enter__(self) -> Served:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Served:
        self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def now(self) -> tuple[ServedModel, ...]:
        """What every server serves, as of the last look (at most `poll_s` and an answer ago). Never blocks."""
        with self._changed:
            return tuple(model for _, models in sorted(self._known.items()) for model in models)

    def ready(self) -> tuple[ServedModel, ...]:
        """Those of `now` that can be asked: something is served, under a name."""
        return tuple(one for one in self.now() if one.model is not None and one.version is not None)

    def wait_until_served(
        self, version: Version | str | int, quorum: float | int = 1.0, timeout_s: float | None = None
    ) -> tuple[ServedModel, ...]:
        """Block until enough servers serve `version` or a later one of its lineage; those servers.

        Args:
            version: a version, its name, or a step.
            quorum: how many servers (a whole number), or which share of all (a fraction; 1.0: all).
            timeout_s: how long to wait at most (seconds).

        Raises:
            RewoundError: the trainer went back below it: it will be made anew, or never.
            TimedOutError: code "not_served": what the servers serve instead is in the message.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while True:
                found = self._reached(version, quorum)
                if found is not None:
                    return found
                left_s = None if deadline_s is None else deadline_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    raise self._too_late(version, timeout_s)
                self._changed.wait(left_s)

    async def until_served(
        self, version: Version | str | int, quorum: float | int = 1.0, timeout_s: float | None = None
    ) -> tuple[ServedModel, ...]:
        """As `wait_until_served`, for an event loop, which goes on meanwhile."""
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        entry = (loop, woken)
        with self._changed:
            self._waiting.append(entry)
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while True:
                woken.clear()
                with self._changed:
                    found = self._reached(version, quorum)
                if found is not None:
                    return found
                left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
                try:
                    async with asyncio.timeout(left_s):
                        await woken.wait()
                except TimeoutError:
                    raise self._too_late(version, timeout_s) from None
        finally:
            with self._changed:
                self._waiting.remove(entry)

    # Watching

    def _run(self) -> None:
        while not self._stopping.is_set():
            answers = list(self._pool.map(self._ask, self._https))
            with self._changed:
                before = dict(self._known)
                self._known.update({http.url: said for http, said in zip(self._https, answers, strict=True)})
                if self._known != before:
                    self._changed.notify_all()
                    for loop, woken in self._waiting:
                        _wake(loop, woken.set)
            self._stopping.wait(self._poll_s)

    def _ask(self, http: Http) -> tuple[ServedModel, ...]:
        try:
            answer = http.get("/served")
            if not answer.ok:
                raise unexpected(answer, "asking what is served")
            said = answer.decode(_Said)
        except EngineError as error:
            before = self._known.get(http.url, ())
            return tuple(
                msgspec.structs.replace(one, model=None, version=None, state="unknown", reason=str(error))
                for one in before
            )
        return tuple(
            ServedModel(
                url=server.url,
                adapter=one.adapter,
                model=one.model,
                version=parse_version(one.version) if one.version is not None else None,
                state=one.state,
                reason=one.reason,
            )
            for server in said.servers
            for one in server.channels
            if self._adapter in (None, one.adapter)
        )

    def _reached(self, wanted: Version | str | int, quorum: float | int) -> tuple[ServedModel, ...] | None:
        version = require_version(wanted) if isinstance(wanted, str) else wanted
        models = self.now()
        found = tuple(one for one in models if one.version is not None and _has(one.version, version))
        silent = len(self._known) < len(self._https)
        needed = quorum if isinstance(quorum, int) else math.ceil(quorum * len(models))
        return found if found and not silent and len(found) >= needed else None

    def _too_late(self, version: object, timeout_s: float | None) -> TimedOutError:
        served = "; ".join(f"{one.url}: {one.version or one.state}" for one in self.now()) or "nobody answers"
        return TimedOutError(
            f"{version} was not served within {timeout_s:g} s: {served}",
            code="not_served",
            hint="GET /served of the sync processes tells why",
        )


def _has(serving: Version, wanted: Version | int) -> bool:
    """Whether who serves `serving` has what was `wanted`. RewoundError if it never will."""
    if isinstance(wanted, int):
        return serving.step >= wanted
    if serving.cycle > wanted.cycle and serving.step < wanted.step:
        raise RewoundError(
            f"the trainer went back to {serving}, below {wanted}",
            code="rewound",
            hint="drop what was made with later versions, and wait for a lower one",
            newest=str(serving),
            before=str(wanted),
        )
    return serving >= wanted


def _wake(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:  # the loop has ended, and nobody waits there any more
        logger.debug("a waiting event loop has ended")
